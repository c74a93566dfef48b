"""Which precision a device multiplies faster in: bfloat16 takes half the time where it has units for it, else more."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

__all__ = ["Measured", "measured"]

_ROWS = 512  # of a square product on a CPU: 0.27 GFLOP, some milliseconds
_ROWS_ELSEWHERE = 4096
_TRIES = 5
_GAIN = 0.9  # of float32's time: what rounds more has to be worth it


class Measured(NamedTuple):
    """Seconds of one product of two square float32 matrices, as they are and cast to bfloat16 by autocast."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> bool:
        """Whether bfloat16 is, by a tenth at least."""
        return self.bfloat16 < _GAIN * self.float32


@cache
def measured(device: str) -> Measured:
    """Return what a product takes on `device`, once a process: the shortest of a few, in turns."""
    place = torch.device(device)
    rows = _ROWS if place.type == "cpu" else _ROWS_ELSEWHERE
    now = time.process_time if place.type == "cpu" else time.perf_counter  # what others do here counts for nothing
    left, right = (torch.ones(rows, rows, device=place) for _ in range(2))

    def seconds(cast: bool) -> float:
        start = now()
        with torch.no_grad(), torch.autocast(place.type, torch.bfloat16, enabled=cast):
            product = torch.nn.functional.linear(left, right)
        float(product[0, 0])  # a device works in its own time
        return now() - start

    for cast in (False, True):
        seconds(cast)  # kernels load
    pairs = [(seconds(False), seconds(True)) for _ in range(_TRIES)]
    return Measured(min(one for one, _ in pairs), min(other for _, other in pairs))
