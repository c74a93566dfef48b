"""Runs of active learning: carry out a recipe into a directory, resume one that was interrupted, read one back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steelyard import selectors
from steelyard._support._files import write_text
from steelyard._support._plain import plain
from steelyard._support._text import printable
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active.choosing import SELECTORS
from steelyard.experiments.active.finetuning import FineTuning
from steelyard.experiments.active.fitting import Learned, first_round_shared
from steelyard.experiments.active.loop import Pool, Round, active_learning
from steelyard.experiments.active.moons import NOISY_MOON, FourMoons
from steelyard.experiments.active.recipe import ActiveRecipe
from steelyard.experiments.active.state import past, read_state, restored, write_state
from steelyard.experiments.active.view import read
from steelyard.experiments.compare.spreadsheet import table_text
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.errors import RunError
from steelyard.experiments.models import HEADS
from steelyard.experiments.runs.execution import Ours, Work, carried_out
from steelyard.experiments.runs.folder import (
    ACTIVE_STATE,
    ASIDE,
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    LOCK,
    REMEDY,
    TRACES,
    as_read,
    aside,
    check_ours,
    check_place,
    check_recipe,
    identity_of,
    is_finished,
    remove_traces,
)
from steelyard.experiments.runs.run_folder import RunFolder, check_device, environment
from steelyard.experiments.runs.user_code import check_allowed
from steelyard.experiments.training.adversarial import robust_accuracy
from steelyard.experiments.training.seeds import generator

__all__ = ["ActiveRun", "Shared", "check_active_directory", "data_of", "execute_active", "measured", "read_active_run"]

STATE, ROUNDS = ACTIVE_STATE, "rounds.csv"
FILES = (CONFIG, STATE, ROUNDS, ENVIRONMENT, *TRACES)
SIGNS = (STATE, *TRACES[:2])  # of a run that has got somewhere

_NOISE = 10**6  # the place of the noise among a seed's derived ones, which no round's number reaches

Shared = dict[object, Learned]
"""First rounds that are known already; runs given the same one share them."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that was carried out.

    Attributes:
        directory: where it lies. name: the recipe's name, as given. overrides: the recipe's fields set beside it.
        recipe: the complete recipe.
        history: each round's figures (see `Round.metrics` and `measured`).
        picked: the ids labelled in each round.
        model: parameters and buffers of the main model that was measured after the last round, by name.
    """

    directory: Path
    name: str
    overrides: tuple[str, ...]
    recipe: ActiveRecipe
    history: tuple[Mapping[str, float], ...]
    picked: tuple[Tensor, ...]
    model: Mapping[str, Tensor]


def data_of(recipe: ActiveRecipe, root: Path | None = None, download: bool = False, allow_code: bool = False) -> Splits:
    """Return the recipe's data with its noise, as the net sees them.

    The fact "noisy" says which training samples have random labels.

    Args:
        recipe: of the run.
        root, download: where data sets lie that are not installed, and whether they may be downloaded there.
        allow_code: whether code that the recipe names ("module:function") may run.

    Raises:
        RecipeError: the recipe names code, and it may not run.
        DataError: the data or the frozen network's weights are not there. ValueError: noise or encoder do not fit them.
    """
    check_allowed(recipe.encoder.code, allow_code)
    splits = recipe.data.load(recipe.seed, root, download)
    return recipe.encoder.apply(recipe.noise.apply(splits, generator(recipe.seed, _NOISE)))


def measured(splits: Splits, recipe: ActiveRecipe, learned: Learned) -> dict[str, float]:
    """Return accuracies of the main model (validation, test) and of the average (average_validation, average_test).

    Where fine-tuning leaves another model to select than to measure, also selecting_validation and selecting_test, of
    its main one.
    On Four-Moons also test_learnable: the test accuracy on the three moons whose labels are no noise. Where the recipe
    measures under an attack, also robust_validation and robust_test, of the main model.
    """
    figures = {}
    for part in ("validation", "test"):
        data: Batch = getattr(splits, part)
        models = {"": learned.result.model, "average_": learned.result.average}
        two = recipe.fine_tune and isinstance(recipe.fine_tuning, FineTuning)
        models |= {"selecting_": learned.model} if two else {}
        for prefix, model in models.items():
            right = (read(model, data.inputs)[0].argmax(1) == data.targets).double()
            figures[f"{prefix}{part}"] = float(right.mean())
            if isinstance(recipe.data, FourMoons) and (prefix, part) == ("", "test"):
                figures["test_learnable"] = float(right[data.targets != NOISY_MOON].mean())
        if recipe.measure.epsilon:
            head, seed = HEADS[recipe.model.head], recipe.seed
            figures[f"robust_{part}"] = robust_accuracy(learned.result.model, data, recipe.measure, head, seed=seed)
    return figures


def execute_active(
    recipe: ActiveRecipe,
    directory: Path,
    *,
    name: str,
    overrides: tuple[str, ...] = (),
    data_root: Path | None = None,
    download: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    splits: Splits | Callable[[], Splits] | None = None,
    shared: Shared | None = None,
    checkpoint_every: int = 200,
    progress: Callable[[Round], None] = lambda done: None,
    stop: Callable[[], int] = lambda: 0,
    allow_code: bool = False,
) -> ActiveRun:
    """Carry out `recipe` and write the run into `directory`.

    Files: `config.json`, `state.safetensors` (ids, models and figures, written whole after every round), and at the end
    `rounds.csv` and `environment.json`. Within a round `checkpoint.safetensors` and the one before it
    (`steelyard.checkpoint.Journal`), after whole epochs.

    Args:
        recipe: what to run.
        directory: made if missing. name, overrides: kept for tables.
        data_root, download: where data sets lie that are not installed, and whether they may be downloaded there.
        overwrite: replace the run that lies in `directory`; it is put back if the new one fails before it has ended a
            round or written a checkpoint.
        resume: continue the run that lies there after its last checkpoint; a finished one is read back. With the same
            torch, device and number of threads the result is that of an uninterrupted run, bit for bit, but for the
            seconds of the round that was cut short.
        splits: the data (`data_of`), or what returns them, if at hand already; a finished run needs none.
        shared: first rounds of runs that differ in their selector alone.
        checkpoint_every: optimizer steps between two checkpoints; there is always one at the end of a training.
        progress: called after each round.
        stop: asked after each epoch; a number other than 0 ends the run, saved, by `steelyard.checkpoint.Stopped`.
        allow_code: see `data_of`.

    Raises:
        RunError: the directory holds something else, another recipe's run or a damaged one, or is being written by
            another process; the device is not there; the recipe's settings do not fit the data, or training failed.
        DataError: the data are not there.
        Stopped: the run was asked to stop.
    """
    name, overrides = printable(name), tuple(map(printable, overrides))
    known = {} if shared is None else shared
    work = _Learning(
        recipe,
        lambda: splits() if callable(splits) else splits or data_of(recipe, data_root, download, allow_code),
        known,
        checkpoint_every,
        progress,
        stop,
    )
    return carried_out(work, directory, name=name, overrides=overrides, overwrite=overwrite, resume=resume)


class _Learning(Work[ActiveRun]):
    """A run of active learning."""

    signs = SIGNS

    def __init__(
        self,
        recipe: ActiveRecipe,
        data: Callable[[], Splits],
        shared: Shared,
        every: int,
        progress: Callable[[Round], None],
        stop: Callable[[], int],
    ) -> None:
        self.recipe, self.data, self.shared = recipe, data, shared
        self.every, self.progress, self.stop = every, progress, stop

    def check(self, directory: Path, overwrite: bool, resume: bool) -> None:
        _check_files(directory, overwrite, resume)

    def read(self, directory: Path) -> ActiveRun:
        check_active_directory(directory, self.recipe, overwrite=False, resume=True)
        return read_active_run(directory)

    def load(self) -> Mapping[str, str]:
        self.splits = self.data()
        return {}

    def begin(self, directory: Path, overwrite: bool, resume: bool, files: Mapping[str, str]) -> None:
        check_active_directory(directory, self.recipe, overwrite=overwrite, resume=resume)

    def open(self, folder: RunFolder, ours: Ours, held: ExitStack, files: Mapping[str, str]) -> None:
        self.journals = _Journals(folder.path, identity_of(self.recipe), self.every, self.stop, ours)

    def train(self, folder: RunFolder, ours: Ours) -> None:
        splits = self.splits.to(self.recipe.device)
        self.rounds = _rounds(self.recipe, folder, splits, self.shared, self.journals, self.progress)

    def write(self, folder: RunFolder, ours: Ours) -> Mapping[str, Any]:
        check_ours(folder.path, ours)
        write_text(folder.path / ROUNDS, _table([done.metrics for done in self.rounds]))
        return environment()

    def done(self, directory: Path) -> ActiveRun:
        return read_active_run(directory)


@dataclass(frozen=True)
class _Journals:
    """The journal of each round, one after the other in the same file."""

    directory: Path
    identity: Mapping[str, str]
    every: int
    stop: Callable[[], int]
    ours: Callable[[], bool]

    def __call__(self, number: int) -> Journal:
        journal = self._open(number)
        if journal.noted.get("round", number) != number:  # a crash came after that round and before `remove`
            remove_traces(self.directory)
            journal = self._open(number)
        return journal

    def _open(self, number: int) -> Journal:
        def note() -> dict[str, int]:
            self.check()
            return {"round": number}

        place = self.directory / CHECKPOINT
        return Journal(place, identity=self.identity, every=self.every, note=note, stop=self.stop)

    def check(self) -> None:
        """Raise LostError if the folder is not the one any more that this run holds."""
        check_ours(self.directory, self.ours)


def _rounds(
    recipe: ActiveRecipe,
    folder: RunFolder,
    splits: Splits,
    shared: Shared,
    journals: _Journals,
    progress: Callable[[Round], None],
) -> list[Round]:
    directory = folder.path
    pool = Pool(splits.train, splits.facts["noisy"], len(splits.classes))
    fit = recipe.fit(splits)
    rounds: list[Round] = []
    if (directory / STATE).is_file():
        model = recipe.build(splits, 0)
        template = Learned(model, selectors.ema(model, recipe.decay, bias_corrected=True))
        rounds = restored(directory / STATE, read_state(directory / STATE), template, pool)
    same = replace(recipe, selector="rand")  # all of the recipe but the selector decides the first round
    loop = active_learning(
        pool,
        recipe.schedule,
        first_round_shared(fit, shared, same),
        SELECTORS[recipe.selector],
        recipe.seed,
        measure=lambda learned: measured(splits, recipe, learned),
        past=past(rounds),
        journal=journals,
    )
    for done in loop:
        rounds.append(done)
        journals.check()
        write_state(directory / STATE, plain(recipe), rounds)
        folder.settle()
        remove_traces(directory)
        progress(done)
    return rounds


def read_active_run(directory: Path) -> ActiveRun:
    """Read a run directory; nothing in it is executed.

    Raises:
        RunError: not a run directory, an unfinished run, or a damaged file.
    """
    if not (directory / CONFIG).is_file() or not (directory / STATE).is_file():
        raise RunError(f"{directory} is not the directory of an active learning run: it needs {CONFIG} and {STATE}")
    if not is_finished(directory):
        raise RunError(f"the run in {directory} did not finish: it has no {ENVIRONMENT}; resume it by --resume")
    config = RunFolder(directory, SIGNS).read_config(ActiveRecipe)
    state = read_state(directory / STATE)
    if len(state.history) != config[2].schedule.rounds + 1:
        raise RunError(
            f"{directory / STATE} has {len(state.history)} rounds, the run's recipe has "
            f"{config[2].schedule.rounds + 1}; {REMEDY}"
        )
    return ActiveRun(directory, *config, state.history, state.picked, state.measured)


def check_active_directory(directory: Path, recipe: ActiveRecipe, *, overwrite: bool, resume: bool) -> None:
    """Raise RunError if a run of `recipe` cannot be written into `directory`; nothing is changed."""
    if overwrite and resume:
        raise RunError("--overwrite and --resume exclude each other")
    check_device(recipe.device)
    _check_files(directory, overwrite, resume)
    if resume:
        check_recipe(directory, recipe)
    if resume and (directory / STATE).is_file():
        kept = read_state(directory / STATE)
        if kept.recipe != as_read(recipe):
            raise RunError(f"{directory / STATE} is the state of another recipe; --overwrite starts over")


def _check_files(directory: Path, overwrite: bool, resume: bool) -> None:
    """Raise RunError if other files than a run's lie there, or a run that is neither to be replaced nor resumed."""
    check_place(directory)
    aside(directory)
    found = {path.name for path in directory.iterdir()} - {LOCK, *ASIDE} if directory.exists() else set()
    leftover = tuple(f".{name}." for name in FILES)  # temporary files of a run that was killed
    if others := sorted(name for name in found - set(FILES) if not name.startswith(leftover)):
        raise RunError(f"{directory} holds more than an active learning run ({others[0]}); give another --out")
    if found - {TRACES[2]} and not (overwrite or resume):
        raise RunError(f"{directory} is not empty: --resume continues the run in it, --overwrite replaces it")


def _table(history: Sequence[Mapping[str, float]]) -> str:
    rows = ([k, *(f"{row[name]:.6g}" if name in row else "" for name in history[0])] for k, row in enumerate(history))
    return table_text(["round", *history[0]], rows)
