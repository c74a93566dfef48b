"""How much of the library one outer step of `Maple.fit` goes through: what a reader who follows it has to open.

    python -m benchmarks.reading                 # files of ours that are entered, functions, calls, depth
    python -m benchmarks.reading --tree          # and the files, with how many of their functions are entered

Counted is the first outer step on `nn.Linear(5, 3)` and 40 samples: five inner steps of SGD with momentum, V-REx, one
sweep. Calls into torch are not followed further; its calls back into ours (hooks) are, as deep as they stand. A sign to
look at, not a limit: a call that checks an argument counts as much as one that computes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import steelyard
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import InnerRun, Maple, Sqrt, VREx

ROOT = Path(steelyard.__file__).parent


class Reading:
    """What a profiled call enters: functions by file, calls, changes of file, and how deep ours stand in each other."""

    def __init__(self) -> None:
        self.functions: Counter[tuple[str, str, int]] = Counter()
        self.switches, self.depth = 0, 0
        self._stack: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """See `sys.setprofile`."""
        code = frame.f_code
        name = code.co_filename
        if not name.startswith(str(ROOT)):
            return
        if event == "call":
            self.switches += not self._stack or self._stack[-1] != name
            self._stack.append(name)
            self.functions[str(Path(name).relative_to(ROOT)), code.co_name, code.co_firstlineno] += 1
            self.depth = max(self.depth, len(self._stack))
        elif event == "return" and self._stack:
            self._stack.pop()

    @property
    def files(self) -> Counter[str]:
        """How many functions of each file are entered."""
        return Counter(file for file, *_ in self.functions)


def one_step() -> Reading:
    """Read the first outer step, its checks included."""
    generator = torch.Generator().manual_seed(0)
    data = Batch.of(
        torch.randn(40, 5, generator=generator),
        torch.randint(0, 3, (40,), generator=generator),
        environment=torch.arange(40) % 2,
    )
    inner = InnerRun(
        lambda: nn.Linear(5, 3),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        WeightedLoss(partial(F.cross_entropy, reduction="none")),
        steps=5,
    )
    maple, reading = Maple(inner, Sqrt(VREx()), budget=20, steps=1), Reading()
    sys.setprofile(reading)
    try:
        maple.fit(data)
    finally:
        sys.setprofile(None)
    return reading


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", action="store_true", help="name the files")
    tree, found = parser.parse_args().tree, one_step()
    print(
        f"{len(found.files)} files, {len(found.functions)} functions, {found.functions.total()} calls, "
        f"{found.switches} changes of file, depth {found.depth}"
    )
    for file, count in found.files.most_common() if tree else ():
        print(f"{count:5} {file}")
