"""Write files so that a reader sees the old content or the new one, never a half; lock a folder; open what others left.

Folders and files may be a stranger's. No symbolic link is followed for writing or removing: a link is replaced, or
removed, or refused, never what it leads to. And only files are opened: a pipe would make its reader wait for ever.
"""

import errno
import os
import re
import socket
import stat
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # not Windows
    msvcrt = None  # type: ignore[assignment]

__all__ = [
    "append",
    "append_bytes",
    "atomic_path",
    "check_links",
    "clear",
    "is_folder",
    "is_link",
    "is_open_at",
    "lock",
    "open_file",
    "read_bytes",
    "read_text",
    "regular",
    "remove_folder",
    "write_bytes",
    "write_text",
]

AnyPath = str | os.PathLike[str]

# 0 where a system lacks them
_NO_FOLLOW, _NO_WAIT, _BINARY = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_HOLDER = re.compile(rb"process \d+ on [^\n]*\n?")
_LOCKED_BYTE = 1 << 30  # Windows locks bytes for readers too: one far behind the text that says who holds the lock


@contextmanager
def atomic_path(path: AnyPath, previous: AnyPath | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it onto `path`.

    If the body raises, the temporary file is removed and `path` is as it was. With `previous` the file that was there
    is renamed to that first: a crash leaves at least one of the two, whole. A link at either is replaced.

    Example:
        >>> with atomic_path("result.parquet") as temporary:   # doctest: +SKIP
        ...     frame.to_parquet(temporary)
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _named(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _named(target):
            yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp made it private; give it what open() would have given
        if previous is not None and target.exists():
            os.replace(target, previous)
        os.replace(temporary, target)
        _flush_names(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Put `target` instead of its temporary file, or of no file, in an OSError's message."""
    try:
        yield
    except OSError as error:
        own = error.filename is None or os.path.basename(os.fsdecode(error.filename)).startswith(f".{target.name}.")
        if error.errno is not None and own:
            error.filename = str(target)
        raise


def _flush_names(folder: Path) -> None:
    """Make renames in `folder` durable, where the system lets a folder be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: AnyPath, text: str) -> None:
    """Write `text` to `path` atomically, UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def append(path: AnyPath) -> TextIO:
    """Open `path`, made if it is missing, to write lines at its end, UTF-8; OSError if it is a link, or no file."""
    check_links(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _NO_WAIT
    return open(_checked(os.open(path, flags, 0o666), path), "a", encoding="utf-8")


def append_bytes(path: AnyPath) -> BinaryIO:
    """Open `path`, made if it is missing, to write bytes at its end; OSError if it is a link, or no file."""
    check_links(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _NO_WAIT | _BINARY
    return open(_checked(os.open(path, flags, 0o666), path), "ab")


def open_file(path: AnyPath) -> BinaryIO:
    """Open `path` to read its bytes; OSError if it is missing, or a pipe, a socket, a device or a folder."""
    regular(path)  # before it is opened, which some devices take as a command
    return open(_checked(os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY), path), "rb")


def read_bytes(path: AnyPath) -> bytes:
    """Return what `path` holds; OSError as `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: AnyPath) -> str:
    """Return the text that `path` holds, UTF-8; OSError as `open_file`, UnicodeDecodeError where it is another."""
    return read_bytes(path).decode("utf-8")


def regular(path: AnyPath) -> Path:
    """Return `path` for a library that opens files by name; OSError where `open_file` would raise it."""
    _check_kind(os.stat(path).st_mode, path)
    return Path(path)


def _checked(handle: int, path: AnyPath) -> int:
    """Return an open file's number; OSError, and it is closed, if it is none of a file."""
    try:
        _check_kind(os.fstat(handle).st_mode, path)
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_kind(mode: int, path: AnyPath) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise OSError(errno.EINVAL, f"it is {name}, not a file; remove it", str(path))


def is_link(path: AnyPath) -> bool:
    """Return whether `path` is a symbolic link, or one of Windows' junctions."""
    return os.path.islink(path) or getattr(os.path, "isjunction", lambda _: False)(path)


def is_folder(path: AnyPath) -> bool:
    """Return whether `path` is a folder itself, and not a link to one."""
    return os.path.isdir(path) and not is_link(path)


def check_links(path: AnyPath, below: AnyPath | None = None) -> None:
    """Raise OSError if `path` is a link, or any folder on the way to it from `below` (which may be one)."""
    place, top = Path(path), Path(path).parent if below is None else Path(below)
    while place not in (top, place.parent):
        if is_link(place):
            raise OSError(errno.ELOOP, "it is a symbolic link, through which nothing is written; remove it", str(place))
        place = place.parent


def is_open_at(file: int, path: AnyPath) -> bool:
    """Return whether the open `file` is still the one at `path`, not removed, moved or replaced meanwhile."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False


def clear(folder: AnyPath, kept: Collection[str] = ()) -> None:
    """Remove the files, and links, in `folder` but `kept` (names); OSError if it is a link, or holds a folder."""
    check_links(folder)
    for path in Path(folder).iterdir():
        if path.name not in kept:
            path.unlink()


def remove_folder(folder: AnyPath) -> None:
    """Remove `folder` and the files in it, if it is there; OSError as `clear`."""
    if os.path.lexists(folder):
        clear(folder)
        Path(folder).rmdir()


@contextmanager
def lock(path: AnyPath) -> Iterator[Callable[[], bool]]:
    """Hold the lock file `path` while the body runs; it is removed afterwards.

    Yields a function that says whether the file there is still this lock: it is not once somebody has removed it, or
    moved its folder, and then what is written there may be another's.

    The lock is the system's (`flock`, on Windows `msvcrt.locking`): it ends with the process that holds it, however
    that ends, so a file that a dead process left locks nothing. On some network drives it binds one machine only. A
    system that has neither is warned of, once.

    Raises:
        BlockingIOError: another process holds it; the message says which, as far as the file tells.
        OSError: there is something else of this name: a link, a pipe, a file of somebody's.
    """
    handle = _locked(Path(path))
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield lambda: is_open_at(handle, path)
    finally:
        own = is_open_at(handle, path)
        if own and fcntl is not None:
            _unlink(path)  # while it is held: nobody else can hold a file of this name
        os.close(handle)
        if own and fcntl is None:
            _unlink(path)  # Windows removes no file that is open


def _unlink(path: AnyPath) -> None:
    with suppress(OSError):  # taken meanwhile, or read-only now: a file that locks nothing
        os.unlink(path)


def _locked(path: Path) -> int:
    while True:
        check_links(path)
        flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW | _NO_WAIT | _BINARY
        handle = _checked(os.open(path, flags, 0o666), path)
        try:
            _take(handle)
            # Between opening and locking, the one who held it may have removed the file: then this is another's.
            if is_open_at(handle, path):
                if not _HOLDER.fullmatch(said := os.read(handle, 1000)) and said:
                    raise FileExistsError(errno.EEXIST, "it is not a lock but a file of another kind", str(path))
                return handle
        except BlockingIOError:
            holder = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise BlockingIOError(f"{path.parent} is in use by {holder}") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _take(handle: int) -> None:
    """Lock an open file; BlockingIOError if another process has."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:  # PermissionError, as Windows says it
            raise BlockingIOError(str(error)) from error
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
    else:
        _warn_of_no_lock()


@cache
def _warn_of_no_lock() -> None:
    warnings.warn(
        "this system locks no files: see to it that no second process writes into the same folder",
        RuntimeWarning,
        stacklevel=2,
    )
