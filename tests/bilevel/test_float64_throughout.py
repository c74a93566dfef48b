"""Windows of adaptive optimizers in float32 that are taken in float64: what models, losses and loops do in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, NoDerivative, Recorder, Trajectory, Truncated, WeightedLoss
from steelyard.bilevel._float64_throughout import Float64Throughout
from tests.support.problems import CROSS_ENTROPY, relative
from tests.support.widened import widened

Optimizer = Callable[..., torch.optim.Optimizer]
ADAPTIVE: dict[str, Optimizer] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}
CLASSES, ROWS, WIDTH = 4, 12, 20


class Cast(nn.Module):
    """Casts to a precision, and multiplies by a matrix that is no buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype, self.matrix = dtype, torch.eye(24) + 0.01

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        return x.to(self.dtype) @ self.matrix.to(self.dtype)


class Recurrent(nn.Module):
    """Reshapes in place, as torch's own cells do."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(6, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state."""
        y = x * 1.5
        y.unsqueeze_(1)
        y = y.mul(2)
        y.squeeze_(1)
        return self.cell(y.view(len(y), 4, 6))[0][:, -1]  # type: ignore[no-any-return]


def net(middle: nn.Module, bias: bool = False) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 24, bias=bias), nn.BatchNorm1d(24), nn.ReLU(), middle, nn.Linear(24, CLASSES))


def window(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int = 2,
    before: int = 0,
    shift: float = 0.0,
    clip: float = 0.0,
    parts: int = 1,
    objective: WeightedLoss | None = None,
) -> Trajectory:
    """Record the last `steps` after `before` others, inputs `shift` from 0, a batch in so many micro-batches."""
    generator, stepper = torch.Generator().manual_seed(1), optimizer(model.parameters())
    with Recorder(model, stepper, objective or WeightedLoss(CROSS_ENTROPY), steps=steps) as recorder:
        for _ in range(before + steps):
            stepper.zero_grad()
            inputs = torch.randn(ROWS, WIDTH, generator=generator) + shift
            batch = Batch.of(inputs, torch.randint(0, CLASSES, (ROWS,), generator=generator))
            weight = 0.5 + torch.rand(ROWS, generator=generator)
            for part, own in zip(batch.chunks(ROWS // parts), weight.split(ROWS // parts), strict=True):
                (recorder.loss(part, own) / parts).backward()
            if clip:
                recorder.clip_grad_norm_(model.parameters(), clip)
            stepper.step()
        return recorder.trajectory()


def outer(model: nn.Module) -> Tensor:
    """Return the loss on other rows, in the precision of the model."""
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(ROWS, WIDTH, generator=generator).to(next(model.parameters()).dtype)
    return F.cross_entropy(model(rows), torch.randint(0, CLASSES, (ROWS,), generator=generator))


def error(run: Trajectory, steps: int = 2) -> float:
    wide = widened(run)
    for module in wide.module.modules():
        if isinstance(module, Cast):
            module.dtype = torch.float64
    return relative(Truncated(steps)(run, outer).double(), Truncated(steps)(wide, outer))


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("middle", [Cast, Recurrent])
@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_models_that_hold_float32_or_reshape_in_place(
    optimizer: str, middle: Callable[[], nn.Module], before: int
) -> None:
    torch.manual_seed(0)
    assert error(window(net(middle()), ADAPTIVE[optimizer], before=before)) < 1e-4


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_a_clip_beside_a_bias_before_batch_norm(optimizer: str, before: int) -> None:
    """In eval mode the outer loss moves along that bias, and u along it is 1e8 times as large as all else."""
    torch.manual_seed(0)
    model = net(nn.Identity(), bias=True)
    run = window(model, ADAPTIVE[optimizer], before=before, clip=0.05)
    model.eval()
    assert error(run) < 1e-3


@pytest.mark.parametrize("optimizer", ADAPTIVE)
@pytest.mark.parametrize("shift", [0.0, 100.0, 300.0])
def test_micro_batches_of_a_cold_window(optimizer: str, shift: float) -> None:
    torch.manual_seed(0)
    assert error(window(net(nn.Identity()), ADAPTIVE[optimizer], shift=shift, parts=2)) < 1e-3


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("shift", [200.0, 500.0])
def test_inputs_far_from_zero_are_not_refused(shift: float, before: int) -> None:
    torch.manual_seed(0)
    assert error(window(net(nn.Identity()), ADAPTIVE["adam"], 3, before, shift), 3) < 5e-3


class Penalised(WeightedLoss):
    """Cross-entropy with a penalty on the gradient by the inputs."""

    def sample_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the losses ``(batch,)``."""
        inputs = batch.inputs.detach().requires_grad_()
        losses = F.cross_entropy(model(inputs), batch.targets, reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
        return losses + slope.square().sum(1)


@pytest.mark.parametrize("middle", [nn.Identity, Cast])
def test_a_derivative_that_torch_gets_wrong_is_refused_where_float64_fails_as_well(
    middle: Callable[[], nn.Module],
) -> None:
    """torch's third derivative of BatchNorm is; detaching the inputs stops no gradient."""
    torch.manual_seed(0)
    run = window(net(middle()), ADAPTIVE["adam"], objective=Penalised(CROSS_ENTROPY))
    with pytest.raises(NoDerivative):
        Truncated(2)(run, outer)


class Detaching(nn.Module):
    """Stops a gradient that is 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x * (x.detach().abs() >= 0)


def test_it_is_not_excused_by_a_model_that_stops_gradients() -> None:
    torch.manual_seed(0)
    run = window(net(Detaching()), ADAPTIVE["adam"], objective=Penalised(CROSS_ENTROPY))
    with pytest.raises(NoDerivative, match="being held"):
        Truncated(2)(run, outer)


def test_such_a_penalty_is_answered_without_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 24), nn.Tanh(), nn.Linear(24, CLASSES))
    assert error(window(model, ADAPTIVE["adam"], objective=Penalised(CROSS_ENTROPY))) < 1e-4


@pytest.mark.parametrize("steps", [1, 2])
def test_a_padding_row_moves_nothing_that_the_training_saw(steps: int) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 8, padding_idx=0), nn.Linear(32, CLASSES)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens).flatten(1).tanh())  # type: ignore[no-any-return]

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(tokens), torch.arange(ROWS) % CLASSES)

    torch.manual_seed(0)
    model, tokens = Tokens(), torch.randint(0, 6, (ROWS, 4))
    stepper = torch.optim.SGD(model.parameters(), lr=0.5)
    with Recorder(model, stepper, WeightedLoss(CROSS_ENTROPY), steps=steps) as recorder:
        for _ in range(steps):
            stepper.zero_grad()
            batch = Batch.of(torch.randint(0, 6, (ROWS, 4)), torch.randint(0, CLASSES, (ROWS,)))
            recorder.loss(batch, torch.rand(ROWS) + 0.5).backward()
            stepper.step()
        run = recorder.trajectory()
    wide = widened(run)
    for step, own in zip(wide.steps, run.steps, strict=True):
        step.batch, step.findings.projected = own.batch, None
    assert relative(Truncated(steps)(run, loss).double(), Truncated(steps)(wide, loss)) < 1e-5


def test_noise_is_that_of_float32_and_casts_keep_float64() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    for draw in (torch.randn_like, torch.rand_like, lambda like: like.clone().normal_(), torch.bernoulli):
        torch.manual_seed(0)
        expected = draw(x.sigmoid().float())
        torch.manual_seed(0)
        with Float64Throughout():
            found = draw(x.sigmoid())
        assert found.dtype == torch.float64
        assert torch.equal(found, expected.double())
    with Float64Throughout():
        assert torch.equal(x.float(), x)
        assert (x @ torch.ones(3, 2)).dtype == torch.float64
