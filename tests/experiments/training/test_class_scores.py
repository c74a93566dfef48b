"""Figures of ranking and balance against counts written out, and their intervals against simulation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from steelyard.experiments.training.class_scores import ClassScores, Ranking, logit_interval

GENERATOR = torch.Generator().manual_seed(0)
LABELS = (torch.rand(60, generator=GENERATOR) < 0.3).long()
LOGITS = torch.randn(60, 1, generator=GENERATOR).round(decimals=1) + LABELS[:, None]  # with ties
PREDICTED = (LOGITS[:, 0] > 0).long()


def pairs(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """For each positive and negative whether the positive is above; a half for ties."""
    difference = scores[positive][:, None] - scores[~positive]
    return (difference > 0) + 0.5 * (difference == 0)


def test_two_classes_by_counting() -> None:
    found = ClassScores.of(LOGITS, PREDICTED, LABELS, 2)
    y, p, s = LABELS.numpy(), PREDICTED.numpy(), LOGITS[:, 0].double().numpy()
    assert found.class_count == (int((y == 0).sum()), int((y == 1).sum()))
    assert found.class_right == (int(((y == 0) & (p == 0)).sum()), int(((y == 1) & (p == 1)).sum()))
    assert found.auroc == pytest.approx(pairs(s, y == 1).mean())
    each = []
    for c in (0, 1):
        precision, recall = ((y == c) & (p == c)).sum() / (p == c).sum(), ((y == c) & (p == c)).sum() / (y == c).sum()
        each.append(2 * precision * recall / (precision + recall))
    assert found.f1 == pytest.approx(np.mean(each))
    recalls = [found.class_right[c] / found.class_count[c] for c in (0, 1)]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, p))
    steps = [(1.0 * (s >= t)[y == 1].mean(), y[s >= t].mean()) for t in sorted(set(s), reverse=True)]
    area, before = 0.0, 0.0
    for recall, precision in steps:  # average precision: sum of (R_k - R_(k-1)) P_k
        area, before = area + (recall - before) * precision, recall
    assert found.auprc == pytest.approx(area)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_areas_are_those_of_scikit_learn(decimals: int) -> None:
    """With many ties, some, and none; of one positive and of nearly all."""
    random = np.random.default_rng(decimals)
    for positives in (1, 40, 199):
        positive = random.permutation(200) < positives
        scores = (random.normal(size=200) + positive).round(decimals)
        expected = roc_auc_score(positive, scores), average_precision_score(positive, scores)
        found = Ranking.of(scores, positive)
        assert (found.auroc, found.auprc) == pytest.approx(expected, rel=1e-12)


def test_delong_by_its_components() -> None:
    s, positive = LOGITS[:, 0].double().numpy(), LABELS.numpy() == 1
    above = pairs(s, positive)
    by_positive, by_negative = above.mean(1), above.mean(0)
    expected = by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)
    assert Ranking.of(s, positive).auroc_error == pytest.approx(math.sqrt(expected))
    assert Ranking.of(s[:3], np.array([True, False, False])).auroc_error is None


def test_delongs_error_is_the_spread_over_samples() -> None:
    """Of 400 data sets of 80 samples; the deviation of 400 draws is known to a sixteenth of itself or so."""
    random = np.random.default_rng(0)
    areas, errors = [], []
    for _ in range(400):
        positive = np.arange(80) < 25
        scores = random.normal(size=80) + positive
        areas.append(roc_auc_score(positive, scores))
        errors.append(Ranking.of(scores, positive).auroc_error)
    assert float(np.mean(errors)) == pytest.approx(float(np.std(areas)), rel=0.15)


@pytest.mark.parametrize("digits", [0, 1, 9])  # many ties, some, none
def test_one_sort_gives_what_scikit_learn_and_scipy_have(digits: int) -> None:
    random = np.random.default_rng(digits)
    labels = random.permutation(np.arange(500) < 80)
    scores = (random.normal(size=500) + labels).round(digits)
    logits, y = torch.from_numpy(scores)[:, None], torch.from_numpy(labels).long()
    found = ClassScores.of(logits, (logits[:, 0] > 0).long(), y, 2)
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores), rel=1e-13)
    assert found.auprc == pytest.approx(average_precision_score(labels, scores), rel=1e-13)
    ranks, ups, downs = rankdata(scores), scores[labels], scores[~labels]  # Sun and Xu 2014, equation 8
    above = (ranks[labels] - rankdata(ups)) / len(downs)
    below = 1 - (ranks[~labels] - rankdata(downs)) / len(ups)
    expected = math.sqrt(above.var(ddof=1) / len(ups) + below.var(ddof=1) / len(downs))
    assert found.auroc_error == pytest.approx(expected, rel=1e-12)


def test_one_logit_and_two_are_the_same_and_saturated_probabilities_are_no_ties() -> None:
    two = torch.cat([torch.zeros_like(LOGITS), LOGITS], 1)
    assert ClassScores.of(two, PREDICTED, LABELS, 2) == ClassScores.of(LOGITS, PREDICTED, LABELS, 2)
    large = torch.tensor([[100.0], [110.0], [120.0], [130.0]])
    found = ClassScores.of(large, torch.ones(4, dtype=torch.long), torch.tensor([0, 0, 1, 1]), 2)
    assert found.auroc == 1.0


def test_several_classes_are_means_of_one_against_the_rest() -> None:
    labels = torch.arange(90) % 3
    logits = torch.randn(90, 3, generator=torch.Generator().manual_seed(2)) + torch.eye(3)[labels]
    predicted = logits.argmax(1)
    found, shares = ClassScores.of(logits, predicted, labels, 3), logits.double().softmax(1).numpy()
    y = labels.numpy()
    assert found.auroc == pytest.approx(np.mean([roc_auc_score(y == c, shares[:, c]) for c in range(3)]))
    assert found.auprc == pytest.approx(np.mean([average_precision_score(y == c, shares[:, c]) for c in range(3)]))
    assert found.f1 == pytest.approx(f1_score(y, predicted.numpy(), average="macro"))
    assert found.auroc_error is None
    assert found.auroc_interval() is None
    assert found.auprc_interval() is None


def test_what_means_nothing_is_none() -> None:
    one_class = ClassScores.of(LOGITS[:5], PREDICTED[:5], torch.ones(5, dtype=torch.long), 2)
    assert (one_class.auroc, one_class.auprc, one_class.f1, one_class.balanced_accuracy) == (None,) * 4
    assert one_class.calibration_error is not None
    none = ClassScores.of(LOGITS[:0], PREDICTED[:0], LABELS[:0], 2)
    assert none == ClassScores((0, 0), (0, 0), (0, 0))
    assert none.balanced_accuracy_interval() is None
    diverged = ClassScores.of(LOGITS * math.nan, PREDICTED, LABELS, 2)
    assert diverged.auroc is None
    assert diverged.f1 is not None
    missing = ClassScores.of(torch.zeros(4, 3), torch.tensor([0, 0, 2, 2]), torch.tensor([0, 1, 1, 1]), 3)
    assert missing.auroc is None
    assert missing.f1 == pytest.approx(f1_score([0, 1, 1, 1], [0, 0, 2, 2], labels=[0, 1], average="macro"))


def test_intervals_hold_their_value_and_get_narrower_with_more_samples() -> None:
    few, many = (ClassScores((n, n), (9 * n // 10, 7 * n // 10), (n, n), 0.87, 0.6 / n**0.5, 0.8) for n in (20, 2000))
    for name, value in (("balanced_accuracy", 0.8), ("auroc", 0.87), ("auprc", 0.8)):
        wide, narrow = (getattr(one, f"{name}_interval")() for one in (few, many))
        assert 0 < wide[0] < narrow[0] < value < narrow[1] < wide[1] < 1
    perfect = ClassScores((5, 5), (5, 5), (5, 5)).balanced_accuracy_interval()
    assert perfect is not None
    assert perfect[0] < 0.95
    assert perfect[1] == 1.0


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_the_balanced_accuracys_interval_covers_as_it_says(share: float) -> None:
    """1,000 data sets of 30 and 200 samples: 95 % within three standard errors of the simulation, and a margin."""
    random = np.random.default_rng(1)
    rights = np.stack([random.binomial(30, share, 1000), random.binomial(200, 0.8, 1000)], 1)
    inside = 0
    for right in rights.tolist():
        low, high = ClassScores((30, 200), tuple(right), (30, 200)).balanced_accuracy_interval()  # type: ignore[misc]
        inside += low <= (share + 0.8) / 2 <= high
    assert 0.92 < inside / 1000 < 0.98


@pytest.mark.parametrize("each", [1, 2, 40])
def test_a_perfect_order_has_no_interval_rather_than_one_without_width(each: int) -> None:
    logits = torch.linspace(-1.0, 1.0, 2 * each)[:, None]
    labels = torch.arange(2 * each) // each
    for right, area in ((labels, 1.0), (1 - labels, 0.0)):
        found = ClassScores.of(logits, right, right, 2)
        assert found.auroc == area
        assert found.auroc_interval() is None
        assert found.auprc is not None
        assert (found.auprc_interval() is None) == (found.auprc == 1)


def test_logit_intervals_at_the_ends_are_cut() -> None:
    assert logit_interval(1.0, 0.1)[1] == 1.0
    assert logit_interval(0.0, 0.0) == (0.0, 0.0)
    low, high = logit_interval(0.5, 5.0)
    assert low < 1e-8
    assert high > 1 - 1e-8


def test_scores_survive_json_and_damaged_ones_are_refused() -> None:
    found = ClassScores.of(LOGITS, PREDICTED, LABELS, 2)
    table = json.loads(json.dumps(asdict(found)))
    assert ClassScores.from_json(table) == found
    for wrong in (
        {"auroc": 1.2},
        {"class_right": [99, 1]},
        {"class_count": 3},
        {"f1": [0.5]},
        {"f1": "high"},
        {"x": 1.0},
    ):
        with pytest.raises((TypeError, ValueError)):
            ClassScores.from_json({**table, **wrong})
    with pytest.raises(TypeError, match="must be a table"):
        ClassScores.from_json([1, 2])
