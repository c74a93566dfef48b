"""Unusual models, optimizers and losses, where an answer could be wrong without a word or an error without a remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, FiniteDifference, Implicit, Recorder, Trajectory, Truncated, WeightedLoss
from steelyard.bilevel.sweep import forward_rules
from steelyard.reweight import MeanRisk
from steelyard.reweight.outer_risk import OuterRisk
from tests.support.problems import CROSS_ENTROPY, relative

OBJECTIVE = WeightedLoss(CROSS_ENTROPY)
SGD = partial(torch.optim.SGD, lr=0.3)
Make = Callable[[], nn.Module]
Optimize = Callable[[nn.Module], torch.optim.Optimizer]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DATA = Batch.of(drawn(0, 8, 3), torch.arange(8) % 3)
HELD = Batch.of(drawn(1, 6, 3), torch.arange(6) % 3)


def outer(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(HELD.inputs), HELD.targets)


def trained(
    make: Make, optimize: Optimize, steps: int = 1, weight: Tensor | None = None, data: Batch = DATA, **options: bool
) -> Trajectory:
    torch.manual_seed(0)
    model = make().double()
    optimizer = optimize(model)
    recorder = Recorder(model, optimizer, OBJECTIVE, steps=steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        recorder.loss(data, torch.ones(len(data), dtype=torch.float64) if weight is None else weight).backward()
        optimizer.step()
    return recorder.trajectory()


def differences(make: Make, optimize: Optimize, outer: Callable[[nn.Module], Tensor], steps: int = 1) -> Tensor:
    """Central differences of the run: all its steps see the same weights."""
    found = torch.zeros(8, dtype=torch.float64)
    for i, h in enumerate(1e-5 * torch.eye(8, dtype=torch.float64)):
        up, down = (trained(make, optimize, steps, 1 + sign * h).module for sign in (1, -1))
        with torch.no_grad():
            found[i] = (outer(up) - outer(down)) / 2e-5
    return found


def all_of(model: nn.Module) -> torch.optim.Optimizer:
    return SGD(model.parameters())


class Added(nn.Module):
    """Two parameters whose gradients are one and the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(9))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.rows.view(3, 3) + self.columns.view(3, 3))


def test_outer_gradients_that_share_memory() -> None:
    def two_rates(model: nn.Module) -> torch.optim.Optimizer:
        rows, columns = model.parameters()
        return torch.optim.SGD([{"params": [rows], "lr": 0.3}, {"params": [columns], "lr": 1.0}])

    assert relative(Truncated()(trained(Added, two_rates), outer), differences(Added, two_rates, outer)) < 1e-6


def test_groups_added_while_recording() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = SGD(model[2].parameters())
    recorder = Recorder(model, optimizer, OBJECTIVE)
    for step in range(4):
        if step == 2:
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})
        optimizer.zero_grad()
        recorder.loss(DATA, torch.ones(8, dtype=torch.float64)).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
    found = Truncated()(recorder.trajectory(), outer)

    def one_step(weight: Tensor) -> Tensor:
        leaves = {name: p.clone().requires_grad_() for name, p in before.items()}
        losses = CROSS_ENTROPY(torch.func.functional_call(model, leaves, DATA.inputs), DATA.targets)
        gradients = torch.autograd.grad(
            (weight * losses).sum() / weight.sum(), list(leaves.values()), create_graph=True
        )
        rates = {name: 0.5 if name.startswith("0") else 0.3 for name in leaves}
        moved = {name: leaves[name] - rates[name] * g for name, g in zip(leaves, gradients, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, moved, HELD.inputs), HELD.targets)

    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)
    assert relative(found, torch.autograd.grad(one_step(weight), weight)[0]) < 1e-9


def test_a_trained_head_on_a_backbone_that_requires_gradients() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def head(model: nn.Module) -> torch.optim.Optimizer:
        return SGD(model[2].parameters())  # type: ignore[index]

    run = trained(make, head, reuse=True)
    assert relative(Truncated()(run, outer), differences(make, head, outer)) < 1e-6
    run = trained(make, head)
    with pytest.raises(ValueError, match="outer does not depend on the parameters that the optimizer trains"):
        Truncated()(run, lambda model: model[0].weight.sum())  # type: ignore[index]


class Normed(nn.Module):
    """BatchNorm that counts no batches: torch leaves the version of the running statistics alone."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm, self.after = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.norm.num_batches_tracked = None

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(self.norm(self.before(inputs)))


class HomeMade(Normed):
    """The same by hand."""

    def __init__(self) -> None:
        super().__init__()
        del self.norm
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(F.batch_norm(self.before(inputs), self.mean, self.variance, training=self.training))


def in_eval_mode(model: nn.Module) -> Tensor:
    training = model.training
    try:
        return outer(model.eval())
    finally:
        model.train(training)


def test_running_statistics_whose_version_stands_still() -> None:
    assert (
        relative(Truncated(2)(trained(Normed, all_of, 2), in_eval_mode), differences(Normed, all_of, in_eval_mode, 2))
        < 1e-6
    )
    assert trained(HomeMade, all_of).steps[0].findings.coupled


@pytest.mark.parametrize("steps", [1, 2])
def test_an_outer_risk_in_chunks_leaves_running_statistics_alone(steps: int) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    run = trained(make, all_of, steps)
    before = {name: value.clone() for name, value in run.module.named_buffers()}
    Truncated(steps)(run, OuterRisk(MeanRisk(), HELD, CROSS_ENTROPY, chunk=3))  # chunks have statistics of their own
    assert all(torch.equal(value, before[name]) for name, value in run.module.named_buffers())
    run.module.eval()
    whole, chunked = (OuterRisk(MeanRisk(), HELD, CROSS_ENTROPY, chunk=size) for size in (None, 3))
    assert relative(Truncated(steps)(run, chunked), Truncated(steps)(run, whole)) < 1e-10


class WithAList(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        outputs[:, :0].unbind(1)
        return outputs


class WithASparseConstant(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        mix = torch.ones(3, 3, dtype=inputs.dtype).triu().to_sparse()
        return torch.sparse.mm(mix, super().forward(inputs).t()).t()


class WithAnInnerGradient(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            return torch.autograd.grad(super().forward(inputs).square().sum(), inputs, create_graph=True)[0]


class OfEightSamples(nn.Linear):
    """Takes batches of the size that it was trained on only."""

    def forward(self, inputs: Tensor) -> Tensor:
        noise = torch.arange(24, dtype=inputs.dtype).cos().view(8, 3)
        return super().forward(inputs + noise if self.training else inputs)


class Gram(nn.Linear):
    """Its logits are inner products with the first samples: two samples have no third logit."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return (outputs @ outputs.t())[:, :3]


@pytest.mark.parametrize("kind", [WithAList, WithASparseConstant, WithAnInnerGradient, OfEightSamples, Gram])
@pytest.mark.parametrize("reuse", [False, True])
def test_models_that_a_tape_or_a_probe_stumbles_over(kind: type[nn.Linear], reuse: bool) -> None:
    def make() -> nn.Module:
        return kind(3, 3)

    def square(model: nn.Module) -> Tensor:
        return model.weight.square().sum()

    run = trained(make, all_of, reuse=reuse)
    found = Truncated()(run, square)
    assert relative(found, differences(make, all_of, square)) < 1e-5


def test_samples_that_a_home_made_norm_couples_are_refused() -> None:
    class Centred(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            outputs = super().forward(inputs)
            return outputs - outputs.mean(0) + outputs.square()

    run = trained(lambda: Centred(3, 3), all_of)
    for estimator in (Truncated(), Implicit(damping=1.0)):
        with pytest.raises(ValueError, match="normalised by its batch"):
            estimator(run, outer, samples=DATA)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_within_the_window(fused: bool) -> None:
    model = nn.Linear(3, 3)
    optimizer = SGD(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    recorder = Recorder(model, optimizer, OBJECTIVE, steps=2)
    data = Batch.of(DATA.inputs.float(), DATA.targets)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(recorder.loss(data, torch.ones(8))).backward()
        if step == 1:
            assert model.weight.grad is not None
            model.weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert len(recorder.trajectory().steps) == 2


def test_a_step_without_a_gradient_is_an_error() -> None:
    model = nn.Linear(3, 3).double()
    optimizer = SGD(model.parameters())
    recorder = Recorder(model, optimizer, OBJECTIVE)
    recorder.loss(DATA, torch.ones(8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"call backward\(\) on the recorded loss before step\(\)"):
        optimizer.step()


class Tempered(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("temperature", torch.ones(3, dtype=torch.float64, requires_grad=True))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).tanh() * self.temperature


def test_a_buffer_with_a_gradient_that_is_written_to() -> None:
    run = trained(Tempered, all_of)
    with torch.no_grad():
        run.module.temperature.mul_(3)  # type: ignore[operator, union-attr]
    with pytest.raises(RuntimeError, match="buffer 'temperature' of a recorded step was written to"):
        FiniteDifference()(run, lambda model: model.weight.square().sum())


def test_a_normalisation_without_a_rule_leaves_running_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose kernel is another operator."""
    monkeypatch.delitem(forward_rules._RULES, torch.ops.aten.native_batch_norm.default)
    run = trained(Normed, all_of, reuse=True)
    before = {name: value.clone() for name, value in run.module.named_buffers()}
    found = Truncated()(run, outer)
    assert all(torch.equal(value, before[name]) for name, value in run.module.named_buffers())
    monkeypatch.undo()
    assert relative(found, Truncated()(trained(Normed, all_of), outer)) < 1e-9


def test_strided_ids(recwarn: pytest.WarningsRecorder) -> None:
    data = Batch(DATA.inputs, DATA.targets, torch.arange(16)[::2])
    assert Truncated()(trained(lambda: nn.Linear(3, 3), all_of, data=data), outer).shape == (8,)
    assert not recwarn.list


def test_a_rate_of_zero() -> None:
    run = trained(
        lambda: nn.Linear(3, 3), partial(lambda rate, model: torch.optim.SGD(model.parameters(), lr=rate), 0.0)
    )
    assert torch.equal(Truncated()(run, outer), torch.zeros(8, dtype=torch.float64))


class InTwoPlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.again = self.inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.again(torch.tanh(self.inner(inputs)))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_module_in_two_places_keeps_its_parameters(steps: int) -> None:
    run = trained(InTwoPlaces, all_of, steps)
    before = dict(run.module.named_parameters())
    values = [p.detach().clone() for p in before.values()]
    for estimator in (Truncated(steps), FiniteDifference(steps)):
        assert relative(estimator(run, outer), differences(InTwoPlaces, all_of, outer, steps)) < 1e-6
        assert all(before[name] is p for name, p in run.module.named_parameters())
        assert all(torch.equal(value, p) for value, p in zip(values, before.values(), strict=True))
    if steps == 1:
        assert relative(Truncated()(run, outer, samples=DATA), differences(InTwoPlaces, all_of, outer)) < 1e-6
