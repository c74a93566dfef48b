"""Carry out a run of any kind: its folder is opened, locked, written and finished here, in one order for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.errors import RunError, UserError
from steelyard.experiments.runs.folder import CONFIG, LOCK, holding, is_finished
from steelyard.experiments.runs.run_folder import RunFolder, blamed_on, check_device
from steelyard.experiments.runs.settled import settled

__all__ = ["Work", "carried_out"]

Done = TypeVar("Done")
Ours = Callable[[], bool]
"""Whether the folder of a run is still the one that is held, see `folder.holding`."""


class Work(ABC, Generic[Done]):
    """What a kind of run does between the steps that `carried_out` takes for all kinds.

    Attributes:
        signs: names of files that say that a run of this kind has got somewhere, see `replacement.replacing`.
        recipe: what is carried out: a dataclass with `seed` and `device`.
    """

    signs: ClassVar[tuple[str, ...]]
    recipe: Any

    @abstractmethod
    def check(self, directory: Path, overwrite: bool, resume: bool) -> None:
        """Raise RunError if the run cannot be written into `directory`; nothing is changed."""

    @abstractmethod
    def read(self, directory: Path) -> Done:
        """Return the finished run in `directory`; RunError if it is another recipe's, or on other files."""

    @abstractmethod
    def load(self) -> Mapping[str, str]:
        """Load the data, and return the SHA-256 of each file of the user's that they are made of."""

    @abstractmethod
    def begin(self, directory: Path, overwrite: bool, resume: bool, files: Mapping[str, str]) -> None:
        """Make `directory`, which is held, ready; RunError as `check`."""

    @abstractmethod
    def open(self, folder: RunFolder, ours: Ours, held: ExitStack, files: Mapping[str, str]) -> None:
        """Open what the work writes as it goes, and look whether the checkpoint is of this run.

        What is to be closed when the run ends is entered into `held`.
        """

    @abstractmethod
    def train(self, folder: RunFolder, ours: Ours) -> None:
        """Do the work, from the checkpoint on where there is one."""

    @abstractmethod
    def write(self, folder: RunFolder, ours: Ours) -> Mapping[str, Any]:
        """Write the outcome, on rank 0; return what `environment` says and the run's own facts."""

    def done(self, directory: Path) -> Done:
        """Return the run that was just finished."""
        return self.read(directory)


def carried_out(
    work: Work[Done],
    directory: Path,
    *,
    name: str,
    overrides: Sequence[str],
    overwrite: bool,
    resume: bool,
    ranks: Ranks = ALONE,
) -> Done:
    """Carry out `work` into `directory`, resume the run that lies there, or read it back if it is finished.

    Args:
        work: the run.
        directory: made if missing.
        name: the recipe's name, kept for tables. overrides: the fields set beside it, likewise.
        overwrite: replace the run that lies there; it is put back if the new one gets nowhere.
        resume: continue the run that lies there; a missing one is begun.
        ranks: the processes that carry it out together. Rank 0 writes.

    Raises:
        RunError: the directory cannot be written, holds something else, or is in use; the device is not there; the
            recipe's settings do not fit the data, or training failed. And what the work's own methods raise.
    """
    check_device(work.recipe.device)
    work.recipe = settled(work.recipe, directory, resume, ranks)
    recipe, first = work.recipe, ranks.rank == 0
    if overwrite and resume:
        raise RunError(
            "--overwrite and --resume exclude each other: the one starts over, the other continues; give one of them"
        )
    folder = RunFolder(directory, work.signs)
    ranks.together(lambda: folder.recover() if first else None)
    ranks.agree("the run", {"a finished run there": is_finished(directory)})
    if resume and is_finished(directory):
        if first and (directory / LOCK).exists():  # of a process that was killed after its last write
            with suppress(RunError), holding(directory):
                pass  # it is removed, but while another process holds it
        return work.read(directory)
    ranks.together(lambda: work.check(directory, overwrite, resume) if first else None)
    with blamed_on(name, recipe.seed):
        files = work.load()

    def hold(held: ExitStack) -> Ours:
        ours = held.enter_context(holding(directory))
        work.begin(directory, overwrite, resume, files)
        held.enter_context(folder.replacing(overwrite, ours))
        return ours

    with ExitStack() as held, _writing(directory):
        ours = ranks.together(lambda: hold(held) if first else lambda: True)
        with blamed_on(name, recipe.seed):
            work.open(folder, ours, held, files)
        if first and not (directory / CONFIG).is_file():
            folder.write_config(name, overrides, recipe, files)
        with blamed_on(name, recipe.seed):
            work.train(folder, ours)

        ranks.together(lambda: folder.finish(work.write(folder, ours), ours) if first else None)
        return work.done(directory)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn a file that cannot be written (a full disk) into RunError with the remedy."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise RunError(
            f"the run in {directory} cannot be written: {error}; what is there is kept; mend that and go on by --resume"
        ) from error
