"""DFR against a plain logistic regression on its features, PDE by its batches; both on a problem with a shortcut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from steelyard._support._modules import last_linear
from steelyard.experiments.methods import DFR, ERM, PDE
from steelyard.experiments.methods.dfr import features
from steelyard.experiments.models import MLP
from steelyard.experiments.training.batches import group_balanced_subset, shuffled
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from tests.support.biased import biased_problem, worst_group

PROBLEM = biased_problem(hidden=16)
SGD = OptimizerSettings("sgd", 0.3)
SHORT = Training(steps=25, evaluate_every=25, optimizer=SGD)


def ignore(step, model, extra) -> None:  # type: ignore[no-untyped-def]
    """Observe nothing."""


def test_features_are_what_the_last_layer_sees() -> None:
    model, data = PROBLEM.model(), PROBLEM.splits.train
    with torch.no_grad():
        expected = model[2](model[1](data.inputs))
    torch.testing.assert_close(features(model, data), expected.double())
    assert last_linear(model) is model[3]
    with pytest.raises(ValueError, match=r"has no nn\.Linear"):
        last_linear(nn.ReLU())


@pytest.mark.parametrize("head", ["one_logit", "softmax"])
@pytest.mark.parametrize("fit_on", ["train", "validation"])
def test_the_new_layer_decides_as_the_regression_on_standardised_features(head: str, fit_on: str) -> None:
    problem = replace(PROBLEM, model_settings=MLP(hidden=(16,), head=head))  # type: ignore[arg-type]
    told = []
    method = DFR(fit_on=fit_on, strengths=(0.3,), retrains=1, training=SHORT)  # type: ignore[arg-type]
    model = method.fit(problem, lambda step, model, extra: told.append((step, extra))).model
    assert told == [(25, {"strength": 0.3})]
    erm = ERM(training=SHORT).fit(problem, ignore).model
    for ours, theirs in zip(list(model.parameters())[:-2], list(erm.parameters())[:-2], strict=True):
        assert torch.equal(ours, theirs)  # only the last layer is new
    train_features = features(erm, problem.splits.train).numpy()
    mean, deviation = train_features.mean(0), train_features.std(0)
    deviation[deviation == 0] = 1
    data = problem.splits.validation if fit_on == "validation" else problem.splits.train
    x, y = (features(erm, data).numpy() - mean) / deviation, data.targets.numpy()
    generator = torch.Generator().manual_seed(problem.seed)
    halves = torch.randperm(len(problem.splits.validation), generator=generator).chunk(2)
    group_balanced_subset(data.group[halves[1]] if fit_on == "validation" else data.group, generator)  # for the choice
    subset = group_balanced_subset(data.group, generator)
    lasso = {"penalty": "l1"} if LogisticRegression().penalty == "l2" else {"l1_ratio": 1.0}  # from scikit-learn 1.8 on
    reference = LogisticRegression(C=0.3, solver="liblinear", random_state=0, **lasso).fit(x[subset], y[subset])
    with torch.no_grad():
        outputs = model(data.inputs)
    logit = outputs[:, 0] if head == "one_logit" else outputs[:, 1] - outputs[:, 0]
    np.testing.assert_allclose(logit.numpy(), reference.decision_function(x), rtol=1e-4, atol=1e-4)
    # L1's optimality conditions: C times the gradient is 1 in size where a coefficient is not zero, else at most 1
    p = reference.predict_proba(x[subset])[:, 1]
    gradient = (x[subset] * (p - y[subset])[:, None]).sum(0) * 0.3
    kept = reference.coef_[0] != 0
    np.testing.assert_allclose(gradient[kept], -np.sign(reference.coef_[0][kept]), atol=0.05)
    assert np.all(np.abs(gradient[~kept]) <= 1.05)
    assert 0 < kept.sum() < 16


def test_dfr_averages_its_fits_and_chooses_the_strength_on_validation() -> None:
    told = []
    many = DFR(strengths=(1e-6, 0.3), retrains=4, training=SHORT)
    many.fit(PROBLEM, lambda step, model, extra: told.append(extra["strength"]))
    assert told == [0.3]  # 1e-6 leaves all coefficients at zero: chance
    singles = [DFR(strengths=(0.3,), retrains=k, training=SHORT).fit(PROBLEM, ignore).model for k in (1, 8)]
    assert not torch.equal(singles[0][3].weight, singles[1][3].weight)
    again = DFR(strengths=(0.3,), retrains=8, training=SHORT).fit(PROBLEM, ignore).model
    assert torch.equal(again[3].weight, singles[1][3].weight)


def test_dfr_and_pde_lift_the_worst_group_above_erm() -> None:
    erm = worst_group(PROBLEM, ERM(training=SHORT).fit(PROBLEM, ignore).model)
    late = replace(SHORT, optimizer=OptimizerSettings("sgd", 0.3, momentum=0.9), steps=60)
    erm_late = worst_group(PROBLEM, ERM(training=late).fit(PROBLEM, ignore).model)
    for fit_on in ("train", "validation"):
        dfr = DFR(fit_on=fit_on, retrains=5, training=SHORT)  # type: ignore[arg-type]
        assert worst_group(PROBLEM, dfr.fit(PROBLEM, ignore).model) > erm + 0.1
    pde = PDE(warm_up=40, every=2, add=5, training=late)
    assert worst_group(PROBLEM, pde.fit(PROBLEM, ignore).model) > erm_late + 0.05


def test_pde_with_a_warm_up_only_is_erm_on_a_balanced_subset() -> None:
    method = PDE(warm_up=25, every=1, add=100, training=SHORT)
    ours = method.fit(PROBLEM, ignore).model
    data = PROBLEM.splits.train
    subset = group_balanced_subset(data.group, torch.Generator().manual_seed(PROBLEM.seed))
    theirs = train(PROBLEM, SHORT, ignore, rows=shuffled(subset, 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_pde_slows_down_after_the_warm_up() -> None:
    models = {}

    def remember(step: int, model: nn.Module, extra: object) -> None:
        models[step] = [p.detach().clone() for p in model.parameters()]

    each = replace(SHORT, steps=12, evaluate_every=1)
    PDE(warm_up=10, late_rate=1e-9, training=each).fit(PROBLEM, remember)
    assert not torch.equal(models[9][0], models[10][0])
    torch.testing.assert_close(models[10][0], models[12][0], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PDE(warm_up=0),
        lambda: PDE(add=0),
        lambda: PDE(late_rate=0.0),
        lambda: DFR(retrains=0),
        lambda: DFR(strengths=(0.0,)),
        lambda: DFR(strengths=()),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be|at least one"):
        make()
