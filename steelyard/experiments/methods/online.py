"""Learning to Reweight, online: a few clean samples judge every minibatch while the model is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard import reweight
from steelyard._support import _check
from steelyard.bilevel import WeightedLoss
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import Fixed, Range
from steelyard.experiments.training.trainer import OptimizerSettings

__all__ = ["Online"]


@dataclass(frozen=True)
class Online:
    """Learning to Reweight (Ren et al. 2018), by `steelyard.reweight.LearningToReweight`.

    A sample of a minibatch counts as far as a step on it would lower the mean loss of the validation samples, which
    must be clean. So the validation figures are no longer held out. The result's probability of a sample is the share
    of its visits in which it helped.
    Labels needed: class labels, those of validation right.

    Attributes:
        epochs: passes over the training samples; the model is observed after each.
        batch_size: samples a step.
        clean_size: so many of the clean samples, drawn at each step; 0: all of them.
        optimizer: the optimizer.
    """

    regression: ClassVar[bool] = True
    needs_training_groups: ClassVar[bool] = False
    needs_validation_groups: ClassVar[bool] = False
    needs_environments: ClassVar[bool] = False
    name: Literal["online"] = "online"
    epochs: Annotated[int, Fixed("what the run may cost")] = 20
    batch_size: Annotated[int, Range.log2(5, 9, whole=True)] = 256
    clean_size: Annotated[int, Fixed("all of them")] = 0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        _check.integer("epochs", self.epochs, low=1)
        _check.integer("batch_size", self.batch_size, low=1)
        _check.integer("clean_size", self.clean_size, low=0)

    @property
    def last_step(self) -> int:
        """The number of the last step that is observed: an epoch."""
        return self.epochs

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train once, weighing as it goes; return the model and what the weights were."""
        train, clean = problem.splits.train, problem.splits.validation
        model = problem.model()
        online = reweight.LearningToReweight(
            model,
            self.optimizer.build(model.parameters()),
            WeightedLoss(problem.loss),
            clean,
            clean_size=min(self.clean_size, len(clean)) or None,
            seed=problem.seed,
        )
        per_epoch = -(-len(train) // self.batch_size)

        def watch(step: reweight.OnlineStep) -> None:
            if (step.step + 1) % per_epoch == 0:
                kept = float((step.weights > 0).double().mean())
                observe((step.step + 1) // per_epoch, model, {"clean_loss": step.clean_loss, "kept_of_batch": kept})

        found = online.fit(
            train, epochs=self.epochs, batch_size=self.batch_size, callbacks=[watch], journal=problem.journal
        )
        return Fitted(model, found)
