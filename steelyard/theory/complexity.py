"""Empirical Rademacher complexity of finite classes and linear balls.

    R^_n(Theta) = E_xi [ sup_theta (1/n) sum_i xi_i l_i(theta) ],        xi_i = +1 or -1, evenly,
    independently.

No absolute value inside the supremum, as in section 6.1 of the paper. Theorem 1 wants it of the LOSS class on the CLEAN
sample. Threshold classifiers are in `thresholds`, networks in `networks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.theory.estimate import Estimate

__all__ = ["contracted", "finite_class_complexity", "linear_ball_bounds", "linear_ball_complexity"]

_ENUMERABLE = 22
_SIGNS = 8_000_000  # at a time: 64 MB
_WIDE = 1 << 20


def finite_class_complexity(
    losses: Shaped[Tensor, "m n"] | Numbers,
    *,
    draws: int | Literal["all"],
    generator: torch.Generator | None = None,
) -> Estimate:
    """Return R^_n of m hypotheses from their losses on n samples, in the units of the loss.

    Args:
        losses: ``(m, n)``, hypotheses x samples.
        draws: "all" enumerates the 2^n sign vectors (exact, n <= 22); a number takes that many at random (Monte Carlo
            with its standard error; at least 2).
        generator: source of the random signs; needed unless `draws` is "all".

    Cost: O(2^n m n) or O(draws m n); memory O(m n) in float64. More than a million samples are read once, some columns
    at a time (so they may be mapped from a file), and cost O(draws m) memory beside them.

    Example:
        >>> losses = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> finite_class_complexity(losses, draws="all").value     # E max(0, xi_1 + xi_2) / 2
        0.25
    """
    losses = _check.finite("losses", _check.tensor("losses", losses, ("m", "n")))
    if 0 in losses.shape:
        raise ValueError(f"losses is empty: its shape is {tuple(losses.shape)}")
    if draws != "all" and losses.shape[1] > _WIDE:
        return _in_columns(losses, _check.integer("draws", draws, low=2), _source(generator))
    centred = _centred(losses)
    return _over_signs(lambda signs: (signs.to(centred.device) @ centred.T).amax(-1), losses.shape[1], draws, generator)


def linear_ball_complexity(
    inputs: Float[Tensor, "n d"] | Numbers,
    radius: float,
    *,
    draws: int | Literal["all"],
    norm: float = 2.0,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Return R^_n of ``{x -> <w, x> : ||w||_norm <= radius}``: (radius / n) E || sum_i xi_i x_i ||_dual.

    The supremum has a closed form for each draw of signs; `draws` and `generator` as in `finite_class_complexity`. A
    complexity of functions: for a loss on top of them see `contracted`.

    Raises:
        ValueError: norm < 1, radius < 0, or inputs not finite.
    """
    inputs = _check.finite("inputs", _check.tensor("inputs", inputs, ("n", "d")))
    radius = _check.in_range("radius", radius, low=0.0)
    if not norm >= 1:
        raise ValueError(f"norm must be >= 1 (inf allowed), got {norm}")
    dual = math.inf if norm == 1 else 1.0 if norm == math.inf else norm / (norm - 1)
    points = inputs.double()
    return _over_signs(
        lambda signs: radius * torch.linalg.vector_norm(signs.to(points.device) @ points, ord=dual, dim=-1),
        inputs.shape[0],
        draws,
        generator,
    )


def linear_ball_bounds(inputs: Float[Tensor, "n d"] | Numbers, radius: float) -> tuple[Estimate, Estimate]:
    """Return closed-form lower and upper estimates of R^_n of the Euclidean linear ball; O(n d).

    - upper = (radius / n) sqrt(sum_i ||x_i||^2), by Jensen; equal to R^_n when the x_i are orthogonal.
    - lower = upper / sqrt(2), the Khintchine-Kahane inequality with its best constant; equal to R^_n at two equal x_i.

    References:
        R. Latała, K. Oleszkiewicz, On the best constant in the Khinchin-Kahane inequality, Studia Math. 109
        (1994).
    """
    inputs = _check.finite("inputs", _check.tensor("inputs", inputs, ("n", "d")))
    radius = _check.in_range("radius", radius, low=0.0)
    upper = radius * float(inputs.double().square().sum().sqrt()) / inputs.shape[0]
    return Estimate(upper / math.sqrt(2), "lower", note="Khintchine"), Estimate(upper, "upper", note="Jensen")


def contracted(complexity: Estimate, lipschitz: float) -> Estimate:
    """Return an upper estimate of R^_n of a loss class from R^_n of the real-valued function class under it.

    Talagrand's contraction lemma: if t -> l(t, y) is `lipschitz`-Lipschitz for every y, then R^_n(l o F) <= lipschitz
    R^_n(F). The step that section 6.3 of the paper leaves out between its R^_n (of the loss class) and the bound of
    Golowich et al. (of the network's output).
    """
    lipschitz = _check.in_range("lipschitz", lipschitz, low=0.0)
    side: Literal["upper", "either"] = "upper" if complexity.side in ("exact", "upper") else "either"
    return Estimate(
        lipschitz * complexity.value,
        side,
        lipschitz * complexity.standard_error,
        f"{complexity.note}, contracted by {lipschitz:g}".lstrip(", "),
    )


def _over_signs(
    supremum: Callable[[Tensor], Tensor],
    n: int,
    draws: int | Literal["all"],
    generator: torch.Generator | None,
) -> Estimate:
    """Average ``supremum(signs (k, n)) -> (k,)`` over all sign vectors or over random ones, divided by n."""
    if draws == "all":
        if n > _ENUMERABLE:
            raise ValueError(
                f"draws='all' enumerates 2^n sign vectors: n = {n} > {_ENUMERABLE}; give a number of draws"
            )
        values = torch.cat([supremum(signs) for signs in _all_signs(n)])
        return Estimate(float(values.mean()) / n, "exact", note="all 2^n signs")
    draws, generator = _check.integer("draws", draws, low=2), _source(generator)
    return _mean_over_draws(torch.cat([supremum(signs) for signs in _random_signs(n, draws, generator)]), n)


def _in_columns(losses: Tensor, draws: int, generator: torch.Generator) -> Estimate:
    """Do what `finite_class_complexity` does, some samples at a time."""
    sums = torch.zeros(draws, len(losses), dtype=torch.float64, device=losses.device)
    for columns in losses.split(max(1, _SIGNS // draws), dim=1):
        (signs,) = _random_signs(columns.shape[1], draws, generator, draws)
        sums += signs.to(sums.device) @ _centred(columns).T
    return _mean_over_draws(sums.amax(-1), losses.shape[1])


def _centred(losses: Tensor) -> Tensor:
    """E sum_i xi_i c_i = 0: centring on one hypothesis changes nothing in expectation and removes noise."""
    return losses.double() - losses[:1].double()


def _mean_over_draws(values: Tensor, n: int) -> Estimate:
    draws = len(values)
    spread = float(values.std()) / math.sqrt(draws) / n
    return Estimate(float(values.mean()) / n, "exact", spread, f"{draws} draws of signs")


def _source(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise ValueError("generator is needed for random signs: give a torch.Generator, or draws='all'")
    return generator


def _all_signs(n: int, chunk: int = 4096) -> Iterator[Tensor]:
    bits = torch.arange(n)
    for start in range(0, 2**n, chunk):
        codes = torch.arange(start, min(start + chunk, 2**n))
        yield ((codes[:, None] >> bits) & 1).double() * 2 - 1


def _random_signs(n: int, draws: int, generator: torch.Generator, chunk: int | None = None) -> Iterator[Tensor]:
    chunk = chunk or max(1, min(4096, _SIGNS // n))
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        yield torch.randint(0, 2, (rows, n), generator=generator).double() * 2 - 1
