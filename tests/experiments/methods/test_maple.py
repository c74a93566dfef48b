"""The method MAPLE: which steps are evaluated, and that this decides nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard.checkpoint import Journal, Stopped
from steelyard.experiments.methods import Maple
from steelyard.experiments.methods.evaluation_interval import OuterCost
from steelyard.experiments.methods.maple import InnerSettings
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Fitted, silent
from tests.support.biased import biased_problem

PROBLEM = biased_problem()
METHOD = Maple(budget=150, steps=5, learn="probabilities", folds=2, inner=InnerSettings(steps=8))


def observed(method: Maple) -> tuple[Fitted, dict[int, torch.nn.Module]]:
    seen: dict[int, torch.nn.Module] = {}
    fitted = method.fit(PROBLEM, lambda step, model, extra: seen.update({step: {**model.state_dict()}}))  # type: ignore[dict-item]
    return fitted, seen


@pytest.mark.parametrize(
    ("every", "retrain", "steps"),
    [(1, False, [1, 2, 3, 4, 5]), (2, False, [2, 4, 5]), (5, False, [5]), (9, False, [5]), (3, True, [3, 5, 6])],
)
def test_every_kth_step_and_the_last_are_evaluated(every: int, retrain: bool, steps: list[int]) -> None:
    method = replace(METHOD, evaluate_every=every, retrain=retrain)
    fitted, seen = observed(method)
    assert list(seen) == steps
    assert steps[-1] == method.last_step
    whole, _ = observed(replace(METHOD, evaluate_every=1, retrain=retrain))
    assert fitted.reweighting == whole.reweighting
    for name, value in whole.model.state_dict().items():
        assert torch.equal(fitted.model.state_dict()[name], value)


def test_the_default_counts() -> None:
    assert METHOD.evaluation_interval(PROBLEM) > 1  # an inner run more for each model
    assert replace(METHOD, folds=1, inner=InnerSettings(steps=100)).evaluation_interval(PROBLEM) == 1
    assert replace(METHOD, evaluate_every=3).evaluation_interval(PROBLEM) == 3
    assert load_recipe("colored_mnist/maple").method.evaluate_every == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("folds", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [0, 64])
@pytest.mark.parametrize("inner_steps", [1, 30])
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_evaluation_takes_at_most_a_tenth_and_is_no_rarer_than_that_needs(
    folds: int, batch_size: int, inner_steps: int, steps: int
) -> None:
    """(The last step is evaluated whatever it costs.)"""
    cost = OuterCost(1000, 300.0, 1000, 1300, inner_steps, batch_size, folds)
    interval = cost.interval(steps)

    def share(every: int) -> float:
        return -(-steps // every) * cost.evaluation / (steps * cost.step)

    assert share(interval) <= 0.1 or interval == steps
    assert interval == 1 or share(interval - 1) > 0.1


def test_the_count_of_a_full_batch_with_two_folds() -> None:
    """By hand: folds train on half of the 300 kept samples, and sweep half of the 1,000."""
    cost = OuterCost(1000, 300.0, 1000, 1300, inner_steps=10, folds=2)
    assert cost.step == 2 * (3 * 10 * 150 + 3 * 500) + 4 * 1000
    assert cost.evaluation == 1300 + 3 * 10 * 300


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluate_every must be >= 0, got -1"):
        Maple(budget=10, evaluate_every=-1)


def test_several_problems_together_are_each_alone() -> None:
    problems = [replace(PROBLEM, seed=seed) for seed in (0, 1)]
    seen: list[list[int]] = [[], []]
    observers = [lambda step, model, extra, into=into: into.append(step) for into in seen]
    together = METHOD.fit_together(problems, observers)
    for problem, fitted, steps in zip(problems, together, seen, strict=True):
        alone = METHOD.fit(problem, lambda step, model, extra: None)
        torch.testing.assert_close(fitted.reweighting.probabilities, alone.reweighting.probabilities)
        torch.testing.assert_close(dict(fitted.model.named_parameters()), dict(alone.model.named_parameters()))
        assert steps[-1] == METHOD.last_step


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "as one"),
        ({"together": False}, "one after the other: together=False"),
        ({"folds": 1}, "one a step"),
        ({"folds": 1, "draws": 2}, "as one"),
    ],
)
def test_how_inner_runs_were_trained_is_told(change: dict[str, Any], told: str) -> None:
    assert replace(METHOD, **change).fit(PROBLEM, silent).facts == {"inner runs": told}


def test_together_or_not_the_figures_are_the_same() -> None:
    as_one, apart = (replace(METHOD, together=one).fit(PROBLEM, silent) for one in (True, False))
    torch.testing.assert_close(as_one.reweighting.probabilities, apart.reweighting.probabilities)  # type: ignore[union-attr]


def test_a_resumed_run_tells_of_all_its_steps(tmp_path: Path) -> None:
    def journal(stop: int = 0) -> Journal:
        asked = iter(range(100))
        return Journal(tmp_path / "run.safetensors", every=1, stop=lambda: stop and next(asked) >= stop)

    method = replace(METHOD, folds=1, together=False)
    with pytest.raises(Stopped):
        method.fit(replace(PROBLEM, journal=journal(stop=5)), silent)  # after the last step, before the run is written
    assert method.fit(replace(PROBLEM, journal=journal()), silent).facts == {
        "inner runs": "one after the other: together=False"
    }
