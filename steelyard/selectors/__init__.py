"""Score and pick samples: uncertainty, diversity, model movement, rank disagreement, training dynamics.

Two contracts: a score is one number per sample (higher = picked first), a selection k different indices in the order
picked. Everything takes tensors on any device and knows nothing of training loops.
"""

from steelyard.selectors.badge import badge
from steelyard.selectors.coreset import k_center
from steelyard.selectors.disagreement import Certificate, certificate, normalised_ranks, rank_disagreement
from steelyard.selectors.dynamics import aum, mean_confidence, variability
from steelyard.selectors.ema import ema
from steelyard.selectors.ensemble import Ensemble
from steelyard.selectors.gradients import (
    deepfool,
    dfal,
    el2n,
    expected_gradient_length,
    expected_input_gradient_length,
    gradient_norm,
)
from steelyard.selectors.importance import ImportanceDraws, importance_draws, importance_probabilities
from steelyard.selectors.lhd import lhd, state_difference
from steelyard.selectors.partition import partitioned
from steelyard.selectors.pick import Score, Selection, random_selection, top_k
from steelyard.selectors.query import Query
from steelyard.selectors.seeding import kmeans_plus_plus
from steelyard.selectors.spread import dre, mcp
from steelyard.selectors.stochastic import DegenerateWarning, bald, dropout_entropy, dropout_probabilities
from steelyard.selectors.uncertainty import deep_gini, entropy, least_confidence, margin

__all__ = [
    "Certificate",
    "DegenerateWarning",
    "Ensemble",
    "ImportanceDraws",
    "Query",
    "Score",
    "Selection",
    "aum",
    "badge",
    "bald",
    "certificate",
    "deep_gini",
    "deepfool",
    "dfal",
    "dre",
    "dropout_entropy",
    "dropout_probabilities",
    "el2n",
    "ema",
    "entropy",
    "expected_gradient_length",
    "expected_input_gradient_length",
    "gradient_norm",
    "importance_draws",
    "importance_probabilities",
    "k_center",
    "kmeans_plus_plus",
    "least_confidence",
    "lhd",
    "margin",
    "mcp",
    "mean_confidence",
    "normalised_ranks",
    "partitioned",
    "random_selection",
    "rank_disagreement",
    "state_difference",
    "top_k",
    "variability",
]
