"""Row products of a chain of layers that autograd's graph shows, against one backward pass a sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, Recorder, Trajectory, Truncated, WeightedLoss
from steelyard.bilevel.sweep.graph_record import ForwardRecord
from steelyard.bilevel.sweep.layer_record import LayerRecord, layers_of
from tests.support.problems import relative

SAMPLES = 7
CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


def data(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    return Batch.of(inputs, torch.arange(SAMPLES) % 3)


class Tied(nn.Module):
    """One matrix twice, once as it is and once transposed, and a bias that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.addmm(self.shift, x, self.weight))
        return self.head(torch.sigmoid(hidden @ self.weight.t()))


class Permuted(nn.Module):
    """Rows change places before the first layer: loss i is that of another sample's inputs, and stays so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flip(0))


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    return model


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(5, 3),
    "relu": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.GELU(), nn.Linear(4, 3)),
    "others": lambda: nn.Sequential(nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 3)),
    "tied": Tied,
    "a frozen weight": frozen,
    "rows of the inputs permuted": Permuted,
}


def record(model: nn.Module, objective: WeightedLoss, weight: Tensor) -> tuple[Trajectory, dict[str, Tensor]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with Recorder(model, optimizer, objective, reuse=True) as recorder:
        optimizer.zero_grad()
        recorder.loss(data(), weight).backward()
        optimizer.step()
        return recorder.trajectory(), before


def by_sample(model: nn.Module, at: dict[str, Tensor], direction: dict[str, Tensor]) -> Tensor:
    """Return <u, grad l_i> by a backward pass for each i."""
    leaves = {name: p.clone().requires_grad_() for name, p in at.items()}
    losses = CROSS_ENTROPY(torch.func.functional_call(model, leaves, data().inputs), data().targets)
    each = [torch.autograd.grad(one, list(leaves.values()), retain_graph=True) for one in losses]
    return torch.stack([sum((g * direction[n]).sum() for n, g in zip(leaves, one, strict=True)) for one in each])


@pytest.mark.parametrize("name", CHAINS)
def test_the_second_recorded_pass_of_a_chain_keeps_its_layers(name: str) -> None:
    torch.manual_seed(0)
    model, objective = CHAINS[name]().double(), WeightedLoss(CROSS_ENTROPY)
    weight = 0.5 + torch.rand(SAMPLES, dtype=torch.float64)
    first, _ = record(model, objective, weight)
    assert isinstance(first.steps[-1].findings.forward_record, ForwardRecord)
    run, before = record(model, objective, weight)
    kept = run.steps[-1].findings.forward_record
    assert isinstance(kept, LayerRecord)
    direction = {n: torch.randn_like(p) for n, p in before.items()}
    assert relative(kept.row_products(direction), by_sample(model, before, direction)) < 1e-12
    estimator = Truncated()
    found = estimator(run, lambda m: m(data(1).inputs).square().sum())
    assert estimator.answered == {"row products of the record": 1}
    plain = Truncated()(_plainly(model, objective, weight, before), lambda m: m(data(1).inputs).square().sum())
    assert relative(found, plain) < 1e-12


def _plainly(model: nn.Module, objective: WeightedLoss, weight: Tensor, before: dict[str, Tensor]) -> Trajectory:
    """Take the same step from the same parameters, and keep nothing of the forward pass."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in before:
                p.copy_(before[name])
                p.grad = None
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with Recorder(model, optimizer, objective) as recorder:
        optimizer.zero_grad()
        recorder.loss(data(), weight).backward()
        optimizer.step()
        return recorder.trajectory()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        return self.head(torch.relu(hidden) + hidden)


class Mixing(nn.Module):
    """Rows change places between two layers, where they have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.one(x)).flip(0))


NO_CHAINS: dict[str, Callable[[], nn.Module]] = {
    "a sum": Residual,
    "rows that change places": Mixing,
    "dropout": lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "a softmax over the rows": lambda: nn.Sequential(nn.Linear(5, 4), nn.LogSoftmax(0), nn.Linear(4, 3)),
    "weights that are made": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)),
}


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_is_recorded_by_operators(name: str) -> None:
    torch.manual_seed(0)
    model, objective = NO_CHAINS[name]().double(), WeightedLoss(CROSS_ENTROPY)
    for _ in range(2):
        run, _ = record(model, objective, torch.ones(SAMPLES, dtype=torch.float64))
        assert not isinstance(run.steps[-1].findings.forward_record, LayerRecord)


def test_losses_that_average_are_no_chain() -> None:
    model = nn.Linear(5, 3).double()
    live = dict(model.named_parameters())
    outputs = model(data().inputs)
    assert layers_of(outputs.sum(1), live) is None
    assert layers_of(F.cross_entropy(outputs, data().targets).expand(SAMPLES), live) is None
    assert layers_of(F.cross_entropy(outputs, data().targets, reduction="none"), live) is not None


def test_a_sample_of_weight_0_leaves_no_trace_and_operators_are_recorded() -> None:
    torch.manual_seed(0)
    model, objective = nn.Linear(5, 3).double(), WeightedLoss(CROSS_ENTROPY)
    weight = torch.ones(SAMPLES, dtype=torch.float64)
    record(model, objective, weight)
    weight = weight.clone()
    weight[2] = 0
    run, _ = record(model, objective, weight)
    assert isinstance(run.steps[-1].findings.forward_record, ForwardRecord)


def test_activations_that_are_written_to_are_noticed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    objective, seen = WeightedLoss(CROSS_ENTROPY), list[Tensor]()
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    weight = torch.ones(SAMPLES, dtype=torch.float64)
    record(model, objective, weight)
    run, _ = record(model, objective, weight)
    with torch.no_grad():
        seen[-1].mul_(2.0)
    estimator = Truncated()
    estimator(run, lambda m: m(data(1).inputs).square().sum())
    assert "written to" in estimator.passed_over["row products of the record"]


def test_a_model_that_stops_being_a_chain_is_answered_by_a_replay_and_recorded_by_operators_again() -> None:
    torch.manual_seed(0)
    model, objective = Residual().double(), WeightedLoss(CROSS_ENTROPY)
    model.forward = lambda x: model.head(model.one(x))
    weight = torch.ones(SAMPLES, dtype=torch.float64)
    record(model, objective, weight)
    del model.forward
    run, before = record(model, objective, weight)
    assert run.steps[-1].findings.forward_record is None
    found = Truncated()(run, lambda m: m(data(1).inputs).square().sum())
    plain = Truncated()(_plainly(model, objective, weight, before), lambda m: m(data(1).inputs).square().sum())
    assert relative(found, plain) < 1e-12
    run, _ = record(model, objective, weight)
    assert isinstance(run.steps[-1].findings.forward_record, ForwardRecord)
