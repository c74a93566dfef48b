"""Self-confidence, the normalised margin, and forgetting events."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from steelyard.selectors import forgetting_events, normalised_margin, self_confidence
from tests.selectors.pools import generator, pool

P, Y = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]]), torch.tensor([0, 2, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(dtype) -> None:
    torch.testing.assert_close(self_confidence(P.to(dtype), Y), torch.tensor([0.5, 0.2, 1.0], dtype=dtype))
    torch.testing.assert_close(normalised_margin(P.to(dtype), Y), torch.tensor([0.6, 0.35, 1.0], dtype=dtype))


def test_against_loops() -> None:
    p, _ = pool(50)
    labels = torch.randint(0, 4, (50,), generator=generator(1))
    for i, (row, y) in enumerate(zip(p.tolist(), labels.tolist(), strict=True)):
        rival = max(value for c, value in enumerate(row) if c != y)
        assert float(self_confidence(p, labels)[i]) == row[y]
        assert float(normalised_margin(p, labels)[i]) == pytest.approx((row[y] - rival + 1) / 2)


@pytest.mark.parametrize("score", [self_confidence, normalised_margin])
def test_the_order_of_the_classes_does_not_matter(score) -> None:
    p, _ = pool(30)
    labels = torch.randint(0, 4, (30,), generator=generator(1))
    classes = torch.randperm(4, generator=generator(3))
    assert torch.equal(score(p[:, classes], classes.argsort()[labels]), score(p, labels))


def brute_events(predictions, labels) -> list[float]:
    counts = []
    for i, y in enumerate(labels.tolist()):
        right = [int(row[i]) == y for row in predictions]
        lost = sum(before and not now for before, now in pairwise(right))
        counts.append(float(lost) if any(right) else float(len(right)))
    return counts


@pytest.mark.parametrize("epochs", [1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
def test_forgetting_against_loops(epochs, dtype) -> None:
    predictions = torch.randint(0, 3, (epochs, 40), generator=generator()).to(dtype)
    labels = torch.randint(0, 3, (40,), generator=generator(1))
    found = forgetting_events(predictions, labels)
    assert found.tolist() == brute_events(predictions, labels)
    order = torch.randperm(40, generator=generator(2))
    assert torch.equal(forgetting_events(predictions[:, order], labels[order]), found[order])


def test_what_was_never_learned_is_above_all_that_was() -> None:
    alternating = torch.tensor([[0, 1], [1, 1]] * 4)  # forgotten as often as can be; never right
    events = forgetting_events(alternating, torch.tensor([0, 0]))
    assert events.tolist() == [4.0, 8.0]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("predictions", "labels", "error", "message"),
    [
        (torch.ones(2, 3), torch.zeros(3).long(), TypeError, "class ids, got torch.float32; pass outputs.argmax"),
        (torch.ones(2, 3, 2).long(), torch.zeros(3).long(), ValueError, r"must have the shape \(epochs, n\)"),
        (torch.ones(0, 3).long(), torch.zeros(3).long(), ValueError, "predictions is empty"),
        (-torch.ones(2, 3).long(), torch.zeros(3).long(), ValueError, "predictions must be class ids >= 0"),
        (torch.ones(2, 3).long(), -torch.ones(3).long(), ValueError, "labels must be class ids >= 0"),
    ],
    ids=["float", "3d", "empty", "negative", "negative label"],
)
def test_forgetting_refuses(predictions, labels, error, message) -> None:
    with pytest.raises(error, match=message):
        forgetting_events(predictions, labels)
