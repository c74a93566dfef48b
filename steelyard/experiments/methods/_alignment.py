"""What the methods have in common that align features between environments or groups: MMD and CORAL."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from steelyard._support import _check
from steelyard._support._modules import last_linear
from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import DataError
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.methods._reads import ReadsBy
from steelyard.experiments.methods.found_groups import GroupSource
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.alignment import Alignment, Distance
from steelyard.experiments.training.newest_inputs import NewestInputs
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.trainer import Anneal, train

__all__ = ["AligningMethod"]


class AligningMethod(ReadsBy, TrainedMethod):
    """ERM plus `gamma` times the mean distance of features, over pairs of environments or of groups of one class.

    Attributes:
        distance: of the features of two sets of samples.
        least: a set with fewer samples in a batch is left out.
    """

    regression: ClassVar[bool] = False
    distance: ClassVar[Distance]
    least: ClassVar[int]
    name: str
    gamma: float
    by: group_labels.Field
    on: Literal["features", "outputs"]
    groups: GroupSource

    def __post_init__(self) -> None:
        _check.in_range("gamma", self.gamma, low=0.0)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        data = self.groups.label(problem) if self.by == "group" else problem.splits.train
        model = problem.model()
        self._check_meaning(problem, data, model)
        inputs = NewestInputs(last_linear(model)) if self.on == "features" else None
        features = None if inputs is None else lambda: inputs.value
        penalty = self.gamma * Alignment(type(self).distance, self.by, features, self.least)
        always = Anneal(1.0, 1.0, 0)  # gamma stands before the penalty: the mean loss keeps its size
        try:
            train(problem, self.training, observe, penalty=penalty, anneal=always, data=data, model=model)
        finally:
            if inputs is not None:
                inputs.close()
        return Fitted(model)

    def _check_meaning(self, problem: Problem, data: Batch, model: nn.Module) -> None:
        """Raise ValueError or DataError where there is nothing to align."""
        if self.on == "features":
            own = {id(parameter) for parameter in last_linear(model).parameters()}
            if all(id(parameter) in own for parameter in model.parameters()):
                raise ValueError(
                    f"method {self.name!r} aligns what goes into the last layer, and the model "
                    f"{problem.model_settings.name!r} has no layer before it; take method.on = 'outputs', or a model "
                    "with hidden layers"
                )
            if problem.ranks.size > 1:
                raise ValueError(
                    f"method {self.name!r} aligns features that are on one process, and there are "
                    f"{problem.ranks.size}; take method.on = 'outputs', or carry the recipe out in one process"
                )
        if next(Alignment(type(self).distance, self.by, least=self.least).pairs(problem.of_all(data)), None) is None:
            what = "there is one environment" if self.by == "environment" else "no class has two groups"
            raise DataError(f"method {self.name!r} aligns by {self.by}, and {what} in training; take erm")
