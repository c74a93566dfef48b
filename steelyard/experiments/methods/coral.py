"""CORAL: features with the same mean and covariance in every environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard.experiments.methods._alignment import AligningMethod
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.alignment import Distance, mean_and_covariance_distance
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training

__all__ = ["CORAL"]


@dataclass(frozen=True)
class CORAL(AligningMethod):
    """CORAL (Sun and Saenko 2016, arXiv:1607.01719, equation 1, between all pairs of environments).

    ``R + gamma mean over pairs of environments of |mean_e - mean_f|^2 / d + |cov_e - cov_f|^2 / d^2`` on each batch
    (`alignment.mean_and_covariance_distance`), of the d features that go into the last linear layer: the form of
    DomainBed and of Yang et al. 2023, who align attributes. In data with groups the environment is the attribute;
    `mmd` says what that does to the classes.
    Labels needed: class and environment (or group), in training; group in validation to choose the settings.
    Published: gamma 1 (DomainBed's default).

    Attributes:
        gamma: >= 0; 0 is ERM.
        by: "environment", or "group": between groups of the same class.
        on: "features" are the inputs of the last linear layer; "outputs" are what a linear model can align. Their
            distance grows with the square and the fourth power of the logits, so the range of `gamma`, which is for
            2,048 features, begins too high: `steelyard tune --range 'method.gamma=10^U(-5, 1)'`.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).

    Raises (in `fit`):
        ValueError: features of a linear model, or on several processes.
        DataError: one environment alone, or no class with two groups (of two samples each).
    """

    distance: ClassVar[Distance] = staticmethod(mean_and_covariance_distance)
    least: ClassVar[int] = 2  # a covariance needs two samples
    name: Literal["coral"] = "coral"
    gamma: Annotated[float, Range.log10(-1, 1, SUBPOPBENCH)] = 1.0
    by: group_labels.Field = "environment"
    on: Literal["features", "outputs"] = "features"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)
