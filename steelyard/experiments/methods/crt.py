"""Classifier re-training: ERM's features, and a last layer trained again on balanced samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from torch import nn

from steelyard import reweight
from steelyard._support._modules import last_linear
from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods._cells import CellMethod
from steelyard.experiments.methods.dfr import features
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.batches import sampled
from steelyard.experiments.training.problem import Fitted, Observer, Problem, silent
from steelyard.experiments.training.ranges import FIXED, Within
from steelyard.experiments.training.trainer import Training, train

__all__ = ["CRT"]

# The two trainings are alike but for their length.
_FIRST = Within({"steps": FIXED}, like="training")


@dataclass(frozen=True)
class CRT(CellMethod):
    """cRT (Kang et al. 2020, arXiv:1910.09217, section 4): the classifier is trained again on frozen features.

    An ERM model is trained. Then its last linear layer starts again from its initial parameters and is trained on what
    goes into it, with every class (or group) as likely. Features are taken once, in evaluation mode and without
    augmentation. On a linear model they are the inputs, and the result is that of `upweighting`.
    Yang et al. 2023 balance by group where attributes are known in training: CRT draws the batches, ReWeightCRT weighs
    the losses, VanillaCRT balances nothing.
    Labels needed: class and, as `by` says, group or environment, in training; group in validation where selection is by
    the worst group.
    Published: 90 epochs for the features, 10 for the classifier, balanced by class (ImageNet-LT).

    Attributes:
        by: the labels that are balanced.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).
        balance: "batches" draws batches with replacement (needs a batch size), "loss" weighs the losses, "none" leaves
            the samples as they are.
        representation: the training of the whole model by ERM. It is not observed.
        training: that of the last layer.
    """

    name: Literal["crt"] = "crt"
    by: group_labels.Cell = "class"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    balance: Literal["batches", "loss", "none"] = "loss"
    representation: Annotated[Training, _FIRST] = field(default_factory=Training)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.balance == "batches" and not self.training.batch_size:
            raise ValueError("balance = 'batches' draws batches: it needs a training.batch_size above 0")

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return self.balance != "none" and super().needs_training_groups

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return self.balance != "none" and super().needs_environments

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train twice and return the model with the second last layer."""
        data = self.labelled(problem) if self.balance != "none" else problem.splits.train
        model = train(problem, self.representation, silent)
        layer = last_linear(model)
        layer.load_state_dict(last_linear(problem.model()).state_dict())
        inputs = features(model, data).to(layer.weight.dtype)
        seen = Batch(inputs, data.targets, data.index, data.environment, data.group)
        rows = rule = None
        if self.balance != "none":
            everything = problem.of_all(seen)
            rule = reweight.GroupWeights(group_labels.counts(everything, "group"))
            if self.balance == "batches":
                rows, rule = sampled(self.training.batch_size, rule.of(everything), problem.seed), None

        whole = model

        def told(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:  # of the last layer alone
            observe(step, whole, extra)

        train(problem, self.training, told, rule=rule, data=seen, rows=rows, model=layer)
        return Fitted(model)
