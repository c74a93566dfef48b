"""What the C library does with memory that is given back.

glibc's malloc hands large blocks back to the system as they are freed, and the system fills every page with zeros when
they are asked for again. A training step asks for the same gigabyte again and again: on a CPU a tenth of its time goes
there, and more where something else is kept beside it, as the activations of a recorded step are.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, and use it again, until it ends; return whether that could be asked for.

    It cannot where the C library is not glibc. Whoever set one of malloc's variables has decided, and keeps that.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Blocks of their own (mmap) are never kept: have none. -1: never shrink the heap.
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
