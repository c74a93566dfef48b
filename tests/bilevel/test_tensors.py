"""The general path: any tensor that enters the inner loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, Implicit, Recorder, Trajectory, Truncated, Unrolled, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, Problem, batch_norm, mlp, relative

CASE = Problem()
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, eps=1e-3),  # at a cold start the derivative is of the order of eps
}


def temperature(tensors: list[Tensor]) -> Callable[[nn.Module, Batch, Tensor], Tensor]:
    return lambda model, batch, weight: F.cross_entropy(model(batch.inputs) * tensors[0].exp(), batch.targets)


def weighting_network(tensors: list[Tensor]) -> Callable[[nn.Module, Batch, Tensor], Tensor]:
    """Weights from the losses themselves, not detached: they move with the parameters too (Shu et al. 2019)."""

    def objective(model: nn.Module, batch: Batch, weight: Tensor) -> Tensor:
        losses = CROSS_ENTROPY(model(batch.inputs), batch.targets)
        hidden = torch.tanh(losses[:, None] * tensors[0] + tensors[1])
        return (torch.sigmoid(hidden.sum(1)) * losses).mean()

    return objective


STARTS = {
    "temperature": (temperature, [torch.tensor(0.3)]),
    "network": (weighting_network, [torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.2])]),
}


def run(
    kind: str,
    optimizer: str,
    tensors: list[Tensor],
    make: Callable[[], nn.Module],
    steps: int,
    full_state: bool = False,
) -> Trajectory:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
        update = OPTIMIZERS[optimizer](model.parameters())
        objective = STARTS[kind][0](tensors)
        with Recorder(model, update, objective, steps, full_state) as recorder:
            for rows in torch.arange(8).roll(3).repeat(2).split(5)[:steps]:
                loss = recorder.loss(CASE.data().take(rows), torch.ones(len(rows), dtype=torch.float64))
                update.zero_grad()
                loss.backward()
                update.step()
            return recorder.trajectory()


@pytest.mark.parametrize("make", [mlp, batch_norm])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_against_central_differences(kind: str, optimizer: str, make: Callable, steps: int) -> None:
    tensors = [t.double().requires_grad_() for t in STARTS[kind][1]]
    record = run(kind, optimizer, tensors, make, steps)
    found = torch.cat([g.reshape(-1) for g in Truncated(steps=steps).tensors(record, CASE.outer, tensors)])
    truth, h = [], 1e-6
    for number, tensor in enumerate(tensors):
        for entry in range(tensor.numel()):
            values = []
            for sign in (1.0, -1.0):
                moved = [t.detach().clone() for t in tensors]
                moved[number].view(-1)[entry] += sign * h
                with torch.no_grad():
                    moved_run = run_without_grad(kind, optimizer, moved, make, steps)
                    values.append(float(CASE.outer(moved_run.module)))
            truth.append((values[0] - values[1]) / (2 * h))
    assert relative(found, torch.tensor(truth, dtype=torch.float64)) < 1e-6


@pytest.mark.parametrize("kind", STARTS)
def test_unrolling_agrees(kind: str) -> None:
    tensors = [t.double().requires_grad_() for t in STARTS[kind][1]]
    record = run(kind, "sgd", tensors, mlp, 3, full_state=True)
    ours, theirs = (e.tensors(record, CASE.outer, tensors) for e in (Truncated(3), Unrolled(3, "torchopt")))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(ours, theirs, strict=True))


def run_without_grad(*args) -> Trajectory:
    with torch.enable_grad():
        return run(*args)


def test_direct_dependence_of_the_outer_loss_counts() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    record = run("temperature", "sgd", [torch.tensor(0.3, dtype=torch.float64)], mlp, 1)
    (found,) = Truncated().tensors(record, lambda model: scale * CASE.outer(model), [scale])
    with torch.no_grad():
        assert torch.allclose(found, CASE.outer(record.module))


def test_sample_weights_by_the_general_path_agree_with_the_fast_one() -> None:
    weight = CASE.start_weight().requires_grad_()
    fast = WeightedLoss(CROSS_ENTROPY)
    torch.manual_seed(0)
    model, data = mlp().double(), CASE.data()
    update = torch.optim.Adam(model.parameters(), lr=0.1)
    with Recorder(model, update, lambda m, b, w: fast(m, b, weight[b.index]), steps=1) as recorder:
        recorder.loss(data, weight.detach()).backward()
        update.step()
        record = recorder.trajectory()
    (general,) = Truncated().tensors(record, CASE.outer, [weight])
    with pytest.raises(TypeError, match=r"need a WeightedLoss.*estimator\.tensors"):
        Truncated()(record, CASE.outer)
    record.objective = fast
    assert torch.allclose(general, Truncated()(record, CASE.outer), rtol=1e-10)


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.tensor(0.3), ValueError, r"tensors\[1\], torch.float32 \(\), requires no gradient: call requires_grad_"),
        (torch.zeros(2, dtype=torch.complex64), TypeError, r"tensors\[1\] is complex \(torch.complex64\)"),
    ],
    ids=["without gradient", "complex"],
)
@pytest.mark.parametrize("estimator", [Truncated(), Implicit(), Unrolled()], ids=lambda one: type(one).__name__)
def test_tensors_that_no_derivative_can_be_by(
    estimator: Any, tensor: Any, error: type[Exception], message: str
) -> None:
    model, scale = nn.Linear(3, 2), torch.tensor(0.3, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Batch.of(torch.randn(4, 3), torch.arange(4) % 2)
    with Recorder(model, optimizer, temperature([scale]), full_state=True) as recorder:
        recorder.loss(data, torch.ones(4)).backward()
        optimizer.step()
        record = recorder.trajectory()
    with pytest.raises(error, match=message):
        estimator.tensors(record, lambda model: model.weight.sum(), [scale, tensor])
    with pytest.raises(ValueError, match="outer must return a real number, got torch.complex64: return its abs"):
        estimator.tensors(record, lambda model: model.weight.sum() * 1j, [scale])
