"""A record that no longer tells the truth is an error, not a wrong derivative."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, FiniteDifference, Implicit, Recorder, Truncated, Unrolled, WeightedLoss
from steelyard.bilevel.integrity import changed, projection
from tests.support.problems import CROSS_ENTROPY, Problem, mlp, relative

OBJECTIVE = WeightedLoss(CROSS_ENTROPY)


def data(samples: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch.of(torch.randn(samples, 4, generator=generator), torch.arange(samples) % 3)


def outer(model: nn.Module) -> Tensor:
    return model(data().inputs).square().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 1001])
def test_a_copy_tells_any_entry_that_changed(dtype: torch.dtype, count: int) -> None:
    flat = torch.randn(count + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    for tensor in (flat[:count], flat[1:], flat.new_full((3, count), torch.nan).t()):  # aligned, not, not contiguous
        copies = {"one": tensor.clone(), "other": flat.clone()}
        assert changed(copies, {"one": tensor, "other": flat}) == []
        for place in {0, count // 2, count - 1} if count else ():
            moved = tensor.clone()
            moved[place] = moved[place].nan_to_num() * 1.01 + 1e-3
            assert changed(copies, {"one": moved, "other": flat}) == ["one"]


def test_bits_are_compared_not_values() -> None:
    one = torch.tensor([0.0, torch.nan])
    assert changed({"p": one}, {"p": one.clone()}) == []
    assert changed({"p": one}, {"p": torch.tensor([-0.0, torch.nan])}) == ["p"]
    assert changed({"p": one}, {"p": one.double()}) == ["p"]
    assert changed({"p": one}, {"p": one[:1]}) == ["p"]


Between = Callable[[nn.Module, Tensor], Tensor | None]


def record(between: Between = lambda model, loss: None, steps: int = 1, after=lambda model: None, **options):
    """Train `steps` recorded steps; `between` acts after backward(), `after` after step()."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    with Recorder(model, optimizer, OBJECTIVE, steps) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = recorder.loss(data(), torch.ones(8))
            loss.backward()
            between(model, loss)
            optimizer.step()
            after(model)
        return model, recorder.trajectory()


def _clip(model: nn.Module, loss: Tensor) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def _add(model: nn.Module, loss: Tensor) -> None:
    sum(p.square().sum() for p in model.parameters()).backward()


def _accumulate(model: nn.Module, loss: Tensor) -> None:
    OBJECTIVE(model, data(), torch.ones(8)).backward()


@pytest.mark.parametrize("between", [_clip, _add, _accumulate])
@pytest.mark.parametrize("arguments", [{}, {"samples": data()}])
def test_a_gradient_that_is_not_the_losses(between: Between, arguments: dict) -> None:
    _, trajectory = record(between)
    with pytest.raises(RuntimeError, match="not that of the recorded loss"):
        Truncated()(trajectory, outer, **arguments)


def test_the_check_counts_the_regulariser_and_passes_what_is_right() -> None:
    case = Problem(window=1, regulariser=lambda m: 3.0 * sum(p.square().sum() for p in m.parameters()))
    _, trajectory = case.run(case.start_weight())
    assert trajectory.steps[-1].findings.held_gradient() is not None
    Truncated()(trajectory, case.outer)


@pytest.mark.parametrize("write", [lambda p: p.data.mul_(1.1), lambda p: p.detach().add_(0.1)])
def test_writes_that_versions_do_not_see(write) -> None:
    model, trajectory = record()
    write(model[0].weight)
    for estimator in (Truncated(), FiniteDifference(), Implicit(damping=1.0)):
        with pytest.raises(RuntimeError, match=r"'0\.weight' was changed after"):
            estimator(trajectory, outer)


def test_a_fused_optimizer_that_trains_on() -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(data(), torch.ones(8)).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
        Truncated()(trajectory, outer)
        optimizer.step()
        with pytest.raises(RuntimeError, match="was changed after"):
            Truncated()(trajectory, outer)


@pytest.mark.parametrize("field", ["inputs", "targets"])
def test_a_refilled_batch(field: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    buffer = data()
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(buffer, torch.ones(8)).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
    getattr(buffer, field).zero_()
    with pytest.raises(RuntimeError, match=f"{field} of a recorded step was written to"):
        Truncated()(trajectory, outer)


def test_weights_written_in_place() -> None:
    model, weight = mlp(), torch.ones(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(data(), weight).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
    weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="weight of a recorded step was written to"):
        Truncated()(trajectory, outer)


def test_a_second_optimizer_moves_what_is_read_live() -> None:
    torch.manual_seed(0)
    model = mlp()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with Recorder(model, first, OBJECTIVE) as recorder:
        recorder.loss(data(), torch.ones(8)).backward()
        first.step()
        second.step()
        with pytest.raises(
            RuntimeError,
            match=r"parameter '2\.weight', which the optimizer did not train in a recorded step, was changed",
        ):
            Truncated()(recorder.trajectory(), outer)


def test_parameters_changed_between_recorded_steps() -> None:
    def clamp(model: nn.Module) -> None:
        with torch.no_grad():
            model[0].weight.clamp_(-0.1, 0.1)

    with pytest.raises(RuntimeError, match="changed between two recorded steps"):
        record(steps=2, after=clamp)


def test_a_closure_is_refused() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:

        def closure() -> Tensor:
            loss = recorder.loss(data(), torch.ones(8))
            loss.backward()
            return loss

        with pytest.raises(RuntimeError, match=r"step\(closure\)"):
            optimizer.step(closure)


def test_a_step_that_a_scaler_skipped_is_replaced() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(data(), torch.ones(8)).backward()  # no step follows
        optimizer.zero_grad()
        recorder.loss(data(), 2 * torch.ones(8)).backward()
        optimizer.step()
        assert recorder.trajectory().steps[0].weight[0] == 2


def test_groups_may_be_added_while_recording() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        optimizer.add_param_group({"params": list(model[0].parameters())})
        recorder.loss(data(), torch.ones(8)).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
    assert len(trajectory.names) == 4
    assert torch.isfinite(Truncated()(trajectory, outer)).all()


def test_weights_with_a_graph_are_for_the_chain_rule() -> None:
    torch.manual_seed(0)
    model, scale = mlp(), torch.tensor(1.5, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(data(), torch.linspace(1, 2, 8) ** scale).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
    with pytest.raises(ValueError, match="carry a graph of their own"):
        Truncated().tensors(trajectory, outer, [scale])
    assert torch.isfinite(Truncated()(trajectory, outer)).all()


@pytest.mark.parametrize(
    "index", [torch.ones(8, dtype=torch.bool), torch.zeros(2), torch.zeros(1, 1, dtype=torch.long)]
)
def test_indices_are_ids(index: Tensor, monkeypatch) -> None:
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would speak first
    _, trajectory = record()
    for estimator in (Truncated(), Implicit(damping=1.0)):
        with pytest.raises(TypeError, match="global sample ids"):
            estimator(trajectory, outer, index)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_weights_of_another_precision(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    weight, parameters = dtypes
    case = Problem(window=1, dtype=parameters)
    model = mlp().to(parameters)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(case.data(), case.start_weight().to(weight)).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
    window = Truncated()(trajectory, case.outer)
    assert window.dtype == weight
    assert torch.allclose(window, Truncated()(trajectory, case.outer, samples=case.data()).to(weight), rtol=1e-5)


def test_a_momentum_that_pauses() -> None:
    """Without momentum torch leaves the buffer alone, and it is there again two steps later."""
    results = []
    start = torch.ones(8, dtype=torch.float64)
    for moved in (None, 1e-6, -1e-6):
        weight = start.clone()
        weight[3] += moved or 0.0
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        inputs = data().inputs.double()
        batch = Batch.of(inputs, data().targets)
        with Recorder(model, optimizer, OBJECTIVE, 3) as recorder:
            for momentum in (0.9, 0.0, 0.9):
                optimizer.param_groups[0]["momentum"] = momentum
                optimizer.zero_grad()
                recorder.loss(batch, weight).backward()
                optimizer.step()
            trajectory = recorder.trajectory()

        def value(m: nn.Module, inputs: Tensor = inputs) -> Tensor:
            return m(inputs).square().mean()

        results.append(Truncated(3)(trajectory, value)[3] if moved is None else value(model).detach())
    ours, up, down = results
    assert abs(float(ours - (up - down) / 2e-6)) < 1e-6 * abs(float(ours))


class _Squared(WeightedLoss):
    def sample_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().sample_losses(model, batch).square()


class _Plus(WeightedLoss):
    def __call__(self, model: nn.Module, batch: Batch, weight: Tensor) -> Tensor:
        return super().__call__(model, batch, weight) + 1.0


def test_subclasses_of_the_objective() -> None:
    case = Problem()
    _, trajectory = case.run(case.start_weight())
    trajectory.objective = _Squared(CROSS_ENTROPY)
    for step in trajectory.steps:
        step.findings.gradient = step.findings.projected = None  # it was taken with the plain objective
    exact, rough = Truncated(3)(trajectory, case.outer), FiniteDifference(3)(trajectory, case.outer)
    assert relative(exact, rough) < 1e-6
    trajectory.objective = _Plus(CROSS_ENTROPY)
    with pytest.raises(TypeError, match="not __call__"):
        Truncated(3)(trajectory, case.outer)


class _HomeMade(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


def test_coupling_that_writes_no_buffer() -> None:
    case = Problem(make=lambda: nn.Sequential(nn.Linear(4, 5), _HomeMade(), nn.Tanh(), nn.Linear(5, 3)), batch=8)
    _, trajectory = case.run(case.start_weight())
    assert relative(Truncated(3, memory=1)(trajectory, case.outer), Truncated(3)(trajectory, case.outer)) < 1e-12
    assert relative(case.answer(Truncated(3, memory=1)), case.truth()) < 1e-6
    with pytest.raises(ValueError, match="normalised by its batch"):
        Truncated(1)(trajectory, case.outer, samples=case.data())


def test_augmented_inputs_are_not_those_of_the_data_set() -> None:
    torch.manual_seed(0)
    model, clean = mlp(), data()
    noisy = Batch(clean.inputs + 0.5, clean.targets, clean.index)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        recorder.loss(noisy, torch.ones(8)).backward()
        optimizer.step()
        trajectory = recorder.trajectory()
    swept = Truncated()(trajectory, outer, samples=clean)
    assert torch.allclose(swept, Truncated()(trajectory, outer), rtol=1e-5)


def test_dropout_sweeps_are_chunked(monkeypatch) -> None:
    sizes: list[int] = []
    case = Problem(make=lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.4), nn.Linear(6, 3)), window=1, samples=40)
    model, trajectory = case.run(case.start_weight())
    model[0].register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    Truncated(memory=1)(trajectory, case.outer, samples=case.data())
    assert sizes.count(1) >= 40


def test_attention_is_differentiated_forward() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(2, 8), nn.Linear(8, 3)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x.view(-1, 2, 2))
            return self.head(self.attend(h, h, h, need_weights=False)[0].mean(1))

    case = Problem(make=Attention, optimizer="sgd", window=2)
    assert relative(case.answer(Truncated(2)), case.truth()) < 1e-6


def test_an_operator_without_a_forward_rule_is_answered_in_reverse() -> None:
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Odd.apply(x)

    case = Problem(make=lambda: nn.Sequential(nn.Linear(4, 5), Layer(), nn.Linear(5, 3)), window=1)
    for estimator in (Truncated(), FiniteDifference()):
        assert relative(case.answer(estimator), case.truth()) < 1e-6


@pytest.mark.skipif(
    "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters, reason="before torch 2.7"
)
def test_unrolled_follows_decoupled_decay_and_refuses_other_schedules() -> None:
    case = Problem(optimizer="adam-decay", options={"decoupled_weight_decay": True}, full_state=True)
    _, trajectory = case.run(case.start_weight())
    ours = Truncated(3)(trajectory, case.outer)
    assert relative(Unrolled(3, "torchopt")(trajectory, case.outer), ours) < 1e-4
    assert relative(Unrolled(3, "torch")(trajectory, case.outer), ours) < 1e-4
    with pytest.raises(TypeError, match="decoupled"):
        Unrolled(3, "higher")(trajectory, case.outer)
    trajectory.steps[1].groups["0.weight"] = {**trajectory.steps[1].groups["0.weight"], "betas": (0.5, 0.9)}
    with pytest.raises(TypeError, match="betas of '0.weight' moves"):
        Unrolled(3, "torchopt")(trajectory, case.outer)


def test_tensors_through_running_statistics() -> None:
    """A shift of the inputs moves the running mean directly, also in the only step of the window."""
    values = []
    for moved in (0.0, 1e-6, -1e-6):
        shift = torch.tensor(0.3 + moved, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.5), nn.Linear(4, 3)).double()
        inputs = data().inputs.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def objective(m: nn.Module, batch: Batch, weight: Tensor, shift: Tensor = shift) -> Tensor:
            return CROSS_ENTROPY(m(batch.inputs * shift.exp() + shift), batch.targets).mean()

        with Recorder(model, optimizer, objective) as recorder:
            recorder.loss(Batch.of(inputs, data().targets), torch.ones(8)).backward()
            optimizer.step()
            trajectory = recorder.trajectory()

        def value(m: nn.Module, inputs: Tensor = inputs) -> Tensor:
            return m.eval()(inputs).square().mean()

        if moved:
            values.append(float(value(model).detach()))
        else:
            found = float(Truncated().tensors(trajectory, value, [shift])[0])
    assert abs(found - (values[0] - values[1]) / 2e-6) < 1e-6 * abs(found)


def test_implicit_leaves_frozen_parameters_out() -> None:
    torch.manual_seed(0)
    answers = []
    for frozen_too in (False, True):
        torch.manual_seed(0)
        model = mlp().double()
        model[0].requires_grad_(False)
        trained = model.parameters() if frozen_too else model[2].parameters()
        optimizer = torch.optim.SGD(trained, lr=0.0, weight_decay=0.1)
        batch = Batch.of(data().inputs.double(), data().targets)
        with Recorder(model, optimizer, OBJECTIVE) as recorder:
            recorder.loss(batch, torch.ones(8, dtype=torch.float64)).backward()
            optimizer.step()
            answers.append(
                Implicit(tolerance=1e-10)(recorder.trajectory(), lambda m, x=batch.inputs: m(x).square().mean())
            )
    assert torch.allclose(answers[0], answers[1], rtol=1e-6)


def test_a_projection_sees_any_entry_and_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(n, generator=generator, dtype=torch.float64) for name, n in (("a", 3), ("b", 5000))}
    along, size = projection(tensors)
    assert torch.allclose(size, torch.cat(list(tensors.values())).norm())
    for place in (0, 4999):
        moved = {name: one.clone() for name, one in tensors.items()}
        moved["b"][place] += 1e-3
        assert abs(projection(moved)[0] - along) > 1e-6 * size
    assert abs(projection({**tensors, "b": tensors["b"].flip(0)})[0] - along) > 1e-3 * size
    assert torch.allclose(projection({name: 3 * one for name, one in tensors.items()}), 3 * torch.stack([along, size]))
    mixed = {"a": tensors["a"].float(), "b": tensors["b"]}
    assert torch.allclose(projection(mixed), torch.stack([along, size]), rtol=1e-5)
    assert torch.equal(projection({}), torch.zeros(2, dtype=torch.float64))
