"""Graphs of the window's gradients: the same training, the same derivative, and a replay where there can be none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steelyard.bilevel import Batch, NoDerivative, Recorder, Storage, Truncated, WeightedLoss
from tests.support.problems import (
    CROSS_ENTROPY,
    Problem,
    batch_norm,
    convolution,
    cumulative_norm,
    dropout,
    mlp,
    relative,
)

KEPT = "the kept graph"
OBJECTIVE = WeightedLoss(CROSS_ENTROPY)
DATA = Batch.of(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3)
WEIGHT = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
Loop = Callable[[nn.Module, torch.optim.Optimizer, Recorder], None]


def outer(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(DATA.inputs).square().sum()
    return found


def plain_loop(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    for _ in range(3):
        loss = recorder.loss(DATA, WEIGHT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def asked(make: Callable[[], nn.Module], loop: Loop, graphs: bool, **settings: Any) -> tuple[Tensor, Truncated, Any]:
    """Train three steps by `loop` and ask; return answer, estimator and the end of the training."""
    torch.manual_seed(0)
    model = make().double()
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.2, "momentum": 0.9, **settings})
    with Recorder(model, optimizer, OBJECTIVE, steps=3, graphs=graphs) as recorder:
        loop(model, optimizer, recorder)
        estimator = Truncated(3)
        return estimator(recorder.trajectory(), outer), estimator, model.state_dict()


@pytest.mark.parametrize("make", [mlp, dropout, cumulative_norm, convolution])
@pytest.mark.parametrize("kind", ["sgd-nesterov", "adam", "adamw-amsgrad", "rmsprop-momentum"])
def test_against_plain_retraining(make: Callable[[], nn.Module], kind: str) -> None:
    problem = Problem(make, kind, graphs=True, normalise="none" if kind == "adam" else "weights", schedule=0.9)
    estimator = Truncated(3)
    _, trajectory = problem.run(problem.start_weight())
    found = estimator(trajectory, problem.outer, torch.arange(problem.samples))
    assert relative(found, problem.truth()) < 1e-5
    assert estimator.answered[KEPT] == 3
    assert not estimator.passed_over
    torch.testing.assert_close(estimator(trajectory, problem.outer, torch.arange(problem.samples)), found)


@pytest.mark.parametrize("make", [mlp, batch_norm, dropout])
@pytest.mark.parametrize("to_none", [True, False])
def test_the_training_is_the_same_to_the_bit(make: Callable[[], nn.Module], to_none: bool) -> None:
    ends = []
    for graphs in (False, True):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
        with Recorder(model, optimizer, OBJECTIVE, steps=2, graphs=graphs) as recorder:
            for _ in range(4):
                loss = recorder.loss(Batch.of(DATA.inputs.float(), DATA.targets), WEIGHT.float())
                optimizer.zero_grad(set_to_none=to_none)
                loss.backward()
                optimizer.step()
        ends.append((model.state_dict(), torch.get_rng_state(), float(loss.detach())))
    assert ends[0][2] == ends[1][2]
    assert torch.equal(ends[0][1], ends[1][1])
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name


def gradients_cleared_in_place(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    for _ in range(3):
        loss = recorder.loss(DATA, WEIGHT)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    for _ in range(3):
        loss = recorder.loss(DATA, WEIGHT)
        optimizer.zero_grad()
        loss.backward()
        recorder.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    for _ in range(3):
        loss = recorder.loss(DATA, WEIGHT, scale=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def twice(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    """Read the gradient, then take it."""
    for _ in range(3):
        loss = recorder.loss(DATA, WEIGHT)
        optimizer.zero_grad()
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("loop", [plain_loop, gradients_cleared_in_place, clipped, scaled, twice])
def test_loops(loop: Loop) -> None:
    """Against a record without graphs, which `test_truncated` and `test_loops` compare with retraining."""
    found, estimator, end = asked(mlp, loop, graphs=True)
    expected, _, plain_end = asked(mlp, loop, graphs=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert estimator.answered[KEPT] == 3
    for name, value in end.items():
        torch.testing.assert_close(value, plain_end[name], rtol=1e-12, atol=1e-14)


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        for rows in torch.arange(6).split(3):
            recorder.loss(DATA.take(rows), WEIGHT[rows], scale=0.5).backward()
        optimizer.step()


def restored_by_data(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
    """Sharpness-aware steps: the gradient of a point nearby, by writes that no version counts."""
    for number in range(3):
        held = copy.deepcopy(model.state_dict())
        if number == 0:  # (before the window: between its steps it is refused)
            for p in model.parameters():
                p.data.add_(0.05)
        loss = recorder.loss(DATA, WEIGHT)
        optimizer.zero_grad()
        loss.backward()
        for name, p in model.named_parameters():
            p.data.copy_(held[name])
        optimizer.step()


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(4, 5), nn.Linear(5, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        found: Tensor = self.last(checkpoint(lambda y: self.first(y).tanh(), x, use_reentrant=self.reentrant))
        return found


class ReadPast(nn.Module):
    """Holds its weight in a list as well, where nothing can be put in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.held = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x).tanh()
        return found * self.held[0].sum() if self.training else found


def hooked() -> nn.Module:
    model = mlp()
    model[0].weight.register_hook(lambda g: g * 1.0)  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize(
    ("make", "loop"),
    [
        (mlp, accumulated),
        (hooked, plain_loop),
        (lambda: Checkpointed(reentrant=True), plain_loop),
    ],
    ids=["accumulated", "hook on a parameter", "reentrant checkpoint"],
)
def test_a_step_without_a_graph_is_replayed(make: Callable[[], nn.Module], loop: Loop) -> None:
    found, estimator, end = asked(make, loop, graphs=True)
    expected, _, plain_end = asked(make, loop, graphs=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert KEPT not in estimator.answered
    assert "was not kept" in estimator.passed_over[KEPT]
    for name, value in end.items():
        torch.testing.assert_close(value, plain_end[name], rtol=1e-12, atol=1e-14)


class _Noisy(torch.autograd.Function):
    """The identity, the way back of which draws random numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        torch.rand(3)
        return _Noisy.apply(cotangent)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return _Noisy.apply(self.net(x))


def test_random_numbers_of_a_way_back_leave_the_generator_where_it_was() -> None:
    torch.manual_seed(0)
    model = Noisy().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with Recorder(model, optimizer, OBJECTIVE, steps=3, graphs=True) as recorder:
        plain_loop(model, optimizer, recorder)
        trajectory = recorder.trajectory()
    before, estimator = torch.get_rng_state(), Truncated(3)
    estimator(trajectory, lambda m: m.net(DATA.inputs).square().sum())
    assert estimator.answered[KEPT] == 3
    assert torch.equal(torch.get_rng_state(), before)


def with_a_frozen_parameter() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    return model


def test_a_parameter_that_the_optimizer_has_and_nobody_trains() -> None:
    found, estimator, end = asked(with_a_frozen_parameter, plain_loop, graphs=True)
    expected, _, plain_end = asked(with_a_frozen_parameter, plain_loop, graphs=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert estimator.answered[KEPT] == 3
    for name, value in end.items():
        torch.testing.assert_close(value, plain_end[name], rtol=1e-12, atol=1e-14)


def normalised_across_channels() -> nn.Module:
    """CrossMapLRN2d's backward pass writes to a tensor of its own, and cannot be differentiated."""
    channels = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.CrossMapLRN2d(2), nn.Flatten())
    return nn.Sequential(nn.Linear(4, 4), channels, nn.Linear(4, 3)).double()


def test_a_backward_pass_without_a_derivative_ends_as_without_graphs() -> None:
    for graphs in (False, True):
        with pytest.raises(NoDerivative, match="no way to the derivative"):
            asked(normalised_across_channels, plain_loop, graphs)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_parameter_read_past_the_module_is_refused(graphs: bool) -> None:
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        asked(ReadPast, plain_loop, graphs)


def test_a_checkpoint_reads_the_copies_again() -> None:
    def make() -> nn.Module:
        return Checkpointed(reentrant=False)

    found, estimator, _ = asked(make, plain_loop, graphs=True)
    expected, _, _ = asked(make, plain_loop, graphs=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert estimator.answered[KEPT] == 3


def test_under_autocast_a_step_is_replayed() -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data, estimator = Batch.of(DATA.inputs.float(), DATA.targets), Truncated(2)
    with Recorder(model, optimizer, OBJECTIVE, steps=2, graphs=True) as recorder:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = recorder.loss(data, WEIGHT.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        estimator(recorder.trajectory(), lambda m: m(data.inputs).square().sum())
    assert KEPT not in estimator.answered


def test_what_the_loss_reads_beside_the_parameters_gets_its_gradient() -> None:
    gradients = []
    for graphs in (False, True):
        torch.manual_seed(0)
        model, temperature = mlp().double(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        weight = WEIGHT.clone().requires_grad_()
        frozen = model[2].bias
        optimizer = torch.optim.SGD([p for p in model.parameters() if p is not frozen], lr=0.1)
        objective = WeightedLoss(lambda logits, y, t=temperature: CROSS_ENTROPY(logits / t, y))
        with Recorder(model, optimizer, objective, steps=2, graphs=graphs) as recorder:
            recorder.loss(DATA, weight * 1.5).backward()
        gradients.append([temperature.grad, weight.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_gradient_edited_before_the_step_is_noticed() -> None:
    def edited(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
        for number in range(3):
            loss = recorder.loss(DATA, WEIGHT)
            optimizer.zero_grad()
            loss.backward()
            if number == 1:
                next(model.parameters()).grad.mul_(0.7)  # type: ignore[union-attr]
            optimizer.step()

    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        asked(mlp, edited, graphs=True)


def test_a_parameter_moved_between_loss_and_step_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        asked(mlp, restored_by_data, graphs=True)


def test_a_wrong_second_derivative_is_passed_over() -> None:
    """A function whose backward pass is right, and says that its own derivative is 0."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return g * 2 * x.detach()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Square.apply(self.layer(x))
            return found

    plain, _, _ = asked(Net, plain_loop, graphs=False)
    found, _, _ = asked(Net, plain_loop, graphs=True)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("graphs", [False, True])
def test_what_is_refused_once_is_refused_again(graphs: bool) -> None:
    """The dearer checks come at calls 1, 2, 4, ...: a refusal is no look that a later call can do without."""

    class Bent(torch.autograd.Function):
        """A backward pass that is no derivative of the forward pass, and whose own derivative is not what it says."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.values = (1 + x * x).tolist()
            return x.tanh()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * torch.tensor(ctx.values, dtype=g.dtype)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Bent.apply(self.layer(x))
            return found

    torch.manual_seed(0)
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with Recorder(model, optimizer, OBJECTIVE, steps=3, graphs=graphs) as recorder:
        plain_loop(model, optimizer, recorder)
        trajectory = recorder.trajectory()
        for _ in range(5):
            with pytest.raises(NoDerivative, match="along random directions H is"):
                Truncated(3)(trajectory, outer)


@pytest.mark.parametrize("options", [{"reuse": True}, {"storage": Storage(checkpoint_every=2)}])
def test_what_keeps_another_thing_is_refused(options: dict[str, Any]) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"graphs=True .* leave out {next(iter(options))}"):
        Recorder(model, optimizer, OBJECTIVE, steps=3, graphs=True, **options)
