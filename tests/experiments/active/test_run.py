"""Runs: killed and resumed, refused where they would do harm, read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard.checkpoint import Stopped
from steelyard.experiments.active import run as run_module
from steelyard.experiments.active.finetuning import FineTuning
from steelyard.experiments.active.fitting import Epochs
from steelyard.experiments.active.images import Digits
from steelyard.experiments.active.loop import Round, Schedule
from steelyard.experiments.active.noise import NoisyBlank, NoisyClass
from steelyard.experiments.active.recipe import ActiveRecipe
from steelyard.experiments.active.run import ActiveRun, data_of, execute_active, read_active_run
from steelyard.experiments.errors import RunError
from steelyard.experiments.models import MLP
from steelyard.experiments.training.adversarial import PGD
from tests.support.ending import Killed, lasting

FEW = Epochs(epochs=2, batch_size=32, learning_rate=1e-2)
RECIPE = ActiveRecipe(
    data=Digits(samples=60),
    model=MLP(hidden=(12,), head="softmax"),
    noise=NoisyBlank(0.5),
    selector="lhd",
    schedule=Schedule(initial=20, per_round=10, rounds=3),
    epochs=FEW,
    dropout=0.2,
)
VARIANTS = {
    "scratch": RECIPE,
    "warm": replace(RECIPE, start="warm", selector="bald"),
    "tuned": replace(RECIPE, fine_tune=True, fine_tuning=FineTuning(confidence=0.0, samples=16, epochs=FEW)),
}


def execute(recipe: ActiveRecipe, place: Path, **options: object) -> ActiveRun:
    return execute_active(recipe, place, name="digits", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("killed_after", [0, 2])
def test_a_run_that_was_killed_goes_on_to_the_same_result(tmp_path: Path, variant: str, killed_after: int) -> None:
    recipe = VARIANTS[variant]
    splits = data_of(recipe)
    whole = execute(recipe, tmp_path / "whole", splits=splits)

    def kill(done: Round) -> None:
        if done.number == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(recipe, tmp_path / "killed", progress=kill)
    with pytest.raises(RunError, match=r"did not finish.*--resume"):
        read_active_run(tmp_path / "killed")
    torch.manual_seed(99)
    rounds: list[int] = []
    resumed = execute(recipe, tmp_path / "killed", resume=True, progress=lambda done: rounds.append(done.number))
    assert rounds == list(range(killed_after + 1, 4))
    assert [lasting(row) for row in resumed.history] == [lasting(row) for row in whole.history]
    assert all(torch.equal(a, b) for a, b in zip(resumed.picked, whole.picked, strict=True))
    assert all(torch.equal(resumed.model[name], value) for name, value in whole.model.items())


def stopping_at(count: int, how: type[BaseException] | None) -> Callable[[], int]:
    """A `stop` that at its `count`-th question raises `how`, or asks to stop."""
    asked = 0

    def stop() -> int:
        nonlocal asked
        asked += 1
        if asked == count and how is not None:
            raise how
        return 15 if asked >= count else 0

    return stop


@pytest.mark.parametrize("how", [None, Killed], ids=["asked", "killed"])
@pytest.mark.parametrize("variant", [*VARIANTS, "attacked"])
def test_a_run_that_ends_within_a_round_goes_on_to_the_same_result(
    tmp_path: Path, variant: str, how: type[BaseException] | None
) -> None:
    attacked = replace(RECIPE, attack=PGD(epsilon=0.1, step=0.1, steps=1))
    recipe = replace({**VARIANTS, "attacked": attacked}[variant], schedule=Schedule(20, 10, 1))
    splits = data_of(recipe)
    questions = 0

    def counting() -> int:
        nonlocal questions
        questions += 1
        return 0

    whole = execute(recipe, tmp_path / "whole", splits=splits, stop=counting)
    trainings = 6 if recipe.fine_tune else 2  # of each round: the labelled samples, fine-tuning, the labelled again
    assert questions == trainings * (FEW.epochs + 1)  # before a training, and after each of its epochs
    for count in range(1, questions + 1):
        place = tmp_path / f"stopped{count}"
        with pytest.raises(how or Stopped):
            execute(recipe, place, splits=splits, checkpoint_every=1, stop=stopping_at(count, how))
        torch.manual_seed(99)
        before, questions = questions, 0
        resumed = execute(recipe, place, splits=splits, resume=True, stop=counting)
        assert questions < before or count <= 2  # what was saved is not done again
        questions = before
        assert [lasting(row) for row in resumed.history] == [lasting(row) for row in whole.history]
        assert all(torch.equal(resumed.model[name], value) for name, value in whole.model.items())
        assert {path.name for path in place.iterdir()} == {path.name for path in whole.directory.iterdir()}


def test_a_checkpoint_of_a_round_that_is_done_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = execute(RECIPE, tmp_path / "whole")
    with monkeypatch.context() as patch:  # a crash between the round's end and the removal of its checkpoint
        patch.setattr(run_module, "remove_traces", _die)
        with pytest.raises(Killed):
            execute(RECIPE, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint.safetensors").is_file()
    resumed = execute(RECIPE, tmp_path / "killed", resume=True)
    assert [lasting(row) for row in resumed.history] == [lasting(row) for row in whole.history]


def _die(directory: Path) -> None:
    raise Killed


def test_a_training_that_fails_leaves_its_state_and_says_where(tmp_path: Path) -> None:
    broken = replace(RECIPE, epochs=replace(FEW, learning_rate=1e38))
    with pytest.raises(RunError, match=r"seed 0: step .*the state before that step is in .*checkpoint\.failed"):
        execute(broken, tmp_path / "run")


def test_a_shared_first_round_changes_nothing(tmp_path: Path) -> None:
    alone = execute(replace(RECIPE, selector="conf"), tmp_path / "alone")
    shared: dict = {}
    execute(RECIPE, tmp_path / "first", shared=shared)
    assert len(shared) == 1
    second = execute(replace(RECIPE, selector="conf"), tmp_path / "second", shared=shared)
    assert len(shared) == 1
    assert [lasting(row) for row in second.history] == [lasting(row) for row in alone.history]
    execute(replace(RECIPE, noise=NoisyClass(0.5)), tmp_path / "other", shared=shared)
    assert len(shared) == 2


def test_what_a_run_writes(tmp_path: Path) -> None:
    run = execute(RECIPE, tmp_path / "run", overrides=("selector=lhd",))
    again = read_active_run(tmp_path / "run")
    assert (again.recipe, again.name, again.overrides) == (RECIPE, "digits", ("selector=lhd",))
    assert {path.name for path in run.directory.iterdir()} == {
        *("config.json", "environment.json", "rounds.csv", "state.safetensors"),
    }
    header, *rows = (run.directory / "rounds.csv").read_text().splitlines()
    assert header.startswith("round,labelled,clean_share")
    assert [row.split(",")[:2] for row in rows] == [["0", "20"], ["1", "30"], ["2", "40"], ["3", "50"]]
    finished = execute(
        RECIPE, tmp_path / "run", resume=True, progress=lambda done: pytest.fail("nothing is left to do")
    )
    assert [lasting(row) for row in finished.history] == [lasting(row) for row in run.history]


def test_a_run_does_not_overwrite_what_it_was_not_told_to(tmp_path: Path) -> None:
    place = tmp_path / "run"
    execute(RECIPE, place)
    with pytest.raises(RunError, match=r"not empty.*--resume.*--overwrite"):
        execute(RECIPE, place)
    with pytest.raises(RunError, match=r"another recipe: dropout is 0.2 there and 0.3 here"):
        execute(replace(RECIPE, dropout=0.3), place, resume=True)
    with pytest.raises(RunError, match="exclude"):
        execute(RECIPE, place, resume=True, overwrite=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes\.txt"):
        execute(RECIPE, place, overwrite=True)
    (place / "notes.txt").unlink()
    execute(replace(RECIPE, dropout=0.3), place, overwrite=True)
    assert read_active_run(place).recipe.dropout == 0.3


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    place = tmp_path / "run"

    def second(done: Round) -> None:
        with pytest.raises(RunError, match="wait for it"):
            execute(RECIPE, place, resume=True)

    execute(replace(RECIPE, schedule=Schedule(20, 10, 1)), place, progress=second)


def test_a_damaged_state_is_named_and_left(tmp_path: Path) -> None:
    place = tmp_path / "run"
    execute(RECIPE, place)
    (place / "environment.json").unlink()
    state = place / "state.safetensors"
    whole = state.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no safetensors at all"):
        state.write_bytes(damaged)
        with pytest.raises(RunError, match=r"state\.safetensors is not a whole state"):
            execute(RECIPE, place, resume=True)
        assert state.read_bytes() == damaged


def test_a_state_of_other_ids_or_another_net_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    place = tmp_path / "run"
    execute(RECIPE, place)
    (place / "environment.json").unlink()
    state = place / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wrong = {"picked.0001": torch.full((10,), 10**6), "model.1.weight": torch.zeros(3, 3)}
    for name, value in wrong.items():
        save_file({**tensors, name: value}, state, metadata)
        with pytest.raises(RunError, match="ids picked are not" if "picked" in name else "another net"):
            execute(RECIPE, place, resume=True)
    changed = json.loads(metadata["recipe"]) | {"seed": 5}
    save_file(tensors, state, {**metadata, "recipe": json.dumps(changed)})
    with pytest.raises(RunError, match="another recipe"):
        execute(RECIPE, place, resume=True)


def test_settings_that_do_not_fit_the_data_name_recipe_and_seed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"digits, seed 0: the schedule labels 1020 samples, the pool has 120"):
        execute(replace(RECIPE, schedule=Schedule(20, 100, 10)), tmp_path / "run")
    with pytest.raises(RunError, match="cannot be used here"):
        execute(replace(RECIPE, device="cuda:7"), tmp_path / "gpu")
