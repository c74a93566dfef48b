"""The folder that a command writes into: no link is followed, what lies there stays, and nobody else writes meanwhile.

The one home of these three questions, for runs and for all else that a command writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from steelyard._support._errors import FolderError
from steelyard._support._files import check_links, is_link, lock

__all__ = ["LOCK", "check_free", "check_place", "holding", "writing"]

LOCK = "run.lock"  # in every folder that is being written


def check_place(folder: Path, below: Path | None = None) -> None:
    """Raise FolderError if `folder`, or a folder on the way to it from `below`, is a symbolic link.

    What is written, moved and removed there would be so in the folder that it leads to.
    """
    try:
        check_links(folder, below)
    except OSError as error:
        raise FolderError(
            f"cannot write into {folder}: {error.filename} is a symbolic link; name the folder that it leads to, or "
            "remove it"
        ) from error


def check_free(
    folder: Path, names: Iterable[str], *, overwrite: bool | None, resume: bool = False, begun: bool = False
) -> None:
    """Raise FolderError if one of the files `names` is in `folder` and may not be replaced; nothing is changed.

    Args:
        folder: which may be missing.
        names: of the files that are to be written.
        overwrite: whether they may be replaced; None: no, and the command has no option to say so.
        resume: whether the work that lies there is to go on, which replaces them too.
        begun: whether there is such work: without it, what is there is another's.
    """
    places = [folder / name for name in names]
    if wrong := next((place for place in places if place.is_dir()), None):
        if is_link(wrong):
            raise FolderError(f"{wrong} is a symbolic link to a folder; name a file in that folder, or remove the link")
        raise FolderError(f"{wrong}: Is a directory; make room, or name another place (--out)")
    there = next((place for place in places if os.path.lexists(place)), None)
    if there is None or overwrite or (resume and begun):
        return
    lost = ", and nothing that could be resumed" if resume else ""
    go_on = "--resume to go on, " if begun else ""
    last = "remove it" if overwrite is None else "--overwrite to replace it"
    raise FolderError(f"{there} is there already{lost}; give another --out, {go_on}or {last}")


@contextmanager
def holding(folder: Path) -> Iterator[Callable[[], bool]]:
    """Make `folder` if it is missing and hold its lock, so that no second process writes into it meanwhile.

    Yields a function that says whether it still is that folder, see `_files.lock`. A folder that was made and is empty
    in the end is removed.

    Raises:
        FolderError: it is a link, another process holds it, or it cannot be written.
    """
    check_place(folder)
    made = not folder.exists()
    with ExitStack() as stack:
        if made:
            stack.callback(_remove_if_empty, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context(lock(folder / LOCK))
        except BlockingIOError as error:
            raise FolderError(f"{error}; wait for it, or give another --out") from error
        except OSError as error:
            raise FolderError(f"cannot write into {folder}: {error}; make room, or give another --out") from error
        yield ours


@contextmanager
def writing(
    folder: Path, names: Iterable[str], *, overwrite: bool | None, resume: bool = False, begun: bool = False
) -> Iterator[None]:
    """Hold `folder` while the body writes the files `names` into it; FolderError as `check_free` and `holding`."""
    names = tuple(names)
    check_place(folder)
    check_free(folder, names, overwrite=overwrite, resume=resume, begun=begun)  # said before the folder is touched
    with holding(folder):
        check_free(folder, names, overwrite=overwrite, resume=resume, begun=begun)  # another may just have been done
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
