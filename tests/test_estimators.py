"""The estimators in scikit-learn's form: its own checks, and what each way of fitting must find."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from steelyard.estimators import ReweightedClassifier, ReweightedRegressor


@parametrize_with_checks([ReweightedClassifier(epochs=20), ReweightedRegressor(epochs=60)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def flipped(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, right labels, and those given: a third of the first 300 is wrong."""
    draws = np.random.default_rng(seed)
    rows = draws.normal(size=(500, 5))
    labels = np.where(rows[:, 0] + rows[:, 1] > 0, "yes", "no")
    wrong = (draws.random(500) < 0.33) & (np.arange(500) < 300)
    return rows, labels, np.where(wrong, np.where(labels == "yes", "no", "yes"), labels)


def test_trusted_rows_find_wrong_labels() -> None:
    scores = []
    for seed in range(4):
        rows, labels, given = flipped(seed)
        held = (rows[300:340], labels[300:340])
        model = ReweightedClassifier().fit(rows[:300], given[:300], validation=held)
        wrong = np.flatnonzero(given != labels)
        assert np.isin(model.reweighting_.suspects(len(wrong)).numpy(), wrong).mean() > 0.8
        assert model.sample_weight_.shape == (300,)
        fits = [
            ReweightedClassifier().fit(rows[:300], given[:300]),
            model,
            LogisticRegression().fit(rows[:300], given[:300], sample_weight=model.sample_weight_),
        ]
        scores.append([fit.score(rows[340:], labels[340:]) for fit in fits])
    plain, learned, elsewhere = np.mean(scores, axis=0)
    assert learned > plain + 0.02
    assert elsewhere > plain + 0.02


def shortcut(seed: int, agrees: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose second feature agrees with the label for a share of them; the first one is weak, and honest."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, count)
    agreeing = draws.random(count) < agrees
    second = np.where(agreeing, labels, 1 - labels)
    rows = np.stack([2 * labels - 1 + draws.normal(size=count), 3 * (2 * second - 1) + draws.normal(size=count)], 1)
    return rows, labels, 2 * labels + second


def test_groups_of_validation_rows_lift_the_worst_group() -> None:
    rows, labels, _ = shortcut(0, 0.95, 1500)
    held, held_labels, held_groups = shortcut(1, 0.5, 200)
    test, test_labels, groups = shortcut(2, 0.5, 2000)

    def worst(model: ReweightedClassifier) -> float:
        right = model.predict(test) == test_labels
        return min(right[groups == group].mean() for group in range(4))

    settings = ReweightedClassifier()
    plain = clone(settings).fit(rows, labels)
    assert plain.reweighting_ is None
    assert (plain.sample_weight_ == 1).all()
    learned = clone(settings).fit(rows, labels, validation=(held, held_labels), groups=held_groups)
    assert worst(learned) > worst(plain) + 0.2


def test_environments_keep_rows_where_the_shortcut_fails() -> None:
    parts = [shortcut(seed, agrees, 300) for seed, agrees in ((0, 0.95), (1, 0.75))]
    rows, labels, group = (np.concatenate(part) for part in zip(*parts, strict=True))
    environment = np.repeat(["a", "b"], 300)
    model = ReweightedClassifier(budget=0.3).fit(rows, labels, environments=environment)
    probabilities = model.reweighting_.probabilities.numpy()
    agrees = group % 2 == group // 2
    assert probabilities[~agrees].mean() > probabilities[agrees].mean() + 0.1


def test_a_module_of_ones_own_and_its_copies() -> None:
    rows, labels, _ = flipped()
    made: list[tuple[int, int]] = []

    def net(inputs: int, outputs: int) -> nn.Module:
        made.append((inputs, outputs))
        return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))

    assert ReweightedClassifier(net, epochs=10).fit(rows[:100], labels[:100]).score(rows, labels) > 0.85
    assert made[0] == (5, 2)
    module = nn.Linear(5, 2)
    before = module.weight.detach().clone()
    ReweightedClassifier(module, epochs=3).fit(rows[:100], labels[:100])
    assert torch.equal(module.weight, before)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state() -> None:
    rows, labels, given = flipped()
    state = torch.get_rng_state()
    both = [
        ReweightedClassifier(epochs=3).fit(rows[:300], given[:300], validation=(rows[300:], labels[300:]))
        for _ in range(2)
    ]
    assert np.array_equal(both[0].sample_weight_, both[1].sample_weight_)
    assert np.array_equal(both[0].predict_proba(rows), both[1].predict_proba(rows))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_regressor_down_weighs_broken_targets() -> None:
    draws = np.random.default_rng(0)
    rows = draws.normal(size=(300, 3))
    targets = 5 + rows @ np.array([1.0, -2.0, 0.5])
    broken = np.arange(200) % 4 == 0
    given = np.where(broken, 30 * draws.normal(size=200), targets[:200])
    plain = ReweightedRegressor().fit(rows[:200], given)
    model = ReweightedRegressor().fit(rows[:200], given, validation=(rows[200:240], targets[200:240]))
    assert model.score(rows[240:], targets[240:]) > plain.score(rows[240:], targets[240:])
    assert model.sample_weight_[broken].mean() < model.sample_weight_[~broken].mean()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"groups": [0, 1]}, "give validation"),
        ({"environments": [0] * 10, "validation": ([[0.0, 0.0]], [0])}, "not both"),
        ({"environments": [0, 1]}, r"environments must have one label a row, shape \(10,\), got \(2,\)"),
        ({"validation": 3}, "a pair"),
        ({"validation": (np.zeros((1, 2)), [7])}, "label 7, which no training row has"),
        ({"validation": (np.zeros((1, 3)), [0])}, "features"),
    ],
    ids=["groups alone", "two judges", "short environments", "no pair", "a new label", "other features"],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], said: str) -> None:
    rows, labels = np.random.default_rng(0).normal(size=(10, 2)), np.arange(10) % 2
    with pytest.raises(ValueError, match=said):
        ReweightedClassifier(epochs=1).fit(rows, labels, **more)


def test_validation_rows_in_other_units_are_warned_of() -> None:
    """A pipeline scales X and leaves fit's validation as it is."""
    rows, labels, given = flipped()
    pipeline = make_pipeline(StandardScaler(), ReweightedClassifier(epochs=2))
    far = 50 + 10 * rows
    with pytest.warns(
        UserWarning, match="5 of 5 columns of the validation rows .* transform the validation rows alike"
    ):
        pipeline.fit(far[:300], given[:300], reweightedclassifier__validation=(far[300:], labels[300:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = StandardScaler().fit(far[:300]).transform(far[300:])
        pipeline.fit(far[:300], given[:300], reweightedclassifier__validation=(scaled, labels[300:]))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Linear(7, 2), "module does not take rows of 3 features: mat1 and mat2 shapes cannot be multiplied"),
        (nn.Linear(3, 4), r"module has outputs of shape \(2, 4\) for 2 rows, and y needs \(2, 2\)"),
        (nn.Linear(3, 1), r"y needs \(2, 2\)"),
        (nn.Flatten(0), r"module has outputs of shape \(6,\)"),
        (lambda inputs, outputs: None, "module must be what makes a module"),
    ],
)
def test_a_module_of_another_shape_is_refused(module: Any, said: str) -> None:
    rows, labels = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 2
    with pytest.raises((TypeError, ValueError), match=said):
        ReweightedClassifier(module, epochs=1).fit(rows, labels)


def test_one_class_is_named_as_it_was_given() -> None:
    with pytest.raises(ValueError, match="y has one class, 'a';"):
        ReweightedClassifier().fit(np.zeros((4, 2)), np.full(4, "a"))
