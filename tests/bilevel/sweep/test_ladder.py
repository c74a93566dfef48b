"""Models of which the value and the backward pass disagree, or torch knows one derivative only: right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steelyard.bilevel import (
    Batch,
    FiniteDifference,
    Implicit,
    NoDerivative,
    Recorder,
    StopGradientWarning,
    Trajectory,
    Truncated,
    Unrolled,
    WeightedLoss,
)
from tests.support.problems import CROSS_ENTROPY, relative

D = torch.float64
SGD = partial(torch.optim.SGD, lr=0.1)
Loss = Callable[[Tensor, Tensor], Tensor]


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(len(targets), -1).sum(1) - targets).square()


def scalar_data(targets: list[float] | None = None) -> Batch:
    return Batch.of(torch.tensor([1.0, 2.0], dtype=D), torch.tensor(targets or [1.0, 1.0], dtype=D))


def record(
    model: nn.Module,
    data: Batch,
    steps: int = 1,
    optimize: Callable[..., torch.optim.Optimizer] = SGD,
    loss: Loss = squared,
    weight: Tensor | None = None,
    normalise: Any = "none",
    **options: Any,
) -> Trajectory:
    optimizer = optimize(model.parameters())
    dtype = next(model.parameters()).dtype
    weight = torch.ones(len(data), dtype=dtype) if weight is None else weight
    recorder = Recorder(model, optimizer, WeightedLoss(loss, normalise), steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        recorder.loss(data, weight).backward()
        optimizer.step()
    return recorder.trajectory()


def truth(make: Callable[[], nn.Module], data: Batch, outer: Callable[[nn.Module], Tensor], **options: Any) -> Tensor:
    """Central differences of training again, plainly, in float64."""
    found = []
    for row in 1e-5 * torch.eye(len(data), dtype=D):
        values = []
        for sign in (1, -1):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = make().to(D)
                record(model, data, weight=1 + sign * row, **options)
            values.append(outer(model).detach())
        found.append((values[0] - values[1]) / 2e-5)
    return torch.stack(found)


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = D) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype)


class OneNumber(nn.Module):
    """A parameter a, and a function of a and x."""

    def __init__(self, value: float, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Parameter(torch.tensor(value, dtype=D)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.a, x)


def square_of_a(model: nn.Module) -> Tensor:
    return model.a.square()  # type: ignore[operator, union-attr, return-value]


class Recomputed(nn.Module):
    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.a, self.reentrant = nn.Parameter(torch.tensor(0.5, dtype=D)), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant:  # which wants an input that requires a gradient
            x = x + 0 * self.a
        return checkpoint(lambda x: torch.tanh(self.a * x) * self.a, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("estimator", [Truncated(2), FiniteDifference(2)])
@pytest.mark.parametrize("storage", ["whole", "checkpoints"])
def test_recomputation_reads_the_parameters_of_its_step(estimator: Truncated, storage: str) -> None:
    from steelyard.bilevel import Storage

    kept = Storage() if storage == "whole" else Storage(checkpoint_every=2)
    run = record(Recomputed(), scalar_data(), steps=2, storage=kept)
    assert torch.allclose(estimator(run, square_of_a), torch.tensor([0.338616, 0.275213], dtype=D), atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "torchopt", "higher"])
def test_recomputation_is_refused_where_several_steps_are_gone_back_through_at_once(backend: Any) -> None:
    run = record(Recomputed(), scalar_data(), steps=2, full_state=True)
    with pytest.raises(RuntimeError, match="once more on the way back"):
        Unrolled(2, backend)(run, square_of_a)
    live = next(run.module.parameters())
    assert bool(torch.isfinite(live).all())


def test_recomputation_that_takes_no_grad_calls() -> None:
    run = record(Recomputed(reentrant=True), scalar_data())
    expected = truth(Recomputed, scalar_data(), square_of_a)
    assert torch.allclose(Truncated()(run, square_of_a), expected, rtol=1e-6)


class Pooled(nn.Module):
    """A table whose row 0 is padding, and is read by the outer loss."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 1, padding_idx=0)
        self.table.weight.data = torch.tensor([[1.0], [2.0]], dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).sum((1, 2))


PADDED = Batch.of(torch.tensor([[0, 1], [1, 1]]), torch.zeros(2, dtype=D))


def squares(model: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


def test_a_padding_row_that_the_outer_loss_reads() -> None:
    run = record(Pooled(), PADDED, steps=2, optimize=partial(torch.optim.SGD, lr=0.01))
    assert abs(float(Truncated(2)(run, squares)[0]) + 0.346774) < 1e-6
    run = record(Pooled(), PADDED, steps=2, optimize=partial(torch.optim.Adam, lr=0.1))
    found = Truncated(2)(run, squares)
    expected = truth(Pooled, PADDED, squares, steps=2, optimize=partial(torch.optim.Adam, lr=0.1))
    assert abs(float(found[0]) + 4.69e-05) < 2e-7
    assert (found - expected).abs().max() < 2e-7


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy(outputs.squeeze(1), targets, reduction="none")


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("estimator", [Truncated, FiniteDifference])
def test_one_saturated_sample_takes_no_other_along(reuse: bool, estimator: type[Truncated]) -> None:
    inputs = torch.tensor([[100.0, 0.0], [0.3, -0.2], [0.1, 0.9]])
    data = Batch.of(inputs, torch.tensor([1.0, 0.0, 1.0]))

    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
        nn.init.constant_(model[0].weight, 2.0)  # type: ignore[arg-type]
        return model

    found = estimator()(record(seeded(make, torch.float32), data, loss=entropy, reuse=reuse), squares)
    wide = Batch.of(inputs.double(), data.targets.double())
    expected = truth(make, wide, squares, loss=entropy)
    assert relative(found.double(), expected) < 1e-3


class Direct(nn.Module):
    """A function of a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, layer: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.layer, self.function = (layer or partial(nn.Linear, 3, 3))(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


ROWS = Batch.of(torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=D), torch.arange(6).to(D) / 6)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -0.7 * gradient


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


def hidden(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.sigmoid()
    return x * scale


BACKWARD_IS_ANOTHER = {
    "reversal": Reversal.apply,
    "straight through": lambda x: x + (x.round() - x).detach(),
    "no gradient": hidden,
    "differentiable once": Once.apply,
    "halved on the way": lambda x: (x.register_hook(lambda g: 0.5 * g), x * x)[1] if x.requires_grad else x * x,
}


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("estimator", [Truncated, FiniteDifference])
@pytest.mark.parametrize("name", BACKWARD_IS_ANOTHER)
def test_the_answer_is_of_what_backward_did(name: str, estimator: type[Truncated], reuse: bool) -> None:
    def make() -> nn.Module:
        return Direct(BACKWARD_IS_ANOTHER[name])

    found = estimator()(record(seeded(make), ROWS, reuse=reuse), squares)
    assert relative(found, truth(make, ROWS, squares)) < 1e-6


@pytest.mark.parametrize("estimator", [Truncated(), FiniteDifference()])
def test_a_detached_factor(estimator: Truncated) -> None:
    run = record(
        OneNumber(2.0, lambda a, x: x * a * a.detach()),
        scalar_data([0.0, 0.0]),
        optimize=partial(torch.optim.SGD, lr=0.01),
    )
    assert torch.allclose(estimator(run, square_of_a), torch.tensor([-0.384, -1.536], dtype=D), atol=1e-9)


@pytest.mark.parametrize("estimator", [Truncated(2), FiniteDifference(2)])
def test_windows_over_stopped_gradients_say_what_is_left_out(estimator: Truncated) -> None:
    run = record(seeded(partial(Direct, hidden)), ROWS, steps=2)
    with pytest.warns(StopGradientWarning, match="leaves out what flows through"):
        found = estimator(run, squares)
    # What is left out is what double backward leaves out: the answer is that of unrolling.
    run = record(run.module, ROWS, steps=2, full_state=True)
    with pytest.warns(StopGradientWarning):
        found = type(estimator)(2)(run, squares)
    with pytest.warns(StopGradientWarning):
        unrolled = Unrolled(2, "torch")(run, squares)
    assert relative(found, unrolled) < 1e-9


def test_hooks_on_parameters_are_part_of_the_run() -> None:
    def make() -> nn.Module:
        model = Direct(torch.tanh)
        model.layer.weight.register_hook(lambda gradient: gradient * torch.linspace(0, 1, 9, dtype=D).view(3, 3))  # type: ignore[operator, union-attr]
        return model

    for steps in (1, 3):
        found = Truncated(steps)(record(seeded(make), ROWS, steps=steps), squares)
        assert relative(found, truth(make, ROWS, squares, steps=steps)) < 1e-6


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("estimator", [Truncated, FiniteDifference])
def test_a_clipped_gradient_is_refused_at_any_step(estimator: type[Truncated], steps: int) -> None:
    for clipped in range(steps):
        model = seeded(partial(Direct, torch.tanh))
        optimizer = SGD(model.parameters())
        recorder = Recorder(model, optimizer, WeightedLoss(squared), steps)
        for number in range(steps):
            optimizer.zero_grad()
            recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
            if number == clipped:
                for p in model.parameters():
                    p.grad *= 1 + 1e-4  # type: ignore[operator]
            optimizer.step()
        with pytest.raises(RuntimeError, match="not that of the recorded loss"):
            estimator(steps)(recorder.trajectory(), squares)


def test_a_gradient_that_is_nan_does_not_pass() -> None:
    model = seeded(partial(Direct, torch.tanh))
    optimizer = SGD(model.parameters())
    recorder = Recorder(model, optimizer, WeightedLoss(squared))
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    optimizer.step()
    run = recorder.trajectory()
    held = run.steps[0].findings.held_gradient()
    assert held is not None
    with torch.no_grad():
        held["layer.bias"].data.fill_(float("nan"))  # behind the version counter's back
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        Truncated()(run, squares)


TWICE: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh()),
    "cdist": lambda: Direct(lambda x: torch.cdist(x.view(-1, 1, 3), torch.eye(3).to(x)).flatten(1)),
    "hardsigmoid": lambda: Direct(F.hardsigmoid),
    "attention": lambda: Direct(
        lambda x: F.scaled_dot_product_attention(*[x.view(-1, 1, 3, 1) * s for s in (1, 2, 3)]).flatten(1)
    ),
    "normalize": lambda: Direct(lambda x: F.normalize(x, dim=1)),
    "lstm": lambda: Direct(lambda x: x[0][:, -1], layer=lambda: nn.LSTM(1, 2, batch_first=True)),
}


@pytest.mark.parametrize("optimize", [SGD, partial(torch.optim.Adam, lr=0.05)])
@pytest.mark.parametrize("name", TWICE)
def test_operators_with_one_derivative_of_torchs(name: str, optimize: Callable[..., torch.optim.Optimizer]) -> None:
    data = Batch.of(ROWS.inputs.unsqueeze(2), ROWS.targets) if name == "lstm" else ROWS
    run = record(seeded(TWICE[name]), data, steps=3, optimize=optimize)
    found = Truncated(3)(run, squares)
    assert relative(found, truth(TWICE[name], data, squares, steps=3, optimize=optimize)) < 1e-6


def test_any_tensor_through_weight_norm() -> None:
    values = []
    for moved in (0.0, 1e-6, -1e-6):
        model, scale = seeded(TWICE["weight norm"]), torch.tensor(1.3 + moved, dtype=D, requires_grad=True)
        optimizer = SGD(model.parameters())

        def objective(m: nn.Module, batch: Batch, weight: Tensor, scale: Tensor = scale) -> Tensor:
            return (squared(m(batch.inputs), batch.targets) ** scale).mean()

        recorder = Recorder(model, optimizer, objective, 3)
        for _ in range(3):
            optimizer.zero_grad()
            recorder.loss(ROWS, torch.ones(6)).backward()
            optimizer.step()
        run = recorder.trajectory()
        values.append(
            float(squares(model).detach()) if moved else float(Truncated(3).tensors(run, squares, [scale])[0])
        )
    assert abs(values[0] - (values[1] - values[2]) / 2e-6) < 1e-6 * abs(values[0])


def test_connectionist_losses_are_answered_at_one_step_and_refused_beyond() -> None:
    def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs.view(len(targets), 4, 3).transpose(0, 1).log_softmax(2)
        lengths = torch.full((len(targets),), 4), torch.full((len(targets),), 1)
        return F.ctc_loss(logits, targets.long().view(-1, 1), *lengths, reduction="none")

    data = Batch.of(ROWS.inputs, torch.tensor([1, 2, 1, 2, 2, 1]))

    def make() -> nn.Module:
        return nn.Linear(3, 12)

    found = Truncated()(record(seeded(make), data, loss=ctc), squares)
    assert relative(found, truth(make, data, squares, loss=ctc)) < 1e-6
    estimator = Truncated(2)
    run = record(seeded(make), data, steps=2, loss=ctc)
    # The gradient of this loss is a symmetric field: differences of it answer.
    assert relative(estimator(run, squares), truth(make, data, squares, steps=2, loss=ctc)) < 1e-5
    assert "differences of the gradient" in estimator.answered


def test_a_field_that_is_no_gradient_and_has_no_second_derivative_is_refused() -> None:
    class Crooked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * ctx.saved_tensors[0].roll(1, 1).exp()

    run = record(seeded(partial(Direct, Crooked.apply)), ROWS, steps=2)
    with pytest.raises(NoDerivative, match=r"Truncated\(steps=1\)"):
        Truncated(2)(run, squares)
    run = record(run.module, ROWS)
    assert relative(Truncated()(run, squares), truth(lambda: Direct(Crooked.apply), ROWS, squares)) > 0  # and answered


def test_a_sparse_table_under_adam_in_float32() -> None:
    """Rows that no batch has met have u = e / eps, beside which a step along u vanished in all the others."""
    torch.manual_seed(0)
    words = torch.randint(0, 200, (640, 4))
    targets = torch.randint(0, 3, (640,))
    data = Batch.of(words, targets)

    def train(dtype: torch.dtype) -> Trajectory:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = nn.Sequential(nn.Embedding(200, 8), nn.Flatten(), nn.Linear(32, 3)).to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recorder = Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY))
        for batch in data.chunks(32):
            optimizer.zero_grad()
            recorder.loss(batch, torch.ones(32, dtype=dtype)).backward()
            optimizer.step()
        return recorder.trajectory()

    def outer(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(words[:50]), targets[:50])

    expected = Truncated()(train(D), outer)
    for estimator in (Truncated(), FiniteDifference()):
        assert relative(estimator(train(torch.float32), outer).double(), expected) < 0.02


class Sorted(nn.Module):
    """Sorts its rows by a feature in the middle, and puts them back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.second(torch.tanh(self.first(x)[order]))[order.argsort()]


class Centred(Sorted):
    """Centres within the domain that the last feature names."""

    def forward(self, x: Tensor) -> Tensor:
        y, domain = torch.tanh(self.first(x[:, :3])), x[:, 3].long()
        same = (domain[:, None] == domain).to(y)
        return self.second((y - same @ y / same.sum(1, keepdim=True)).square())


@pytest.mark.parametrize("kind", [Sorted, Centred])
def test_rows_that_are_permuted_or_coupled_in_part(kind: type[nn.Module]) -> None:
    generator = torch.Generator().manual_seed(0)
    model = seeded(kind)
    for _ in range(60):
        inputs = torch.randn(5, 4, generator=generator, dtype=D)
        inputs[:, 3] = torch.randint(0, 4, (5,), generator=generator)
        data = Batch.of(inputs[:, :3] if kind is Sorted else inputs, torch.randn(5, generator=generator, dtype=D))
        run = record(model, data, reuse=True)
        step = run.steps[0]
        found = Truncated()(run, squares)
        leaves = {name: p.clone().requires_grad_() for name, p in step.parameters.items()}
        losses = squared(torch.func.functional_call(model, leaves, data.inputs), data.targets)
        direction = dict(model.named_parameters())
        expected = [
            -0.1 * sum((2 * direction[n].detach() * g).sum() for n, g in zip(leaves, gradients, strict=True))
            for gradients in (torch.autograd.grad(one, list(leaves.values()), retain_graph=True) for one in losses)
        ]
        assert relative(found, torch.stack(expected)) < 1e-9


def test_the_sweep_over_all_looks_at_all_kinds_of_samples() -> None:
    """The first four samples are of four domains, and couple with none of each other."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator, dtype=D)
    for number in range(20):
        inputs[:, 3] = torch.randint(0, 4, (40,), generator=generator)
        inputs[:4, 3] = torch.arange(4)
        data = Batch.of(inputs.clone(), torch.randn(40, generator=generator, dtype=D))
        run = record(seeded(Centred), data.take(torch.arange(4)) if number % 2 else data)
        with pytest.raises(ValueError, match="normalised by its batch"):
            Truncated()(run, squares, samples=data)


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p.data.clamp_(-0.1, 0.1),
        lambda p: p.data.mul_(0.9),
        lambda p: setattr(p, "data", p.data * 1.1),
        lambda p: p.data.renorm_(2, 0, 0.1),
    ],
)
def test_edits_between_steps_that_versions_do_not_see(edit: Callable[[Tensor], Any]) -> None:
    model = seeded(partial(Direct, torch.tanh))
    optimizer = SGD(model.parameters())
    recorder = Recorder(model, optimizer, WeightedLoss(squared), 2)
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    optimizer.step()
    edit(next(model.parameters()))
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    with pytest.raises(RuntimeError, match=r"'layer\.weight' was changed between two recorded steps"):
        optimizer.step()


def test_an_average_that_is_swapped_in_before_the_question() -> None:
    run = None
    model = seeded(partial(Direct, torch.tanh))
    optimizer = SGD(model.parameters())
    recorder = Recorder(model, optimizer, WeightedLoss(squared))
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    optimizer.step()
    model.layer.weight.data = model.layer.weight.data * 0.5  # type: ignore[operator, union-attr]
    run = recorder.trajectory()
    for estimator in (Truncated(), FiniteDifference(), Implicit(damping=1.0)):
        with pytest.raises(RuntimeError, match="was changed after the last recorded step"):
            estimator(run, squares)


def test_complex_parameters_are_refused() -> None:
    model = OneNumber(1.0, lambda a, x: (a * x).abs())
    model.a = nn.Parameter(torch.tensor(1.0 + 1j))
    with pytest.raises(TypeError, match=r"'a' is complex.*view_as_complex"):
        Recorder(model, SGD(model.parameters()), WeightedLoss(squared))


def test_an_outer_loss_that_goes_backward_by_itself() -> None:
    run = record(OneNumber(0.5, lambda a, x: a * x), scalar_data())

    def outer(model: nn.Module) -> Tensor:
        value = square_of_a(model)
        value.backward(retain_graph=True)
        return value

    with pytest.raises(ValueError, match=r"outer called backward\(\) by itself"):
        Truncated()(run, outer)


def test_higher_refuses_what_it_has_wrong() -> None:
    run = record(
        seeded(partial(Direct, torch.relu)), ROWS, full_state=True, optimize=partial(torch.optim.RMSprop, lr=0.01)
    )
    with pytest.raises(TypeError, match="higher has no RMSprop"):
        Unrolled(1, "higher")(run, squares)


@pytest.mark.parametrize("backend", ["torch", "torchopt"])
@pytest.mark.parametrize("beta", [0.999, 0.99999])
def test_unrolled_counts_steps_in_float64(backend: Any, beta: float) -> None:
    adam = partial(torch.optim.Adam, lr=0.05, betas=(0.9, beta))
    found, ours = (
        estimator(record(seeded(partial(Direct, torch.tanh)), ROWS, steps=2, optimize=adam, full_state=True), squares)
        for estimator in (Unrolled(2, backend), Truncated(2))
    )
    assert relative(found, ours) < 1e-10


@pytest.mark.parametrize("steps", [1, 3])
def test_a_fused_recurrence_in_float32(steps: int) -> None:
    data = Batch.of(ROWS.inputs.unsqueeze(2).float(), ROWS.targets.float())
    wide = Batch.of(data.inputs.double(), data.targets.double())
    found = Truncated(steps)(record(seeded(TWICE["lstm"], torch.float32), data, steps=steps, reuse=True), squares)
    assert relative(found.double(), truth(TWICE["lstm"], wide, squares, steps=steps)) < 1e-4


class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 8), nn.InstanceNorm1d(2, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x).view(-1, 2, 4)).tanh().flatten(1)


def test_running_statistics_of_instances() -> None:
    def outer(model: nn.Module) -> Tensor:
        training = model.training
        model.eval()
        value = model(ROWS.inputs).square().mean()
        model.train(training)
        return value

    found = Truncated(3)(record(seeded(Instance), ROWS, steps=3), outer)
    assert relative(found, truth(Instance, ROWS, outer, steps=3)) < 1e-6


def test_which_way_answered_can_be_asked() -> None:
    estimator, model = Truncated(), seeded(partial(Direct, torch.tanh))
    for reuse in (True, False, False):
        estimator(record(model, ROWS, reuse=reuse), squares)
    assert estimator.answered == {"row products of the record": 1, "forward over a replay": 2}
    assert "not kept" in estimator.passed_over["row products of the record"]


def halving(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad.mul_(0.5)


def lowering(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.01


def clamping(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.data.clamp_(-0.2, 0.2)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("hook", [halving, lowering, clamping])
def test_other_hooks_of_the_optimizer(hook: Callable[..., None], where: str, first: bool) -> None:
    """They come before ours or after; a rate that was set is the step's, a gradient or parameter changed is refused."""
    if (hook, where) in ((halving, "after"), (lowering, "after")):
        pytest.skip("of no effect on the step")
    model = seeded(partial(Direct, torch.tanh))
    optimizer = SGD(model.parameters())
    register = optimizer.register_step_pre_hook if where == "before" else optimizer.register_step_post_hook
    if first:
        register(hook)
    recorder = Recorder(model, optimizer, WeightedLoss(squared, "none"), 1)
    if not first:
        register(hook)
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    optimizer.step()
    run = recorder.trajectory()
    if hook is not lowering:
        with pytest.raises(RuntimeError, match="not that of the recorded loss|was changed after"):
            Truncated()(run, squares)
        return
    assert run.steps[0].groups["layer.weight"]["lr"] == 0.01
    expected = truth(partial(Direct, torch.tanh), ROWS, squares, optimize=partial(torch.optim.SGD, lr=0.01))
    assert relative(Truncated()(run, squares), expected) < 1e-6


def test_entries_that_change_places_between_steps() -> None:
    for edit in (lambda p: p.copy_(p.flip(0)), lambda p: p.copy_(p.flatten().sort().values.view_as(p))):
        test_edits_between_steps_that_versions_do_not_see(lambda p, edit=edit: edit(p.data))


def test_an_outer_loss_that_reads_live_parameters() -> None:
    run = record(seeded(partial(Direct, torch.tanh)), ROWS)
    alias = list(run.module.parameters())
    with pytest.raises(ValueError, match="by another way than the module that it is given"):
        Truncated()(run, lambda model: alias[0].square().sum() + squares(model))


def test_a_padding_row_that_the_outer_loss_looks_up() -> None:
    class TiedTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3, padding_idx=0)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.table(x).sum(1)) @ self.table.weight.t()

    data = Batch.of(torch.tensor([[0, 1], [2, 3], [1, 0], [3, 3]]), torch.tensor([1, 0, 3, 2]))

    def outer(model: nn.Module) -> Tensor:
        return CROSS_ENTROPY(model(data.inputs.flip(0)), data.targets).mean()

    found = Truncated()(record(seeded(TiedTable), data, loss=CROSS_ENTROPY), outer)
    assert relative(found, truth(TiedTable, data, outer, loss=CROSS_ENTROPY)) < 1e-6


def test_a_clip_of_one_per_cent_in_float32() -> None:
    data = Batch.of(ROWS.inputs.float(), ROWS.targets.float())
    model = seeded(partial(Direct, torch.tanh), torch.float32)
    optimizer = SGD(model.parameters())
    recorder = Recorder(model, optimizer, WeightedLoss(squared))
    recorder.loss(data, torch.ones(6)).backward()
    for p in model.parameters():
        p.grad *= 0.985  # type: ignore[operator]
    optimizer.step()
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        Truncated()(recorder.trajectory(), squares)


@pytest.mark.parametrize("batched", [False, True])
def test_the_users_backward_takes_any_gradient(batched: bool) -> None:
    model = seeded(partial(Direct, torch.tanh))
    recorder = Recorder(model, SGD(model.parameters()), WeightedLoss(squared), reuse=True)
    value = recorder.loss(ROWS, torch.ones(6, dtype=D))
    if batched:
        torch.autograd.grad(value, list(model.parameters()), torch.ones(3, dtype=D), is_grads_batched=True)
    else:
        value.backward()


def test_pieces_are_as_large_as_samples_of_their_own_size_allow() -> None:
    """What a sample costs is remembered, of each size of samples by itself."""
    seen: list[int] = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, dtype=D))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return torch.tanh(self.scale * x).mean(1, keepdim=True)

    model, g = Wide(), torch.Generator().manual_seed(0)
    narrow, wide = (
        Batch.of(torch.randn(64, width, generator=g, dtype=D), torch.zeros(64, dtype=D)) for width in (2, 200)
    )
    objective, estimator, whole = WeightedLoss(squared, "none"), Truncated(memory=100_000), Truncated()
    for _ in range(6):
        optimizer = SGD(model.parameters())
        recorder = Recorder(model, optimizer, objective, 1)
        recorder.loss(ROWS.take([0, 1]), torch.ones(2, dtype=D)).backward()
        optimizer.step()
        optimizer.zero_grad()
        run = recorder.trajectory()
        for samples, largest in ((narrow, 64), (wide, 20)):
            expected = whole(run, squares, samples=samples)
            seen.clear()
            found = estimator(run, squares, samples=samples)
            assert max(seen) <= largest
            assert max(seen) > 5
            assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("memory", [1, 300, 2**28])
def test_coupling_shows_in_groups_of_two(memory: int) -> None:
    inputs = torch.cat([ROWS.inputs, torch.tensor([[0.0], [1.0], [0.0], [1.0], [2.0], [3.0]], dtype=D)], 1)
    data = Batch.of(inputs, ROWS.targets)
    weight = torch.tensor([0.0, 0, 0, 0, 1, 1], dtype=D)
    run = record(seeded(Centred), data, weight=weight)
    expected = Truncated()(record(seeded(Centred), data, weight=weight, reuse=True), squares)
    assert relative(Truncated(memory=memory)(run, squares), expected) < 1e-9


@pytest.mark.parametrize("steps", [1, 2])
def test_a_regulariser_of_what_the_forward_pass_left(steps: int) -> None:
    class Keeps(Direct):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x)
            return self.kept

    def make() -> nn.Module:
        return Keeps(torch.tanh)

    def objective() -> WeightedLoss:
        return WeightedLoss(squared, "none", lambda model: 0.1 * model.kept.square().mean())

    def train(weight: Tensor) -> Trajectory:
        model = seeded(make)
        optimizer = SGD(model.parameters())
        recorder = Recorder(model, optimizer, objective(), steps)
        for _ in range(steps):
            optimizer.zero_grad()
            recorder.loss(ROWS, weight).backward()
            optimizer.step()
        return recorder.trajectory()

    ones, found = torch.ones(6, dtype=D), []
    for row in 1e-5 * torch.eye(6, dtype=D):
        up, down = (squares(train(ones + sign * row).module).detach() for sign in (1, -1))
        found.append((up - down) / 2e-5)
    assert relative(Truncated(steps)(train(ones), squares), torch.stack(found)) < 1e-6


def test_running_statistics_inside_of_a_checkpoint() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda x: torch.tanh(self.norm(self.layer(x))), x, use_reentrant=False)

    def outer(model: nn.Module) -> Tensor:
        return (
            model.eval()(ROWS.inputs).square().mean()
        )  # (set back to training it would be computed again in that mode)

    run = record(seeded(Inside), ROWS, steps=2, full_state=True)
    before = {name: value.clone() for name, value in run.module.named_buffers()}
    with pytest.raises(NoDerivative, match="take it out of the checkpoint"):
        Truncated(2)(run, outer)
    with pytest.raises(RuntimeError, match="use Truncated"):
        Unrolled(2, "torchopt")(run, squares)
    assert relative(Truncated()(run, outer), Truncated()(run, outer)) == 0
    assert all(torch.equal(value, before[name]) for name, value in run.module.named_buffers())


def test_unrolling_notices_a_clipped_gradient_and_a_parameter_that_pauses() -> None:
    model = seeded(partial(Direct, torch.tanh))
    optimizer = SGD(model.parameters())
    recorder = Recorder(model, optimizer, WeightedLoss(squared), full_state=True)
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    for p in model.parameters():
        p.grad *= 0.5  # type: ignore[operator]
    optimizer.step()
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        Unrolled(1, "torchopt")(recorder.trajectory(), squares)
    optimizer.zero_grad()
    recorder.loss(ROWS, torch.ones(6, dtype=D)).backward()
    model.layer.bias.grad = None  # type: ignore[union-attr]
    optimizer.step()
    with pytest.raises(RuntimeError, match="had no gradient in a recorded step"):
        Unrolled(1, "torchopt")(recorder.trajectory(), squares)


def test_any_tensor_after_a_clipped_gradient() -> None:
    model, scale = seeded(partial(Direct, torch.tanh)), torch.tensor(1.3, dtype=D, requires_grad=True)
    optimizer = SGD(model.parameters())
    recorder = Recorder(
        model, optimizer, lambda m, batch, weight: (squared(m(batch.inputs), batch.targets) ** scale).mean()
    )
    recorder.loss(ROWS, torch.ones(6)).backward()
    for p in model.parameters():
        p.grad *= 0.9  # type: ignore[operator]
    optimizer.step()
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        Truncated().tensors(recorder.trajectory(), squares, [scale])


def test_one_call_that_fails_bars_no_way_for_the_next() -> None:
    broken = [True]

    class Fails(Direct):
        def forward(self, x: Tensor) -> Tensor:
            if broken[0]:
                raise RuntimeError("no memory left")
            return super().forward(x)

    broken[0] = False
    run = record(seeded(partial(Fails, torch.tanh)), ROWS)
    broken[0] = True
    estimator = Truncated()
    with pytest.raises(NoDerivative, match="no memory left"):
        estimator(run, squares)
    broken[0] = False
    assert bool(torch.isfinite(estimator(run, squares)).all())
    assert set(estimator.answered) == {"forward over a replay"}


def test_a_kink_within_a_billionth_of_every_point_is_no_reason_to_refuse() -> None:
    """50,000 units with inputs of 1e-4: the differences of the gradient meet kinks down to steps of 1e-11."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50_000), nn.ReLU(), nn.Linear(50_000, 3)).double()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(1e-4)
        model[2].weight.mul_(1e4 / 50_000**0.5)
    data = Batch.of(torch.randn(64, 4, dtype=D), torch.randint(0, 3, (64,)))
    inputs, targets = torch.randn(32, 4, dtype=D), torch.randint(0, 3, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=2, full_state=True) as recorder:
        for batch in data.chunks(32):
            optimizer.zero_grad()
            recorder.loss(batch, torch.ones(32, dtype=D)).backward()
            optimizer.step()
        trajectory = recorder.trajectory()

    def outer(module: nn.Module) -> torch.Tensor:
        return F.cross_entropy(module(inputs), targets)

    found, expected = Truncated(steps=2)(trajectory, outer), Unrolled(2, "torch")(trajectory, outer)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


def clamped(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    return x.tanh()


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_refusal_names_remedies_that_are_not_what_was_asked(steps: int, dtype: torch.dtype) -> None:
    model = seeded(lambda: Direct(clamped), dtype)
    data = Batch.of(ROWS.inputs.to(dtype), ROWS.targets.to(dtype))  # type: ignore[union-attr]
    with pytest.raises(NoDerivative) as error:
        Truncated(steps)(record(model, data, steps=steps), lambda m: m.layer.weight.square().sum())  # type: ignore[union-attr, operator, return-value]
    said = str(error.value)
    assert ("steps=1" in said) == (steps > 1)
    assert ("clip by recorder.clip_grad_norm_" in said) == (steps == 1)
    assert ("train in float64" in said) == (dtype == torch.float32)
