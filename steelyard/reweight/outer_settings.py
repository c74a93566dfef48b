"""How w and s move: one field an option, with its default and its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from steelyard._support import _check
from steelyard.reweight.outer_state import OuterOptimizer
from steelyard.reweight.schedules import CosineDecay

__all__ = ["OuterSettings"]

# A sample's hypergradient is of size 1 / n or less: Adam's usual eps of 1e-8 would not be negligible beside it.
# A short memory of the gradient (beta1) lets s turn as soon as a penalty changes sign.
_ADAM = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.999), eps=1e-12)


@dataclass(kw_only=True, eq=False)
class OuterSettings:
    """The outer optimisation of `Maple`.

    Attributes:
        steps: outer steps.
        learn: "both", "weights" (masks are still drawn, from the initial probabilities) or "probabilities".
        draws: masks (and inner runs) an outer step.
        folds: more than 1 for a cross-fitted outer risk on the training samples (see `CrossFit`); the model that
            callbacks see is then one more inner run, on all kept samples, made when a callback asks for it.
        probability_optimizer: makes any torch optimizer for s; default Adam, step 0.1, betas 0.5 and 0.999.
        weight_optimizer: the same for w; None: Adam, step 0.05 beside s, and 3 / `steps` where w alone is learned: in
            two thirds of the run a weight can then go from 1 to 0, however many steps there are (results/online).
        schedule: function of progress that multiplies both learning rates; default from 1 to 0.02 along a cosine.
        clip: largest 2-norm of each of the two gradients; None: as they are.
        patience: stop after so many steps in which the outer loss has not fallen by `tolerance`; None: never.
        tolerance: see `patience`.
        seed: of the masks.
    """

    steps: int
    learn: Literal["both", "weights", "probabilities"] = "both"
    draws: int = 1
    folds: int = 1
    probability_optimizer: OuterOptimizer = _ADAM
    weight_optimizer: OuterOptimizer | None = None
    schedule: Callable[[float], float] = CosineDecay()  # noqa: RUF009 (frozen)
    clip: float | int | None = None
    patience: int | None = None
    tolerance: float | int = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.steps = _check.integer("steps", self.steps, low=1)
        self.learn = _check.choice("learn", self.learn, ["both", "weights", "probabilities"])
        self.draws = _check.integer("draws", self.draws, low=1)
        self.folds = _check.integer("folds", self.folds, low=1)
        if self.weight_optimizer is None:
            self.weight_optimizer = partial(_ADAM, lr=3 / self.steps if self.learn == "weights" else 0.05)
        for name in ("probability_optimizer", "weight_optimizer"):
            _check.function(name, getattr(self, name), "a function that makes an optimizer of a list of tensors")
        _check.function("schedule", self.schedule, "a function of progress in [0, 1]")
        self.clip = None if self.clip is None else _check.in_range("clip", self.clip, low=0.0, open_low=True)
        self.patience = None if self.patience is None else _check.integer("patience", self.patience, low=1)
        self.tolerance = _check.in_range("tolerance", self.tolerance, low=0.0)
        self.seed = _check.seed("seed", self.seed)

    @property
    def optimizers(self) -> dict[str, OuterOptimizer]:
        """What makes the optimizer of each leaf that is learned, by its name in `OuterState`."""
        assert self.weight_optimizer is not None  # set in __post_init__
        made = {"weights": self.weight_optimizer, "probabilities": self.probability_optimizer}
        return made if self.learn == "both" else {self.learn: made[self.learn]}
