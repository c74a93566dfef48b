"""Softmax regression, solved: min over theta of sum w_i l_i / sum w_i + l2 |theta|^2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.data_cleaning.problem import CLASSES

__all__ = ["error", "sample_losses", "solve"]

_STEPS = 40


def solve(
    x: Tensor, y: Tensor, weight: Tensor | None, l2: float, start: Tensor | None = None, steps: int = _STEPS
) -> Tensor:
    """Return theta ``(d, 10)`` by L-BFGS.

    Args:
        x: ``(n, d)`` inputs. y: ``(n,)`` labels.
        weight: ``(n,)``, None for 1; rows of weight under 0.02 are left out (they cost time).
        l2: of the penalty, beside a mean loss.
        start: where it begins; None: 0.
        steps: of L-BFGS, at most.
    """
    weight = torch.ones(len(x)) if weight is None else weight
    rows = weight >= 0.02
    if not bool(rows.all()):
        x, y, weight = x[rows], y[rows], weight[rows]
    share = (weight / weight.sum())[:, None]
    ones = F.one_hot(y, CLASSES).to(x.dtype)
    theta = x.new_zeros(x.shape[1], CLASSES) if start is None else start.clone()
    theta.requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    @torch.no_grad()
    def value() -> Tensor:
        logs = (x @ theta).log_softmax(1)
        theta.grad = x.T @ (share * (logs.exp() - ones)) + 2 * l2 * theta
        return l2 * theta.square().sum() - (share * logs * ones).sum()

    optimizer.step(value)  # type: ignore[arg-type]
    return theta.detach()


def sample_losses(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of every sample ``(n,)``."""
    return F.cross_entropy(x @ theta, y, reduction="none")


@torch.no_grad()
def error(model: Tensor | nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples that theta ``(d, 10)`` or a net misclassifies."""
    outputs = x @ model if isinstance(model, Tensor) else model(x)
    return float((outputs.argmax(1) != y).double().mean())
