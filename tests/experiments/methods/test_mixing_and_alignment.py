"""Mixup, LISA, MMD and CORAL: their steps against loops written out, their limits, what they refuse, resumed runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.methods import CORAL, ERM, LISA, MMD, Mixup, check_groups, check_regression
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.alignment import mean_and_covariance_distance, mmd
from steelyard.experiments.training.mixing import MixBatch
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from tests.experiments.runs.test_resume import assert_same_run, die_at_every_checkpoint, go
from tests.support.biased import biased_problem, plain_loss, worst_group

PROBLEM, NET = biased_problem(), biased_problem(hidden=16)
SGD = OptimizerSettings("sgd", 0.5)
SHORT = Training(steps=20, evaluate_every=20, optimizer=SGD)
BATCHES = replace(SHORT, batch_size=60, steps=60)
DISTANCES = {"mmd": mmd, "coral": mean_and_covariance_distance}


def attributes(problem=PROBLEM):  # type: ignore[no-untyped-def]
    """The problem with the shortcut as the environment, as Waterbirds has the place."""

    def part(data: Batch) -> Batch:
        return replace(data, environment=data.group % 2)

    splits = problem.splits
    return replace(
        problem,
        splits=replace(splits, train=part(splits.train), validation=part(splits.validation), test=part(splits.test)),
    )


def silent(step, model, extra) -> None:  # type: ignore[no-untyped-def]
    """Observe nothing."""


def fitted(method, problem=PROBLEM) -> torch.nn.Module:  # type: ignore[no-untyped-def]
    return method.fit(problem, silent).model


def same_parameters(one: torch.nn.Module, two: torch.nn.Module, **tolerance: float) -> None:
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def descend(model: torch.nn.Module, loss: torch.Tensor) -> None:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient


def test_mixup_is_both_labels_losses_on_the_mixed_inputs() -> None:
    ours, model, data = fitted(Mixup(alpha=0.7, training=SHORT)), PROBLEM.model(), PROBLEM.splits.train
    for step in range(20):
        seen = MixBatch(0.7, 2, PROBLEM.seed)(model, data, step)
        logit = model(seen.inputs)
        two = [plain_loss(logit, torch.full_like(data.targets, label)) for label in (0, 1)]
        descend(model, (seen.targets[:, 0] * two[0] + seen.targets[:, 1] * two[1]).mean())
    same_parameters(ours, model, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method", [Mixup(alpha=0.0), LISA(alpha=0.0), MMD(gamma=0.0), CORAL(gamma=0.0)], ids=lambda method: method.name
)
@pytest.mark.parametrize("training", [SHORT, BATCHES], ids=["whole", "batches"])
def test_each_is_erm_in_its_limit(method, training: Training) -> None:  # type: ignore[no-untyped-def]
    erm = fitted(ERM(training=training), NET)
    same_parameters(fitted(replace(method, training=training), NET), erm, rtol=1e-5, atol=1e-6)


def test_lisa_lifts_the_worst_group_and_mixup_does_not_as_much() -> None:
    problem = attributes()
    erm, mixup, lisa = (
        worst_group(problem, fitted(method, problem))
        for method in (ERM(training=BATCHES), Mixup(training=BATCHES), LISA(training=BATCHES))
    )
    assert lisa > max(erm, mixup) + 0.1


def test_lisa_within_labels_cancels_what_differs_between_places() -> None:
    """Every mixture of a class then has the same mean of the shortcut: a linear model stops using it."""
    problem = attributes()
    training = replace(BATCHES, steps=200)

    def reliance(method) -> float:  # type: ignore[no-untyped-def]
        weight = next(fitted(method, problem).parameters())[0].detach()
        return float(weight[1] / weight[0])

    assert abs(reliance(LISA(intra_label=1.0, training=training))) < reliance(ERM(training=training)) / 4


@pytest.mark.parametrize("kind", [MMD, CORAL])
def test_the_penalty_by_a_loop_on_features_and_on_outputs(kind: type) -> None:
    distance = DISTANCES[kind().name]
    for on, problem in (("features", NET), ("outputs", PROBLEM)):
        ours = fitted(kind(gamma=0.3, on=on, training=SHORT), problem)
        model, data = problem.model(), problem.splits.train
        for _ in range(20):
            outputs = model(data.inputs)
            seen = model[:-1](data.inputs) if on == "features" else outputs
            apart = distance(seen[data.environment == 0], seen[data.environment == 1])
            descend(model, plain_loss(outputs, data.targets).mean() + 0.3 * apart)
        same_parameters(ours, model, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [MMD, CORAL])
def test_groups_of_one_class_become_alike(kind: type) -> None:
    """The outputs of the groups of each class come closer together, so that the worst group gains."""
    training = replace(SHORT, steps=60, optimizer=OptimizerSettings("adam", 0.05))
    methods = (ERM(training=training), kind(gamma=1.0, by="group", on="outputs", training=training))
    plain, ours = (fitted(method) for method in methods)
    data = PROBLEM.splits.train

    def gap(model: torch.nn.Module) -> float:
        outputs = model(data.inputs).detach()[:, 0] / next(model.parameters()).detach().norm()
        means = [float(outputs[data.group == group].mean()) for group in range(4)]
        return abs(means[0] - means[1]) + abs(means[2] - means[3])

    assert gap(ours) < gap(plain) / 2
    assert worst_group(PROBLEM, ours) > worst_group(PROBLEM, plain) + 0.1


@pytest.mark.parametrize("kind", [Mixup, LISA, MMD, CORAL])
def test_a_regression_is_refused_by_name(kind: type) -> None:
    with pytest.raises(ValueError, match=f"method '{kind().name}' needs classes"):
        check_regression(kind())


@pytest.mark.parametrize("kind", [MMD, CORAL])
def test_what_cannot_be_aligned_is_refused_with_what_works(kind: type) -> None:
    with pytest.raises(ValueError, match="'logistic' has no layer before it; take method.on = 'outputs'"):
        fitted(kind(training=SHORT))
    data = replace(PROBLEM.splits.train, environment=torch.zeros(600, dtype=torch.long))
    validation = replace(PROBLEM.splits.validation, environment=torch.zeros(600, dtype=torch.long))
    one = replace(PROBLEM.splits, train=data, validation=validation, environments=("all",))
    with pytest.raises(DataError, match="there is one environment in training; take erm"):
        fitted(kind(on="outputs", training=SHORT), replace(PROBLEM, splits=one))
    alike = replace(one, train=replace(data, group=data.targets))
    with pytest.raises(DataError, match="no class has two groups in training"):
        fitted(kind(by="group", on="outputs", training=SHORT), replace(PROBLEM, splits=alike))
    hidden = replace(PROBLEM.splits, train=replace(PROBLEM.splits.train, group=None), groups=("a", "b", "c", "d"))
    with pytest.raises(RecipeError, match="needs the groups of training samples"):
        check_groups(kind(by="group"), hidden)
    check_groups(kind(), hidden)


@pytest.mark.parametrize("kind", [Mixup, LISA])
def test_inputs_that_are_no_numbers_are_refused(kind: type) -> None:
    whole = replace(PROBLEM.splits.train, inputs=PROBLEM.splits.train.inputs.long())
    problem = replace(PROBLEM, splits=replace(PROBLEM.splits, train=whole))
    with pytest.raises(ValueError, match=rf"method '{kind().name}' mixes inputs that are numbers, got torch.int64"):
        fitted(kind(training=SHORT), problem)


@pytest.mark.parametrize(
    "make",
    [lambda: Mixup(alpha=-1.0), lambda: LISA(alpha=-1.0), lambda: LISA(intra_label=1.5), lambda: CORAL(gamma=-1.0)],
)
def test_settings_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be"):
        make()


SMALL = ["model.hidden=[8]", "method.training.steps=4", "method.training.batch_size=50"]
SMALL += ["method.training.evaluate_every=2"]


@pytest.mark.parametrize("method", ["{name='mixup'}", "{name='lisa'}", "{name='mmd'}", "{name='coral', by='group'}"])
def test_a_run_that_dies_at_every_step_ends_in_the_same_bytes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("coloured_digits/erm", [f"method={method}", *SMALL], 1)
    go(recipe, tmp_path / "whole")
    assert die_at_every_checkpoint(recipe, tmp_path / "broken", monkeypatch) == 4
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
