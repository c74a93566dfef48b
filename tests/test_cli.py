"""The command line, end to end on tiny recipes, and its errors: one line, exit status 2, no traceback."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import steelyard
from steelyard.cli import main
from tests.support.layouts import write_compas

TINY = ["--set", "method.training.steps=4", "--set", "model.hidden=[8]"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("STEELYARD_DATA", raising=False)


def test_run_compare_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--seeds", "0", "1"]) == 0
    places = [tmp_path / "runs" / "coloured_digits" / "erm" / f"seed{k}" for k in (0, 1)]
    assert all((place / "environment.json").is_file() for place in places)
    config = json.loads((places[1] / "config.json").read_text())
    assert config["recipe"]["seed"] == 1
    assert config["overrides"] == ["method.training.steps=4", "model.hidden=[8]"]
    capsys.readouterr()
    assert main(["compare", *map(str, places), "--out", "table"]) == 0
    assert "erm" in capsys.readouterr().out
    tables = {"comparison.md", "comparison.csv", "comparison.tex", "summary.json"}
    assert {path.name for path in (tmp_path / "table").iterdir()} == {
        *tables,
        "coloured_digits.svg",
        "coloured_digits_bars.svg",
    }
    assert "erm" in (tmp_path / "table" / "coloured_digits.svg").read_text()
    command = json.loads((tmp_path / "table" / "summary.json").read_text())[0]["command"]
    assert command.startswith("steelyard run coloured_digits/erm --seeds 0 1 --set method.training.steps=4")
    assert main(["report", *map(str, places)]) == 0
    assert "coloured_digits/erm" in (places[0].parent / "report.html").read_text()


def test_compare_by_what_is_known_of_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_compas(tmp_path / "data")
    root = ["--data-root", str(tmp_path / "data"), "--out", "all"]
    assert main(["run", "compas/erm", "compas/upweighting", *TINY, *root]) == 0
    capsys.readouterr()
    places = [f"all/compas/{method}/seed0" for method in ("erm", "upweighting")]
    assert main(["compare", *places, "--groups", "nowhere"]) == 0
    shown = capsys.readouterr().out
    assert "Groups known nowhere" in shown
    assert "Left out, for they read groups or attributes that are not known then: compas/upweighting." in shown.replace(
        "\n", " "
    )
    assert main(["compare", *places, "--groups", "each", "--out", "table"]) == 0
    text = Path("table/known_groups.md").read_text()
    assert [text.count(f"| compas/{method} |") for method in ("erm", "upweighting")] == [3, 1]


def test_the_command_in_a_table_makes_the_run_again(tmp_path: Path) -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--out", "one"]) == 0
    assert main(["compare", "one/seed0", "--out", "table"]) == 0
    command = json.loads(Path("table/summary.json").read_text())[0]["command"]
    assert main([*shlex.split(command)[1:], "--out", "two"]) == 0
    assert Path("one/seed0/metrics.jsonl").read_text() == Path("two/seed0/metrics.jsonl").read_text()


def test_several_recipes_and_one_run_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "coloured_digits/erm", "coloured_digits/vrex", *TINY, "--seeds", "0", "1", "--out", "all"]) == 0
    assert "vrex" in capsys.readouterr().out
    places = [Path("all/coloured_digits") / name / f"seed{k}" for name in ("erm", "vrex") for k in (0, 1)]
    assert all((place / "environment.json").is_file() for place in places)
    (places[2] / "metrics.jsonl").write_text("{")
    more = ["--set", "method.training.steps=6", "--out", "all", "--resume"]
    assert main(["run", "coloured_digits/vrex", "coloured_digits/erm", *TINY, "--seeds", "0", "1", *more]) == 2
    message = capsys.readouterr().err
    assert "4 of 4 runs failed" in message
    assert message.count("\n") == 1
    assert main(["run", "coloured_digits/erm", "coloured_digits/vrex", *TINY, "--out", "all", "--resume"]) == 2
    message = capsys.readouterr().err
    assert "1 of 2 runs failed, the others are finished; coloured_digits/vrex seed 0: all/coloured_digits" in message


def test_variants_of_one_recipe_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--out", "one"]) == 0
    assert main(["run", "coloured_digits/erm", *TINY, "--set", "method.training.l2=9", "--out", "two"]) == 0
    capsys.readouterr()

    def lines() -> list[list[str]]:
        shown = capsys.readouterr().out.replace("†", "").splitlines()
        return [line.split() for line in shown if line.startswith(" erm")]

    assert main(["compare", "one/seed0", "two/seed0"]) == 0
    shown = lines()
    alone = []
    for place in ("one", "two"):
        assert main(["compare", f"{place}/seed0"]) == 0
        alone += lines()
    assert [line[1] for line in shown][1] == "training.l2=9"
    assert [shown[0][1:], shown[1][2:]] == [line[1:] for line in alone]
    assert all(len(line) == 7 for line in alone)  # name, five figures without "± 0.0", seeds


def test_a_diverged_run_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    sgd = "method.training.optimizer={name='sgd', learning_rate=1e30}"
    once = "method.training.steps=1"  # the loss is finite before the first step alone: a second one would stop the run
    assert main(["run", "coloured_digits/erm", *TINY, "--set", sgd, "--set", once]) == 0
    out = capsys.readouterr().out
    assert "‡ coloured_digits/erm: 1 of 1 seed diverged" in " ".join(out.split())


def test_a_narrow_terminal_cuts_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--seeds", "0", "1"]) == 0
    places = ["runs/coloured_digits/erm/seed0", "runs/coloured_digits/erm/seed1"]
    shown = []
    for columns in ("120", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        capsys.readouterr()
        assert main(["compare", *places]) == 0
        shown.append([line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" erm")])
    assert shown[0] == shown[1]
    assert shown[0][0].count("±") == 5


def test_a_run_given_twice_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--out", "one", "--seeds", "0"]) == 0
    capsys.readouterr()
    assert main(["compare", "one/seed0", "one/../one/seed0"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" erm")]
    assert [line[-1] for line in shown] == ["1"]


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    text = 'data = {name = "coloured_digits"}\nmodel = {name = "logistic"}\nseed = 5\n'
    Path("mine.toml").write_text(text + 'method = {name = "erm", training = {steps = 3}}\n')
    assert main(["run", "mine.toml"]) == 0
    assert Path("runs/mine/seed5/config.json").is_file()


def test_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.cli.runs.DEMO", ("coloured_digits/erm",))
    for _ in range(2):  # the second replaces the first
        assert main(["demo", "--seeds", "0"]) == 0
        assert "report.html" in capsys.readouterr().out
    assert Path("runs/demo/report.html").is_file()
    assert Path("runs/demo/summary.json").is_file()


def test_demo_removes_its_own_earlier_runs_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.cli.runs.DEMO", ("coloured_digits/erm",))
    assert main(["run", "coloured_digits/erm", *TINY, "--seeds", "7"]) == 0
    assert main(["demo", "--seeds", "0", "--out", "runs"]) == 0
    assert main(["demo", "--seeds", "1", "--out", "runs"]) == 0
    assert {path.name for path in Path("runs/coloured_digits/erm").iterdir()} == {"seed1", "seed7"}
    Path("runs/demo.json").write_text('["../elsewhere"]')
    assert main(["demo", "--seeds", "1", "--out", "runs"]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steelyard {steelyard.__version__}\n"


def test_a_folder_of_runs_is_told_from_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "coloured_digits/erm", *TINY]) == 0
    capsys.readouterr()
    for folder in ("runs/coloured_digits/erm", "runs/coloured_digits"):
        assert main(["compare", folder]) == 2
        assert "runs lie in runs/coloured_digits/erm/seed0" in capsys.readouterr().err


def test_a_failing_overwrite_leaves_the_earlier_run() -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--out", "r"]) == 0
    before = Path("r/seed0/metrics.jsonl").read_text()
    assert main(["run", "colored_mnist/erm", "--out", "r", "--overwrite", "--data-root", "nowhere"]) == 2
    assert Path("r/seed0/metrics.jsonl").read_text() == before
    assert main(["run", "coloured_digits/oracle", *TINY, "--out", "r", "--overwrite"]) == 0
    assert Path("r/seed0/metrics.jsonl").read_text() != before


def test_threads_and_seeds_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.cli.runs.DEMO", ("coloured_digits/erm",))
    before = torch.get_num_threads()
    assert main(["demo", "--seeds", "0", "--threads", "0"]) == 0
    assert torch.get_num_threads() == before
    assert json.loads(Path("runs/demo/summary.json").read_text())[0]["seeds"] == [0]
    assert main(["run", "coloured_digits/erm", *TINY, "--seeds", str(2**63 - 1)]) == 0


def test_names_that_look_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    method = 'method = {name = "erm", training = {steps = 3}}'
    Path("[bold]x.toml").write_text(f'data = {{name = "coloured_digits"}}\nmodel = {{name = "logistic"}}\n{method}\n')
    assert main(["run", "[bold]x.toml"]) == 0
    assert "[bold]x" in capsys.readouterr().out


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "coloured_digits/maple" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "coloured_digits/mapel"], "did you mean 'coloured_digits/maple'"),
        (["run", "coloured_digits/erm", "--set", "model.hiden=[3]"], "did you mean 'hidden'"),
        (["run", "colored_mnist/erm"], "needs a data root"),
        (["run", "colored_mnist/erm", "--data-root", "nowhere"], "MNIST is not under nowhere"),
        (["run", "coloured_digits/erm", "--out", "full"], "not empty"),
        (["run", "coloured_digits/erm", "--out", "full", "--overwrite"], "more than a run (mine)"),
        (["run", "coloured_digits/maple", "--set", "method.budget=2000"], "coloured_digits/maple, seed 0: "),
        (["run", "coloured_digits/maple", "--set", "method.inner.steps=0"], "method.inner: steps must be >= 1"),
        (["run", "coloured_digits/irmv1", "--set", "data.train_flips=[0.1]"], "coloured_digits/irmv1, seed 0: "),
        (["run", "coloured_digits/maple", "--set", "data.train_flips=[0.1]"], "coloured_digits/maple, seed 0: "),
        (["run", "coloured_digits/erm", "--set", "data.validation_share=0.0001"], "validation split has no samples"),
        (["run", "coloured_digits/erm", "--set", "data.validation_share=0.001"], "no sample of the environment"),
        (["run", "coloured_digits/erm", "--set", "data.test_share=0.0001"], "the test split has no samples"),
        (["run", "coloured_digits/erm", "--set", "device=foo"], "device must be a torch device"),
        (["run", "coloured_digits/erm", "--set", "device=xpu:7"], "device 'xpu:7' cannot be used here"),
        (["run", "coloured_digits/erm", "--threads", "-1"], "--threads must be 0"),
        (["demo", "--threads", "-1"], "--threads must be 0"),
        (["run", "coloured_digits/erm", "--threads", "3000000000"], "to 1024, got 3000000000"),
        (["run", "coloured_digits/erm", "--checkpoint-every", "0"], "--checkpoint-every must be at least 1"),
        (["run", "coloured_digits/erm", "--jobs", "0"], "--jobs must be 1 to 1024, got 0"),
        (["run", "coloured_digits/erm", "coloured_digits/erm"], "two runs would go to runs/coloured_digits/erm/seed0"),
        (["run", "digits"], "'digits' is a recipe for another command: steelyard active digits"),
        (["run", "coloured_digits/erm", "--set", "method=3"], "method must be a table of fields with a `name` among"),
        (["run", "coloured_digits/erm", "--set", "method={}"], "method has no field 'name'; it needs a `name` among"),
        (["run", "coloured_digits/erm", "--set", "method.name=3"], "method.name must be one of"),
        (["run", "re\udcff.toml"], r"the file's name 're\udcff.toml' is not UTF-8"),
        (["run", "coloured_digits/erm", "--set", "device=\udcff"], r"--set 'device=\udcff' is not UTF-8"),
        (["bounds", "--losses", "l.npy", "--loss-range", "1", "--seed", "-1"], "--seed must be in [0, 9223372036854"),
        (["bounds", "--seed", "99999999999999999999"], "got 99999999999999999999"),
        (["bounds", "--losses", "l.npy", "--loss-range", "1", "--out", "/proc/x"], "--out /proc/x cannot be written"),
        (["bounds"], "the checks of the bound are a study now: python -m studies.theorem1"),
        (["bounds", "--quick"], "bounds is a study now, beside the package in its repository: python -m studies.theor"),
        (["disagreement"], "disagreement is a study now, beside the package in its repository: python -m studies.dr_"),
        (["robust", "--seeds", "0"], "robust is a study now, beside the package in its repository: python -m studies"),
        (["priors", "--parts", "main"], "priors is a study now, beside the package in its repository: python -m stud"),
        (["report", "done/seed0", "--data-root", "nope"], "--data-root nope is not a folder"),
        (["demo", "--seeds"], "--seeds needs at least one seed"),
        (["run", "coloured_digits/erm", "--seeds", str(2**63)], "--seeds must be in [0, 9223372036854775807]"),
        (["run", "coloured_digits/erm", "--seeds", "0", "1", "0"], "--seeds names 0 twice; name each seed once"),
        (["demo", "--seeds", "3", "3"], "--seeds names 3 twice"),
        (["active", "digits", "--seeds", "0", "0"], "--seeds names 0 twice"),
        (["tune", "coloured_digits/erm", "--seeds", "1", "1"], "--seeds names 1 twice"),
        (["weigh", "full", "--target", "y", "--seeds", "0", "0"], "--seeds names 0 twice"),
        (["run", "coloured_digits/erm", *TINY, "--out", "/proc/x"], "/proc/x"),
        (["demo", "--out", "/proc/x"], "/proc/x"),
        (["compare", "done/seed0", "--out", "/proc/x"], "/proc/x"),
        (["compare", "done/seed0", "--groups", "each"], "done/seed0 has no accuracies of groups on validation"),
        (["report", "done/seed0", "--out", "/proc/x/page.html"], "/proc/x"),
        (["compare", "nowhere"], "not a run directory"),
        (["compare"], "at least one run"),
        (["report", "full"], "not a run directory"),
    ],
)
def test_user_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full/seed0").mkdir(parents=True)
    Path("full/seed0/mine").write_text("x")
    if any(argument.startswith("done") for argument in arguments):
        assert main(["run", "coloured_digits/erm", *TINY, "--out", "done"]) == 0
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("steelyard: error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "coloured_digits/erm", "--sed", "1"]])
def test_unknown_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        ([], "steelyard demo"),
        (["demo"], "Example: steelyard demo"),
        (["run"], "steelyard run coloured_digits/maple --seeds 0 1 2"),
        (["compare"], "Example: steelyard compare"),
        (["report"], "Example: steelyard report"),
    ],
)
def test_help_has_examples(arguments: list[str], example: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    assert example in capsys.readouterr().out


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steelyard.experiments.runs.jobs.execute", stop)
    assert main(["run", "coloured_digits/erm"]) == 130


ASCII_WORDS = """
from steelyard.cli import main

def status(*arguments):
    try:
        return main(["compare", *arguments])
    except SystemExit as ended:
        return ended.code

print("statuses", status("two/seed0", "two/seed1"), status("--help"), status("n\\u00f6"))
"""


def test_words_that_the_terminal_cannot_show() -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--seeds", "0", "1", "--out", "two"]) == 0
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", ASCII_WORDS], capture_output=True, check=False, env=ascii_only)
    assert b"Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert done.stdout.endswith(b"statuses 0 0 2\n"), done.stderr


@pytest.mark.parametrize(
    "arguments", [["compare", "one/seed0", "--out", "table"], ["report", "one/seed0", "--out", "table/comparison.md"]]
)
def test_a_file_that_cannot_be_written_is_named_not_its_temporary_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "coloured_digits/erm", *TINY, "--out", "one"]) == 0
    Path("table/comparison.md").mkdir(parents=True)
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("steelyard: error: table/comparison.md: Is a directory; make room, or name another place")


def test_python_m_steelyard() -> None:
    done = subprocess.run([sys.executable, "-m", "steelyard", "recipes"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "coloured_digits/erm" in done.stdout


def test_bounds_of_a_loss_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy.save(tmp_path / "losses.npy", numpy.random.default_rng(0).random((3, 40)))
    arguments = ["--losses", str(tmp_path / "losses.npy"), "--s", "8", "--q", "2", "--loss-range", "1.0"]
    assert main(["bounds", *arguments, "--draws", "50", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "terms.csv").is_file()
    out = capsys.readouterr().out
    assert "Written" in out
    assert "mean loss" in out
    assert out.count("says nothing, since") == 3


def test_bounds_call_nothing_a_certificate_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy.save(tmp_path / "losses.npy", numpy.zeros((30, 4000)))
    arguments = ["bounds", "--losses", str(tmp_path / "losses.npy"), "--loss-range", "1", "--s", "4", "--q", "4"]
    arguments += ["--draws", "5", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "True" not in out
    assert out.count("were fixed before the data (which was not said: no certificate)") == 20
    assert "Of 30 hypotheses those with the lowest bounds; all are in summary.csv" in out
    assert main([*arguments, "--fixed-before-data", "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "False" not in out
    assert "Hypothesis 0: risk at most 0.0" in out


def test_bounds_say_that_a_matrix_may_be_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy.save(tmp_path / "losses.npy", numpy.random.default_rng(0).random((40, 3)))
    arguments = [
        "bounds",
        "--losses",
        str(tmp_path / "losses.npy"),
        "--loss-range",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "give --transpose" in capsys.readouterr().err
    assert main([*arguments, "--transpose"]) == 0
    assert "Hypothesis 2:" in capsys.readouterr().out


def test_bounds_of_a_loss_matrix_leave_the_committed_tables_alone(capsys: pytest.CaptureFixture[str]) -> None:
    numpy.save("losses.npy", numpy.random.default_rng(0).random((3, 40)))
    assert main(["bounds", "--losses", "losses.npy", "--loss-range", "1"]) == 0
    assert "Written: runs/bounds/losses" in capsys.readouterr().out
    assert Path("runs/bounds/losses/terms.csv").is_file()
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--clean", "x.npy"), ("--loss-range", "1"), ("--s", "8"), ("--q", "2"), ("--delta", "0.1"), ("--draws", "9")],
)
def test_bounds_options_that_need_losses(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bounds", option, value]) == 2
    assert f"{option} is about a loss matrix: give --losses" in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize("flag", ["--transpose", "--fixed-before-data"])
def test_bounds_flags_that_need_losses(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bounds", flag]) == 2
    assert f"{flag} is about a loss matrix: give --losses" in capsys.readouterr().err


def test_bounds_names_the_condition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy.save(tmp_path / "losses.npy", numpy.random.default_rng(0).random((3, 40)))
    arguments = ["--losses", str(tmp_path / "losses.npy"), "--s", "2", "--q", "8", "--loss-range", "1.0"]
    assert main(["bounds", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "q" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
