"""Score and pick samples: uncertainty, diversity, model movement, rank disagreement, training dynamics.

Two contracts: a score is one number per sample, a selection k different indices in the order picked. `DIRECTIONS` has
what a high score means, by its name. Everything takes tensors on any device and knows nothing of training loops.
"""

from steelyard.selectors.badge import badge
from steelyard.selectors.bait import bait
from steelyard.selectors.batch_bald import batch_bald
from steelyard.selectors.clusters import kmeans
from steelyard.selectors.committee import consensus_kl, vote_entropy
from steelyard.selectors.coreset import k_center
from steelyard.selectors.craig import craig
from steelyard.selectors.density import density_weighted
from steelyard.selectors.direction import DIRECTIONS, Direction, direction_of
from steelyard.selectors.disagreement import Certificate, certificate, normalised_ranks, rank_disagreement
from steelyard.selectors.dynamics import aum, mean_confidence, variability
from steelyard.selectors.ema import ema
from steelyard.selectors.ensemble import Ensemble
from steelyard.selectors.epig import epig
from steelyard.selectors.forgetting import forgetting_events
from steelyard.selectors.grad_match import grad_match
from steelyard.selectors.gradients import (
    deepfool,
    dfal,
    el2n,
    expected_gradient_length,
    expected_input_gradient_length,
    gradient_norm,
)
from steelyard.selectors.importance import ImportanceDraws, importance_draws, importance_probabilities
from steelyard.selectors.knn_shapley import knn_shapley
from steelyard.selectors.label_quality import normalised_margin, self_confidence
from steelyard.selectors.lhd import lhd, state_difference
from steelyard.selectors.partition import partitioned
from steelyard.selectors.pick import Score, Selection, WeightedSelection, random_selection, top_k
from steelyard.selectors.prob_cover import prob_cover, pure_radius
from steelyard.selectors.query import Query
from steelyard.selectors.sampling import power_sampling, softmax_sampling, softrank_sampling
from steelyard.selectors.seeding import kmeans_plus_plus
from steelyard.selectors.spread import dre, mcp
from steelyard.selectors.stochastic import DegenerateWarning, bald, dropout_entropy, dropout_probabilities
from steelyard.selectors.tracin import cross_entropy_gradients, self_influence, tracin
from steelyard.selectors.typiclust import typicality, typiclust
from steelyard.selectors.uncertainty import deep_gini, entropy, least_confidence, margin

__all__ = [
    "DIRECTIONS",
    "Certificate",
    "DegenerateWarning",
    "Direction",
    "Ensemble",
    "ImportanceDraws",
    "Query",
    "Score",
    "Selection",
    "WeightedSelection",
    "aum",
    "badge",
    "bait",
    "bald",
    "batch_bald",
    "certificate",
    "consensus_kl",
    "craig",
    "cross_entropy_gradients",
    "deep_gini",
    "deepfool",
    "density_weighted",
    "dfal",
    "direction_of",
    "dre",
    "dropout_entropy",
    "dropout_probabilities",
    "el2n",
    "ema",
    "entropy",
    "epig",
    "expected_gradient_length",
    "expected_input_gradient_length",
    "forgetting_events",
    "grad_match",
    "gradient_norm",
    "importance_draws",
    "importance_probabilities",
    "k_center",
    "kmeans",
    "kmeans_plus_plus",
    "knn_shapley",
    "least_confidence",
    "lhd",
    "margin",
    "mcp",
    "mean_confidence",
    "normalised_margin",
    "normalised_ranks",
    "partitioned",
    "power_sampling",
    "prob_cover",
    "pure_radius",
    "random_selection",
    "rank_disagreement",
    "self_confidence",
    "self_influence",
    "softmax_sampling",
    "softrank_sampling",
    "state_difference",
    "top_k",
    "tracin",
    "typicality",
    "typiclust",
    "variability",
    "vote_entropy",
]
