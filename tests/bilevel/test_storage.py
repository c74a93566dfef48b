"""Storages of a record: the exact ones bit for bit, the rounded one within its stated bound, all against the truth."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from steelyard.bilevel import Batch, FiniteDifference, Implicit, Recorder, Storage, Truncated, Unrolled, WeightedLoss
from steelyard.bilevel.step import Conditions, Step
from steelyard.bilevel.storage import newest_first
from steelyard.bilevel.trajectory import Trajectory
from steelyard.reweight import InnerRun
from tests.support.problems import (
    CROSS_ENTROPY,
    Problem,
    convolution,
    cumulative_norm,
    dead_unit,
    mlp,
    relative,
)

ROUNDED = Storage(dtype=torch.bfloat16)
EXACT = [Storage(checkpoint_every=every) for every in (2, 3, 9)] + [Storage(device="cpu")]
ROUNDING = 2.0**-8


def normalised_dropout() -> nn.Module:
    layers = nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)
    return nn.Sequential(*layers)


def attention() -> nn.Module:
    """Training takes another kernel for it than a transformation can."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(1, 12), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.into(x[..., None]).chunk(3, -1)
            return self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=0.2).flatten(1))

    return Attend()


def leaves(tree) -> list:
    if isinstance(tree, dict):
        tree = [tree[key] for key in sorted(tree)]
    return [one for part in tree for one in leaves(part)] if isinstance(tree, list) else [tree]


def alike(one, other) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def tensors(run) -> int:
    """Bytes of parameters and optimizer state in a record."""
    kept = {
        id(one): one
        for step in [*run.earlier, *run.steps]
        for one in leaves([step.parameters, step.state, step.full_state])
        if isinstance(one, Tensor)
    }
    return sum(one.numel() * one.element_size() for one in kept.values())


MANY = ("sgd-nesterov", "adam-decay", "adamw-amsgrad", "nadam", "rmsprop-momentum", "adagrad-warm")
CASES = [(EXACT[1], name) for name in MANY]
CASES += [(storage, name) for storage in EXACT for name in ("sgd-momentum", "adam")]


@pytest.mark.parametrize(("storage", "optimizer"), CASES, ids=str)
def test_exact_storages_give_the_recorded_steps_bit_for_bit(storage, optimizer) -> None:
    problem = Problem(normalised_dropout, optimizer, window=6, warmup=3, schedule=0.9)
    weight = problem.start_weight()
    _, whole = problem.run(weight)
    _, kept = replace(problem, storage=storage).run(weight)
    for count in (1, 4, 6):
        found = list(newest_first(kept, count))
        assert len(found) == count
        for one, other in zip(found, reversed(whole.steps[-count:]), strict=True):
            assert alike(one.parameters, other.parameters)
            assert alike(one.state, other.state)
            assert one.kept == "whole"
    assert torch.equal(Truncated(6)(kept, problem.outer), Truncated(6)(whole, problem.outer))


@pytest.mark.parametrize("make", [dead_unit, cumulative_norm, convolution, attention])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam"])
def test_a_replay_is_bit_for_bit_for_any_model(make, optimizer) -> None:
    problem = Problem(make, optimizer, window=5, dtype=torch.float32)
    _, whole = problem.run(problem.start_weight())
    _, kept = replace(problem, storage=Storage(checkpoint_every=4)).run(problem.start_weight())
    for one, other in zip(newest_first(kept, 5), reversed(whole.steps), strict=True):
        assert alike(one.parameters, other.parameters)


@cache
def truth(optimizer: str) -> Tensor:
    return Problem(normalised_dropout, optimizer, window=4).truth()


@pytest.mark.parametrize("estimator", [Truncated(4), FiniteDifference(4)], ids=["truncated", "difference"])
@pytest.mark.parametrize(
    ("storage", "optimizer"),
    [*((one, name) for one in EXACT for name in ("sgd-momentum", "adam")), (ROUNDED, "sgd-momentum")],
    ids=str,
)
def test_against_finite_differences_of_the_run(estimator, storage, optimizer) -> None:
    problem = Problem(normalised_dropout, optimizer, window=4, storage=storage)
    assert relative(problem.answer(estimator), truth(optimizer)) < (2e-2 if storage.dtype else 1e-6)


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "sgd-nesterov", "sgd-dampening"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rounded_record_keeps_its_stated_bound(optimizer, dtype) -> None:
    problem = Problem(normalised_dropout, optimizer, window=8, warmup=1, dtype=dtype)
    _, whole = problem.run(problem.start_weight())
    _, kept = replace(problem, storage=ROUNDED).run(problem.start_weight())
    exact, rounded = whole.steps[::-1], list(newest_first(kept, 8))
    assert alike(exact[0].parameters, rounded[0].parameters)  # the newest is whole
    assert alike(exact[0].state, rounded[0].state)
    differs = False
    for number, (one, other) in enumerate(zip(exact, rounded, strict=True)):
        for name, p in one.parameters.items():
            moves = [exact[k].parameters[name] - exact[k + 1].parameters[name] for k in range(number)]
            largest = torch.stack([p.abs(), *(step.parameters[name].abs() for step in exact[:number])]).amax(0)
            moved = sum((move.abs() for move in moves), torch.zeros_like(p))
            bound = ROUNDING * moved + number * torch.finfo(dtype).eps * largest
            error = (other.parameters[name] - p).abs()
            assert bool((error <= bound).all())
            differs |= bool(error.any())
    assert differs
    assert {tensor.dtype for step in kept.steps[:-1] for tensor in step.parameters.values()} == {torch.bfloat16}


def test_parameters_of_two_bytes_are_not_rounded() -> None:
    problem = Problem(mlp, "sgd", window=3, dtype=torch.bfloat16, storage=ROUNDED)
    _, kept = problem.run(problem.start_weight())
    _, whole = replace(problem, storage=Storage()).run(problem.start_weight())
    for one, other in zip(newest_first(kept, 3), reversed(whole.steps), strict=True):
        assert alike(one.parameters, other.parameters)


def size(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(
    ("optimizer", "storage", "expected"),
    [
        ("sgd-momentum", Storage(), 20),
        ("sgd-momentum", ROUNDED, 1 + 19 / 2),
        ("sgd-momentum", Storage(checkpoint_every=10), 1 + 2 + 1),
        ("adam", Storage(), 1 + 19 * 3),
        ("adam", Storage(checkpoint_every=10), 1 + 3 + 3),
    ],
)
def test_what_a_record_of_twenty_steps_takes(optimizer, storage, expected) -> None:
    """In units of the parameters; the first step has no optimizer state yet."""
    problem = Problem(mlp, optimizer, window=20, warmup=0, dtype=torch.float32, storage=storage)
    model, record = problem.run(problem.start_weight())
    counters = 4 * 4 if optimizer == "adam" and storage.checkpoint_every > 1 else 0  # one of a float a parameter
    assert tensors(record) == expected * size(model) + counters


@pytest.mark.parametrize(("steps", "every"), list(itertools.product([1, 2, 5], [2, 3, 4, 9])))
def test_a_window_on_a_long_run_keeps_what_it_needs_and_no_more(steps, every) -> None:
    for length in (steps, steps + 1, 8, 13):
        problem = Problem(mlp, "adam", window=steps, warmup=0)
        batch, weight = problem.data(), problem.start_weight()
        records = []
        for storage in (Storage(), Storage(checkpoint_every=every)):
            torch.manual_seed(0)
            model = mlp().double()
            optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
            with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps, storage=storage) as recorder:
                for _ in range(length):
                    optimizer.zero_grad()
                    recorder.loss(batch, weight).backward()
                    optimizer.step()
                records.append(recorder.trajectory())
        whole, kept = records
        assert len(kept.steps) == steps
        assert len(kept.earlier) <= (every - 1 if steps > 1 else 0)
        for one, other in zip(newest_first(kept, steps), reversed(whole.steps), strict=True):
            assert alike(one.parameters, other.parameters)
            assert alike(one.state, other.state)


def test_a_replay_changes_nothing_of_the_run() -> None:
    problem = Problem(normalised_dropout, "adam", window=5, storage=Storage(checkpoint_every=3))
    model, record = problem.run(problem.start_weight())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    first = Truncated(5)(record, problem.outer)
    assert torch.equal(Truncated(5)(record, problem.outer), first)
    assert alike(dict(model.state_dict()), before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_run_that_cannot_be_replayed_is_refused() -> None:
    problem = Problem(mlp, "sgd-momentum")
    batch, weight = problem.data(), problem.start_weight()
    model = mlp().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 4, storage=Storage(checkpoint_every=3)) as recorder:
        for number in range(4):
            optimizer.zero_grad()
            recorder.loss(batch, weight).backward()
            if number == 1:
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
        record = recorder.trajectory()
    with pytest.raises(
        RuntimeError, match=r"cannot be replayed: 4 of 4 parameters.*'0.weight' first.*checkpoint_every=1"
    ):
        Truncated(4)(record, problem.outer)
    assert Truncated(1)(record, problem.outer).isfinite().all()  # the newest needs no replay


def test_frozen_unused_and_zeroed_gradients_are_replayed() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.zeroed = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found = []
    for storage in (Storage(), Storage(checkpoint_every=3)):
        torch.manual_seed(0)
        model = Partly().double()
        for p in model.zeroed.parameters():
            p.grad = torch.zeros_like(p)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
        batch = Problem().data()
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 5, storage=storage) as recorder:
            for _ in range(5):
                model.used.zero_grad()
                recorder.loss(batch, torch.ones(8).double()).backward()
                optimizer.step()
            found.append([step.parameters for step in newest_first(recorder.trajectory(), 5)])
    assert alike(found[0][-1], found[1][-1])
    assert not torch.equal(found[1][0]["zeroed.weight"], found[1][-1]["zeroed.weight"])
    assert torch.equal(found[1][0]["unused.weight"], found[1][-1]["unused.weight"])


def test_autocast_is_replayed_with_its_cache() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.shared(self.shared(x).tanh()).tanh())

    torch.manual_seed(0)
    model = Twice()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = Problem(dtype=torch.float32).data()
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 6, storage=Storage(checkpoint_every=5)) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = recorder.loss(data, torch.ones(8))
            loss.backward()
            optimizer.step()
        assert len(list(newest_first(recorder.trajectory(), 6))) == 6  # each replay is checked


def test_other_estimators_take_any_storage() -> None:
    weight = Problem().start_weight()
    for storage in (Storage(checkpoint_every=3), ROUNDED, Storage(device="cpu")):
        optimizer = "sgd-momentum" if storage.dtype else "adam"
        problem = Problem(mlp, optimizer, window=4, full_state=True, storage=storage)
        _, kept = problem.run(weight)
        _, whole = replace(problem, storage=Storage()).run(weight)
        tolerance = 2e-2 if storage.dtype else 1e-12
        for estimator in (Unrolled(4, backend="torchopt"), Implicit(damping=1.0)):
            assert relative(estimator(kept, problem.outer), estimator(whole, problem.outer)) < tolerance
        norms = [
            sum(p.norm() for p in step.parameters.values()) for run in (kept, whole) for step in newest_first(run, 4)
        ]
        torch.testing.assert_close(norms[:4], norms[4:], rtol=tolerance, atol=0)


def test_reuse_of_the_newest_step_is_not_touched() -> None:
    problem = Problem(mlp, "adam")
    batch, weight = problem.data(), problem.start_weight()
    model = mlp().double()
    optimizer = torch.optim.Adam(model.parameters())
    storage = Storage(checkpoint_every=2)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 3, reuse=True, storage=storage) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            recorder.loss(batch, weight).backward()
            optimizer.step()
        record = recorder.trajectory()
    assert [step.findings.forward_record is None for step in record.steps] == [True, True, False]
    assert next(newest_first(record, 1)).checkpoint  # whose state is taken from the whole one
    found = Truncated(1)(record, problem.outer)
    record.steps[-1].findings.forward_record = None
    torch.testing.assert_close(found, Truncated(1)(record, problem.outer))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_another_device_and_back(dtype) -> None:
    """On fake tensors of a GPU, since none may be at hand: where tensors are, not what they are."""
    storage, window = Storage(dtype=dtype, device="cpu"), deque()
    batch, weight = Batch.of(torch.zeros(1, 2), torch.zeros(1)), torch.ones(1)
    model = nn.Linear(2, 2)
    with FakeTensorMode():
        for _ in range(2):
            parameters = {name: torch.empty(p.shape, device="cuda") for name, p in model.named_parameters()}
            state = {name: {"step": 1.0, "exp_avg": p.clone()} for name, p in parameters.items()}
            full = {name: {"step": torch.zeros(()), "exp_avg": p.clone()} for name, p in parameters.items()}
            conditions = Conditions({}, (), (weight, None), None)
            step = Step(batch, weight, conditions, parameters=parameters, state=state, full_state=full)
            storage.append(window, step, 2)
        older, newest = window
        for step, device in ((newest, "cuda"), (older, "cpu")):
            assert devices([step.parameters, step.state]) == {device}
        run = Trajectory(model, WeightedLoss(CROSS_ENTROPY), [older, newest], torch.optim.Adam, (), {})
        for step in newest_first(run, 2):
            assert devices([step.parameters, step.state]) == {"cuda"}
            assert step.state["bias"]["step"] == 1.0
            assert {one["step"].device.type for one in step.full_state.values()} == {"cpu"}  # where Adam wants it
            assert {one["exp_avg"].device.type for one in step.full_state.values()} == {"cuda"}
            assert {one.dtype for one in step.parameters.values()} == {torch.float32}


def devices(trees: list) -> set[str]:
    return {one.device.type for one in leaves(trees) if isinstance(one, Tensor)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_record_of_a_gpu_on_the_cpu() -> None:
    found, data = [], Problem(dtype=torch.float32).data().to("cuda")

    def outer(model: nn.Module) -> Tensor:
        return CROSS_ENTROPY(model(data.inputs), data.targets).mean()

    for storage in (Storage(), Storage(device="cpu")):
        torch.manual_seed(0)
        model = mlp().cuda()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), 4, storage=storage) as recorder:
            for _ in range(5):
                optimizer.zero_grad()
                recorder.loss(data, torch.ones(8, device="cuda")).backward()
                optimizer.step()
            record = recorder.trajectory()
        outside = devices([step.parameters for step in record.steps[:-1]])
        assert outside == {"cpu" if storage.device else "cuda"}
        found.append(Truncated(4)(record, outer))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_rounding_is_refused_where_it_swamps_the_derivative(kind) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=f"is for SGD: the derivative of {kind.__name__}'s update"):
        Recorder(model, kind(model.parameters()), WeightedLoss(CROSS_ENTROPY), 3, storage=ROUNDED)


def test_an_inner_run_passes_its_storage_on() -> None:
    data = Problem().data()
    made = []
    for storage in (Storage(), ROUNDED):
        settings = {"objective": WeightedLoss(CROSS_ENTROPY), "steps": 5, "window": 4, "storage": storage}
        inner = InnerRun(lambda: mlp().double(), partial(torch.optim.SGD, lr=0.1), **settings).fresh()
        made.append(inner(data, torch.ones(8).double())[1])
    assert [step.kept for step in made[1].steps] == ["rounded"] * 3 + ["whole"]
    assert relative(*(Truncated(4)(run, Problem().outer) for run in made)) < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, "dtype must be one of"),
        ({"checkpoint_every": 0}, "checkpoint_every must be >= 1, got 0"),
        ({"dtype": torch.bfloat16, "checkpoint_every": 2}, "a replay starts from exact parameters"),
    ],
)
def test_bad_storages(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Storage(**options)
