"""Log the outer steps of MAPLE as they come: to TensorBoard where that is installed, otherwise to a small CSV.

    python examples/to_tensorboard.py [FOLDER]      # some seconds; then: tensorboard --logdir FOLDER

A callback is called with an `OuterStep` after each step: what it holds is documented there. Returning True would stop
the run.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from steelyard import Batch, InnerRun, Maple, Sqrt, VREx, WeightedLoss
from steelyard.reweight import OuterStep

LOSS = partial(F.cross_entropy, reduction="none")


def samples(count: int, agreement: list[float], seed: int) -> Batch:
    """Return environments in which feature 1 agrees with the label as often as told, and feature 0 in 80 %."""
    generator = torch.Generator().manual_seed(seed)
    environment = torch.arange(count) % len(agreement)
    label = torch.rand(count, generator=generator) < 0.5
    agree = torch.rand(count, 2, generator=generator) < torch.stack(
        [torch.full((count,), 0.8), torch.tensor(agreement)[environment]], 1
    )
    sign = torch.where(agree == label[:, None], 1.0, -1.0)
    inputs = sign + 0.5 * torch.randn(count, 2, generator=generator)
    return Batch.of(inputs, label.long(), environment=environment)


def numbers(step: OuterStep, held_out: Batch) -> dict[str, float]:
    """Return what is worth a curve: the plain numbers of the row, and what the model can do elsewhere."""
    assert step.model is not None  # in a callback there is one
    with torch.no_grad():
        right = step.model(held_out.inputs).argmax(1) == held_out.targets
    found = {name: float(value) for name, value in step.row.items() if name != "step" and value is not None}
    return {**found, "accuracy elsewhere": float(right.float().mean())}


def to_tensorboard(folder: Path) -> Callable[[int, dict[str, float]], None] | None:
    """Return what writes numbers for TensorBoard, or None where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(folder))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def to_table(folder: Path) -> Callable[[int, dict[str, float]], None]:
    """Return what writes numbers as rows of ``steps.csv``."""
    place = folder / "steps.csv"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)

    def write(step: int, values: dict[str, float]) -> None:
        with place.open("a", newline="") as file:
            rows = csv.writer(file)
            if not file.tell():
                rows.writerow(["step", *values])
            rows.writerow([step, *values.values()])

    return write


def main(folder: Path, table: bool = False) -> None:
    """Learn which samples to keep; log to `folder`, as a `table` whatever is installed."""
    train, elsewhere = samples(400, [0.95, 0.75], seed=0), samples(400, [0.1], seed=1)
    write = None if table else to_tensorboard(folder)
    write = write or to_table(folder)
    objective = WeightedLoss(LOSS)
    inner = InnerRun(lambda: torch.nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.5, momentum=0.9), objective, steps=40)
    maple = Maple(inner, Sqrt(VREx()), budget=100, steps=12)
    maple.fit(train, callbacks=[lambda step: write(step.step, numbers(step, elsewhere))])
    print(f"logged to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/maple"))
