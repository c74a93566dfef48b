"""A loss that takes the outputs of one sample with the targets of another, because their shapes broadcast."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel import Batch, Recorder, Truncated, WeightedLoss
from steelyard.reweight import IRMv1, MeanRisk, VREx

CROSSED = {
    "mse_loss, mean": (1, (8,), lambda o, t: F.mse_loss(o, t, reduction="none").mean(1)),
    "mse_loss, whole": (1, (8,), partial(F.mse_loss, reduction="none")),
    "l1_loss": (1, (8,), lambda o, t: F.l1_loss(o, t, reduction="none").mean(-1)),
    "huber_loss, sum": (1, (8,), lambda o, t: F.huber_loss(o, t, reduction="none").sum(1)),
    "poisson": (1, (8,), lambda o, t: F.poisson_nll_loss(o, t.abs(), reduction="none").mean(1)),
    "difference": (1, (8,), lambda o, t: (o - t).square().mean(1)),
    "the other mean": (1, (8,), lambda o, t: (o - t).square().mean(0)),
    "hinge": (1, (8,), lambda o, t: (1 - o * t).clamp(min=0).mean(1)),
    "largest": (1, (8,), lambda o, t: (o - t).abs().amax(1)),
    "first row": (1, (8,), lambda o, t: (o - t).square()[0]),
    "flat outputs": (None, (8, 1), lambda o, t: (o - t).square().mean(1)),
    "flat outputs, the other mean": (None, (8, 1), lambda o, t: (o - t).square().mean(0)),
    "as many outputs as samples": (8, (8,), lambda o, t: (o - t).square().mean(1)),
    "as many, the other mean": (8, (8,), lambda o, t: (o - t).square().mean(0)),
    "two": (1, (2,), lambda o, t: (o - t).square().mean(1)),
    "two of two": (2, (2,), lambda o, t: (o - t).square().mean(1)),
}
MATCHED = {
    "squeezed": (1, (8,), lambda o, t: (o.squeeze(1) - t).square()),
    "reshaped": (1, (8,), lambda o, t: (o.reshape(t.shape) - t).square()),
    "a column": (1, (8,), lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.sigmoid(), reduction="none")),
    "no targets": (1, (8,), lambda o, t: o.squeeze(1).square()),
    "targets with a column": (1, (8,), lambda o, t: (o - t[:, None]).square().mean(1)),
    "alike": (1, (8, 1), lambda o, t: (o - t).square().mean(1)),
    "one target, three outputs": (3, (8, 1), lambda o, t: (o - t).square().mean(1)),
    "pairs that are meant": (1, (8,), lambda o, t: ((o - o.T) * (t[:, None] - t)).mean(1)),
    "first of eight": (8, (8,), lambda o, t: (o[:, 0] - t).square()),
    "two": (1, (2,), lambda o, t: (o.squeeze(1) - t).square()),
    "first of two": (2, (2,), lambda o, t: (o[:, 0] - t).square()),
}


class Net(nn.Module):
    """A linear layer whose outputs go through a function."""

    def __init__(self, outputs: int | None, change=lambda outputs: outputs) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.layer, self.flat, self.change = nn.Linear(3, outputs or 1), outputs is None, change

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = self.layer(inputs)
        return self.change(found.squeeze(1) if self.flat else found)


def problem(outputs: int | None, shape: tuple[int, ...]) -> tuple[Net, Batch]:
    torch.manual_seed(0)
    environment = torch.arange(shape[0]) % 2
    return Net(outputs), Batch.of(torch.randn(shape[0], 3), torch.randn(shape), environment=environment)


@pytest.mark.parametrize("name", CROSSED)
@pytest.mark.parametrize("risk", [None, MeanRisk(), VREx(), IRMv1()], ids=["inner", "mean", "vrex", "irmv1"])
def test_crossed_rows_are_refused(name: str, risk) -> None:  # type: ignore[no-untyped-def]
    outputs, shape, loss = CROSSED[name]
    model, batch = problem(outputs, shape)
    with pytest.raises(ValueError, match=r"loss takes every output with every target: outputs .* broadcast to "):
        if risk is None:
            WeightedLoss(loss)(model, batch, torch.ones(len(batch)))
        else:
            risk(model(batch.inputs), batch, loss)


@pytest.mark.parametrize("name", MATCHED)
def test_a_loss_that_takes_rows_one_by_one_is_left_alone(name: str) -> None:
    outputs, shape, loss = MATCHED[name]
    model, batch = problem(outputs, shape)
    objective, weight = WeightedLoss(loss), torch.rand(len(batch))
    state = torch.get_rng_state()
    for _ in range(2):  # the second time the shapes are known
        value = objective(model, batch, weight)
        torch.testing.assert_close(value, (weight * loss(model(batch.inputs), batch.targets)).sum() / weight.sum())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.isfinite(MeanRisk()(model(batch.inputs), batch, loss))


def test_as_many_classes_as_samples() -> None:
    losses = (
        partial(F.cross_entropy, reduction="none"),
        lambda o, t: -o.log_softmax(1).gather(1, t[:, None])[:, 0],
        lambda o, t: -o.log_softmax(1)[torch.arange(len(t)), t],
    )
    for n in (2, 3, 5):
        batch = Batch.of(torch.randn(n, 3), torch.arange(n))
        found = [float(WeightedLoss(loss)(nn.Linear(3, n), batch, torch.ones(n)).isfinite()) for loss in losses]
        assert found == [1.0] * 3


@pytest.mark.parametrize(
    "change", [lambda o: o.mean(), lambda o: o.mean(0), lambda o: o.mean(0, keepdim=True)], ids=["()", "(1,)", "(1, 1)"]
)
def test_one_row_of_outputs_for_all_samples_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    _, batch = problem(1, (8,))
    with pytest.raises(ValueError, match="for 8 samples: it must give each a row"):
        WeightedLoss(lambda o, t: (o - t).square().reshape(-1))(Net(1, change), batch, torch.ones(8))


@pytest.mark.parametrize("reuse", [False, True])
def test_the_hypergradient_does_not_see_the_trial(reuse: bool) -> None:
    """Outputs (n, 1) that the loss squeezes, against the same net with outputs (n,)."""
    found = []
    for outputs in (1, None):
        model, batch = problem(outputs, (8,))
        objective = WeightedLoss(lambda o, t: (o.reshape(t.shape) - t).square())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(model, optimizer, objective, steps=1, reuse=reuse) as recorder:
            recorder.loss(batch, torch.ones(8)).backward()
            optimizer.step()
            trajectory = recorder.trajectory()
        assert (trajectory.steps[-1].findings.forward_record is not None) == reuse
        found.append(Truncated()(trajectory, lambda net: net.layer.weight.square().sum()))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.ones(8, 1), r"weight must have the shape \(batch\), got \(8, 1\)"),
        (torch.ones(1), "weight must have an entry for each of the 8 samples, got 1"),
        (torch.tensor(1.0), r"weight must have the shape \(batch\), got \(\)"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_weights_do_not_broadcast_either(weight: torch.Tensor, words: str) -> None:
    model, batch = problem(None, (8,))
    with pytest.raises(ValueError, match=words):
        WeightedLoss(lambda o, t: (o - t).square())(model, batch, weight)
