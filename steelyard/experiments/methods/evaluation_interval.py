"""How often MAPLE's model is evaluated: so often that it takes at most a tenth of the run.

The cost is counted and not timed, so that a run evaluates the same steps wherever it is carried out and resumed. The
unit is one sample's forward pass through the net.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["OuterCost"]

_TRAIN = 3  # a forward pass, and a backward pass of twice the products
_SWEEP = 3  # a derivative along a direction multiplies three times in a layer
_SHARE = 10  # evaluation takes at most one part of so many


class OuterCost(NamedTuple):
    """What an outer step consists of, in samples.

    Attributes:
        samples: training samples.
        kept: those that a mask keeps on average.
        judged: samples that the outer risk is taken of.
        evaluated: samples that an evaluation measures.
        inner_steps: optimizer steps of an inner run.
        batch_size: samples of such a step; 0: all that are kept.
        folds, draws: inner runs of an outer step, and how often it draws.
    """

    samples: int
    kept: float
    judged: int
    evaluated: int
    inner_steps: int
    batch_size: int = 0
    folds: int = 1
    draws: int = 1

    @property
    def step(self) -> float:
        """Forward passes of an outer step: inner runs, the risk and its gradient, the sweeps."""
        others = (self.folds - 1) / self.folds if self.folds > 1 else 1.0  # a fold's model learns from these
        judging = self.judged * (_TRAIN + (self.folds > 1))  # cross-fitted outputs are pooled before their gradient
        return self.draws * (self.folds * (self._run(others) + _SWEEP * self.samples * others) + judging)

    @property
    def evaluation(self) -> float:
        """Forward passes of an evaluation: a cross-fitted step has to train the model first."""
        return self.evaluated + (self._run(1.0) if self.folds > 1 else 0.0)

    def interval(self, steps: int) -> int:
        """Return how many outer steps of `steps` lie between two evaluations, the last of which is of the last step.

        Example:
            >>> OuterCost(1000, 300, 1000, 1200, inner_steps=100).interval(20)
            1
            >>> OuterCost(1000, 300, 1000, 1200, inner_steps=100, folds=2).interval(30)
            10
        """
        evaluations = max(1, int(steps * self.step / (_SHARE * self.evaluation)))
        return math.ceil(steps / min(steps, evaluations))

    def _run(self, share: float) -> float:
        kept = self.kept * share
        return float(_TRAIN * self.inner_steps * min(self.batch_size or kept, kept))
