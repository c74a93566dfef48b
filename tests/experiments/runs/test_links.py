"""Links and pipes in a stranger's folder: nothing outside of it is written, moved or removed, and nothing waits."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from steelyard._support import _files
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.cli import main
from steelyard.experiments.active.grid import Grid
from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import execute_active, read_active_run
from steelyard.experiments.errors import RunError, UserError
from steelyard.experiments.runs.demo import demo
from steelyard.experiments.runs.folder import ASIDE, FILES, LOCK, remove_run
from steelyard.experiments.runs.run import execute, read_run
from steelyard.reweight import Reweighting
from studies.priors.cells import collect
from studies.priors.plan import main_cells
from tests.support.ending import Killed
from tests.support.shrunk import short

RECIPE = short("coloured_digits/maple_prior")
FEW = ["schedule.initial=20", "schedule.per_round=5", "schedule.rounds=1", "epochs.epochs=1", "model.hidden=[4]"]
SPLITS = RECIPE.data.load(RECIPE.seed)
ACTIVE = load_active_recipe("digits", FEW)
ACTIVE_FILES = ("config.json", "state.safetensors", "rounds.csv", "environment.json", "checkpoint.safetensors")
OUTSIDE = {"one.txt": "precious", "two.txt": "too", "metrics.jsonl": "a line\n" * 10}


def unfinished(place: Path) -> None:
    """A run that died after its first outer steps."""

    def dies(evaluation: object) -> None:
        if evaluation.visible.step == 2:  # type: ignore[attr-defined]
            raise Killed

    with pytest.raises(Killed):
        execute(RECIPE, place, name="x", checkpoint_every=1, progress=dies)
    (place / LOCK).unlink(missing_ok=True)


def active_unfinished(place: Path) -> None:
    def dies(done: object) -> None:
        raise Killed

    assert ACTIVE.schedule.rounds  # there is a round left
    with pytest.raises(Killed):
        execute_active(ACTIVE, place, name="x", checkpoint_every=1, progress=dies)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    execute(RECIPE, folder / "finished", name="x")
    unfinished(folder / "unfinished")
    execute_active(ACTIVE, folder / "active", name="x")
    active_unfinished(folder / "active_unfinished")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder elsewhere, which must be as it was in the end."""
    place = tmp_path / "outside"
    place.mkdir()
    for name, text in OUTSIDE.items():
        (place / name).write_text(text)
    (place / "linked.bin").write_bytes(b"")
    yield place
    assert {path.name: path.read_text() for path in place.iterdir()} == OUTSIDE | {"linked.bin": ""}


def stranger(run: Path, tmp_path: Path, name: str, target: Path) -> Path:
    """A copy of a run in which `name` is a link, instead of what was there."""
    place = tmp_path / "stranger"
    shutil.copytree(run, place)
    if (place / name).exists():
        (place / name).unlink()
    (place / name).symlink_to(target)
    return place


def carried_out(work: Callable[[], object]) -> bool:
    """Whether `work` ended well; it may only end in an error of ours otherwise."""
    try:
        work()
    except (UserError, CheckpointError):
        return False
    return True


def own_files_only(place: Path) -> None:
    """No link is left in a folder that was written: each was replaced, or the run was refused."""
    assert not [path for path in place.iterdir() if path.is_symlink()]


HOW = ("resume", "overwrite")
NAMES = (*FILES, *ASIDE, LOCK, ".config.json.abc.json", ".metrics.jsonl.x")
LINKS = list(product(("finished", "unfinished"), HOW, NAMES, (".", "one.txt", "metrics.jsonl", "linked.bin")))
ACTIVE_LINKS = list(
    product(("active", "active_unfinished"), HOW, (*ACTIVE_FILES, *ASIDE, LOCK), (".", "one.txt", "linked.bin"))
)
# Those that did most harm: they moved, removed or overwrote what they led to.
WORST = [("unfinished", "resume", ".old.dropped", "."), ("finished", "overwrite", ".old", ".")]
WORST += [("unfinished", "resume", name, "one.txt") for name in (LOCK, "checkpoint.safetensors")]
WORST += [("unfinished", "resume", "metrics.jsonl", "metrics.jsonl")]


def few_of(cases: list[tuple[str, str, str, str]], count: int) -> list[object]:
    """Return a few, drawn once and for all; the rest are `slow`."""
    chosen = random.Random(0).sample(cases, count)
    return [pytest.param(*case, marks=() if case in chosen + WORST else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("begun", "how", "name", "target"), few_of(LINKS, 20))
def test_no_link_in_a_run_is_followed(
    begun: str, how: str, name: str, target: str, runs: dict[str, Path], outside: Path, tmp_path: Path
) -> None:
    place = stranger(runs[begun], tmp_path, name, outside / target)
    options = {"resume": how == "resume", "overwrite": how == "overwrite", "splits": SPLITS}
    done = carried_out(lambda: execute(RECIPE, place, name="x", **options))
    if done and (how == "overwrite" or begun == "unfinished"):
        own_files_only(place)
        assert read_run(place).history
    carried_out(lambda: remove_run(place))


@pytest.mark.parametrize(("begun", "how", "name", "target"), few_of(ACTIVE_LINKS, 12))
def test_no_link_in_a_run_of_active_learning_is_followed(
    begun: str, how: str, name: str, target: str, runs: dict[str, Path], outside: Path, tmp_path: Path
) -> None:
    place = stranger(runs[begun], tmp_path, name, outside / target)
    options = {"resume": how == "resume", "overwrite": how == "overwrite"}
    if carried_out(lambda: execute_active(ACTIVE, place, name="x", **options)) and how == "overwrite":
        own_files_only(place)
        assert read_active_run(place).history


@pytest.mark.parametrize("name", ASIDE)
@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_a_link_in_the_place_of_a_run_set_aside_is_named(
    name: str, how: dict[str, bool], runs: dict[str, Path], outside: Path, tmp_path: Path
) -> None:
    place = stranger(runs["unfinished"], tmp_path, name, outside)
    with pytest.raises(RunError, match=rf"{name} is not a folder that a run was moved into, but a link or a file"):
        execute(RECIPE, place, name="x", **how)


def test_a_link_to_another_run_is_no_run_directory(runs: dict[str, Path], outside: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(runs["finished"], theirs)
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    for place in (tmp_path / "a" / "seed1", tmp_path / "b" / "runs" / "seed1"):
        link = place if place.parent.name == "a" else place.parent
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(theirs if link == place else tmp_path / "holder")
    (tmp_path / "holder").mkdir()
    shutil.copytree(theirs, tmp_path / "holder" / "seed1")
    for option in ({"overwrite": True}, {}):
        with pytest.raises(RunError, match="a/seed1 is a symbolic link; name the folder that it leads to"):
            execute(RECIPE, tmp_path / "a" / "seed1", name="x", **option)
    with pytest.raises(RunError, match="symbolic link"):
        remove_run(tmp_path / "a" / "seed1")
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    # the folder that the user names may be a link of the user's own
    assert execute(RECIPE, tmp_path / "b" / "runs" / "seed1", name="x", resume=True).history


def linked(folder: Path, place: str, outside: Path) -> None:
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).symlink_to(outside)


@pytest.mark.parametrize("above", [0, 1, 2])
def test_no_link_below_a_grid_of_runs_is_followed(above: int, outside: Path, tmp_path: Path) -> None:
    grid = Grid.of("digits", FEW, tmp_path / "runs", selectors=["rand"], seeds=[0])
    place = grid.planned[0].directory.relative_to(tmp_path / "runs")
    linked(tmp_path / "runs", str([place, *place.parents][above]), outside)
    for options in ({"overwrite": True, "resume": False}, {"overwrite": False, "resume": True}):
        with pytest.raises(RunError, match="is a symbolic link"):
            grid.check(**options)


@pytest.mark.parametrize("place", ["coloured_digits", "coloured_digits/erm", "coloured_digits/erm/seed0"])
def test_no_link_below_a_demo_is_followed(place: str, outside: Path, tmp_path: Path) -> None:
    linked(tmp_path / "demo", place, outside)
    (tmp_path / "demo" / "demo.json").write_text('["coloured_digits/erm/seed0"]')
    with pytest.raises(RunError, match="is a symbolic link"):
        demo(tmp_path / "demo", lambda *told: None, ["coloured_digits/erm"], [0])


def test_no_link_below_the_runs_of_priors_is_followed(tmp_path: Path) -> None:
    cell = main_cells([0])[0]
    linked(tmp_path / "runs", str(cell.place.parent), tmp_path / "outside")
    (tmp_path / "outside" / cell.place.name).mkdir(parents=True)
    (tmp_path / "outside" / cell.place.name / "environment.json").write_text("{}")
    with pytest.raises(RunError, match="is a symbolic link"):
        collect([cell], tmp_path / "runs")


def test_a_command_says_it_in_one_line(outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked(tmp_path / "runs", "seed0", outside)
    assert main(["run", "coloured_digits/erm", "--out", str(tmp_path / "runs"), "--seeds", "0", "--overwrite"]) == 2
    assert "seed0 is a symbolic link" in " ".join(capsys.readouterr().err.split())


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: _files.write_text(path, "text"),
    "bytes": lambda path: _files.write_bytes(path, b"bytes"),
    "weights": lambda path: _reweighting().save(path),
    "checkpoint": lambda path: Journal(path).save(),
}


def _reweighting() -> Reweighting:
    import torch

    return Reweighting(torch.ones(2), torch.ones(2), [])


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("previous", [False, True])
def test_a_writer_replaces_a_link(writer: str, previous: bool, outside: Path, tmp_path: Path) -> None:
    name = "run.previous.safetensors" if previous else "run.safetensors"
    (tmp_path / name).symlink_to(outside / "linked.bin")
    (tmp_path / ".run.safetensors.abc.safetensors").symlink_to(outside / "one.txt")
    carried_out(lambda: WRITERS[writer](tmp_path / "run.safetensors"))
    if writer != "checkpoint":  # a journal reads first what is there
        assert (tmp_path / "run.safetensors").is_file()
        assert not (tmp_path / "run.safetensors").is_symlink()


def test_tables_and_plots_replace_links(runs: dict[str, Path], outside: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = ["comparison.md", "comparison.csv", "comparison.tex", "summary.json", "coloured_digits.svg", "report.html"]
    for name in (*names, "coloured_digits_bars.svg"):
        (out / name).symlink_to(outside / "one.txt")
    assert main(["compare", str(runs["finished"]), "--out", str(out)]) == 2
    assert main(["compare", str(runs["finished"]), "--out", str(out), "--overwrite"]) == 0
    assert main(["report", str(runs["finished"]), "--out", str(out / "report.html"), "--overwrite"]) == 0
    own_files_only(out)


def test_a_lock_is_not_made_of_another_file(outside: Path, tmp_path: Path) -> None:
    os.link(outside / "one.txt", tmp_path / LOCK)
    with pytest.raises(OSError, match="not a lock but a file of another kind"), _files.lock(tmp_path / LOCK):
        pass
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).write_text("process 1 on a machine that died\n")
    with _files.lock(tmp_path / LOCK) as ours:
        assert ours()


def test_metrics_are_cut_in_a_file_of_their_own(runs: dict[str, Path], tmp_path: Path) -> None:
    """A backup made of hard links keeps its lines."""
    place = tmp_path / "run"
    shutil.copytree(runs["unfinished"], place)
    with (place / "metrics.jsonl").open("a") as file:
        file.write("half a line")
    before = (place / "metrics.jsonl").read_bytes()
    os.link(place / "metrics.jsonl", tmp_path / "backup.jsonl")
    assert execute(RECIPE, place, name="x", resume=True).history
    assert (tmp_path / "backup.jsonl").read_bytes() == before


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # the name of a socket has 108 letters at most
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")  # which would be read until the memory is full


PIPED = [(begun, name, pipe) for begun in ("finished", "unfinished") for name in (*FILES, LOCK)]
PIPED += [("finished", name, make) for make in (bound_socket, device) for name in ("config.json", "result.parquet")]
PIPED += [("unfinished", name, make) for make in (bound_socket, device) for name in ("metrics.jsonl", LOCK)]


@pytest.mark.parametrize(("begun", "name", "make"), PIPED)
def test_nothing_waits_for_a_pipe(
    make: Callable[[Path], None], name: str, begun: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "stranger"
    shutil.copytree(runs[begun], place)
    (place / name).unlink(missing_ok=True)
    make(place / name)
    for command in ("compare", "report") if make is pipe else ("compare",):
        status = main([command, str(place), "--out", str(tmp_path / command)])
        read = name in ("config.json", "environment.json", "metrics.jsonl")
        read = read or (command == "report" and name in ("result.parquet", "prior.safetensors"))
        assert status == (2 if begun == "unfinished" or read else 0)
    if begun == "unfinished":
        carried_out(lambda: execute(RECIPE, place, name="x", resume=True, splits=SPLITS))


@pytest.mark.parametrize("make", [pipe])
@pytest.mark.parametrize("name", [*ACTIVE_FILES, LOCK])
@pytest.mark.parametrize("begun", ["active", "active_unfinished"])
def test_active_learning_waits_for_no_pipe(
    make: Callable[[Path], None], name: str, begun: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "stranger"
    shutil.copytree(runs[begun], place)
    (place / name).unlink(missing_ok=True)
    make(place / name)
    carried_out(lambda: read_active_run(place))
    carried_out(lambda: execute_active(ACTIVE, place, name="x", resume=True))
