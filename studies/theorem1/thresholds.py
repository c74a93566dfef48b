"""What Theorem 1 predicts for threshold classifiers, where each of its terms is exact: coverage, gaps, signs of Q.

Every function returns a table, a row per setting. `advance` is called once a row, for a progress bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor

from steelyard import theory
from steelyard.theory import ThresholdErrors, ThresholdProblem

__all__ = ["DELTA", "KINDS", "Setting", "corruption", "coverage", "factor_signs", "gaps", "terms"]

DELTA = 0.05
KINDS = ("none", "uniform", "class-conditional", "feature-dependent", "adversarial", "input noise")
_CELLS = 2_000_000  # samples in memory at a time


def corruption(kind: str, rate: float) -> theory.Corruption:
    """Return g for labels 1[x > 1/2] on [0, 1]: `rate` is the noise rate, or the noise's standard deviation.

    class-conditional: ones become zeros with probability `rate`. feature-dependent: labels flip with probability 2 rate
    x. adversarial: every label in (1/2, 1/2 + rate] becomes 0, so that 1/2 + rate looks right.
    """

    def cover(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where((inputs > 0.5) & (inputs <= 0.5 + rate), torch.zeros_like(targets), targets)

    made: dict[str, Callable[[], theory.Corruption]] = {
        "none": theory.NoCorruption,
        "uniform": lambda: theory.UniformFlips(rate),
        "class-conditional": lambda: theory.ClassConditionalFlips(((1.0, 0.0), (rate, 1.0 - rate))),
        "feature-dependent": lambda: theory.FeatureDependentFlips(lambda x: 2 * rate * x),
        "adversarial": lambda: theory.AdversarialFlips(cover),
        "input noise": lambda: theory.InputNoise(rate, 0.0, 1.0),
    }
    return made[kind]()


def coverage(
    draws: int, sizes: tuple[int, ...], pairs: tuple[tuple[int, int], ...], seed: int, advance: Callable[[], None]
) -> pandas.DataFrame:
    """Count the draws in which the bound holds for ALL thresholds, and measure how loose it is.

    Q comes from as many other draws, and enters at 3 standard errors above its mean: against the bound. `needed` is the
    (1 - delta)-quantile over draws of sup_t [E l - L_q] + Q, what 2 R^_n + deviation had to be; `looseness` is what it
    was, over that (NaN where nothing was needed).
    """
    problem, rows = ThresholdProblem(noise=0.1), []
    generator = torch.Generator().manual_seed(seed)
    for kind in KINDS:
        g = corruption(kind, 0.2)
        for n in sizes:
            factors: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in pairs}
            found: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in pairs}
            for table in _tables(problem, g, draws, n, generator):
                for s, q in pairs:
                    factors[s, q].append(table.factor(s, q))
            for table in _tables(problem, g, draws, n, generator):
                for s, q in pairs:
                    found[s, q].append(_gaps(problem, table, s, q))
            for s, q in pairs:
                rows.append(_coverage_row(kind, n, s, q, torch.cat(factors[s, q]), torch.cat(found[s, q])))
                advance()
    return pandas.DataFrame(rows)


def _coverage_row(kind: str, n: int, s: int, q: int, factors: Tensor, found: Tensor) -> dict[str, object]:
    worst, _, training, risk = found.T
    factor = theory.factor_mean(lambda: factors)
    complexity = theory.threshold_complexity_distinct(n).value
    deviation = theory.deviation(n, s, q, DELTA, 1.0)
    allowed = 2 * complexity + deviation
    holds = (worst <= allowed - factor.value - 3 * factor.standard_error).double()
    needed = float((worst + factor.value).quantile(1 - DELTA))
    slack = training + allowed - factor.value - risk
    return {
        "corruption": kind,
        "n": n,
        "s": s,
        "q": q,
        "draws": len(worst),
        "coverage": float(holds.mean()),
        "coverage_low": _wilson_low(int(holds.sum()), len(holds)),
        "training": float(training.mean()),
        "twice_complexity": 2 * complexity,
        "deviation": deviation,
        "factor": factor.value,
        "factor_error": factor.standard_error,
        "bound": float(training.mean()) + allowed - factor.value,
        "risk": float(risk.mean()),
        "slack": float(slack.mean()),
        "slack_std": float(slack.std()),
        "needed": needed,
        "looseness": allowed / needed if needed > 0 else math.nan,
    }


@dataclass(frozen=True)
class Setting:
    """A problem, a corruption, and P(corrupted label = 1 | x), from which the limits n -> infinity follow."""

    name: str
    problem: ThresholdProblem
    corruption: theory.Corruption
    ones: Callable[[Tensor], Tensor]

    def limits(self, s: int, q: int) -> tuple[float, float]:
        """Return the limits of the worst gap and of the gap at the minimiser of L_q, on a grid of 10,001 thresholds."""
        grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        ones = self.ones((grid[1:] + grid[:-1]) / 2)
        # error on g(D) as t passes a cell: its ones are added, its zeros taken away
        passed = torch.cat([torch.zeros(1, dtype=torch.float64), (2 * ones - 1).cumsum(0) / len(ones)])
        seen = (1 - ones).mean() + passed
        gap = self.problem.risk(grid) - theory.top_q_limit(seen, s, q)
        return float(gap.max()), float(gap[seen.argmin()])


def settings() -> tuple[Setting, ...]:
    """Return the four settings of `gaps`."""
    plain, noisy = ThresholdProblem(), ThresholdProblem(noise=0.1)

    def step(low: float, high: float, at: float = 0.5) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(x > at, high, low).double()

    return (
        Setting("no corruption, separable", plain, theory.NoCorruption(), step(0.0, 1.0)),
        Setting("no corruption, 10% label noise in P", noisy, theory.NoCorruption(), step(0.1, 0.9)),
        Setting("uniform flips, 20%", plain, corruption("uniform", 0.2), step(0.2, 0.8)),
        Setting("adversarial flips, 20%", plain, corruption("adversarial", 0.2), step(0.0, 1.0, at=0.7)),
    )


def gaps(
    sizes: tuple[int, ...], samples: int, s: int, q: int, seed: int, advance: Callable[[], None]
) -> pandas.DataFrame:
    """Measure E l - L_q(theta; g(D)) against n: the worst over Theta, that of the minimiser of L_q, and -Q.

    Args:
        samples: about this many samples are drawn for each n (4 to 400 draws).
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    for setting in settings():
        worst_limit, chosen_limit = setting.limits(s, q)
        for n in sizes:
            draws = min(400, max(4, samples // n))
            tables = _tables(setting.problem, setting.corruption, draws, n, generator)
            found, factors = zip(
                *((_gaps(setting.problem, table, s, q), table.factor(s, q)) for table in tables), strict=True
            )
            worst, chosen, _, _ = torch.cat(found).T
            row: dict[str, object] = {"setting": setting.name, "n": n, "s": s, "q": q, "draws": draws}
            for name, values in (("worst_gap", worst), ("chosen_gap", chosen), ("minus_q", -torch.cat(factors))):
                row |= {name: float(values.mean()), f"{name}_error": float(values.std()) / math.sqrt(draws)}
            row |= {"worst_limit": worst_limit, "chosen_limit": chosen_limit}
            row["allowed"] = 2 * theory.threshold_complexity_distinct(n).value + theory.deviation(n, s, q, DELTA, 1.0)
            rows.append(row)
            advance()
    return pandas.DataFrame(rows)


def factor_signs(
    draws: int, n: int, s: int, tops: tuple[int, ...], rates: tuple[float, ...], seed: int, advance: Callable[[], None]
) -> pandas.DataFrame:
    """Measure Q over noise rate and q/s for each kind of corruption; sign 0 means within 3 standard errors of 0."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for kind, orientations in (*((kind, 1) for kind in KINDS[1:]), ("uniform", 2)):
        problem = ThresholdProblem(orientations=orientations)
        for rate in rates:
            tables = list(_tables(problem, corruption(kind, rate), draws, n, generator))
            for q in tops:
                factor = theory.factor_mean(lambda: torch.cat([table.factor(s, q) for table in tables]))  # noqa: B023
                clear = abs(factor.value) > 3 * factor.standard_error + 1e-12
                rows.append(
                    {
                        "corruption": kind if orientations == 1 else f"{kind}, both orientations",
                        "rate": rate,
                        "q_over_s": q / s,
                        "factor": factor.value,
                        "factor_error": factor.standard_error,
                        "sign": int(math.copysign(1, factor.value)) if clear else 0,
                    }
                )
            advance()
    return pandas.DataFrame(rows)


def terms(
    draws: int, n: int, s: int, tops: tuple[int, ...], seed: int, advance: Callable[[], None]
) -> pandas.DataFrame:
    """Measure each term at the minimiser of L_q against q, with and without corruption."""
    problem, rows = ThresholdProblem(noise=0.1), []
    generator = torch.Generator().manual_seed(seed)
    for kind in ("none", "uniform", "adversarial"):
        tables = list(_tables(problem, corruption(kind, 0.2), draws, n, generator))
        for q in tops:
            found = torch.cat([_gaps(problem, table, s, q) for table in tables])
            factors = torch.cat([table.factor(s, q) for table in tables])
            rows.append(_coverage_row(kind, n, s, q, factors, found))
            advance()
    return pandas.DataFrame(rows)


def _tables(
    problem: ThresholdProblem, g: theory.Corruption, draws: int, n: int, generator: torch.Generator
) -> Iterator[ThresholdErrors]:
    chunk = max(1, _CELLS // n)
    for start in range(0, draws, chunk):
        yield problem.errors(min(chunk, draws - start), n, g, generator)


def _gaps(problem: ThresholdProblem, table: ThresholdErrors, s: int, q: int) -> Tensor:
    """Return ``(draws, 4)``: the worst gap; at the minimiser of L_q: the gap, L_q, and E l."""
    top = table.top_q(s, q)
    worst = (problem.worst_risk(table) - top).amax(-1)
    training, place = top.min(-1)
    risk = problem.risk(table.thresholds.gather(-1, place.unsqueeze(-1)).squeeze(-1))
    return torch.stack([worst, risk - training, training, risk], dim=-1)


def _wilson_low(successes: int, trials: int, z: float = 1.645) -> float:
    """Return the lower end of Wilson's one-sided 95% interval for a rate."""
    rate = successes / trials
    centre = rate + z**2 / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return (centre - spread) / (1 + z**2 / trials)
