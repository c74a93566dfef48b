"""Reuse of the last forward pass: the same derivative as a fresh sweep, or no reuse at all."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, Recorder, Trajectory, Truncated, WeightedLoss
from steelyard.bilevel.sweep.from_record import row_products, tangents
from steelyard.bilevel.sweep.graph_record import Unusable
from steelyard.bilevel.sweep.ladder import Ladder
from tests.support import problems
from tests.support.problems import CROSS_ENTROPY, relative

SIDE, CLASSES, ROWS = 6, 3, 7


class Residual(nn.Module):
    """In-place ReLU and in-place sum, as ResNets have them."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norms = nn.ModuleList([norm(4), norm(4)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.norms[1](self.second(y))
        y += x
        return F.relu(y, inplace=True)


def convolutional(norm: Callable[[int], nn.Module]) -> nn.Module:
    stem = [nn.Unflatten(1, (1, SIDE, SIDE)), nn.Conv2d(1, 4, 3, stride=2, padding=1), norm(4), nn.ReLU(inplace=True)]
    head = [nn.MaxPool2d(2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    return nn.Sequential(*stem, Residual(norm), *head)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, SIDE, 8))
        self.embed, self.out = nn.Linear(SIDE, 8), nn.Linear(8, CLASSES)
        self.mix, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, SIDE, SIDE)) + self.place
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        x = x + torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
        return self.out(F.gelu(x).mean(1))


class TimeFirst(nn.Module):
    """Rows of its linear layers are ordered by time, not by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(SIDE, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.view(-1, SIDE, SIDE).transpose(0, 1).reshape(-1, SIDE)
        return self.outer(torch.tanh(self.inner(steps)).view(SIDE, -1, 5).sum(0))


class Detached(nn.Module):
    """A path that autograd does not follow, of the same memory as one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(SIDE**2, CLASSES), nn.Linear(SIDE**2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        with torch.no_grad():
            scale = self.two(x).exp()
        return y * y.detach().sigmoid() + self.two(x) * scale


class Tied(nn.Module):
    """One parameter in two places, both times as something made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.scale = nn.Parameter(torch.randn(SIDE**2, SIDE**2)), nn.Parameter(torch.rand(SIDE**2, 1))
        self.bias = nn.Parameter(torch.randn(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scale * F.normalize(self.raw)
        return F.linear(torch.tanh(F.linear(x, weight)), self.raw[:CLASSES], self.bias)


class Mapped(nn.Module):
    """A transformation of torch.func inside of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE**2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: row * row.sum().exp())(self.layer(x) / 3)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "group": lambda width: nn.GroupNorm(2, width),
    "batch": nn.BatchNorm2d,
    "frozen": lambda width: nn.BatchNorm2d(width).eval().requires_grad_(False),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"convolution, {name}": partial(convolutional, norm) for name, norm in NORMS.items()},
    "attention": Attention,
    "time first": TimeFirst,
    "detached": Detached,
    "tied": Tied,
    "mapped": Mapped,
    "dropout": lambda: nn.Sequential(nn.Linear(SIDE**2, 9), nn.Dropout(0.4), nn.ReLU6(True), nn.Linear(9, CLASSES)),
}
COUPLED = {"convolution, batch", "dropout"}


def record(make: Callable[[], nn.Module], reuse: bool = True, weight: Tensor | None = None, **kw) -> Trajectory:
    """One step from a fixed start, weights that differ between samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
        data = Batch.of(torch.randn(ROWS, SIDE**2, dtype=torch.float64), torch.randint(0, CLASSES, (ROWS,)))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
                layer.eval()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        recorder = Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), reuse=reuse, **kw)
        loss = recorder.loss(data, torch.linspace(0.2, 1.5, ROWS, dtype=torch.float64) if weight is None else weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return recorder.trajectory()


def directions(run: Trajectory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    at = run.steps[-1].parameters
    return at, {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in at.items()}


def truth(run: Trajectory, direction: dict[str, Tensor]) -> Tensor:
    """t_i by one reverse pass a sample. (torch's forward mode goes through no_grad, which autograd does not.)"""
    step = run.steps[-1]
    leaves = {name: value.clone().requires_grad_() for name, value in step.parameters.items()}
    found = []
    for loss in run.sample_losses(step, leaves, step.batch):
        one = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, materialize_grads=True)
        found.append(torch.stack([(g * direction[name]).sum() for name, g in zip(leaves, one, strict=True)]).sum())
    return torch.stack(found).detach()


def answer(run: Trajectory, direction: dict[str, Tensor], ladder: Ladder | None = None) -> Tensor:
    """What an estimator gets."""
    step = run.steps[-1]
    return (ladder or Truncated().ladder).losses(run, step, step.parameters, direction, step.batch)


@pytest.mark.parametrize("model", MODELS)
def test_a_tangent_pass_over_the_tape_is_the_derivative(model: str) -> None:
    run = record(MODELS[model])
    at, direction = directions(run)
    forward_record = run.steps[-1].findings.forward_record
    assert forward_record is not None
    for _ in range(2):  # a record is read, not used up
        assert relative(tangents(forward_record, at, direction), truth(run, direction)) < 1e-12


@pytest.mark.parametrize("model", sorted(set(MODELS) - COUPLED - {"time first"}))
def test_the_ghost_product_is_the_derivative(model: str) -> None:
    run = record(MODELS[model])
    at, direction = directions(run)
    forward_record = run.steps[-1].findings.forward_record
    assert forward_record is not None
    assert relative(row_products(forward_record, at, direction), truth(run, direction)) < 1e-12


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"detached"}))
def test_the_estimator_answers_alike_with_and_without_reuse(model: str) -> None:
    def outer(module: nn.Module) -> Tensor:
        return torch.stack([p.square().sum() for p in module.parameters()]).sum()

    one, other = (Truncated()(record(MODELS[model], reuse), outer) for reuse in (True, False))
    assert relative(one, other) < 1e-12


@pytest.mark.parametrize("model", MODELS)
def test_a_fresh_sweep_is_the_derivative_too(model: str) -> None:
    """Also through no_grad ("detached"), which torch's forward mode does not respect."""
    run = record(MODELS[model], reuse=False)
    _, direction = directions(run)
    ladder = Truncated().ladder
    assert relative(answer(run, direction, ladder), truth(run, direction)) < 1e-12
    assert set(ladder.answered) == {"forward over a replay"}


def test_a_function_with_rules_of_its_own_goes_through_them() -> None:
    run = record(lambda: Untraceable("function"))
    _, direction = directions(run)
    ladder = Truncated().ladder
    assert relative(answer(run, direction, ladder), truth(run, direction)) < 1e-12
    assert set(ladder.answered) == {"torch's forward mode"}
    assert "forward over a replay" in ladder.passed_over


def test_outputs_that_are_not_laid_out_by_samples_are_noticed() -> None:
    """The ghost product adds up the wrong rows there; the sum over samples would not show it."""
    run = record(TimeFirst)
    at, direction = directions(run)
    forward_record = run.steps[-1].findings.forward_record
    assert forward_record is not None
    assert relative(row_products(forward_record, at, direction), truth(run, direction)) > 0.1
    found = answer(run, direction)
    assert relative(found, truth(run, direction)) < 1e-12


def test_a_home_made_norm_that_couples_samples_is_noticed() -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)) / x.std(0)

    run = record(lambda: nn.Sequential(nn.Linear(SIDE**2, 5), Norm(), nn.Linear(5, CLASSES)))
    _, direction = directions(run)
    assert run.steps[-1].findings.separable
    found = answer(run, direction)
    assert relative(found, truth(run, direction)) < 1e-12


def test_a_sample_of_weight_zero_gets_its_derivative() -> None:
    weight = torch.ones(ROWS, dtype=torch.float64)
    weight[2] = 0.0
    run = record(MODELS["convolution, group"], weight=weight)
    at, direction = directions(run)
    forward_record = run.steps[-1].findings.forward_record
    assert forward_record is not None
    with pytest.raises(Unusable, match="weight 0"):
        row_products(forward_record, at, direction)
    found = answer(run, direction)
    assert found[2] != 0
    assert relative(found, truth(run, direction)) < 1e-12


class Rounded(torch.autograd.Function):
    """Forward: a step function; backward: whatever. Its derivative is what its author says, not the operators'."""

    @staticmethod
    def forward(x):  # type: ignore[no-untyped-def]
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient

    @staticmethod
    def jvp(ctx, tangent):  # type: ignore[no-untyped-def]
        return tangent


class Untraceable(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer, self.what, self.kept = nn.Linear(SIDE**2, CLASSES), what, None

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.what == "function":
            return Rounded.apply(3 * y)
        if self.what == "view":
            table = torch.zeros(len(x), CLASSES, dtype=x.dtype)
            table[:, 0] = y[:, 1]
            return table + y
        if self.what == "noise":
            return F.rrelu(y, training=True)
        with torch.no_grad():
            y.mul_(2.0)
        return y


@pytest.mark.parametrize("what", ["function", "view", "noise", "write"])
def test_what_cannot_be_followed_is_not_reused(what: str) -> None:
    assert record(lambda: Untraceable(what)).steps[-1].findings.forward_record is None


def test_an_activation_written_to_after_the_forward_pass_is_not_reused() -> None:
    kept: list[Tensor] = []

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(SIDE**2, 5), nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            kept.append(self.one(x))
            return self.two(kept[-1])

    run = record(Leaky)
    at, direction = directions(run)
    expected = truth(run, direction)
    kept[0].detach().zero_()
    with pytest.raises(Unusable, match="written to"):
        tangents(run.steps[-1].findings.forward_record, at, direction)
    found = answer(run, direction)
    assert relative(found, expected) < 1e-12


def test_under_autocast_the_tape_follows_the_casts() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = convolutional(nn.BatchNorm2d)
        data = Batch.of(torch.randn(ROWS, SIDE**2), torch.randint(0, CLASSES, (ROWS,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), reuse=True) as recorder:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = recorder.loss(data, torch.ones(ROWS))
        loss.backward()
        optimizer.step()
        run = recorder.trajectory()
    at, direction = directions(run)
    forward_record = run.steps[-1].findings.forward_record
    run.steps[-1].conditions = replace(run.steps[-1].conditions, autocast=None)
    assert forward_record is not None
    found = tangents(forward_record, at, direction)
    assert 1e-6 < relative(found, truth(run, direction)) < 5e-2


def test_only_the_newest_step_keeps_its_tape() -> None:
    case = problems.Problem(window=1)
    model, data = case.make().double(), case.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=3, reuse=True) as recorder:
        for _ in range(4):
            loss = recorder.loss(data, case.start_weight())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run = recorder.trajectory()
    assert [step.findings.forward_record is None for step in run.steps] == [True, True, False]


def test_activations_go_with_the_trajectory_and_with_a_failed_forward_pass() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fail = nn.Linear(SIDE**2, 5), nn.Linear(5, CLASSES), False

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.one(x))
            if self.fail:
                raise ValueError("stop")
            return self.two(y)

    run = record(Watched)
    note = [one for one in run.steps[-1].findings.forward_record.notes if str(one.op).startswith("aten.addmm")][-1]
    held = weakref.ref(note.args[1].held.tensor)
    del note
    assert held() is not None
    del run
    gc.collect()
    assert held() is None
    model = Watched().double()
    model.fail = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), reuse=True)
    with pytest.raises(ValueError, match="stop"):
        recorder.loss(Batch.of(torch.randn(23, SIDE**2).double(), torch.zeros(23, dtype=torch.long)), torch.ones(23))
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Tensor and one.shape == (23, 5)]
