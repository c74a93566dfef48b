"""Stop when asked to: SIGINT and SIGTERM as a question that long work asks itself between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["noted_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noted_signals(tell: Callable[[], None] = lambda: None) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the first SIGINT or SIGTERM that came, 0 for none.

    A second one acts as it would have before; on leaving, all is as before. In another thread than the main one, which
    cannot take signals, nothing is noted.

    Args:
        tell: called when the first one comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came = 0
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = number
        restore()
        tell()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        restore()
