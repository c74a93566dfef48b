"""The methods against class and group imbalance: against loops written out, in their limits, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.methods import (
    CRT,
    ERM,
    LDAM,
    BalancedSoftmax,
    ClassBalanced,
    Focal,
    SqrtReweighting,
    UpWeighting,
    check_groups,
    check_regression,
)
from steelyard.experiments.models import Logistic
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.class_losses import LDAMLoss
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from tests.experiments.runs.test_resume import assert_same_run, die_at_every_checkpoint, go
from tests.support.biased import biased_problem, plain_loss, worst_group

PROBLEM = biased_problem()
DATA = PROBLEM.splits.train
NET = biased_problem(hidden=16)
SGD = OptimizerSettings("sgd", 0.5)
SHORT = Training(steps=30, evaluate_every=30, optimizer=SGD)
BATCHES = replace(SHORT, batch_size=60, steps=60)


def silent(step, model, extra) -> None:  # type: ignore[no-untyped-def]
    """Observe nothing."""


def fitted(method, problem=PROBLEM) -> torch.nn.Module:  # type: ignore[no-untyped-def]
    return method.fit(problem, silent).model


def unequal(problem=PROBLEM):  # type: ignore[no-untyped-def]
    """The problem with a tenth of class 1 left: 300 and 30 training samples."""
    keep = (DATA.targets == 0) | (torch.arange(len(DATA)) % 20 == 2)
    return replace(problem, splits=replace(problem.splits, train=problem.splits.train.take(keep)))


def same_parameters(one: torch.nn.Module, two: torch.nn.Module, **tolerance: float) -> None:
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def by_loop(loss, steps: int = 30, problem=PROBLEM) -> torch.nn.Module:  # type: ignore[no-untyped-def]
    """Plain gradient descent on ``loss(outputs, step)`` of all training samples."""
    model, data = problem.model(), problem.splits.train
    for step in range(steps):
        gradients = torch.autograd.grad(loss(model(data.inputs), step), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    return model


def test_square_root_weights_by_a_loop() -> None:
    for by, labels in (("class", DATA.targets), ("group", DATA.group), ("environment", DATA.environment)):
        weight = torch.bincount(labels)[labels].float() ** -0.5
        weight = weight / weight.sum()
        looped = by_loop(lambda out, step, w=weight: (w * plain_loss(out, DATA.targets)).sum())
        same_parameters(fitted(SqrtReweighting(by=by, training=SHORT)), looped, rtol=1e-4, atol=1e-5)


def test_the_class_balanced_loss_by_a_loop_and_its_limits() -> None:
    problem = unequal()
    labels = problem.splits.train.targets
    counts = torch.bincount(labels).double()
    weight = ((1 - 0.99) / (1 - 0.99**counts))[labels].float()
    looped = by_loop(lambda out, step: (weight * plain_loss(out, labels)).sum() / weight.sum(), problem=problem)
    same_parameters(fitted(ClassBalanced(beta=0.99, training=SHORT), problem), looped, rtol=1e-4, atol=1e-5)
    same_parameters(fitted(ClassBalanced(beta=0.0, training=SHORT), problem), fitted(ERM(training=SHORT), problem))
    near, limit = ClassBalanced(beta=1 - 1e-9, training=SHORT), UpWeighting(by="class", training=SHORT)
    same_parameters(fitted(near, problem), fitted(limit, problem), rtol=1e-4, atol=1e-5)


def test_focal_balanced_softmax_and_ldam_are_erm_in_their_limits() -> None:
    erm = fitted(ERM(training=SHORT))
    assert torch.bincount(DATA.targets).tolist() == [300, 300]
    for method in (
        Focal(gamma=0.0, training=SHORT),
        BalancedSoftmax(training=SHORT),
        LDAM(margin=0.0, scale=1.0, training=SHORT),
    ):
        same_parameters(fitted(method), erm, rtol=1e-4, atol=1e-6)


def test_balanced_softmax_moves_the_decision_to_the_rare_class() -> None:
    problem = unequal()
    log_odds = float(torch.tensor(30 / 300).log())
    labels = problem.splits.train.targets
    looped = by_loop(lambda out, step: plain_loss(out + log_odds, labels).mean(), problem=problem)
    ours = fitted(BalancedSoftmax(training=SHORT), problem)
    same_parameters(ours, looped, rtol=1e-4, atol=1e-5)
    erm = fitted(ERM(training=SHORT), problem)
    test = problem.splits.test
    one, two = (float((m(test.inputs)[test.targets == 1] > 0).float().mean()) for m in (ours, erm))
    assert one > two


def test_ldam_with_deferred_reweighting_by_a_loop() -> None:
    problem = unequal()
    labels = problem.splits.train.targets
    loss = LDAMLoss(torch.bincount(labels), 0.5, 2.0)
    counts = torch.bincount(labels).double()
    rare = ((1 - 0.999) / (1 - 0.999**counts))[labels].float()

    def written_out(outputs: torch.Tensor, step: int) -> torch.Tensor:
        weight = rare if step >= 10 else torch.ones_like(rare)
        return (weight * loss(outputs, labels)).sum() / weight.sum()

    method = LDAM(margin=0.5, scale=2.0, reweight_at=10, beta=0.999, training=SHORT)
    same_parameters(fitted(method, problem), by_loop(written_out, problem=problem), rtol=1e-4, atol=1e-5)


def test_crt_keeps_the_features_and_trains_the_last_layer_from_its_start() -> None:
    first = replace(SHORT, steps=40)
    method = CRT(by="group", representation=first, training=SHORT)
    steps = []
    model = method.fit(NET, lambda step, model, extra: steps.append((step, type(model)))).model
    assert steps == [(30, type(model))]
    erm = fitted(ERM(training=first), NET)
    hidden = [name for name, _ in model.named_parameters()][:-2]
    assert all(torch.equal(dict(model.named_parameters())[name], dict(erm.named_parameters())[name]) for name in hidden)
    layers = [module for module in NET.model().modules() if isinstance(module, torch.nn.Linear)]
    last = layers[-1]
    features = torch.relu(next(m for m in erm.modules() if isinstance(m, torch.nn.Linear))(NET.splits.train.inputs))
    data = NET.splits.train
    weight = 1 / torch.bincount(data.group)[data.group].float()
    for _ in range(30):
        loss = (weight * plain_loss(last(features.detach()), data.targets)).sum() / weight.sum()
        gradients = torch.autograd.grad(loss, list(last.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(last.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    mine = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    same_parameters(mine, last, rtol=1e-4, atol=1e-5)


def test_crt_of_a_linear_model_is_upweighting() -> None:
    crt = CRT(by="group", representation=SHORT, training=SHORT)
    same_parameters(fitted(crt), fitted(UpWeighting(training=SHORT)), rtol=1e-4, atol=1e-5)
    plain = CRT(balance="none", representation=SHORT, training=SHORT)
    same_parameters(fitted(plain), fitted(ERM(training=SHORT)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        SqrtReweighting(training=SHORT),
        ClassBalanced(by="group", training=SHORT),
        CRT(by="group", representation=SHORT, training=SHORT),
        CRT(by="group", balance="batches", representation=BATCHES, training=BATCHES),
    ],
    ids=lambda method: method.name,
)
def test_what_knows_the_groups_lifts_the_worst(method) -> None:  # type: ignore[no-untyped-def]
    erm = worst_group(PROBLEM, fitted(ERM(training=method.training)))
    assert worst_group(PROBLEM, fitted(method)) > erm + 0.05


@pytest.mark.parametrize("kind", [Focal, LDAM, BalancedSoftmax, ClassBalanced, CRT], ids=lambda kind: kind.__name__)
def test_a_regression_is_refused_by_name(kind: type) -> None:
    with pytest.raises(ValueError, match=rf"method '{kind().name}' needs classes.*sqrt_reweighting"):
        check_regression(kind())


def test_hidden_groups_are_refused_by_name_and_classes_are_not() -> None:
    bare = replace(PROBLEM.splits.train, group=None)
    hidden = replace(PROBLEM.splits, train=bare, groups=("a", "b", "c", "d"))
    for method in (SqrtReweighting(), ClassBalanced(by="group"), CRT(by="group")):
        with pytest.raises(RecipeError, match=rf"method '{method.name}' as it is set needs the groups of training"):
            check_groups(method, hidden)
    allowed = (
        SqrtReweighting(by="class"),
        ClassBalanced(),
        CRT(),
        CRT(by="group", balance="none"),
        UpWeighting(by="class"),
    )
    for method in (replace(method, training=SHORT) for method in allowed):
        check_groups(method, hidden)
        fitted(method, replace(PROBLEM, splits=hidden))


@pytest.mark.parametrize(
    "method", [LDAM(training=SHORT), BalancedSoftmax(training=SHORT)], ids=lambda method: method.name
)
def test_a_class_without_a_sample_is_named(method) -> None:  # type: ignore[no-untyped-def]
    bare = replace(PROBLEM, splits=replace(PROBLEM.splits, train=DATA.take(DATA.targets == 0)))
    with pytest.raises(DataError, match=r"class 1 has no training sample \(counts \[300, 0\]\)"):
        fitted(method, bare)


def test_without_environments_the_labels_are_asked_for() -> None:
    splits = replace(PROBLEM.splits)
    object.__setattr__(splits, "train", replace(DATA, environment=None))
    with pytest.raises(DataError, match="needs environment ids on the training samples"):
        fitted(SqrtReweighting(by="environment", training=SHORT), replace(PROBLEM, splits=splits))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassBalanced(beta=1.0),
        lambda: Focal(gamma=-1.0),
        lambda: LDAM(margin=-0.1),
        lambda: LDAM(scale=0.0),
        lambda: LDAM(reweight_at=-1),
        lambda: CRT(balance="batches"),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be|batch_size"):
        make()


def test_losses_for_several_classes_train_a_softmax_head() -> None:
    """Three classes, the third a fiftieth of the first: balanced softmax finds it where ERM does not look."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([500, 100, 10])
    targets = torch.repeat_interleave(torch.arange(3), counts)
    inputs = F.one_hot(targets, 3).float() + 0.6 * torch.randn(len(targets), 3, generator=generator)
    splits = PROBLEM.splits
    part = Batch.of(inputs, targets, environment=torch.arange(len(targets)) % 2)
    problem = replace(
        PROBLEM,
        splits=replace(splits, train=part, validation=part, test=part, classes=("a", "b", "c")),
        model_settings=Logistic(head="softmax"),
    )
    recalls = {}
    for method in (
        ERM(training=SHORT),
        BalancedSoftmax(training=SHORT),
        Focal(training=SHORT),
    ):
        right = fitted(method, problem)(inputs).argmax(1) == targets
        recalls[method.name] = float(right[targets == 2].float().mean())
    assert recalls["balanced_softmax"] > recalls["erm"] + 0.3


SMALL = ["model.hidden=[8]", "method.training.steps=4", "method.training.batch_size=50"]
SMALL += ["method.training.evaluate_every=2"]


@pytest.mark.parametrize(
    "method",
    [
        "{name='sqrt_reweighting'}",
        "{name='class_balanced', by='group'}",
        "{name='focal'}",
        "{name='ldam', reweight_at=2}",
        "{name='balanced_softmax'}",
        "{name='crt', balance='batches', representation={steps=4, batch_size=50, evaluate_every=2}, "
        "training={batch_size=50}}",
    ],
)
def test_a_run_that_dies_at_every_step_ends_in_the_same_bytes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("coloured_digits/erm", [f"method={method}", *SMALL], 1)
    go(recipe, tmp_path / "whole")
    deaths = die_at_every_checkpoint(recipe, tmp_path / "broken", monkeypatch)
    assert deaths == (8 if recipe.method.name == "crt" else 4)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
