"""Small problems for methods that weigh minibatches by clean samples, and what training again says of them."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight.minibatches import divided_by_rows
from tests.support.environments import CROSS_ENTROPY

OBJECTIVE = WeightedLoss(CROSS_ENTROPY)
OBJECTIVE_OF_ROWS = divided_by_rows(OBJECTIVE)
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
}


def some(count: int, seed: int = 0, flips: float = 0.0) -> Batch:
    """Two Gaussian classes of four features, a share of the labels flipped: those of the first samples."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = torch.randn(count, 4, generator=g, dtype=torch.float64) + 1.5 * (2 * labels[:, None] - 1)
    wrong = torch.arange(count) < flips * count
    return Batch.of(inputs, torch.where(wrong, 1 - labels, labels))


def net(seed: int = 0, *, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(4, 8), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2)).double()


def warmed(optimizer: str, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that has moments: three ordinary steps were taken."""
    made = OPTIMIZERS[optimizer](model.parameters())
    data = some(16, seed=5)
    for _ in range(3):
        made.zero_grad()
        CROSS_ENTROPY(model(data.inputs), data.targets).mean().backward()
        made.step()
    return made


def mean_loss(model: nn.Module, data: Batch) -> torch.Tensor:
    return CROSS_ENTROPY(model(data.inputs), data.targets).mean()


def retrained(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, weight: torch.Tensor, clean: Batch):
    """Return the clean loss after the optimizer's next step on sum w l / b: on copies, from this random state on."""
    model, optimizer = copy.deepcopy((model, optimizer))
    with torch.random.fork_rng():
        optimizer.zero_grad()
        (weight * CROSS_ENTROPY(model(batch.inputs), batch.targets)).mean().backward()
        optimizer.step()
        return mean_loss(model, clean).detach()


def differences(value, point: torch.Tensor, length: float = 1e-3) -> torch.Tensor:
    """Central differences of fourth order of a function of ``(n,)``."""
    found = []
    for row in torch.eye(len(point), dtype=point.dtype) * length:
        near, far = (value(point + row) - value(point - row)), (value(point + 2 * row) - value(point - 2 * row))
        found.append((8 * near - far) / (12 * length))
    return torch.stack(found)


def batches_of(train: Batch, count: int) -> list[Batch]:
    g = torch.Generator().manual_seed(3)
    return [train.take(torch.randperm(len(train), generator=g)[:10]) for _ in range(count)]
