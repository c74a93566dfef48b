"""The steps of the proof of Theorem 1 on many small random cases, and the certificate of rank disagreement.

Each row of `identities` states an inequality or equality as ratio or difference, with its worst case over all cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pandas
import torch
from torch import Tensor

from steelyard import theory
from studies.theorem1.thresholds import DELTA

__all__ = ["certificates", "identities"]


def identities(cases: int, seed: int, advance: Callable[[], None]) -> pandas.DataFrame:
    """Return the worst case of each step over `cases` random small cases: sizes, losses, a replaced sample."""
    generator = torch.Generator().manual_seed(seed)
    worst: dict[str, float] = {}
    for place in range(cases):
        for name, value in _case(generator, enumerate_batches=place % 10 == 0):
            worst[name] = max(worst.get(name, -math.inf), value)
    advance()
    worst["|z| of the ordered-SGD gradient, 8 coordinates"] = _largest_z(max(2000, 10 * cases), generator)
    advance()
    share = _within_deviation(cases // 2, generator)
    worst["share of samples with R_n > R^_n + deviation"] = share
    advance()
    return pandas.DataFrame(
        [
            {"check": name, "allowed": _ALLOWED[name], "worst": value, "holds": value <= _ALLOWED[name], "cases": cases}
            for name, value in worst.items()
        ]
    )


_ROUNDING = 1e-9
_ALLOWED = {
    "|sum gamma - q| / q": _ROUNDING,
    "gamma_1 n / s (Proposition 2: at most 1)": 1 + _ROUNDING,
    "|L_q - mean over all batches|": _ROUNDING,
    "|L_q - sum r_i L_i / q|": _ROUNDING,
    "L - L_q": _ROUNDING,
    "|L_q(D) - L_q(D')| over (s/q)(M/n)": 1 + _ROUNDING,
    "sum |L_(j)(D) - L_(j)(D')| over M": 1 + _ROUNDING,
    "sup [L - L_q], no corruption": _ROUNDING,
    "sup [L - L_q(g)] over M x changed share": 1 + _ROUNDING,
    "|R^_n(D) - R^_n(D')| over M/n": 1 + _ROUNDING,
    "|z| of the ordered-SGD gradient, 8 coordinates": 4.5,  # a right mean exceeds it with probability 5e-5
    "share of samples with R_n > R^_n + deviation": DELTA,
}


def _case(generator: torch.Generator, enumerate_batches: bool) -> Iterator[tuple[str, float]]:
    """Yield the figures of one random case with M = 1 and 3 hypotheses; half of the cases are extreme on purpose."""
    n = _pick(2, 11, generator)
    s = _pick(1, n + 1, generator)
    q = _pick(1, s + 1, generator)
    losses = torch.rand(3, n, generator=generator, dtype=torch.float64)
    other = losses.clone()
    other[:, 0] = torch.rand(3, generator=generator, dtype=torch.float64)
    if _pick(0, 2, generator):  # one loss jumps over the whole range, from last rank to first: equality
        losses, other = torch.zeros_like(losses), torch.zeros_like(losses)
        other[:, 0] = 1.0
    gamma, top, top_other = (
        theory.top_q_weights(n, s, q),
        theory.top_q_loss(losses, s, q),
        theory.top_q_loss(other, s, q),
    )
    yield "|sum gamma - q| / q", abs(float(gamma.sum()) / q - 1)
    yield "gamma_1 n / s (Proposition 2: at most 1)", float(gamma.max()) * n / s
    if enumerate_batches:
        oracle = theory.top_q_loss_by_enumeration(losses[0], s, q)
        yield "|L_q - mean over all batches|", abs(oracle - float(top[0]))
        change = theory.finite_class_complexity(losses, draws="all").value
        change -= theory.finite_class_complexity(other, draws="all").value
        yield "|R^_n(D) - R^_n(D')| over M/n", abs(change) * n
    weighted = (theory.sample_weights(losses, s, q) * losses).sum(1) / q
    yield "|L_q - sum r_i L_i / q|", float((weighted - top).abs().max())
    yield "L - L_q", float((losses.mean(1) - top).max())
    yield "|L_q(D) - L_q(D')| over (s/q)(M/n)", float((top - top_other).abs().max()) * q * n / s
    ordered = (losses.sort(1).values - other.sort(1).values).abs().sum(1)
    yield "sum |L_(j)(D) - L_(j)(D')| over M", float(ordered.max())
    yield "sup [L - L_q], no corruption", -float(theory.factor_draw(losses, losses, s, q))
    changed = _pick(1, n + 1, generator)
    corrupted, clean = losses.clone(), losses.clone()
    corrupted[:, :changed] = 0.0
    clean[:, :changed] = clean[:, :changed].round()
    yield "sup [L - L_q(g)] over M x changed share", -float(theory.factor_draw(clean, corrupted, s, q)) * n / changed


def _largest_z(draws: int, generator: torch.Generator) -> float:
    """Return the largest |mean - sub-gradient of L_q| in standard errors, over 8 coordinates."""
    losses = torch.rand(60, generator=generator)
    gradients = torch.randn(60, 8, generator=generator) + losses[:, None]
    mean, error = theory.ordered_sgd_gradient(losses, gradients, 12, 4, draws=draws, generator=generator)
    return float(((mean - theory.top_q_gradient(losses, gradients, 12, 4)) / error).abs().max())


def _within_deviation(samples: int, generator: torch.Generator) -> float:
    """Return how often R_n, the mean over samples, exceeds R^_n + deviation: 7 thresholds, n = 10, exact R^_n."""
    n, grid = 10, torch.linspace(0, 1, 7)
    values = []
    for _ in range(samples):
        points, labels = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
        losses = ((points > grid[:, None]) != labels).double()
        values.append(theory.finite_class_complexity(losses, draws="all").value)
    found = torch.tensor(values)
    return float((found.mean() > found + theory.complexity_deviation(n, DELTA, 1.0)).double().mean())


def certificates(draws: int, proxies: tuple[int, ...], seed: int, advance: Callable[[], None]) -> pandas.DataFrame:
    """Measure DR-IS's certificate on ensembles whose E D_i is known: 30 samples agreed upon, 120 shuffled.

    `needed` is the (1 - delta)-quantile over ensembles of max_i |D_i - E D_i|; `radius` is t. `wrong` counts certified
    splits whose expectations are not in the certified order.
    """
    blocks = [1] * 30 + [120]
    expected = theory.block_disagreement(blocks)
    generator, rows = torch.Generator().manual_seed(seed), []
    for k in proxies:
        distances, certified, wrong = [], 0, 0
        for _ in range(draws):
            ranks = theory.block_ranks(blocks, k, generator)
            distances.append((theory.mean_rank_distance(ranks) - expected).abs().max())
            split = theory.certify(ranks, DELTA)
            certified += split.is_certified
            wrong += split.is_certified and not _in_order(expected, split.high)
        radius = theory.disagreement_radius(len(expected), k, DELTA)
        found = torch.stack(distances)
        rows.append(
            {
                "proxies": k,
                "samples": len(expected),
                "draws": draws,
                "gap": float(expected.max()),
                "radius": radius,
                "needed": float(found.quantile(1 - DELTA)),
                "coverage": float((found <= radius).double().mean()),
                "certified": certified / draws,
                "wrong": wrong,
            }
        )
        advance()
    return pandas.DataFrame(rows)


def _in_order(expected: Tensor, high: Tensor) -> bool:
    return bool(expected[high].min() > expected[~high].max())


def _pick(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))
