"""One table says which way a score points; `top_k` and `keep_probabilities` read it."""

from __future__ import annotations

import inspect

import pytest
import torch

from steelyard import selectors
from steelyard.reweight import keep_probabilities
from steelyard.selectors import DIRECTIONS, Direction, aum, direction_of, el2n, top_k


def takes_k(function) -> bool:
    return "k" in inspect.signature(function).parameters


SELECTIONS = {name for name, member in vars(selectors).items() if inspect.isfunction(member) and takes_k(member)}
OTHERS = {
    "certificate",
    "cross_entropy_gradients",
    "deepfool",
    "direction_of",
    "dropout_probabilities",
    "ema",
    "importance_draws",
    "importance_probabilities",
    "kmeans",
    "normalised_ranks",
    "pure_radius",
    "state_difference",
}
"""Functions that give something else than a score or a selection."""


def test_every_score_has_a_direction_and_nothing_else_has() -> None:
    functions = {name for name in selectors.__all__ if inspect.isfunction(getattr(selectors, name))}
    assert functions - SELECTIONS - OTHERS == {name for name in DIRECTIONS if hasattr(selectors, name)}
    assert functions >= OTHERS


def test_the_clean_label_comes_first_whichever_score_it_is() -> None:
    """One right, one wrong label: AUM is high for the right one, EL2N low."""
    p, labels = torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1])
    margins, errors = aum(p[None].log(), labels), el2n(p, labels)
    assert margins[0] > margins[1]
    assert errors[0] < errors[1]
    for score, name in ((margins, "aum"), (errors, "el2n")):
        assert top_k(score, 2, of=name).tolist() == [0, 1]
        kept = keep_probabilities(score, 1.0, of=name)
        assert kept[0] > 0.5 > kept[1]
        assert torch.equal(kept, keep_probabilities(score, 1.0, of=DIRECTIONS[name]))


def test_without_a_name_the_highest_come_first_as_ever() -> None:
    score = torch.tensor([0.1, 0.9, 0.5])
    assert top_k(score, 3).tolist() == top_k(score, 3, of="entropy").tolist() == [1, 2, 0]
    assert top_k(score, 3, of=Direction.HARD).tolist() == [0, 2, 1]
    missing = torch.tensor([0.1, float("nan"), 0.5])
    assert torch.equal(keep_probabilities(missing, 1.0, of="el2n"), keep_probabilities(-missing, 1.0))


def test_names_that_say_nothing() -> None:
    with pytest.raises(ValueError, match="of must be one of .* did you mean 'el2n'"):
        top_k(torch.ones(2), 1, of="el2")
    with pytest.raises(ValueError, match="of is 'entropy', a score that says which label to ask for"):
        keep_probabilities(torch.ones(2), 1.0, of="entropy")
    assert direction_of(Direction.KEEP) is Direction.KEEP
