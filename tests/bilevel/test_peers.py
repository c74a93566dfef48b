"""The two libraries that the field knows: where they agree with us, and where they are wrong (REFERENCE section 6)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard.bilevel import Recorder, Truncated, Unrolled, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, OPTIMIZERS, Problem, batch_norm, dead_unit, relative

pytestmark = pytest.mark.filterwarnings("ignore:Differentiable RMSprop suffers:UserWarning")

LATER = {name for name in OPTIMIZERS if name.startswith(("radam", "adamax", "adadelta"))}  # torch's is the oracle
NOT_TORCHOPT = {"amsgrad", "adamw-amsgrad", "nadam", "nadam-decoupled"} | LATER
RMSPROP = {"rmsprop", "rmsprop-centered", "rmsprop-momentum"}  # of which higher warns itself
NOT_HIGHER = RMSPROP | LATER | {"sgd-maximize", "adam-maximize", "adamw", "adamw-amsgrad", "nadam", "nadam-decoupled"}
OTHER_FUNCTION = {"adam", "adam-decay", "amsgrad"}  # higher adds eps before the bias correction
COLD_MOMENTUM = {"sgd-momentum", "sgd-dampening", "sgd-nesterov", "sgd-maximize"}


@pytest.fixture(autouse=True)
def double_precision_counts():
    """torch and TorchOpt keep step counts in the default dtype: in float32 their bias corrections round to 1e-7."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compare(backend: str, optimizer: str, warmup: int) -> float:
    case = Problem(optimizer=optimizer, warmup=warmup, full_state=True, schedule=0.8)
    _, record = case.run(case.start_weight())
    ours = Truncated(steps=3)(record, case.outer)
    return relative(Unrolled(steps=3, backend=backend)(record, case.outer), ours)


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - NOT_TORCHOPT))
def test_torchopt_agrees(optimizer: str, warmup: int) -> None:
    assert compare("torchopt", optimizer, warmup) < 1e-12


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - NOT_HIGHER - OTHER_FUNCTION))
def test_higher_agrees(optimizer: str, warmup: int) -> None:
    assert compare("higher", optimizer, warmup) < 1e-12


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_torch_agrees(optimizer: str, warmup: int) -> None:
    if optimizer in COLD_MOMENTUM and warmup == 0:
        with pytest.raises(TypeError, match="detaches the first momentum buffer"):
            compare("torch", optimizer, warmup)
    else:
        assert compare("torch", optimizer, warmup) < 1e-12


@pytest.mark.parametrize(
    ("backend", "optimizer"),
    [*(("torchopt", name) for name in sorted(NOT_TORCHOPT)), *(("higher", name) for name in sorted(NOT_HIGHER))],
)
def test_missing_optimizers_are_named(backend: str, optimizer: str) -> None:
    with pytest.raises(TypeError, match=f"{backend} "):
        compare(backend, optimizer, 2)


def test_higher_adam_is_another_function_at_a_cold_start() -> None:
    """With gradients near eps = 1e-8 from a cold start, its hypergradient is off by more than half."""

    class Tiny(Problem):
        def outer(self, model: nn.Module) -> torch.Tensor:
            return model[0].weight.square().sum()

    case = Tiny(
        make=lambda: nn.Sequential(nn.Linear(4, 3, bias=False), _Scale(1e-7)),
        optimizer="adam",
        window=5,
        warmup=0,
        full_state=True,
    )
    _, record = case.run(case.start_weight())
    ours, truth = Truncated(steps=5)(record, case.outer, torch.arange(8)), case.truth(1e-5)
    assert relative(ours, truth) < 1e-6
    assert relative(Unrolled(5, "higher")(record, case.outer, torch.arange(8)), truth) > 0.5
    assert relative(Unrolled(5, "torchopt")(record, case.outer, torch.arange(8)), truth) < 1e-6


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("backend", ["torchopt", "torch"])
def test_zero_gradients_break_unrolling_and_not_us(backend: str, optimizer: str) -> None:
    case = Problem(make=dead_unit, optimizer=optimizer, warmup=0, full_state=True)
    _, record = case.run(case.start_weight())
    with pytest.raises(FloatingPointError, match="use Truncated"):
        Unrolled(3, backend)(record, case.outer)
    assert relative(Truncated(3)(record, case.outer, torch.arange(8)), case.truth()) < 1e-6


def test_unrolling_would_miss_the_running_statistics() -> None:
    case = Problem(make=batch_norm, optimizer="sgd", full_state=True)
    _, record = case.run(case.start_weight())
    truth = case.truth()
    assert relative(Truncated(3)(record, case.outer, torch.arange(8)), truth) < 1e-6
    with pytest.raises(RuntimeError, match="running statistics.*use Truncated"):
        Unrolled(3, "torchopt")(record, case.outer, torch.arange(8))


def test_unrolled_says_what_it_needs() -> None:
    case = Problem()
    _, record = case.run(case.start_weight())
    with pytest.raises(ValueError, match="full_state=True"):
        Unrolled(3)(record, case.outer)
    with pytest.raises(ValueError, match="samples of the window only"):
        Unrolled(3)(record, case.outer, samples=case.data())
    with pytest.raises(ValueError, match="steps=4, but 3"):
        Unrolled(4)(record, case.outer)


def test_torchopt_accelerated_adam_is_wrong_at_a_cold_start() -> None:
    """One step: the derivative is of the order of eps, and `use_accelerated_op` of TorchOpt 0.7 loses it."""
    import torchopt

    case, found = Problem(window=1, warmup=0), []
    data, weight = case.data(), case.start_weight()
    for accelerated in (False, True):
        torch.manual_seed(0)
        model, leaf = case.make(), weight.clone().requires_grad_()
        optimizer = torchopt.MetaAdam(model, lr=0.02, use_accelerated_op=accelerated)
        optimizer.step(WeightedLoss(CROSS_ENTROPY)(model, data, leaf))
        found.append(torch.autograd.grad(case.outer(model), leaf)[0])
    torch.manual_seed(0)
    model = case.make()
    update = torch.optim.Adam(model.parameters(), lr=0.02)
    with Recorder(model, update, WeightedLoss(CROSS_ENTROPY)) as recorder:
        recorder.loss(data, weight).backward()
        update.step()
        ours = Truncated()(recorder.trajectory(), case.outer)
    assert relative(found[1], found[0]) > 0.5
    assert relative(ours, found[0]) < 1e-6  # its plain operator subtracts: half of the digits are gone
