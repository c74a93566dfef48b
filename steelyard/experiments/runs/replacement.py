"""A run that another one replaces: set aside until that has got somewhere, put back if it never does.

What a kill leaves tells what to do next. `.old.moving`: files are on their way, aside or back, and no other run's are
beside them. `.old`: all are aside, and what lies in the run's folder is the new run's. `.old.dropped`: they are being
removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from steelyard._support._files import clear, is_folder, remove_folder
from steelyard.experiments.errors import LostError, RunError
from steelyard.experiments.runs.folder import ASIDE, LOCK, TRACES, aside, holding, is_finished

__all__ = ["recover", "replacing", "settle"]

OLD, MOVING, DROPPED = ASIDE
_FAILED = TRACES[2]


@contextmanager
def replacing(
    directory: Path, overwrite: bool, signs: Sequence[str], ours: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """With `overwrite`, set the run in `directory`, which is held, aside while the body carries out another.

    It is put back if the body ends before there is a file of `signs`, names that say that a run has got somewhere. A
    run that nothing lies aside for and that fails before leaves nothing either, but the state in which it failed.
    Nothing is removed of a run that was carried out, nor in a folder that is not `ours` any more.

    Raises:
        RunError: files cannot be moved; the message says where the old run lies.
    """
    if overwrite:
        with _moving(directory):
            _set_aside(directory)
    try:
        yield
    except LostError:
        raise
    except BaseException:
        if ours() and not settle(directory, signs) and not _got_somewhere(directory, signs):
            clear(directory, {LOCK, _FAILED})
        raise
    settle(directory, signs)


def settle(directory: Path, signs: Sequence[str]) -> bool:
    """Remove what was set aside if the run in `directory`, which is held, has got somewhere; else put it back.

    Returns:
        Whether the run that was set aside is the one in `directory` again.

    Raises:
        RunError: see `replacing`.
    """
    aside(directory)
    with _moving(directory):
        remove_folder(directory / DROPPED)
        if is_folder(directory / OLD):
            if _got_somewhere(directory, signs):
                _drop(directory)
                return False
            clear(directory, {LOCK, _FAILED, *ASIDE})
            (directory / OLD).rename(directory / MOVING)
        if not is_folder(directory / MOVING):
            return False
        for path in (directory / MOVING).iterdir():
            path.replace(directory / path.name)
        (directory / MOVING).rmdir()
        return True


def recover(directory: Path, signs: Sequence[str]) -> None:
    """Do what `settle` does where a kill left a run aside; nothing where none did.

    Raises:
        RunError: another process holds `directory`; or see `replacing`.
    """
    if aside(directory):
        with holding(directory):
            settle(directory, signs)


def _set_aside(directory: Path) -> None:
    aside(directory)
    (directory / MOVING).mkdir()
    for path in directory.iterdir():
        if path.name not in {LOCK, *ASIDE}:
            path.rename(directory / MOVING / path.name)
    (directory / MOVING).rename(directory / OLD)


def _drop(directory: Path) -> None:
    """Remove the run that lies aside, if one does."""
    if is_folder(directory / OLD):
        (directory / OLD).rename(directory / DROPPED)
    remove_folder(directory / DROPPED)


def _got_somewhere(directory: Path, signs: Sequence[str]) -> bool:
    places = [directory / name for name in signs]
    return is_finished(directory) or any(place.is_file() and place.stat().st_size for place in places)


@contextmanager
def _moving(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        places = [str(directory / name) for name in (OLD, MOVING) if is_folder(directory / name)]
        lies = f"; the run that was there lies in {' and '.join([*places, str(directory)])}" if places else ""
        raise RunError(
            f"the run in {directory} cannot be replaced: {error}{lies}; mend that and start again"
        ) from error
