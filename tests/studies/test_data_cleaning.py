"""Hyper data cleaning on small images: the exact solver, what is learned, the tables."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from steelyard.experiments.errors import RecipeError, RunError
from studies.data_cleaning import curves
from studies.data_cleaning.clean import cleaned, cleaned_by_net, on_weights
from studies.data_cleaning.curves import Posed, curve, reached, tuned
from studies.data_cleaning.curves import table as curve_table
from studies.data_cleaning.mixture import mixed, rows_of, table
from studies.data_cleaning.problem import SHARES, Digits
from studies.data_cleaning.softmax import error, solve
from studies.data_cleaning.study import carry_out, study, tables
from studies.data_cleaning.theirs import their_data
from studies.data_cleaning.weights import maple_weights, weight_a_sample


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Images of 16 pixels around ten prototypes."""
    g = torch.Generator().manual_seed(0)
    prototypes = 255 * torch.rand(10, 4, 4, generator=g)

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 10
        noise = 25 * torch.randn(count, 4, 4, generator=g)
        return (prototypes[labels] + noise).clamp(0, 255).byte(), labels

    return Digits(*some(900), *some(200), training=600, clean=200)


def test_the_labels_of_a_problem_are_wrong_as_often_as_they_should_be(digits: Digits) -> None:
    for share in SHARES:
        problem = digits.problem(3, share)
        assert float(problem.right.double().mean()) == pytest.approx(1 - 0.9 * share, abs=0.06)
        assert problem.train.shape == (600, 17)
    again = digits.problem(3, SHARES[0])
    assert torch.equal(again.labels, digits.problem(3, SHARES[0]).labels)
    assert not torch.equal(again.clean_labels, digits.problem(4, SHARES[0]).clean_labels)


def test_the_solver_finds_where_the_gradient_is_zero(digits: Digits) -> None:
    problem = digits.problem(0, 0.5)
    weight = torch.rand(600, generator=torch.Generator().manual_seed(1)) + 0.1
    theta = solve(problem.train, problem.labels, weight, 0.05).requires_grad_()
    losses = F.cross_entropy(problem.train @ theta, problem.labels, reduction="none")
    value = (weight * losses).sum() / weight.sum() + 0.05 * theta.square().sum()
    assert float(torch.autograd.grad(value, theta)[0].abs().max()) < 1e-4
    kept = torch.where(weight > 0.6, weight, torch.zeros(()))
    rows = kept > 0
    fewer = solve(problem.train[rows], problem.labels[rows], kept[rows], 0.05)
    torch.testing.assert_close(solve(problem.train, problem.labels, kept, 0.05), fewer)


@pytest.mark.parametrize(
    "way", [lambda problem: next(cleaned(problem, seed=0, rounds=1)), partial(cleaned_by_net, seed=0)]
)
def test_a_function_of_the_loss_finds_the_right_labels_and_helps(way, digits: Digits) -> None:
    problem = digits.problem(0, 0.7)
    first = way(problem)
    assert first.line[1] > 0
    assert roc_auc_score(problem.right.numpy(), first.weights.numpy()) > 0.9
    test = digits.test_inputs()
    assert error(first.together, test, digits.test_labels) < 0.05
    wrong = on_weights(problem, (~problem.right).float())
    assert error(first.alone, test, digits.test_labels) < error(wrong, test, digits.test_labels)


def test_a_weight_a_sample_finds_right_labels_too(digits: Digits) -> None:
    problem = digits.problem(0, 0.5)
    for weights in (
        weight_a_sample(problem, seed=0, batch_size=100, epochs=10),
        maple_weights(problem, seed=0, steps=15, batch_size=200),
    ):
        assert float(weights[problem.right].mean()) > 1.2 * float(weights[~problem.right].mean())


def test_rows_and_tables(digits: Digits) -> None:
    rows = [row for seed in (0, 1) for share in SHARES for row in carry_out("oracles", digits, seed, share)]
    assert {row["method"] for row in rows} == {"the clean images alone", "right labels only (oracle)"}
    assert all("alone" not in row for row in rows if row["method"] == "the clean images alone")
    lines = tables(rows)["errors"].lines
    assert [line[1] for line in lines if line[0] == "the weights alone"] == ["right labels only (oracle)", "goal"]
    assert "(2 seeds)" in lines[0][2]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there are net, scaled"):
        study(tmp_path, tmp_path, ("orcales",), (0,), None)
    with pytest.raises(RunError, match="--methods names some"):
        study(tmp_path, tmp_path / "runs", (), (0,), None)


def test_the_right_source_of_a_mixture_gains_weight(digits: Digits) -> None:
    problem, source = mixed(digits, 0, each=150, clean=100)
    assert bool(problem.right[source == 0].all())
    assert not bool(problem.right[source == 1].any())
    rows = rows_of(digits, 0, each=150, clean=100)
    uniform, shared, _, oracle = rows
    assert shared["means"][0] > max(shared["means"][1:])
    assert oracle["error"] <= shared["error"] <= uniform["error"]
    assert [line[-1] for line in table(rows).lines][:2] == ["0 of 1", "1 of 1"]


def posed(digits: Digits) -> Posed:
    problem = digits.problem(0, 0.5)
    data = problem.train, problem.labels, problem.clean, problem.clean_labels
    return Posed(*data, digits.test_inputs(), digits.test_labels, l2=1e-3)


@pytest.mark.parametrize("solver", ["SOBA", "SABA", "F2SA", "StocBiO"])
def test_curves_go_down_and_say_how_they_ended(solver: str, digits: Digits) -> None:
    problem = posed(digits)
    points = curve(problem, solver, {"rate": 0.5, "outer_rate": 0.1}, seconds=math.inf, seed=0, steps=120)
    assert [point["iteration"] for point in points] == [10 * (number + 1) for number in range(len(points))]
    assert all(one["seconds"] < two["seconds"] for one, two in pairwise(points))
    assert points[-1]["test"] < 0.9 * points[0]["test"]
    assert 0 < points[-1]["outer"] < 2.4  # log 10 is that of a model that knows nothing
    assert "outer" not in points[0]


def test_a_curve_may_begin_at_a_model_of_the_clean_images(digits: Digits) -> None:
    first, *_ = curve(posed(digits), "SOBA", {"rate": 0.1, "outer_rate": 0.1}, seconds=0.0, seed=0, begun=True)
    assert first["iteration"] == 0
    assert first["test"] < 0.1


def test_settings_that_diverge_are_not_chosen(digits: Digits, monkeypatch) -> None:
    monkeypatch.setattr(curves, "_GRID", [{"rate": 1e30, "outer_rate": 0.1}, {"rate": 0.3, "outer_rate": 0.1}])
    assert tuned(posed(digits), "SOBA", seconds=0.0)["rate"] == 0.3


def test_the_benchmarks_problem_has_its_split_its_scale_and_its_corruption() -> None:
    random = numpy.random.RandomState(0)
    images, labels = random.randint(0, 256, (25_000, 2)), random.randint(0, 10, 25_000)
    parts = {"train_images": images, "train_labels": labels, "test_images": images[:50], "test_labels": labels[:50]}
    data = their_data(parts)
    assert data["x"].shape == (20_000, 2)
    assert data["clean"].shape == (5_000, 2)
    numpy.testing.assert_allclose(data["x"].mean(0), 0, atol=1e-5)
    numpy.testing.assert_allclose(data["x"].std(0), 1, atol=1e-5)
    rows = numpy.random.RandomState(32).permutation(25_000)  # as scikit-learn splits: the clean images first
    assert (data["clean_y"] == labels[rows[:5_000]]).all()
    kept = (data["y"] == labels[rows[5_000:]]).mean()
    assert kept == pytest.approx(0.5 + 0.5 / 10, abs=0.02)


def test_curves_say_when_the_goal_is_reached() -> None:
    points = [{"seconds": 1.0, "test": 0.2}, {"seconds": 2.0, "test": 0.1}, {"seconds": 3.0, "test": 0.3}]
    assert reached(points) == 2.0
    assert reached(points[:1]) is None
    lines = curve_table([{"problem": "ours", "solver": "one", "settings": {"rate": 0.1}, "curve": points}]).lines
    assert lines == [["ours", "one", "rate 0.1", "2.0", "30.0", "10.0", "", "3"]]
