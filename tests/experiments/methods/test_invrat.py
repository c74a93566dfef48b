"""InvRat's gap by hand, its one inner step, and what it does to a shortcut."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods import ERM, InvRat
from steelyard.experiments.methods.invrat import EnvironmentGap
from steelyard.experiments.models import MLP
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.trainer import Anneal, OptimizerSettings, Training
from tests.experiments.training.test_trainer import PROBLEM

NET = replace(PROBLEM, model_settings=MLP(hidden=(16,)))
DATA = NET.splits.train


def sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3)


def losses(logit: torch.Tensor, data: Batch) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logit, data.targets.float())


def test_the_gap_is_that_of_heads_fitted_within_environments() -> None:
    model = NET.model()
    gap = EnvironmentGap(model[3], 2, sgd)
    for _ in range(3):
        value = gap(model(DATA.inputs), DATA, NET.loss)
    features = model[2](model[1](DATA.inputs)).detach()
    heads = [[model[3].weight.detach().clone(), model[3].bias.detach().clone()] for _ in (0, 1)]
    for _ in range(3):  # each environment's head by itself, down its share of the mean loss
        for e, head in enumerate(heads):
            member = DATA.environment == e
            here = [p.requires_grad_() for p in head]
            part = losses(F.linear(features[member], *here)[:, 0], DATA.take(member)) * member.float().mean()
            heads[e] = [(p - 0.3 * g).detach() for p, g in zip(here, torch.autograd.grad(part, here), strict=True)]
    own = torch.stack([F.linear(f, *heads[e])[0] for f, e in zip(features, DATA.environment.tolist(), strict=True)])
    expected = losses(model(DATA.inputs)[:, 0], DATA) - losses(own, DATA)
    assert float(expected.detach()) > 0  # heads that know the environment do better
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_its_gradient_reaches_the_features_against_the_environment_heads() -> None:
    model = NET.model()
    gap = EnvironmentGap(model[3], 2, sgd)
    for _ in range(20):
        value = gap(model(DATA.inputs), DATA, NET.loss)
    ours = torch.autograd.grad(value, list(model.parameters()))
    weight, bias = (p.detach() for p in gap.heads)
    outputs, features = model(DATA.inputs), model[2](model[1](DATA.inputs))
    own = (features * weight[DATA.environment, 0]).sum(1) + bias[DATA.environment, 0]
    theirs = torch.autograd.grad(losses(outputs[:, 0], DATA) - losses(own, DATA), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    gap.close()
    before = gap.inputs.value
    model(DATA.inputs)
    assert gap.inputs.value is before


def test_a_gap_below_zero_is_zero_and_has_no_gradient() -> None:
    model = NET.model()
    gap = EnvironmentGap(model[3], 2, lambda parameters: torch.optim.SGD(parameters, lr=1.0, maximize=True))
    value = gap(model(DATA.inputs), DATA, NET.loss)
    assert float(value.detach()) == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(value, list(model.parameters())))


def test_it_narrows_the_gap_and_leans_less_on_the_shortcut_than_erm() -> None:
    training = Training(steps=200, evaluate_every=200, optimizer=OptimizerSettings("adam", 0.02))

    def last(method: ERM | InvRat):  # type: ignore[no-untyped-def]
        model = method.fit(NET, lambda step, model, extra: None).model
        return evaluate(NET, model, 1, {})

    erm, ours = (
        last(ERM(training=training)),
        last(InvRat(penalty=Anneal(100.0, 1.0, 30), training=training)),
    )
    assert ours.test.accuracy > erm.test.accuracy + 0.1
    assert ours.visible.validation.vrex < erm.visible.validation.vrex


def test_heads_at_their_optimum_lean_less_on_the_shortcut_than_erm() -> None:
    training = Training(steps=200, evaluate_every=200, optimizer=OptimizerSettings("adam", 0.02))
    methods = (ERM(training=training), InvRat(heads="outputs", penalty=Anneal(100.0, 1.0, 30), training=training))
    erm, ours = (evaluate(NET, method.fit(NET, lambda step, model, extra: None).model, 1, {}) for method in methods)
    assert ours.test.accuracy > erm.test.accuracy + 0.1
    assert ours.visible.validation.vrex < erm.visible.validation.vrex
    softmax = replace(NET, model_settings=replace(NET.model_settings, head="softmax"))
    with pytest.raises(ValueError, match=r"head is 'softmax'; take model\.head = 'one_logit'"):
        InvRat(heads="outputs").fit(softmax, lambda step, model, extra: None)


def test_it_trains_in_bfloat16_with_its_heads_in_single_precision() -> None:
    def gaps(bfloat16: bool) -> list[float]:
        found: list[float] = []
        settings = Training(20, evaluate_every=1, bfloat16=bfloat16, optimizer=OptimizerSettings("adam", 0.02))
        method = InvRat(penalty=Anneal(100.0, 100.0, 0), training=settings)
        method.fit(NET, lambda step, model, extra: found.append(extra["loss"]))
        return found

    assert gaps(True) == pytest.approx(gaps(False), rel=0.15)  # the loss holds 100 times a small difference


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="head_rate must be"):
        InvRat(head_rate=0.0)
    with pytest.raises(ValueError, match="environments must be"):
        EnvironmentGap(nn.Linear(2, 1), 1, sgd)
    with pytest.raises(ValueError, match="forward pass on this very batch"):
        EnvironmentGap(nn.Linear(2, 1), 2, sgd)(torch.zeros(400, 1), DATA, NET.loss)
