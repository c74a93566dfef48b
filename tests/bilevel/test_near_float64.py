"""Derivatives in float32 over the values of a forward pass in float64: a cold Adam step through BatchNorm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel import Recorder, Trajectory, Truncated, WeightedLoss, float64, near_float64, truncated
from steelyard.bilevel.sweep.graph_record import Unusable
from tests.support.problems import CROSS_ENTROPY, relative
from tests.support.rough import data, net, outer
from tests.support.widened import widened

ROUNDED = "forward over a record in float64"


def record(model: nn.Module, objective: WeightedLoss | None = None) -> Trajectory:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    weight = 0.5 + torch.rand(12, generator=torch.Generator().manual_seed(1))
    with Recorder(model, optimizer, objective or WeightedLoss(CROSS_ENTROPY)) as recorder:
        recorder.loss(data(0), weight).backward()
        optimizer.step()
        return recorder.trajectory()


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step in float64 count as one that float32 is too rough for, as a small net's is not."""
    monkeypatch.setattr(float64, "_ROUGH", 0.0)


@pytest.mark.usefixtures("rough")
def test_it_is_as_right_as_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    run = record(net())
    estimator = Truncated()
    found, truth = estimator(run, outer).double(), Truncated()(widened(run), outer)
    assert estimator.answered == {ROUNDED: 1}
    assert relative(found, truth) < 1e-5
    monkeypatch.setattr(truncated, "near_float64", lambda *arguments: None)
    estimator = Truncated()
    assert relative(found, estimator(run, outer).double()) < 1e-5
    assert ROUNDED not in estimator.answered


@pytest.mark.usefixtures("rough")
def test_where_its_sum_is_not_the_gradients_all_is_taken_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    run = record(net())
    monkeypatch.setattr(near_float64, "SUMS", 0.0)
    estimator = Truncated()
    found = estimator(run, outer).double()
    assert ROUNDED not in estimator.answered
    assert relative(found, Truncated()(widened(run), outer)) < 1e-5


@pytest.mark.usefixtures("rough")
def test_a_bias_before_batch_norm_is_no_worse() -> None:
    """Its gradient is rounding alone, and u along it as large as it gets."""
    torch.manual_seed(0)
    run = record(net(bias=True))
    assert relative(Truncated()(run, outer).double(), Truncated()(widened(run), outer)) < 1e-5


@pytest.mark.usefixtures("rough")
def test_a_regulariser_is_left_to_float64() -> None:
    torch.manual_seed(0)
    run = record(net(), WeightedLoss(CROSS_ENTROPY, regulariser=lambda m: 1e-3 * m[0].weight.square().sum()))
    estimator = Truncated()
    found = estimator(run, outer).double()
    assert ROUNDED not in estimator.answered
    assert relative(found, Truncated()(widened(run), outer)) < 1e-5


def test_a_record_is_rounded_once_and_says_what_was_written_to() -> None:
    from steelyard.bilevel.sweep.graph_record import Recording

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with Recording(dict(model.named_parameters())) as recording:
        losses = model(torch.randn(3, 4, dtype=torch.float64)).square().sum(1)
    kept = recording.forward_record(losses)
    assert kept is not None
    kept.round_to(torch.float32)
    held = [one for note in kept.notes for one in note.held()]
    assert {one.value().dtype for one in held} == {torch.float32}
    held[0].tensor.zero_()
    with pytest.raises(Unusable):
        kept.round_to(torch.float64)


def test_derivatives_of_samples_that_are_all_but_learned_keep_their_digits() -> None:
    """One class has nearly all of the softmax: what is left of the tangents' difference is 1e-4 of each."""
    from steelyard.bilevel.sweep.from_record import tangents
    from steelyard.bilevel.sweep.graph_record import Recording

    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(16, 5, generator=generator, dtype=torch.float64), torch.arange(16) % 4
    weight, direction = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    high = 9 * F.one_hot(label, 4)
    logits, moved = (x @ weight + high).float(), (1e3 + x @ direction).float()
    shares, along = logits.double().softmax(1), moved.double()
    expected = (shares * (along - along[range(16), label][:, None])).sum(1)

    shift = torch.zeros(16, 4, requires_grad=True)
    with Recording({"shift": shift}) as recording:
        losses = F.cross_entropy(logits + shift, label, reduction="none")
    kept = recording.forward_record(losses)
    assert kept is not None
    found = tangents(kept, {"shift": shift.detach()}, {"shift": moved})
    assert relative(found.double(), expected) < 1e-6  # 4e-5 in float32 throughout
