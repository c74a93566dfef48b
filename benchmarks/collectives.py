"""What MAPLE asks of the other ranks in an outer step: calls and bytes, counted at the size asked for.

    python -m benchmarks.collectives                 # 2, 8 and 64 ranks; results/benchmarks/collectives.md

No network is in it: one process is rank 0 of `size` (torch's group "fake"), with its share of the samples, and every
other rank answers what this one asks with this one's own numbers. What is sent is then what real ranks would send, for
sizes and shapes do not depend on values. Counted is an outer step of `Maple` (an MLP 32-64-1, the square root of
V-REx): calls and bytes at two sizes of the share, the line through them, and what stands still while the share grows.
Gradients that DistributedDataParallel sums are among them: all parameters, once an inner step.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import _measure
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.distributed import Processes
from steelyard.reweight import InnerRun, Maple, Sqrt, VREx

SIZES = (2, 8, 64)
SHARES = (2_048, 4_096)
FEATURES = 32
TARGET = 1_000_000_000


class Simulated(Processes):
    """Rank 0 of `size`, whose others have what it has; counts what goes over the network.

    Attributes:
        calls: how many all-reduces and all-gathers.
        sent: bytes that this rank hands in, all-reduces and all-gathers.
        received: bytes that this rank gets back: of an all-gather every rank's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"sum": 0, "stack": 0}
        self.sent = {"sum": 0, "stack": 0}

    @property
    def received(self) -> int:
        """Bytes that come back to this rank."""
        return self.sent["sum"] + self.size * self.sent["stack"]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""
        self._count("sum", tensor)
        return tensor * self.size

    def stack(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor; of the ids 0 .. n - 1 each rank has the next n."""
        self._count("stack", tensor)
        everywhere = tensor[None].expand(self.size, *tensor.shape)
        if tensor.ndim != 1 or len(tensor) < 2 or not torch.equal(tensor, torch.arange(len(tensor))):
            return everywhere
        return everywhere + len(tensor) * torch.arange(self.size)[:, None]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model` in DistributedDataParallel, whose sums of gradients are counted."""
        wrapped = super().wrap(model)
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        wrapped.register_comm_hook(self, _counted_gradient)
        return wrapped

    def _count(self, kind: str, tensor: Tensor) -> None:
        self.calls[kind] += 1
        self.sent[kind] += tensor.numel() * tensor.element_size()


def _counted_gradient(ranks, bucket):  # torch reads annotations here, and no text
    """Take this rank's gradient for the mean."""
    ranks._count("sum", bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")


def counted(size: int, share: int, steps: int) -> Simulated:
    """Return what `steps` outer steps ask, with `share` samples on each of `size` ranks."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(share, FEATURES, generator=generator)
    labels = torch.randint(0, 2, (2, share), generator=generator)
    data = Batch.of(inputs, labels[0], environment=labels[1])
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        return _counted(Simulated(), data, steps)
    finally:
        dist.destroy_process_group()


def _counted(ranks: Simulated, data: Batch, steps: int) -> Simulated:
    model = lambda: nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))  # noqa: E731
    objective = WeightedLoss(_loss, ranks=ranks)
    inner = InnerRun(model, partial(torch.optim.SGD, lr=0.05), objective, steps=2, batch_size=64 * ranks.size)
    Maple(inner, Sqrt(VREx()), budget=0.3, steps=steps).fit(data, progress=False)
    return ranks


def line(size: int) -> dict[str, Any]:
    """Return calls of a step, and bytes as a + b share: those of a step, and those of the run's start and end."""
    found: dict[str, Any] = {"ranks": size}
    per_step, once = [], []
    for share in SHARES:
        one, three = counted(size, share, 1), counted(size, share, 3)
        per_step.append((three.received - one.received) / 2)
        once.append(one.received - per_step[-1])
        found["calls"] = (sum(three.calls.values()) - sum(one.calls.values())) / 2
    for name, (low, high) in (("step", per_step), ("once", once)):
        slope = (high - low) / (SHARES[1] - SHARES[0])
        found[f"{name} bytes a sample of the share"] = slope
        found[f"{name} bytes besides"] = low - slope * SHARES[0]
    return found


def rows(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """Return a row for each number of ranks."""
    return [line(size) for size in sizes]


def page(found: list[dict[str, Any]]) -> str:
    """Return results/benchmarks/collectives.md."""
    lines = [
        "# What ranks ask of each other in an outer step",
        "",
        "Remake with `python -m benchmarks.collectives`; counted, no time is in it. Bytes that come back to one rank,",
        "by the number of samples of all ranks. Most of what does not grow is gradients: 2 inner steps and the",
        "outer one, of a net of 2,177 parameters, here.",
        "",
        "| ranks | calls a step | bytes a step and sample | bytes a step besides | bytes a run and sample besides |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        ranks = row["ranks"]
        per = row["step bytes a sample of the share"] / ranks
        lines.append(
            f"| {ranks} | {row['calls']:.0f} | {per:.2f} | {row['step bytes besides']:,.0f} | "
            f"{row['once bytes a sample of the share'] / ranks:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    found = rows(tuple(parser.parse_args().sizes))
    (_measure.RESULTS / "collectives.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (_measure.RESULTS / "collectives.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
