"""MMD: features with the same distribution in every environment, by their kernel means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard.experiments.methods._alignment import AligningMethod
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.alignment import Distance, mmd
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training

__all__ = ["MMD"]


@dataclass(frozen=True)
class MMD(AligningMethod):
    """MMD (Li et al. 2018, CVPR, Domain generalization with adversarial feature learning, without its autoencoder).

    ``R + gamma mean over pairs of environments of MMD^2(h_e, h_f)`` on each batch (`alignment.mmd`), h what goes into
    the last linear layer: the form of DomainBed and of Yang et al. 2023, who align attributes. In data with groups
    (Waterbirds, CelebA, Adult, COMPAS) the environment is the attribute. Where the classes' shares differ between
    environments, features that tell the classes apart cannot be aligned: ``by = "group"`` compares groups of one class.
    Labels needed: class and environment (or group), in training; group in validation to choose the settings.
    Published: gamma 1 (DomainBed's default).

    Attributes:
        gamma: >= 0; 0 is ERM.
        by: "environment", or "group": between groups of the same class.
        on: "features" are the inputs of the last linear layer; "outputs" are what a linear model can align. These are
            few, and farther apart than the 2,048 features that the range of `gamma` is for: give a lower one,
            `steelyard tune --range 'method.gamma=10^U(-5, 1)'`.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).

    Raises (in `fit`):
        ValueError: features of a linear model, or on several processes.
        DataError: one environment alone, or no class with two groups.
    """

    distance: ClassVar[Distance] = staticmethod(mmd)
    least: ClassVar[int] = 1
    name: Literal["mmd"] = "mmd"
    gamma: Annotated[float, Range.log10(-1, 1, SUBPOPBENCH)] = 1.0
    by: group_labels.Field = "environment"
    on: Literal["features", "outputs"] = "features"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)
