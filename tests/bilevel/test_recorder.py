"""The recorder watches an ordinary run and leaves it as it would have been."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from steelyard.bilevel import Batch, Recorder, Truncated, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, OPTIMIZERS, Problem, batch_norm, dropout, mlp, relative

OBJECTIVE = WeightedLoss(CROSS_ENTROPY)


def data(samples: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch.of(torch.randn(samples, 4, generator=generator), torch.arange(samples) % 3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, recorder: Recorder | None = None) -> None:
    batch, weight = data(), torch.ones(6)
    for _ in range(steps):
        loss = (recorder.loss if recorder else lambda b, w: OBJECTIVE(model, b, w))(batch, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("make", [mlp, batch_norm, dropout])
def test_recording_and_differentiating_change_nothing(make) -> None:
    torch.manual_seed(0)
    plain = make()
    watched = copy.deepcopy(plain)
    torch.manual_seed(1)
    train(plain, torch.optim.Adam(plain.parameters()), 6)
    end = torch.get_rng_state()
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(watched.parameters())
    with Recorder(watched, optimizer, OBJECTIVE, steps=2) as recorder:
        train(watched, optimizer, 3, recorder)
        Truncated(steps=2)(recorder.trajectory(), lambda m: m.eval()(data().inputs).square().sum())
        assert watched.training  # the outer loss's eval() was undone
        train(watched, optimizer, 3, recorder)
    for (name, one), (_, other) in zip(plain.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(end, torch.get_rng_state())


def test_sgd_keeps_one_copy_of_the_parameters_a_step_and_nothing_else() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(model, optimizer, OBJECTIVE, steps=2) as recorder:
        train(model, optimizer, 5, recorder)
        steps = recorder.trajectory().steps
    assert [set(step.parameters) for step in steps] == [set(dict(model.named_parameters()))] * 2
    assert all(step.state[name] == {"started": True} for step in steps for name in step.parameters)
    assert steps[0].findings.gradient is None
    newest = {name: tensor for name, (tensor, _) in (steps[1].findings.gradient or {}).items()}
    assert all(newest[name] is p.grad for name, p in model.named_parameters())  # by reference
    assert steps[0].batch.inputs.data_ptr() == steps[0].batch.inputs.data_ptr()


@pytest.mark.parametrize("reuse", [False, True])
def test_gradients_and_activations_of_a_step_are_gone_before_the_next_forward_pass(reuse: bool) -> None:
    model, left = mlp().double(), []
    batch = Batch.of(data().inputs.double(), data().targets)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE, steps=3, reuse=reuse) as recorder:
        seen: list[weakref.ref] = []
        model.register_forward_pre_hook(lambda *_: left.append(sum(one() is not None for one in seen)))
        for _ in range(3):
            loss = recorder.loss(batch, torch.ones(6, dtype=torch.float64))
            assert recorder._accumulation.newest is not None
            forward_record = recorder._accumulation.newest.findings.forward_record
            assert (forward_record is not None) == reuse
            seen += [weakref.ref(forward_record)] if forward_record is not None else []
            del forward_record
            loss.backward()
            del loss  # its graph holds hooks that hold the record
            optimizer.step()
            seen += [weakref.ref(p.grad) for p in model.parameters()]
            optimizer.zero_grad()
        found = Truncated(steps=3)(recorder.trajectory(), lambda m: m(batch.inputs).square().sum())
    assert left[:3] == [0, 0, 0]
    assert found.abs().min() > 0


def test_storage_of_a_step_that_leaves_the_window_is_used_again() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE, steps=2) as recorder:
        train(model, optimizer, 2, recorder)
        first = {p.data_ptr() for step in recorder._window for p in step.parameters.values()}
        train(model, optimizer, 3, recorder)
        assert {p.data_ptr() for step in recorder._window for p in step.parameters.values()} == first
        taken = recorder.trajectory()
        before = [step.parameters["0.weight"].clone() for step in taken.steps]
        train(model, optimizer, 3, recorder)  # a trajectory handed out is never overwritten
        assert all(torch.equal(a, s.parameters["0.weight"]) for a, s in zip(before, taken.steps, strict=True))


def test_steps_without_a_recorded_loss_empty_the_window() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE, steps=3) as recorder:
        train(model, optimizer, 3, recorder)
        train(model, optimizer, 1)
        with pytest.raises(RuntimeError, match="no step was recorded"):
            recorder.trajectory()
        train(model, optimizer, 1, recorder)
        assert len(recorder.trajectory().steps) == 1


def test_close_removes_the_hooks_also_after_an_exception() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, OBJECTIVE)
    with pytest.raises(ValueError, match="weight must"), recorder:
        recorder.loss(data(), torch.ones(5))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(RuntimeError, match="closed"):
        recorder.loss(data(), torch.ones(6))
    train(model, optimizer, 1)


def test_frozen_and_unused_parameters() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 4)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.used(self.frozen(x))

    torch.manual_seed(0)
    model = Partly()
    optimizer = torch.optim.Adam([*model.used.parameters(), *model.unused.parameters()], weight_decay=0.1)
    with Recorder(model, optimizer, OBJECTIVE, steps=2) as recorder:
        train(model, optimizer, 2, recorder)
        record = recorder.trajectory()
    assert record.steps[0].skipped == {"unused.weight", "unused.bias"}
    value = Truncated(steps=2)(record, lambda m: m(data().inputs).square().sum())
    assert torch.isfinite(value).all()
    assert value.abs().min() > 0


def one_logit(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], (targets > 0).float(), reduction="none")


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, one_logit])
def test_autocast_is_replayed(loss) -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(loss)) as recorder:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = recorder.loss(data(), torch.ones(6))
        loss.backward()
        optimizer.step()
        record = recorder.trajectory()
    step = record.steps[0]
    assert step.conditions.autocast == ("cpu", torch.bfloat16)
    replayed = record.replay(step, step.parameters, record.objective, step.batch, step.weight)
    assert torch.equal(replayed.detach(), loss.detach())
    half = Truncated()(record, lambda m: m(data().inputs).square().sum())
    swept = Truncated()(record, lambda m: m(data().inputs).square().sum(), samples=data())
    assert half.dtype == torch.float32
    assert torch.allclose(half, swept, rtol=1e-6)
    step.conditions = replace(step.conditions, autocast=None)
    full = Truncated()(record, lambda m: m(data().inputs).square().sum())
    assert 0 < relative(half, full) < 0.05  # bfloat16 keeps 8 bits


@pytest.mark.filterwarnings(r"ignore:Guards may run slower on Python 3\.13\.0\.:RuntimeWarning")  # of torch.compile
def test_wrapped_modules_are_seen_through() -> None:
    torch.manual_seed(0)
    inner = mlp()
    compiled = torch.compile(inner, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with Recorder(compiled, optimizer, OBJECTIVE) as recorder:
        train(compiled, optimizer, 1, recorder)
        record = recorder.trajectory()
    assert record.module is inner
    assert torch.isfinite(Truncated()(record, lambda m: m(data().inputs).sum())).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda p: torch.optim.Adafactor(p),
            TypeError,
            "Adafactor is not elementwise.*closed form",
        ),
        (lambda p: torch.optim.LBFGS(p), TypeError, "LBFGS"),
        (lambda p: torch.optim.Adam(p, eps=0.0), ValueError, "eps of optimizer group 0 is 0.0"),
        (
            lambda p: torch.optim.SGD([*p, torch.zeros(2, requires_grad=True)], lr=1),
            ValueError,
            "not a parameter of the",
        ),
    ],
)
def test_optimizers_that_cannot_be_differentiated(make, error, message: str) -> None:
    model = mlp()
    with pytest.raises(error, match=message):
        Recorder(model, make(model.parameters()), OBJECTIVE)


def test_a_subclass_may_update_in_another_way() -> None:
    class Mine(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(2 * group["lr"] * p.grad)

    torch.manual_seed(0)
    plain, found = mlp().double(), []
    batch = Batch.of(data().inputs.double(), data().targets)
    for kind, lr in ((Mine, 0.1), (torch.optim.SGD, 0.2)):
        model = copy.deepcopy(plain)
        optimizer = kind(model.parameters(), lr=lr)
        with Recorder(model, optimizer, OBJECTIVE) as recorder:
            recorder.loss(batch, torch.ones(6, dtype=torch.float64)).backward()
            optimizer.step()
            found.append(Truncated()(recorder.trajectory(), lambda m: m(batch.inputs).square().sum()))
    assert relative(found[0], found[1]) < 1e-9


def test_misuse_is_named() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, OBJECTIVE) as recorder:
        with pytest.raises(ValueError, match=r"weight must be a floating-point tensor of shape \(6,\)"):
            recorder.loss(data(), torch.ones(5))
        with pytest.raises(ValueError, match="floating-point tensor"):
            recorder.loss(data(), torch.ones(6, dtype=torch.long))
        with pytest.raises(RuntimeError, match="no loss was recorded"):
            recorder.at_rest()
        recorder.loss(data(), torch.ones(6))
        with pytest.raises(RuntimeError, match="optimizer.step.. has not followed"):
            recorder.trajectory()
        train(model, optimizer, 1, recorder)
        assert len(recorder.trajectory().steps) == 1


def test_every_supported_optimizer_can_be_recorded() -> None:
    for name in OPTIMIZERS:
        _, record = Problem(optimizer=name).run(Problem().start_weight())
        assert len(record.steps) == 3


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("loss", "weight", "message"),
    [
        (nn.functional.cross_entropy, torch.ones(6), "one number a sample"),
        (CROSS_ENTROPY, torch.zeros(6), "weights of the batch sum to 0.*leave out empty batches"),
        (CROSS_ENTROPY, torch.tensor([1.0, 2, 3, NAN, 1, 1]), r"weight has 1 entries that are NaN .* at \[3\]: nan"),
        (CROSS_ENTROPY, torch.tensor([1.0, 2, 3, 1, INF, 1]), r"weight has 1 entries that are NaN .* at \[4\]: inf"),
        (CROSS_ENTROPY, torch.tensor([1.0, 0, -3, 0, 0, 1]), r"weight must be >= 0, the smallest is -3\.0"),
        (CROSS_ENTROPY, torch.full((6,), 3e38), "weights of the batch sum to inf"),
    ],
)
def test_bad_inner_losses(loss, weight, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedLoss(loss)(mlp(), data(), weight)
