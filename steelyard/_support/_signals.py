"""Stop when asked to: SIGINT and SIGTERM as a question that long work asks itself between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_held", "noted_signals"]

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


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C (SIGINT) that comes in this block raise KeyboardInterrupt at its end; a second one raises at once.

    Where another handler than Python's takes it, or in another thread than the main one, nothing is changed.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
