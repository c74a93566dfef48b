"""The benchmark of priors: its plan, resuming, its figures by hand, its tables and files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from steelyard.experiments.errors import RecipeError, RunError
from steelyard.experiments.runs.folder import CONFIG, ENVIRONMENT
from steelyard.experiments.runs.run import read_run
from studies.priors import study
from studies.priors.__main__ import main
from studies.priors.cells import carry_out, collect
from studies.priors.plan import METHODS, ablation_cells, main_cells, mnist_cells, noise_cells
from studies.priors.separation import area
from studies.priors.study import priors
from studies.priors.tables import grouped, markdown, paired, summary, with_common_level

TINY = {
    "maple": ("method.steps=3", "method.inner.steps=3", "method.folds=2", "model.hidden=[4]"),
    "subset": ("method.training.steps=6", "method.training.evaluate_every=3", "model.hidden=[4]"),
    "erm": ("method.training.steps=6", "method.training.evaluate_every=3", "model.hidden=[4]"),
}
NAMES = ("ERM", "LHD alone", "MAPLE", "MAPLE + both")


def tiny(cell):  # type: ignore[no-untyped-def]
    return replace(cell, overrides=(*cell.overrides, *TINY[cell.recipe.split("/")[1]]))


CELLS = [tiny(cell) for cell in main_cells((1, 2), (("adversarial", 0.2),), NAMES)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pandas.DataFrame]:
    runs = tmp_path_factory.mktemp("runs")
    return runs, carry_out(CELLS, runs)


def test_every_cell_has_a_recipe_and_a_place_of_its_own() -> None:
    cells = {cell.place: cell for cell in [*main_cells((5, 6)), *noise_cells((5,)), *ablation_cells((5,))]}
    together = [*main_cells((5, 6)), *noise_cells((5,)), *ablation_cells((5,))]
    for cell in together:
        assert cell.load() == cells[cell.place].load()  # one place, one recipe: what two parts share is run once
        assert cell.load().data.corruption.share == cell.share
        assert cell.load().data.label_noise == cell.noise
    assert len(main_cells((5, 6))) == 2 * 10 * len(METHODS)
    mnist = {cell.place: cell.load() for cell in mnist_cells((5, 6))}
    assert len(mnist) == 3 * (8 + 4)  # the methods beside MAPLE on the first seed only
    assert not set(mnist) & set(cells)
    assert {recipe.data.name for recipe in mnist.values()} == {"colored_mnist"}


def test_cells_that_are_there_are_read_and_a_cut_run_is_done_again(done: tuple, tmp_path: Path) -> None:
    runs, first = done
    copy = shutil.copytree(runs, tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("metrics.jsonl")}
    cut = CELLS[-1]
    (copy / cut.place / ENVIRONMENT).unlink()
    assert len(collect(CELLS, copy)) == len(CELLS) - 1
    seen: list[object] = []
    second = carry_out(CELLS, copy, seen.append)
    assert seen == CELLS
    pandas.testing.assert_frame_equal(first, second)  # the seed decides
    again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert again == {copy / cut.place / "metrics.jsonl"}


def test_a_finished_run_of_an_earlier_version_had_the_defaults_of_later_fields(done: tuple, tmp_path: Path) -> None:
    runs, first = done
    copy = shutil.copytree(runs, tmp_path / "runs")
    place = copy / CELLS[0].place
    config = json.loads((place / CONFIG).read_text())
    assert config["recipe"]["method"]["training"].pop("bfloat16") is False
    (place / CONFIG).write_text(json.dumps(config))
    pandas.testing.assert_frame_equal(first, carry_out(CELLS, copy))
    (place / ENVIRONMENT).unlink()  # but an unfinished one would resume with other code
    with pytest.raises(RunError, match="method.training.bfloat16 is None there and False here"):
        carry_out(CELLS, copy)


def test_a_run_of_other_settings_is_refused(done: tuple) -> None:
    runs, _ = done
    other = replace(CELLS[0], overrides=(*CELLS[0].overrides, "method.training.l2=0.5"))
    with pytest.raises(RunError, match="holds a run of another recipe"):
        carry_out([other], runs)


def balanced(run) -> float:  # type: ignore[no-untyped-def]
    """Mean accuracy of the saved net, by hand, over test images of the label's colour and of the other one."""
    parameters = load_file(run.directory / "model.safetensors")
    test = run.recipe.data.load(run.recipe.seed).test
    hidden = (test.inputs.flatten(1) @ parameters["1.weight"].T + parameters["1.bias"]).clamp(min=0)
    right = (hidden @ parameters["3.weight"].T + parameters["3.bias"] > 0)[:, 0].long() == test.targets
    colour = test.inputs.flatten(2).amax(2).argmax(1)
    parts = [right[colour == test.targets], right[colour != test.targets]]
    return sum(float(part.double().mean()) for part in parts) / 2


def test_figures_are_those_of_the_run(done: tuple) -> None:
    runs, table = done
    for cell, row in zip(CELLS, table.to_dict("records"), strict=True):
        run = read_run(runs / cell.place)
        assert row["test_last"] == run.history[-1].test.accuracy
        assert row["test_balanced"] == pytest.approx(balanced(run))
        assert (row["method"], row["seed"], row["share"]) == (cell.method, cell.seed, 0.2)
        if run.samples is None:
            assert pandas.isna(row["aligned"])
            assert pandas.isna(row["steps_95"])
        else:
            kept = run.samples["weight"] * run.samples["probability"]
            for name, fact in (("aligned", "colour_agrees"), ("wrong", "label_flipped"), ("corrupted", None)):
                fact = fact or "label_corrupted"
                assert row[name] == pytest.approx(np.average(run.samples[fact], weights=kept))
        if cell.method.startswith("MAPLE"):
            tests = [evaluation.test.accuracy for evaluation in run.history]
            assert row["curve"] == tuple(tests)
            assert row["steps_95"] == 1 + int(np.argmax(np.array(tests) >= 0.95 * tests[-1]))
    alone = table[table["method"] == "LHD alone"].iloc[0]
    chosen = read_run(runs / CELLS[2].place).samples
    assert int(chosen["probability"].sum()) == 324
    assert alone["corrupted"] == pytest.approx(chosen.loc[chosen["probability"] == 1, "label_corrupted"].mean())


def frame() -> pandas.DataFrame:
    rows = [
        ("MAPLE", 1, 0.50, (0.2, 0.48, 0.5), 0.3),
        ("MAPLE", 2, 0.60, (0.1, 0.3, 0.6), 0.4),
        ("MAPLE + x", 1, 0.70, (0.475, 0.6, 0.7), 0.1),
        ("MAPLE + x", 2, 0.40, (0.2, 0.3, 0.4), 0.2),
        ("ERM", 1, 0.10, (), None),
    ]
    columns = ["method", "seed", "test_last", "curve", "corrupted"]
    shared = {"kind": "uniform", "share": 0.2, "noise": 0.25, "recipe": "r"}
    return pandas.DataFrame(rows, columns=columns).assign(**shared)


def test_steps_to_the_level_of_plain_maple() -> None:
    found = with_common_level(frame())["steps_common"]
    assert found[:3].tolist() == [2, 3, 1]  # 0.95 x 0.5 = 0.475, reached with equality by the third
    assert found[3:].isna().all()
    assert with_common_level(frame().iloc[2:])["steps_common"].isna().all()  # without its twin there is no level


def test_mean_and_spread() -> None:
    keys = ("kind", "share", "method")
    table = grouped(with_common_level(frame()), keys)
    assert table["method"].tolist() == ["MAPLE", "MAPLE + x", "ERM"]
    first = table.iloc[0]
    assert first["test_last_mean"] == pytest.approx(0.55)
    assert first["test_last_std"] == pytest.approx(np.std([0.5, 0.6], ddof=1))
    text = markdown(table, keys)
    assert "| uniform | 0.2 | MAPLE | 55.0 ± 7.1 | 35.0 ± 7.1 | 2.5 ± 0.7 | 2 |" in text
    assert "| 1.0 (1 of 2) | 2 |" in text  # one of the two seeds never gets there, and the table says so
    assert "| uniform | 0.2 | ERM | 10.0 |  |  | 1 |" in text
    rows = summary(table, keys, "command")
    assert {"mean": 0.55, "std": 0.070711, "metric": "test_last", "seeds": [1, 2]}.items() <= rows[0].items()
    assert rows[0]["method"] == "uniform, share 0.2, MAPLE"
    assert [row["metric"] for row in rows if row["method"].endswith("ERM")] == ["test_last"]


def test_what_a_prior_changes_seed_by_seed() -> None:
    rows = [("MAPLE", 1, 0.5, 0.30), ("MAPLE", 2, 0.6, 0.40), ("MAPLE + x", 1, 0.7, 0.25), ("MAPLE + x", 2, 0.5, 0.20)]
    cells = pandas.DataFrame(rows, columns=["method", "seed", "test_last", "wrong"])
    cells = cells.assign(kind="uniform", share=0.2, noise=0.25, test_selected=cells["test_last"], test_balanced=0.5)
    last = paired(cells).splitlines()[-1]
    change = f"+5.0 ± {np.std([20, -10], ddof=1):.1f} (1 of 2)"
    wrong = f"-12.5 ± {np.std([-5, -20], ddof=1):.1f} (0 of 2)"
    assert last == f"| uniform | 0.2 | MAPLE + x | {change} | {change} | +0.0 ± 0.0 (0 of 2) | {wrong} |"


def test_area_is_the_auc() -> None:
    g = torch.Generator().manual_seed(0)
    values, members = torch.randint(6, (80,), generator=g).double(), torch.rand(80, generator=g) < 0.3
    assert area(values, members) == pytest.approx(roc_auc_score(members.numpy(), values.numpy()))


def test_the_files(done: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = done
    monkeypatch.setattr(study, "main_cells", lambda seeds: CELLS)
    tables = priors(tmp_path, runs, parts=("main",), seeds=(1, 2))
    assert list(tables) == ["main"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("main.csv", "main.md", "main.svg", "main_paired.md", "main_runs.csv", "steps.svg", "summary.json")
    ]
    columns = {"recipe", "dataset", "method", "metric", "selection", "mean", "std", "seeds", "command"}
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert all(set(row) == columns for row in rows)
    for method in NAMES:
        assert f"| adversarial | 0.2 | {method} |" in (tmp_path / "main.md").read_text()
        assert method in (tmp_path / "main.svg").read_text()
    assert "no corruption" in (tmp_path / "steps.svg").read_text()
    with pytest.raises(RecipeError, match="parts must be among main"):
        priors(tmp_path, runs, parts=("mine",))


def test_parts_not_remade_keep_their_rows(done: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = done
    monkeypatch.setattr(study, "main_cells", lambda seeds: CELLS)
    path = tmp_path / "summary.json"
    old = [
        {"method": part, "command": f"python -m studies.priors --out x --parts {part}"} for part in ("main", "noise")
    ]
    path.write_text(json.dumps(old))
    priors(tmp_path, runs, parts=(), seeds=(1, 2), complete=False)
    rows = json.loads(path.read_text())
    assert rows[-1] == old[1]
    assert len(rows) > 2
    assert {row["command"].rpartition(" ")[2] for row in rows[:-1]} == {"main"}
    assert old[0] not in rows
    path.write_text("{")
    with pytest.raises(RunError, match=r"summary\.json is not an earlier summary.*another --out"):
        priors(tmp_path, runs, parts=(), seeds=(1, 2), complete=False)


@pytest.mark.parametrize("arguments", [["--tabulate"], ["--parts"]])
def test_no_runs_to_tabulate_write_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "summary.json"
    path.write_text("[]")
    assert main([*arguments, "--out", str(tmp_path), "--runs", str(tmp_path / "none")]) == 2
    assert f"no runs under {tmp_path}/none that are complete; --runs" in " ".join(capsys.readouterr().err.split())
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_text() == "[]"


def test_the_command_tabulates_what_is_there(done: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = done
    monkeypatch.setattr(study, "main_cells", lambda seeds: CELLS)
    arguments = ["--tabulate", "--parts", "main", "--out", str(tmp_path), "--runs", str(runs)]
    assert main(arguments) == 0
    assert (tmp_path / "main.md").is_file()
    assert main(["--parts", "x", "--out", str(tmp_path), "--runs", str(runs)]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "-1"], "--seeds must be in"),
        (["--out", "/proc/x"], "--out /proc/x cannot be written"),
    ],
)
def test_user_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
