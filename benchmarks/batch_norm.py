"""BatchNorm and samples outside of the last batch: which statistics are nearest to training again?

    python -m benchmarks.batch_norm              # three nets, batches of 16, 64 and 256, two optimizers, three seeds

A last step is recorded (T = 1) on a batch of B of the 512 training images, and its derivative asked for by the weights
of samples that were not in it. The truth is training again, in float64, without the library: sample i is added to the
batch as one more row, of weight +h and of -h, the step is taken from the same parameters, buffers and optimizer
state, and the outer loss, in eval mode on 256 held-out images, gives a central difference. A row of weight 0 moves the
batch's statistics, too, by a share of 1 / (B + 1) in every layer; so the truth is that of another step for each sample.
What all ways leave out is what the row does to the others: u, the pulled-back outer gradient, is that of the recorded
batch.

    batch       the statistics of the recorded batch with the sample as one more row (sweep.beside)
    chunk       those of the chunk that a sample is evaluated in, in the order of the data set: here by class
    random      the same in random order
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import _measure
from steelyard.bilevel import Batch, Recorder, Trajectory, Truncated, WeightedLoss
from steelyard.bilevel.sweep.ladder import Ladder

COUNT, HELD_OUT, ASKED, STEPS, H = 512, 256, 48, 40, 1e-4
OBJECTIVE = WeightedLoss(partial(F.cross_entropy, reduction="none"))


def mlp(hidden: int = 1) -> nn.Module:
    """Return a perceptron with BatchNorm after each of its hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for number in range(hidden):
        layers += [nn.Linear(32 if number else 64, 32), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def convolutions() -> nn.Module:
    """Return two convolutions, each with BatchNorm."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 16, 10)),
    )


NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "deep mlp": partial(mlp, 4), "convolutions": convolutions}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=3e-3),
}


def data(seed: int) -> tuple[Batch, Batch]:
    """Return training samples by class, a fifth of their labels wrong, and held-out ones."""
    images, labels = load_digits(return_X_y=True)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=g)
    inputs, targets = torch.from_numpy(images / 16).view(-1, 1, 8, 8)[order], torch.from_numpy(labels)[order]
    train = slice(COUNT)
    by_class = targets[train].argsort(stable=True)
    noisy = torch.where(
        torch.rand(COUNT, generator=g) < 0.2, torch.randint(0, 10, (COUNT,), generator=g), targets[train]
    )
    held_out = slice(COUNT, COUNT + HELD_OUT)
    return Batch.of(inputs[train][by_class], noisy[by_class]), Batch.of(inputs[held_out], targets[held_out])


@dataclass
class Run:
    """A run before its last step, and that step."""

    before: tuple[nn.Module, torch.optim.Optimizer]
    trajectory: Trajectory
    held_out: Batch
    train: Batch

    @classmethod
    def of(cls, net: str, optimizer: str, size: int, seed: int) -> Run:
        """Train all but the last step, and record that."""
        train, held_out = data(seed)
        torch.manual_seed(seed)
        model = NETS[net]().double()
        own = OPTIMIZERS[optimizer](model.parameters())
        weight = 0.5 + torch.rand(COUNT, dtype=torch.float64)
        for _ in range(STEPS):
            step(model, own, train, weight, torch.randperm(COUNT)[:size])
        before = copy.deepcopy((model, own))
        rows = torch.randperm(COUNT)[:size]
        with Recorder(model, own, OBJECTIVE) as recorder:
            loss = recorder.loss(train.take(rows), weight[rows])
            own.zero_grad()
            loss.backward()
            own.step()
            return cls(before, recorder.trajectory(), held_out, train)

    def outer(self, model: nn.Module) -> Tensor:
        """Return the held-out loss in eval mode."""
        return F.cross_entropy(model.eval()(self.held_out.inputs), self.held_out.targets)

    def truth(self, sample: int) -> float:
        """Return the central difference of training the last step again with the sample as one more row."""
        last = self.trajectory.steps[-1]
        rows = torch.cat([last.batch.index, torch.tensor([sample])])
        values = []
        for sign in (H, -H):
            model, optimizer = copy.deepcopy(self.before)
            weight = torch.zeros(COUNT, dtype=torch.float64)
            weight[last.batch.index], weight[sample] = last.weight, sign
            step(model, optimizer, self.train, weight, rows)
            with torch.no_grad():
                values.append(float(self.outer(model)))
        return (values[0] - values[1]) / (2 * H)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, train: Batch, weight: Tensor, rows: Tensor) -> None:
    """Take a plain training step."""
    optimizer.zero_grad()
    losses = F.cross_entropy(model(train.inputs[rows]), train.targets[rows], reduction="none")
    ((weight[rows] * losses).sum() / weight[rows].sum()).backward()
    optimizer.step()


def answers(run: Run, size: int) -> Iterator[tuple[str, Tensor]]:
    """Yield each way and the derivatives by all weights ``(n,)``."""

    def ask(estimator: Truncated, samples: Batch) -> Tensor:
        run.trajectory.module.eval()
        return estimator(run.trajectory, run.outer, samples=samples)

    yield "batch", ask(Truncated(coupled="batch"), run.train)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    for chunk in sorted({size, COUNT}):
        with mock.patch.object(Ladder, "_fitting", return_value=chunk):
            yield f"chunk {chunk}", ask(Truncated(coupled="chunk"), run.train)
            found = ask(Truncated(coupled="chunk"), run.train.take(order))
            yield f"random {chunk}", torch.empty_like(found).index_copy_(0, order, found)


def cell(net: str, optimizer: str, size: int, seeds: range) -> list[dict[str, Any]]:
    """Return a row for each way."""
    errors: dict[str, list[float]] = {}
    alike: dict[str, list[float]] = {}
    for seed in seeds:
        run = Run.of(net, optimizer, size, seed)
        outside = torch.ones(COUNT, dtype=torch.bool)
        outside[run.trajectory.index] = False
        some = outside.nonzero().flatten()
        some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))[:ASKED]]
        truth = torch.tensor([run.truth(int(one)) for one in some], dtype=torch.float64)
        for way, found in answers(run, size):
            errors.setdefault(way, []).append(float((found[some] - truth).norm() / truth.norm()))
            alike.setdefault(way, []).append(float(torch.corrcoef(torch.stack([found[some], truth]))[0, 1]))
    return [
        {"net": net, "optimizer": optimizer, "batch": size, "statistics": way}
        | {"error": median(errors[way]), "worst": max(errors[way]), "correlation": median(alike[way])}
        for way in errors
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for net in arguments.nets:
        for optimizer in arguments.optimizers:
            for size in arguments.batches:
                rows += cell(net, optimizer, size, range(arguments.seeds))
                print(
                    *(f"{row['statistics']}: {row['error']:.3f} {row['correlation']:.4f}" for row in rows[-5:]),
                    sep="  ",
                )
    if arguments.dry:
        return
    notes = [
        "The derivative of a held-out loss by the weights of samples that were not in the recorded batch (T = 1),",
        f"in float64, against training that step again with the sample as one more row, its weight moved by {H}",
        f"either way. 512 of scikit-learn's digits, a fifth of the labels wrong, {STEPS} steps before; {ASKED}",
        f"samples a run, {arguments.seeds} runs. `batch`: the statistics of the recorded batch with the sample as",
        "one more row, the default of `Truncated`. `chunk C`: those of chunks of C samples in the order of the",
        "data set, by class; `random C`: in random order. `error`: |found - truth| / |truth|, median and worst of",
        "the runs; `correlation`: median. In the truth the added row, though its weight is 0, moves the batch's",
        "statistics; no way here takes in what that does to the recorded samples and to the step's gradient.",
    ]
    columns = ["net", "optimizer", "batch", "statistics", "error", "worst", "correlation"]
    _measure.write("batch_norm", "BatchNorm: whose statistics", notes, rows, columns, table="batchnorm")


if __name__ == "__main__":
    main()
