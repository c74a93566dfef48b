"""Write files so that a reader sees the old content or the new one, never a half; and lock a folder."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: `lock` then locks nothing
    fcntl = None  # type: ignore[assignment]

__all__ = ["atomic_path", "lock", "write_bytes", "write_text"]


@contextmanager
def atomic_path(path: str | os.PathLike[str], previous: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it onto `path`.

    If the body raises, the temporary file is removed and `path` is as it was. With `previous` the file that was there
    is renamed to that first: a crash leaves at least one of the two, whole.

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
    """Put `target` in the place of its temporary file, or of no file, in an OSError's message."""
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


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, UTF-8."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock file `path` while the body runs; it is removed afterwards.

    The lock is the system's (`flock`): it ends with the process that holds it, however that ends, so a file that a dead
    process left locks nothing. On systems without flock nothing is locked; on some network drives it binds one
    machine only.

    Raises:
        BlockingIOError: another process holds it; the message says which, as far as the file tells.
    """
    if fcntl is None:
        yield
        return
    handle = _locked(Path(path))
    try:
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        Path(path).unlink(missing_ok=True)  # while it is held: nobody else can hold a file of this name
        os.close(handle)


def _locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, the one who held it may have removed the file: then this is another's.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            holder = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise BlockingIOError(f"{path.parent} is in use by {holder}") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
