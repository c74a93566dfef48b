"""A pool that is learned in a second: two features, three classes, noise in a corner of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.active import Epochs, Fitting, Pool
from steelyard.experiments.active.recipe import with_dropout


@pytest.fixture
def pool() -> Pool:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (90,), generator=generator)
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    inputs = centres[targets] + 0.4 * torch.randn(90, 2, generator=generator)
    noisy = torch.arange(90) >= 60
    inputs[noisy] = torch.tensor([6.0, 6.0]) + 0.2 * torch.randn(30, 2, generator=generator)
    return Pool(Batch.of(inputs, targets), noisy, classes=3)


@pytest.fixture
def fit() -> Fitting:
    return Fitting(net, Epochs(epochs=4, batch_size=8, learning_rate=1e-2))


def net(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return with_dropout(model, 0.3)
