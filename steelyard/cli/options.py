"""What the commands check of their options before they begin; no torch and no extra at import."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from steelyard._support._errors import UserError

__all__ = ["check_any_seed", "check_seeds", "check_writable", "data_root_of", "every", "seconds", "set_threads"]

_MOST_THREADS = 1024
_LONGEST = 10_000_000  # seconds: more than a hundred days; torch counts milliseconds


def every(steps: int) -> int:
    """Return ``--checkpoint-every``, or say that it must be at least 1."""
    if steps < 1:
        raise UserError(f"--checkpoint-every must be at least 1, got {steps}")
    return steps


def seconds(option: str, value: float | None) -> float | None:
    """Return the option's seconds, or say that they must be positive."""
    if value is not None and not 0 < value <= _LONGEST:
        raise UserError(f"{option} must be above 0 and at most {_LONGEST} seconds, got {value:g}")
    return value


def check_seeds(option: str, seeds: Iterable[int]) -> None:
    """Raise UserError unless all are what torch's generators take, without a sign, and each is named once."""
    known: set[int] = set()
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"{option} must be in [0, {2**63 - 1}], got {seed}")
        if seed in known:  # the same run again, counted as one more, would make a spread look smaller
            raise UserError(f"{option} names {seed} twice; name each seed once")
        known.add(seed)


def check_any_seed(seeds: tuple[int, ...], option: str = "--seeds") -> None:
    """Raise UserError if the option names no seed, or one that `check_seeds` refuses."""
    if not seeds:
        raise UserError(f"{option} needs at least one seed, as in {option} 0 1 2")
    check_seeds(option, seeds)


def check_writable(option: str, folder: Path) -> None:
    """Raise UserError if `folder` cannot be made or written into; nothing is left there.

    For before hours of work whose outcome goes there.
    """
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written ({place}: {error.strerror}); name another one") from error


def set_threads(threads: int) -> None:
    """Apply ``--threads``."""
    if not 0 <= threads <= _MOST_THREADS:
        raise UserError(f"--threads must be 0 (torch's own choice) to {_MOST_THREADS}, got {threads}")
    if threads:
        import torch

        torch.set_num_threads(threads)


def data_root_of(given: Path | None) -> Path | None:
    """Return ``--data-root``, or what $STEELYARD_DATA says."""
    named = os.environ.get("STEELYARD_DATA")
    return given or (Path(named) if named else None)
