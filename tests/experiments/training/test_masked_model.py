"""The masked model, and the methods that learn or use a mask over parameters."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.experiments.methods import ERM, BayesianIRM, IRMv1, SparseIRM
from steelyard.experiments.models import MLP
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.masked_model import MaskedModel
from steelyard.experiments.training.trainer import Anneal, OptimizerSettings, Training
from tests.experiments.training.test_trainer import PROBLEM

NET = replace(PROBLEM, model_settings=MLP(hidden=(16,)))
TRAINING = Training(steps=150, evaluate_every=150, optimizer=OptimizerSettings("adam", 0.02))


def ignore(step, model, extra) -> None:  # type: ignore[no-untyped-def]
    """Observe nothing."""


def net() -> nn.Module:
    return NET.model()


def test_evaluation_uses_one_hard_mask_on_the_weights_and_none_on_the_biases() -> None:
    model = MaskedModel(net(), 0.5, seed=0).eval()
    inputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    mask = model.hard()
    assert set(mask.tolist()) == {0.0, 1.0}
    assert len(mask) == 2 * 16 + 16
    first, second = mask[:32].reshape(16, 2), mask[32:].reshape(1, 16)
    plain = net()
    hidden = F.relu(F.linear(inputs, plain[1].weight * first, plain[1].bias))
    expected = F.linear(hidden, plain[3].weight * second, plain[3].bias)
    torch.testing.assert_close(model(inputs), expected)
    torch.testing.assert_close(model(inputs), model(inputs))


def test_with_all_kept_it_is_the_plain_model_in_both_modes() -> None:
    model, inputs = MaskedModel(net(), 1.0, seed=0), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(inputs), net()(inputs), rtol=0, atol=1e-2)  # relaxed: all but 1
    torch.testing.assert_close(model.eval()(inputs), net()(inputs))


def test_the_relaxed_mask_is_drawn_anew_and_has_a_gradient_to_the_scores() -> None:
    model = MaskedModel(net(), 0.7, seed=0)
    one, two = model.draw(), model.draw()
    assert not torch.equal(one, two)
    assert bool(((one > 0) & (one < 1)).all())
    model.progress = 1.0  # the temperature at the end: nearly hard
    draws = torch.stack([model.draw() for _ in range(400)])
    share = (draws > 0.5).float().mean()  # 400 x 48 draws: 5 standard errors are 0.017
    assert float(share) == pytest.approx(0.7, abs=0.017)
    model(torch.randn(5, 2)).sum().backward()
    assert model.scores.grad is not None
    assert float(model.scores.grad.abs().sum()) > 0
    assert "scores" in model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in net().parameters())


def test_projection_holds_the_budget() -> None:
    model = MaskedModel(net(), 0.9, seed=0)
    with torch.no_grad():
        model.scores.add_(torch.linspace(-1, 1, 48))
    model.project(0.6)
    assert float(model.scores.detach().sum()) == pytest.approx(0.6 * 48, rel=1e-5)
    assert 0 <= float(model.scores.detach().min()) <= float(model.scores.detach().max()) <= 1
    before = model.scores.detach().clone()
    model.project(0.9)  # already below
    assert torch.equal(model.scores.detach(), before)


@pytest.mark.parametrize("budget", [0.3, 0.95])
def test_sparse_irm_stays_within_its_budget_at_every_step(budget: float) -> None:
    sums = []

    def observe(step: int, model: nn.Module, extra: object) -> None:
        sums.append(float(model.scores.detach().mean()))  # type: ignore[operator, union-attr]

    settings = Training(steps=20, evaluate_every=1, optimizer=OptimizerSettings("adam", 0.02))
    method = SparseIRM(budget=budget, score_rate=0.1, penalty=Anneal(100.0, 0.0, 5), training=settings)
    model = method.fit(NET, observe).model
    assert len(sums) == 20
    assert max(sums) <= budget + 1e-6
    moved = model.scores.detach() - budget  # type: ignore[operator]
    assert float(moved.abs().max()) > 0.1  # the scores learn


def test_sparse_irm_score_rate_falls_to_zero() -> None:
    seen: list[torch.Tensor] = []

    def observe(step: int, model: nn.Module, extra: object) -> None:
        seen.append(model.scores.detach().clone())  # type: ignore[operator, union-attr]

    settings = Training(steps=40, evaluate_every=1, optimizer=OptimizerSettings("adam", 0.02))
    SparseIRM(score_rate=0.01, penalty=Anneal(10.0, 0.0, 0), training=settings).fit(NET, observe)
    moves = [float((b - a).abs().max()) for a, b in itertools.pairwise(seen)]
    assert moves[-1] < 0.1 * max(moves)


def test_a_temperature_of_the_last_step_and_seeds() -> None:
    method = SparseIRM(training=replace(TRAINING, steps=7), penalty=Anneal(10.0, 0.0, 0))
    one, two, other = (method.fit(replace(NET, seed=s), ignore).model for s in (0, 0, 1))
    assert one.progress == 1.0
    assert torch.equal(one.scores, two.scores)  # type: ignore[arg-type]
    assert not torch.equal(one.scores, other.scores)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method",
    [
        SparseIRM(budget=0.95, score_rate=0.01, penalty=Anneal(1e3, 0.0, 20), training=TRAINING),
        BayesianIRM(coefficient=40.0, penalty=Anneal(1e3, 0.0, 20), training=TRAINING),
    ],
    ids=lambda method: method.name,
)
def test_they_leave_the_shortcut_that_erm_takes(method: ERM) -> None:
    def last(method: ERM):  # type: ignore[no-untyped-def]
        return evaluate(NET, method.fit(NET, ignore).model, 1, {})

    erm, ours = last(ERM(training=TRAINING)), last(method)
    assert erm.visible.train.accuracy > 0.83 > 0.3 > erm.test.accuracy
    assert ours.test.accuracy > erm.test.accuracy + 0.2
    assert ours.visible.validation.vrex < erm.visible.validation.vrex


def test_bayesian_irm_spreads_by_c_over_n() -> None:
    """With c = 0 it trains as IRMv1 does."""
    training, penalty = replace(TRAINING, steps=10), Anneal(100.0, 0.0, 3)
    plain = IRMv1(training=training, penalty=penalty).fit(NET, ignore).model
    zero, some = (
        BayesianIRM(coefficient=c, penalty=penalty, training=training).fit(NET, ignore).model for c in (0.0, 80.0)
    )
    for a, b, c in zip(plain.parameters(), zero.parameters(), some.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(a, c)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparseIRM(budget=0.0),
        lambda: SparseIRM(budget=1.5),
        lambda: SparseIRM(score_rate=0.0),
        lambda: BayesianIRM(coefficient=-1.0),
        lambda: BayesianIRM(draws=0),
        lambda: SparseIRM(training=Training(optimizer=OptimizerSettings("sgd", 0.1))),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be|take optimizer"):
        make()
