"""Sample weights and keep-probabilities: what they optimise, where they may be, how they are learned."""

from steelyard.reweight.bayesian import BayesianIRM
from steelyard.reweight.clean import Balanced
from steelyard.reweight.constraints import ConstraintSet, budget_of
from steelyard.reweight.cross_fit import CrossFit
from steelyard.reweight.cross_scores import CrossFitScores, cross_fit_scores
from steelyard.reweight.f2sa import F2SA
from steelyard.reweight.fit_together import fit_together
from steelyard.reweight.groups import FoundGroups, OneHumpError, balance, find_groups
from steelyard.reweight.humps import TwoMeans, Valley, adjusted_rand, two_means, valley
from steelyard.reweight.influence import influence
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.learning_to_reweight import LearningToReweight
from steelyard.reweight.maple import Maple
from steelyard.reweight.mask import Mask
from steelyard.reweight.meta_weight_net import MetaWeightNet, WeightNet
from steelyard.reweight.online import Online, OnlineStep
from steelyard.reweight.outer_risk import OuterRisk
from steelyard.reweight.outer_settings import OuterSettings
from steelyard.reweight.outer_state import OuterState, OuterStep
from steelyard.reweight.priors import Prior, bernoulli_kl, bernoulli_kl_gradient, keep_probabilities, pool
from steelyard.reweight.projections import project_ball, project_box_simplex
from steelyard.reweight.refine import Refine
from steelyard.reweight.result import Reweighting
from steelyard.reweight.risk import Log, MeanRisk, Risk, Sqrt, WeightedSum
from steelyard.reweight.risks import GroupWorst, IRMv1, SoftGroupWorst, VREx
from steelyard.reweight.rules import (
    KLDRO,
    Custom,
    CVaR,
    EffectiveNumber,
    GeneralisedCrossEntropy,
    GroupDRO,
    GroupWeights,
    RelativeDifficulty,
    Rule,
    TopQ,
    Uniform,
)
from steelyard.reweight.saba import SABA
from steelyard.reweight.sample_weights import FeatureWeights, SampleWeights
from steelyard.reweight.schedules import CosineDecay, CubicBudget, LinearTemperature
from steelyard.reweight.shared import Shared
from steelyard.reweight.single_loop import SingleLoop, SingleLoopStep
from steelyard.reweight.soba import SOBA, StocBiO

__all__ = [
    "F2SA",
    "KLDRO",
    "SABA",
    "SOBA",
    "Balanced",
    "BayesianIRM",
    "CVaR",
    "ConstraintSet",
    "CosineDecay",
    "CrossFit",
    "CrossFitScores",
    "CubicBudget",
    "Custom",
    "EffectiveNumber",
    "FeatureWeights",
    "FoundGroups",
    "GeneralisedCrossEntropy",
    "GroupDRO",
    "GroupWeights",
    "GroupWorst",
    "IRMv1",
    "InnerRun",
    "LearningToReweight",
    "LinearTemperature",
    "Log",
    "Maple",
    "Mask",
    "MeanRisk",
    "MetaWeightNet",
    "OneHumpError",
    "Online",
    "OnlineStep",
    "OuterRisk",
    "OuterSettings",
    "OuterState",
    "OuterStep",
    "Prior",
    "Refine",
    "RelativeDifficulty",
    "Reweighting",
    "Risk",
    "Rule",
    "SampleWeights",
    "Shared",
    "SingleLoop",
    "SingleLoopStep",
    "SoftGroupWorst",
    "Sqrt",
    "StocBiO",
    "TopQ",
    "TwoMeans",
    "Uniform",
    "VREx",
    "Valley",
    "WeightNet",
    "WeightedSum",
    "adjusted_rand",
    "balance",
    "bernoulli_kl",
    "bernoulli_kl_gradient",
    "budget_of",
    "cross_fit_scores",
    "find_groups",
    "fit_together",
    "influence",
    "keep_probabilities",
    "pool",
    "project_ball",
    "project_box_simplex",
    "two_means",
    "valley",
]
