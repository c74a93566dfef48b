"""The influence of every training sample on a risk: the hypergradient at w = 1, as a score."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._nested import named_tensors
from steelyard.bilevel import Batch, Truncated
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.outer_risk import Estimator, OuterRisk, hypergradient
from steelyard.reweight.risk import MeanRisk, Risk

__all__ = ["influence"]


def influence(
    inner: InnerRun,
    train: Batch,
    validation: Batch,
    *,
    risk: Risk | None = None,
    estimator: Estimator | None = None,
    outer_chunk: int | None = None,
) -> Float[Tensor, " n"]:
    """Return -d risk / d w_i at w = 1: by how much more weight on a sample lowers the risk; higher = keep.

    Of a model trained once with all weights 1. The derivative is that of training again, through the last steps that
    `inner` records; in TracIn and influence functions it is of a step, or of the optimum.

    Args:
        inner: the training; its ``window`` is T of ``Truncated(steps=T)``.
        train: the ``n`` samples. validation: the ``m`` samples the risk is of (never test samples, if the score decides
            what to keep).
        risk: the outer objective; default the mean loss.
        estimator: default ``Truncated(steps=inner.window, coupled="batch")``. With T = 1 the last step is replayed over
            all samples, and all have an influence; with more, samples of no recorded batch get 0.
        outer_chunk: validation samples at a time; None: all.

    Returns:
        ``(n,)``, aligned with `train`, in the unit of the risk; under a weighted mean of the losses each is of size
        1 / n. Cost: the training, one backward pass of the risk, and for T = 1 about three forward passes over `train`.

    Raises:
        ValueError: samples that the training or the estimator refuses. FloatingPointError: the risk or an influence is
            NaN or infinite. TypeError: a `risk` or an `estimator` that is none.

    References:
        P. W. Koh, P. Liang, Understanding black-box predictions via influence functions, ICML 2017, eq. 2 (at the
        optimum); S. Hara, A. Nitanda, T. Maehara, Data cleansing for models trained with SGD, NeurIPS 2019 (by steps).

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> from steelyard.bilevel import WeightedLoss
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> inner = InnerRun(lambda: torch.nn.Linear(1, 2), partial(torch.optim.SGD, lr=0.1), objective, steps=20)
        >>> x, y = torch.tensor([[-1.0], [-2.0], [1.0], [2.0], [-3.0]]), torch.tensor([0, 0, 1, 1, 1])
        >>> found = influence(inner, Batch.of(x, y), Batch.of(x[:4], y[:4]))
        >>> int(found.argmin()), bool(found[4] < 0)  # the last label is wrong
        (4, True)
    """
    _check.instance("inner", inner, InnerRun, "an InnerRun")
    risk = MeanRisk() if risk is None else _check.instance("risk", risk, Risk, "a Risk, such as MeanRisk()")
    if estimator is None:
        estimator = Truncated(steps=inner.window, coupled="batch")
    _check.instance("estimator", estimator, Estimator, "an estimator, such as Truncated()")
    objective = inner.objective
    autocast = inner.settle(train.device)
    outer = OuterRisk(risk, validation, objective.loss, outer_chunk, autocast, inner.ranks, objective.outputs_of)
    wide = any(one.dtype == torch.float64 for _, one in named_tensors("inputs", train.inputs))
    weight = torch.ones(len(train), dtype=torch.float64 if wide else torch.float32, device=train.device)
    model, trajectory = inner(train, weight)
    return -hypergradient(estimator, model, trajectory, outer, train).gradient
