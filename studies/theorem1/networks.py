"""Theorem 1 on trained networks: ERM, ordered SGD and MAPLE on coloured digits, whose labels are 25% wrong.

g is the data set's own label noise (a label is flipped with probability 1/4, and the colour is that of the flipped
label: a flip that depends on the input). The left-hand side is the risk against the digits' true labels, measured on a
third of the training environments' samples that no network is trained on. The loss is the ramp min(1, max(0, 1 - y
f(x))), so that M = 1 and contraction applies (Lipschitz 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard import theory
from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods import ERM, Maple
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import train
from steelyard.reweight import TopQ, budget_of
from steelyard.theory import Estimate
from studies.theorem1.thresholds import DELTA

__all__ = ["METHODS", "networks", "ramp"]

METHODS = ("ERM", "ordered SGD", "MAPLE")
BATCH, TOP = 32, 8  # s and q of ordered SGD, and of L_q for every method


def ramp(outputs: Float[Tensor, "n 1"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return min(1, max(0, 1 - y f)) for y = 2 target - 1: between the 0-1 loss and 1, Lipschitz 1 in f."""
    return (1 - outputs.squeeze(1) * (2 * targets - 1)).clamp(0, 1)


def networks(
    seeds: int, draws: int, steps: int, advance: Callable[[], None], methods: tuple[str, ...] = METHODS
) -> pandas.DataFrame:
    """Train each method on each seed and return a row of terms each.

    Two right-hand sides, the theorem's own is between them: `at_most`, from the upper bound of R^_n and the lower one
    of Q, and `at_least`, from the lower estimate of R^_n and the upper one of Q. Where `at_least` is 1 or more, no
    better bound on either term could make the theorem say anything. Theta is the set of networks whose layers have no
    greater norms than the trained one's: read off after training, so that `at_most` would not be a certificate even if
    it were small.

    Args:
        seeds: data splits and initial parameters. draws, steps: of `network_complexity_lower`.
    """
    rows = []
    for seed in range(seeds):
        data = _data(seed)
        fitted = {method: _fit(method, data, seed) for method in methods}
        for method, network in fitted.items():
            rows.append({"method": method, "seed": seed, **_terms(network, data, draws, steps, seed)})
            advance()
    return pandas.DataFrame(rows)


@dataclass(frozen=True)
class _Data:
    """Two thirds of the training samples to train on, one third held out; their true labels beside them."""

    problem: Problem
    held_out: Batch
    true: Tensor
    true_held_out: Tensor
    changed: float


def _data(seed: int) -> _Data:
    recipe = load_recipe("coloured_digits/erm", seed=seed)
    splits = recipe.data.load(seed)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))
    cut = 2 * len(order) // 3
    flipped = splits.facts["label_flipped"]
    true = torch.where(flipped, 1 - splits.train.targets, splits.train.targets)
    # ids of the training set start again at 0: MAPLE holds a weight for each of them
    part = replace(splits.train.take(order[:cut]), index=torch.arange(cut))
    facts = {name: fact[order[:cut]] for name, fact in splits.facts.items()}
    problem = Problem(replace(splits, train=part, facts=facts), recipe.model, seed)
    return _Data(
        problem,
        splits.train.take(order[cut:]),
        true[order[:cut]],
        true[order[cut:]],
        getattr(recipe.data, "label_noise", 0.0),
    )


def _fit(method: str, data: _Data, seed: int) -> nn.Module:
    def ignore(step: int, model: nn.Module, extra: object) -> None:
        """Nothing is selected here: the last model is the model."""

    if method == "MAPLE":
        settings = load_recipe("coloured_digits/maple", seed=seed).method
        assert isinstance(settings, Maple)
        share = budget_of(settings.budget, 1079) / 1079  # the recipe's share of the whole training set
        return replace(settings, budget=round(share * len(data.true))).fit(data.problem, ignore).model
    erm = load_recipe("coloured_digits/erm", seed=seed).method
    assert isinstance(erm, ERM)
    if method == "ERM":
        return erm.fit(data.problem, ignore).model
    return train(data.problem, replace(erm.training, batch_size=BATCH), ignore, rule=TopQ(TOP))


def _terms(network: nn.Module, data: _Data, draws: int, steps: int, seed: int) -> dict[str, object]:
    batch, n = data.problem.splits.train, len(data.true)
    seen, clean = _losses(network, batch, batch.targets), _losses(network, data.held_out, data.true_held_out)
    expected = Estimate(float(clean.mean()), "exact", float(clean.std()) / math.sqrt(len(clean)), "held-out samples")
    radius = float(batch.inputs.flatten(1).norm(dim=1).max())
    upper = theory.contracted(theory.golowich_bound(network, radius, n), 1.0)
    lower = theory.network_complexity_lower(
        network, batch.inputs, data.true, ramp, draws=draws, steps=steps, generator=torch.Generator().manual_seed(seed)
    )
    floor = theory.factor_floor(1.0, data.changed)
    ceiling = Estimate(0.0, "upper", note="the zero network is in Theta and loses 1 on every sample")
    common = {"s": BATCH, "q": TOP, "delta": DELTA, "loss_range": 1.0, "expected": expected}
    at_most = theory.theorem1(seen, complexity=upper, factor=floor, **common)  # type: ignore[arg-type]
    at_least = theory.theorem1(seen, complexity=lower, factor=ceiling, **common)  # type: ignore[arg-type]
    return {
        "n": n,
        "risk": expected.value,
        "risk_error": expected.standard_error,
        "training": at_most.training.value,
        "mean_seen": float(seen.mean()),
        "complexity_lower": lower.value,
        "complexity_lower_error": lower.standard_error,
        "complexity_upper": upper.value,
        "deviation": at_most.deviation.value,
        "factor_lower": floor.value,
        "factor_upper": ceiling.value,
        "at_most": at_most.total.value,
        "at_most_side": at_most.total.side,
        "at_least": at_least.total.value,
        "at_least_side": at_least.total.side,
        "test_risk_shifted": float(_losses(network, data.problem.splits.test, data.problem.splits.test.targets).mean()),
    }


def _losses(network: nn.Module, batch: Batch, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return ramp(network.eval()(batch.inputs), targets)
