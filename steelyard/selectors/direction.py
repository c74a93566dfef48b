"""Which way each score points, in one place: what a high value says of a sample.

A score alone does not say what to do with it. High AUM is a label that the model agrees with, high EL2N one that it
disagrees with, high entropy an unlabelled sample that the model is unsure of. `top_k` and
`steelyard.reweight.keep_probabilities` take the name of a score (``of="el2n"``) and turn it where that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from torch import Tensor

from steelyard._support import _check

__all__ = ["DIRECTIONS", "Direction", "direction_of", "turned"]


class Direction(Enum):
    """What a high score says.

    Attributes:
        KEEP: worth keeping: a clean or a helpful training sample.
        HARD: hard, or mislabelled: a training sample to drop where labels may be wrong. (Of clean data these are kept.)
        ASK: an unlabelled sample whose label to ask for first; it says nothing of what to keep.
    """

    KEEP = "high = worth keeping"
    HARD = "high = hard, or mislabelled"
    ASK = "high = label it first"


DIRECTIONS: Mapping[str, Direction] = MappingProxyType(
    {
        # of training samples, with their labels
        "aum": Direction.KEEP,
        "el2n": Direction.HARD,
        "forgetting_events": Direction.HARD,
        "gradient_norm": Direction.HARD,
        "influence": Direction.KEEP,  # of `steelyard.reweight`, which knows training
        "knn_shapley": Direction.KEEP,
        "mean_confidence": Direction.KEEP,
        "normalised_margin": Direction.KEEP,
        "rank_disagreement": Direction.KEEP,
        "self_confidence": Direction.KEEP,
        "self_influence": Direction.HARD,
        "tracin": Direction.KEEP,
        "variability": Direction.KEEP,
        # of unlabelled samples
        "bald": Direction.ASK,
        "consensus_kl": Direction.ASK,
        "deep_gini": Direction.ASK,
        "density_weighted": Direction.ASK,
        "dfal": Direction.ASK,
        "dropout_entropy": Direction.ASK,
        "entropy": Direction.ASK,
        "epig": Direction.ASK,
        "expected_gradient_length": Direction.ASK,
        "expected_input_gradient_length": Direction.ASK,
        "least_confidence": Direction.ASK,
        "margin": Direction.ASK,
        "typicality": Direction.ASK,
        "vote_entropy": Direction.ASK,
    }
)
"""The direction of every score, by the name of its function."""


def direction_of(of: str | Direction) -> Direction:
    """Return the direction of a score by its name (or the direction itself); ValueError for an unknown name.

    Example:
        >>> direction_of("el2n").value
        'high = hard, or mislabelled'
    """
    return of if isinstance(of, Direction) else DIRECTIONS[_check.choice("of", of, DIRECTIONS)]


def turned(score: Tensor, of: str | Direction | None) -> Tensor:
    """Return `score` so that higher = picked (kept, asked for) first: negated where high means hard; None: as it is."""
    return -score if of is not None and direction_of(of) is Direction.HARD else score
