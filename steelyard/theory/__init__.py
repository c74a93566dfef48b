"""The top-q generalisation bound of ordered SGD under corruption, term by term, and what it predicts.

Start with `finite_class_bounds` from a matrix of losses, or with `theorem1`; its terms come from `ordered` (L_q),
`complexity`, `thresholds` and `networks` (R^_n), `factor` (Q), `corruption` (g). `concentration` holds the certificate
of rank disagreement. Depends on torch alone.
"""

from steelyard.theory.bound import Bound, complexity_deviation, deviation, theorem1
from steelyard.theory.complexity import (
    contracted,
    finite_class_complexity,
    linear_ball_bounds,
    linear_ball_complexity,
)
from steelyard.theory.concentration import (
    Separation,
    Sides,
    block_disagreement,
    block_ranks,
    certified_sides,
    certify,
    disagreement_radius,
    mean_rank_distance,
    proxies_needed,
)
from steelyard.theory.corruption import (
    AdversarialFlips,
    BlankInputs,
    ClassConditionalFlips,
    Corruption,
    FeatureDependentFlips,
    InputNoise,
    NoCorruption,
    RankedFlips,
    UniformFlips,
    require_fixed,
)
from steelyard.theory.estimate import Estimate
from steelyard.theory.factor import factor_draw, factor_floor, factor_lower, factor_mean
from steelyard.theory.finite_class import HypothesisBound, finite_class_bounds
from steelyard.theory.networks import golowich_bound, network_complexity_lower
from steelyard.theory.ordered import (
    ordered_sgd_gradient,
    sample_weights,
    top_q_gradient,
    top_q_limit,
    top_q_loss,
    top_q_loss_by_enumeration,
    top_q_loss_of_counts,
    top_q_weights,
)
from steelyard.theory.problem import ThresholdProblem
from steelyard.theory.thresholds import (
    ThresholdErrors,
    threshold_complexity,
    threshold_complexity_distinct,
    threshold_errors,
)

__all__ = [
    "AdversarialFlips",
    "BlankInputs",
    "Bound",
    "ClassConditionalFlips",
    "Corruption",
    "Estimate",
    "FeatureDependentFlips",
    "HypothesisBound",
    "InputNoise",
    "NoCorruption",
    "RankedFlips",
    "Separation",
    "Sides",
    "ThresholdErrors",
    "ThresholdProblem",
    "UniformFlips",
    "block_disagreement",
    "block_ranks",
    "certified_sides",
    "certify",
    "complexity_deviation",
    "contracted",
    "deviation",
    "disagreement_radius",
    "factor_draw",
    "factor_floor",
    "factor_lower",
    "factor_mean",
    "finite_class_bounds",
    "finite_class_complexity",
    "golowich_bound",
    "linear_ball_bounds",
    "linear_ball_complexity",
    "mean_rank_distance",
    "network_complexity_lower",
    "ordered_sgd_gradient",
    "proxies_needed",
    "require_fixed",
    "sample_weights",
    "theorem1",
    "threshold_complexity",
    "threshold_complexity_distinct",
    "threshold_errors",
    "top_q_gradient",
    "top_q_limit",
    "top_q_loss",
    "top_q_loss_by_enumeration",
    "top_q_loss_of_counts",
    "top_q_weights",
]
