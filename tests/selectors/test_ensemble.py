"""An ensemble in one call is its members one by one."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.selectors import Ensemble, bald, rank_disagreement
from tests.selectors.pools import generator


def members(count: int = 3) -> list[nn.Module]:
    source = generator()
    nets = []
    for _ in range(count):
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=source)
        nets.append(net)
    return nets


def test_outputs_are_the_members() -> None:
    nets, x = members(), torch.randn(7, 4, generator=generator(1))
    ensemble = Ensemble(nets)
    expected = torch.stack([net(x) for net in nets])
    assert len(ensemble) == 3
    torch.testing.assert_close(ensemble(x), expected)
    torch.testing.assert_close(ensemble(x.expand(3, 7, 4), shared=False), expected)
    torch.testing.assert_close(ensemble.probabilities(x, chunk=3), expected.softmax(2))
    y = torch.arange(7) % 3
    losses = torch.stack([F.cross_entropy(row, y, reduction="none") for row in expected])
    torch.testing.assert_close(ensemble.losses(x, y, chunk=2), losses.detach())
    assert (bald(ensemble.probabilities(x)) > 0).all()
    assert rank_disagreement(ensemble.losses(x, y)).shape == (7,)


def test_training_the_stack_trains_every_member_alone() -> None:
    nets = [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(3)]
    ensemble = Ensemble(nets)
    x = torch.randn(3, 6, 4, generator=generator(2))  # a batch of its own for each
    y = torch.arange(6) % 3
    together = torch.optim.Adam(ensemble.parameters(), lr=0.05)
    alone = [torch.optim.Adam(net.parameters(), lr=0.05) for net in nets]
    for _ in range(5):
        together.zero_grad()
        sum(F.cross_entropy(logits, y) for logits in ensemble(x, shared=False)).backward()
        together.step()
        for net, inputs, optimizer in zip(nets, x, alone, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), y).backward()
            optimizer.step()
    torch.testing.assert_close(ensemble(x, shared=False), torch.stack([n(i) for n, i in zip(nets, x, strict=True)]))


def test_dropout_differs_between_members() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    outputs = Ensemble([net, net])(torch.ones(50, 4))
    assert not torch.equal(outputs[0], outputs[1])


def test_models_are_copied() -> None:
    nets, x = members(2), torch.ones(1, 4)
    ensemble = Ensemble(nets)
    before = ensemble(x)
    nets[0][0].weight.data.zero_()
    torch.testing.assert_close(ensemble(x), before)


def test_wrong_number_of_batches(monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="must have 2 members first"):
        Ensemble(members(2))(torch.ones(3, 1, 4), shared=False)
