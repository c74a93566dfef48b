"""PGD against closed forms and loops; what it leaves as it was; adversarial training in the one trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.models import HEADS, MLP, binary_cross_entropy, cross_entropy
from steelyard.experiments.training.adversarial import PGD, Adversary, robust_accuracy
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from tests.support.biased import biased_problem


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits_like(n: int = 40, classes: int = 3, seed: int = 0) -> Batch:
    generator = seeded(seed)
    inputs = torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Batch.of(inputs, torch.randint(0, classes, (n,), generator=generator))


def linear(data: Batch, outputs: int, seed: int = 1) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(data.inputs[0].numel(), outputs)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(model[1].weight.shape, generator=seeded(seed)))
    return model


def test_on_a_linear_model_the_logit_falls_by_epsilon_times_the_l1_norm() -> None:
    data = digits_like(classes=2)
    model, epsilon = linear(data, 1), 0.3
    attack = PGD(epsilon=epsilon, step=0.1, steps=12, low=-10.0, high=10.0)
    found = attack(model, data, binary_cross_entropy, generator=seeded())
    weight, sign = model[1].weight.detach()[0], 2.0 * data.targets - 1
    torch.testing.assert_close(
        (found.inputs - data.inputs).flatten(1), -epsilon * sign[:, None] * weight.sign().expand(len(data), -1)
    )
    clean, worst = (model(x)[:, 0].detach() * sign for x in (data.inputs, found.inputs))
    torch.testing.assert_close(worst, clean - epsilon * weight.abs().sum())
    torch.testing.assert_close(
        binary_cross_entropy(model(found.inputs), data.targets), F.softplus(epsilon * weight.abs().sum() - clean)
    )


def test_the_range_of_the_inputs_cuts_the_closed_form() -> None:
    data = digits_like(classes=2)
    model = linear(data, 1)
    found = PGD(epsilon=0.3, step=0.1, steps=12)(model, data, binary_cross_entropy, generator=seeded())
    push = -(2.0 * data.targets - 1)[:, None] * model[1].weight.detach().sign()
    expected = (data.inputs.flatten(1) + 0.3 * push).clamp(0, 1)
    torch.testing.assert_close(found.inputs.flatten(1), expected)


@given(
    epsilon=st.floats(0.0, 0.6),
    step=st.floats(1e-3, 1.0),
    steps=st.integers(1, 6),
    random_start=st.booleans(),
    low=st.floats(-0.5, 0.0),
    high=st.floats(1.0, 1.5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_never_outside_of_the_ball_or_the_range(
    epsilon: float, step: float, steps: int, random_start: bool, low: float, high: float, seed: int
) -> None:
    data = digits_like(seed=seed)
    model = MLP(hidden=(5,), head="softmax").build((1, 4, 4), 3, seed).double()
    attack = PGD("pgd", epsilon, step, steps, random_start, low, high)
    found = attack(model, data, cross_entropy, generator=seeded(seed))
    assert float((found.inputs - data.inputs).abs().max()) <= epsilon + 1e-12
    assert low <= float(found.inputs.min())
    assert float(found.inputs.max()) <= high
    assert torch.equal(found.targets, data.targets)
    assert torch.equal(found.index, data.index)
    again = attack(model, data, cross_entropy, generator=seeded(seed))
    assert torch.equal(again.inputs, found.inputs)


@given(seed=st.integers(0, 1000), step=st.floats(1e-3, 0.5), random_start=st.booleans())
@settings(max_examples=30, deadline=None)
def test_on_a_convex_loss_no_step_lowers_it(seed: int, step: float, random_start: bool) -> None:
    data = digits_like(seed=seed)
    model = linear(data, 3, seed)
    last = torch.full((len(data),), -math.inf, dtype=torch.float64)
    for steps in range(1, 8):
        attack = PGD(epsilon=0.4, step=step, steps=steps, random_start=random_start)
        found = attack(model, data, cross_entropy, generator=seeded(seed))
        losses = cross_entropy(model(found.inputs), data.targets).detach()
        assert bool((losses >= last - 1e-12).all())
        last = losses


def test_the_random_start_is_even_over_the_ball() -> None:
    data = Batch.of(torch.full((4000, 1), 0.5), torch.zeros(4000, dtype=torch.long))
    still = nn.Linear(1, 2)
    nn.init.zeros_(still.weight)  # no gradient, so that the start is what is left
    start = PGD(epsilon=0.25, step=0.1, steps=1)(still, data, cross_entropy, generator=seeded()).inputs[:, 0]
    observed = torch.histc(start, bins=10, min=0.25, max=0.75)
    assert float(observed.sum()) == 4000
    assert float(((observed - 400) ** 2 / 400).sum()) < 27.9  # chi-square, 9 degrees of freedom, one in a thousand


class Watched(nn.Module):
    """BatchNorm and dropout, part of it frozen in evaluation mode, one parameter that needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(6).eval()
        self.head = nn.Linear(6, 3)
        self.head.bias.requires_grad_(False)
        self.modes: list[bool] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        return self.head(self.frozen(self.body(inputs)))


def test_the_model_is_left_as_it_was() -> None:
    model, data = Watched().double(), digits_like()
    model.body[1].weight.grad = torch.full_like(model.body[1].weight, 7.0)
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attack = PGD(epsilon=0.2, step=0.05, steps=3)
    with torch.no_grad():  # the caller's choice holds for the caller
        found = attack(model, data, cross_entropy, generator=seeded())
        assert not torch.is_grad_enabled()
    robust_accuracy(model, data, attack, HEADS["softmax"])
    assert not any(model.modes)  # attacked in evaluation mode
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(gradients) == ["body.1.weight"]
    assert bool((gradients["body.1.weight"] == 7).all())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert not found.inputs.requires_grad
    assert not data.inputs.requires_grad


def test_the_model_is_left_as_it_was_by_an_error_too() -> None:
    class Broken(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    model = nn.Sequential(nn.Flatten(), Broken(16, 3)).train()
    with pytest.raises(RuntimeError, match="no"):
        PGD()(model, digits_like(), cross_entropy, generator=seeded())
    assert model.training
    assert model[1].training


def test_a_ball_of_radius_zero_leaves_the_samples_and_asks_nothing_of_the_model() -> None:
    data, model = digits_like(), Watched()
    assert PGD(epsilon=0.0)(model, data, cross_entropy, generator=seeded()) is data
    assert model.modes == []


def test_robust_accuracy_by_hand() -> None:
    """A sample of a linear one-logit model resists iff its margin exceeds epsilon times the L1 norm."""
    data = digits_like(n=300, classes=2)
    model = linear(data, 1)
    with torch.no_grad():  # labels that the clean model gets right, mostly
        logit = model(data.inputs)[:, 0]
        model[1].bias -= logit.median()
        targets = ((logit - logit.median() + 0.3 * torch.randn(300, generator=seeded(5))) > 0).long()
    data = Batch.of(data.inputs, targets)
    margin = model(data.inputs)[:, 0].detach() * (2.0 * targets - 1)
    for epsilon in (0.0, 0.02, 0.1):
        expected = float((margin > epsilon * model[1].weight.abs().sum()).float().mean())
        attack = PGD(epsilon=epsilon, step=0.01, steps=30, low=-5.0, high=5.0)
        for chunk in (7, 1000):
            assert robust_accuracy(model, data, attack, HEADS["one_logit"], chunk=chunk) == pytest.approx(expected)


def test_adversarial_training_is_the_plain_loop_on_attacked_batches() -> None:
    problem = biased_problem(n=60)
    data, starts = problem.splits.train, []

    class Spied(PGD):
        def __call__(self, model, batch, loss, *, generator):  # type: ignore[no-untyped-def]
            starts.append(torch.Generator())
            starts[-1].set_state(generator.get_state())
            return super().__call__(model, batch, loss, generator=generator)

    attack = Spied(epsilon=0.5, step=0.2, steps=3, low=-20.0, high=20.0)
    run = Training(steps=5, optimizer=OptimizerSettings("sgd", 0.5))
    ours = train(problem, run, lambda step, model, extra: None, perturb=Adversary(attack, problem.loss, 3))
    assert len(starts) == 5
    theirs = problem.model()
    for generator in starts:
        x = data.inputs + 0.5 * (2 * torch.rand(data.inputs.shape, generator=generator) - 1)
        for _ in range(3):
            x = x.detach().requires_grad_()
            problem.loss(theirs(x), data.targets).sum().backward()
            x = x + 0.2 * x.grad.sign()
            x = data.inputs + (x - data.inputs).clamp(-0.5, 0.5)
        theirs.zero_grad()
        problem.loss(theirs(x.detach()), data.targets).mean().backward()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter -= 0.5 * parameter.grad
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_adversarys_starts_depend_on_seed_and_step_alone() -> None:
    data, still = digits_like(), linear(digits_like(), 3)
    nn.init.zeros_(still[1].weight)
    attack = PGD(epsilon=0.1, step=0.1, steps=1)
    one, two = Adversary(attack, cross_entropy, 0), Adversary(attack, cross_entropy, 0)
    first = [one(still, data, step).inputs for step in (0, 1, 2)]
    assert torch.equal(two(still, data, 2).inputs, first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(Adversary(attack, cross_entropy, 1)(still, data, 0).inputs, first[1])


def test_adversarial_training_resists_where_plain_training_does_not() -> None:
    """Feature 0 is always right but at +-0.2, which an attack of 0.4 turns round; feature 1, at +-0.5, is 90% right."""
    generator = seeded()
    targets = torch.arange(400) % 2
    sign = 2.0 * targets - 1
    fine = 0.2 * sign + 0.04 * torch.randn(400, generator=generator)
    coarse = torch.where(torch.rand(400, generator=generator) < 0.9, sign, -sign) * 0.5
    problem = biased_problem(n=40)
    data = Batch.of(torch.stack([fine, coarse], 1), targets, environment=targets)
    problem = replace(problem, splits=replace(problem.splits, train=data))
    attack = PGD(epsilon=0.4, step=0.1, steps=5, low=-2.0, high=2.0)
    run = Training(steps=300, optimizer=OptimizerSettings("adam", 0.05))
    accuracy = {}
    for epsilon in (0.0, 0.4):
        adversary = Adversary(replace(attack, epsilon=epsilon), problem.loss, 0)
        model = train(problem, run, lambda step, model, extra: None, perturb=adversary)
        accuracy[epsilon] = robust_accuracy(model, data, attack, problem.head)
    assert accuracy[0.0] < 0.2
    assert accuracy[0.4] > 0.85


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: PGD(epsilon=-0.1), ValueError, "epsilon must be"),
        (lambda: PGD(step=0.0), ValueError, "step must be"),
        (lambda: PGD(steps=0), ValueError, "steps must be"),
        (lambda: PGD(low=1.0, high=1.0), ValueError, "high must be finite and > 1.0"),
        (lambda: attacked(torch.full((1, 1), 1.5)), ValueError, r"range \[0, 1\], got 1.5 .. 1.5; set low and high"),
        (lambda: attacked(torch.full((1, 1), math.nan)), ValueError, r"range \[0, 1\], got nan"),
        (lambda: attacked(torch.zeros(1, 1, dtype=torch.long)), TypeError, "floating point, got torch.int64"),
        (lambda: attacked(torch.zeros(1, 1), weight=math.nan), ValueError, "the gradient by the inputs has 1 entries"),
        (lambda: robust_accuracy(nn.Linear(1, 2), EMPTY, PGD(), HEADS["softmax"]), ValueError, "data has no samples"),
    ],
)
def test_what_is_refused(call, error: type[Exception], words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        call()


EMPTY = Batch.of(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))


def attacked(inputs: torch.Tensor, weight: float = 1.0) -> Batch:
    model = nn.Linear(1, 2)
    nn.init.constant_(model.weight, weight)
    return PGD()(model, Batch.of(inputs, torch.zeros(1, dtype=torch.long)), cross_entropy, generator=seeded())
