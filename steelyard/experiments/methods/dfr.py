"""Deep feature reweighting: ERM's features, and a last layer fitted again on samples with balanced groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._modules import evaluating, inputs_of_last_linear, last_linear
from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.methods._reads import ReadsBy
from steelyard.experiments.methods.erm import ERM
from steelyard.experiments.methods.found_groups import FOUND, Given, GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.batches import group_balanced_subset
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED
from steelyard.experiments.training.trainer import Training

__all__ = ["DFR", "features"]


@dataclass(frozen=True)
class DFR(ReadsBy, TrainedMethod):
    """DFR (Kirichenko et al. 2023, arXiv:2204.02937): DFR-Tr on the training samples, DFR-Val on validation.

    An ERM model is trained; the inputs of its last linear layer are standardised by their training mean and deviation;
    an L1 logistic regression is fitted to a group-balanced subset of them, and the coefficients over `retrains` subsets
    are averaged and written into the layer. Its strength C is the one with the best worst-group accuracy on a half of
    the validation split (DFR-Val then fits on the other half while it chooses, and on all of it in the end).
    Labels needed: class in training for the features; group, in validation for DFR-Val, in both for DFR-Tr.
    Published (the authors' code): the strengths below; averages of 20 fits on validation, 10 on training.

    Attributes:
        fit_on: "train" or "validation". With "validation" the validation figures are no longer held out.
        strengths: values of C, scikit-learn's inverse strength, to choose from.
        retrains: fits that are averaged.
        by: the labels that are balanced.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`). Found ones are of
            training samples alone: the strength is then chosen by one half of these, the layer fitted on the other.
        training: of the ERM model, which is not observed; the result is, once, as the last step.
    """

    name: Literal["dfr"] = "dfr"
    fit_on: Literal["train", "validation"] = "validation"
    strengths: tuple[float, ...] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    retrains: Annotated[int, FIXED] = 20
    by: group_labels.Field = "group"
    groups: Annotated[GroupSource, FOUND] = field(default_factory=Given)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if not isinstance(self.groups, Given) and (self.by != "group" or self.fit_on != "train"):
            raise ValueError(
                f"groups.name = {self.groups.name!r} finds groups of training samples: take fit_on = 'train'"
            )
        _check.integer("retrains", self.retrains, low=1)
        if not self.strengths:
            raise ValueError("strengths needs at least one value of C, got none")
        for strength in self.strengths:
            _check.in_range("strengths", strength, low=0.0, open_low=True)

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return self.fit_on == "train" and super().needs_training_groups

    @property
    def needs_validation_groups(self) -> bool:
        """Whether it reads the groups of validation samples."""
        return self.by == "group" and (isinstance(self.groups, Given) or self.groups.needs_validation_groups)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train by ERM, fit the last layer again, and return that model."""
        model = ERM(training=self.training).fit(problem, lambda step, model, extra: None).model
        train, validation = problem.splits.train, problem.splits.validation
        found = not isinstance(self.groups, Given)
        if found:
            train = self.groups.label(problem)
        elif self.by == "group":
            validation = group_labels.with_groups(validation)
            train = group_labels.with_groups(train) if self.needs_training_groups else train
        seen = features(model, train)
        mean, deviation = seen.mean(0), seen.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1)  # a dead unit: any scale does

        def samples(data: Batch) -> _Samples:
            labels = data.group if self.by == "group" else data.environment
            assert labels is not None  # counts refuses it
            group_labels.counts(data, self.by)
            return _Samples((features(model, data) - mean) / deviation, data.targets, labels)

        held_out, generator = samples(train if found else validation), torch.Generator().manual_seed(problem.seed)
        halves = torch.randperm(len(held_out.targets), generator=generator).chunk(2)
        judge = held_out.take(halves[0])
        if found:
            chosen_on = fitted_on = held_out.take(halves[1])
        elif self.fit_on == "validation":
            chosen_on, fitted_on = held_out.take(halves[1]), held_out
        else:
            chosen_on = fitted_on = samples(train)
        subset = chosen_on.balanced(generator)
        strength = max(self.strengths, key=lambda c: judge.worst_group(_logistic(subset, c)))  # ties: the first
        fits = [_logistic(fitted_on.balanced(generator), strength) for _ in range(self.retrains)]
        coefficients = torch.tensor(np.mean([f.coef_ for f in fits], axis=0))
        intercepts = torch.tensor(np.mean([f.intercept_ for f in fits], axis=0))
        coefficients = coefficients / deviation.cpu()  # the layer sees features that are not standardised
        _write(last_linear(model), coefficients, intercepts - coefficients @ mean.double().cpu())
        observe(self.last_step, model, {"strength": strength})
        return Fitted(model)


@dataclass(frozen=True)
class _Samples:
    features: Tensor  # (n, d)
    targets: Tensor  # (n,)
    groups: Tensor  # (n,)

    def take(self, positions: Tensor) -> _Samples:
        positions = positions.to(self.targets.device)
        return _Samples(self.features[positions], self.targets[positions], self.groups[positions])

    def balanced(self, generator: torch.Generator) -> _Samples:
        return self.take(group_balanced_subset(self.groups, generator))

    def worst_group(self, fitted: Any) -> float:
        right = fitted.predict(self.features.cpu().numpy()) == self.targets.cpu().numpy()
        members = self.groups.cpu().numpy()
        return min(float(right[members == g].mean()) for g in np.unique(members))


def features(model: nn.Module, data: Batch) -> Tensor:
    """Return the inputs of the model's last linear layer, ``(n, d)``, in evaluation mode and in double precision."""
    with evaluating(model), inputs_of_last_linear(model) as found, torch.no_grad():
        for chunk in data.chunks(10_000):
            model(chunk.inputs)
    return torch.cat(found).double()


def _logistic(samples: _Samples, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression  # a second's import, which no other method needs

    kind = _l1(LogisticRegression)
    # The coordinate descent draws its order from random_state.
    fitted = LogisticRegression(C=strength, solver="liblinear", random_state=0, **kind)
    return fitted.fit(samples.features.cpu().numpy(), samples.targets.cpu().numpy())


def _l1(regression: type) -> dict[str, Any]:
    """Return how to ask this scikit-learn for L1: from 1.8 on the argument `penalty` is deprecated."""
    default = regression().get_params()
    return {"penalty": "l1"} if default["penalty"] == "l2" else {"l1_ratio": 1.0}


def _write(layer: nn.Linear, coefficients: Tensor, intercepts: Tensor) -> None:
    """Put a logistic regression ``(1, d)``, or one for each class ``(c, d)``, into a layer with 1 or c outputs."""
    if len(coefficients) == 1 and layer.out_features == 2:  # class 0's logit is 0
        coefficients = torch.cat([torch.zeros_like(coefficients), coefficients])
        intercepts = torch.cat([torch.zeros_like(intercepts), intercepts])
    if layer.bias is None:
        raise ValueError("DFR needs a last layer with a bias")
    with torch.no_grad():
        layer.weight.copy_(coefficients)
        layer.bias.copy_(intercepts)
