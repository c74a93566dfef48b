"""Inner runs trained as one: folds, draws and seeds of MAPLE on coloured digits, and nets of several sizes.

    python -m benchmarks.together                # a quarter of an hour of one thread
    python -m benchmarks.together --only sizes   # one table; the other one stays as it is

The recipe is `coloured_digits/maple` (128-64-1, 324 of 1,079 samples kept, 100 inner steps), outer steps without
evaluation. Beside it stands a floor: a bare loop that trains as many nets of that size on as many rows as one, by one
batched product a layer, and does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _measure
from steelyard import reweight
from steelyard._support._heap import keep_freed_memory
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.experiments.methods import Maple
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem
from steelyard.reweight import InnerRun, fit_together
from steelyard.reweight.together import Together, TogetherName

RAW = _measure.RESULTS / "together_raw.json"
STEPS, INNER, KEPT, REPEATS = 16, 100, 324, 3
WAYS = ("apart", "together", "bare, apart", "bare, together")
# row -> (seeds, folds, draws)
RUNS = {
    "1 seed, 2 folds": (1, 2, 1),
    "1 seed, 4 folds": (1, 4, 1),
    "1 seed, 8 folds": (1, 8, 1),
    "5 seeds, 4 folds": (5, 4, 1),
    "1 seed, 4 draws": (1, 1, 4),
    "5 seeds, 1 fold": (5, 1, 1),
}


def chain(*widths: int) -> nn.Module:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Called(nn.Module):
    """A module of which nothing is known but that it can be called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, rows: Tensor) -> Tensor:
        """Return the net's outputs."""
        return self.net(rows)  # type: ignore[no-any-return]


def convolutions(channels: int) -> nn.Module:
    """Return two convolutions and a linear layer for images of 14 x 14."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18 * channels, 2),
    )


def sizes() -> list[dict[str, Any]]:
    """Return CPU seconds of 30 steps of 4 nets, one after the other and as one, by size."""
    nets: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}
    for widths, rows in (((16, 16, 2), 64), ((128, 64, 2), 243), ((128, 128, 2), 500), ((128, 256, 2), 500)):
        name = "-".join(map(str, widths)) + f", {rows} rows"
        nets[f"chain {name}"] = partial(chain, *widths), (rows, widths[0])
        nets[f"module {name}"] = (lambda widths=widths: Called(chain(*widths))), (rows, widths[0])  # type: ignore[misc]
    for channels, rows in ((2, 32), (4, 64), (8, 64), (16, 64)):
        nets[f"convolutions, {channels} channels, {rows} images"] = partial(convolutions, channels), (rows, 1, 14, 14)
    found = []
    for name, (make, shape) in nets.items():
        data = Batch.of(torch.randn(shape), torch.arange(shape[0]) % 2)
        weights = [torch.rand(shape[0]) + 0.5 for _ in range(4)]
        loss = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        inner = InnerRun(make, partial(torch.optim.SGD, lr=0.01, momentum=0.9), loss, 30)
        spent = {}
        for together in (False, True):
            train = partial(_trained, Together([inner], together), [data] * 4, weights)
            train()
            spent[together] = min(_measure.seconds(train)[0] for _ in range(3))
        counted = Together([inner])
        counted._too_large(data, weights)
        products = counted._products * shape[0]
        found.append({"net": name, "products": products, "apart": spent[False], "together": spent[True]})
    return found


def _trained(trains: Together, data: list[Batch], weights: list[Tensor]) -> None:
    list(trains(data, weights))


def floor(nets: int, rows: int) -> float:
    """Return the CPU seconds of `INNER` bare training steps of so many nets of the recipe's size as one."""
    stacks = [torch.randn(nets, 128, 64) / 12, torch.zeros(nets, 1, 64), torch.randn(nets, 64, 1) / 8]
    one, shift, two = [stack.requires_grad_() for stack in stacks]
    optimizer = torch.optim.SGD([one, shift, two], lr=0.1, momentum=0.9)
    inputs, targets = torch.rand(nets, rows, 128), torch.rand(nets, rows, 1).round()
    weight = torch.rand(nets, rows, 1) / rows

    def train() -> None:
        for _ in range(INNER):
            optimizer.zero_grad()
            outputs = torch.bmm(torch.relu(torch.baddbmm(shift, inputs, one)), two)
            losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
            (weight * losses).sum().backward()
            optimizer.step()

    train()
    return min(_measure.seconds(train)[0] for _ in range(3))


def outer_steps(seeds: int, folds: int, draws: int, together: bool) -> float:
    """Return the CPU seconds of an outer step of the recipe, of all seeds."""
    changes = [f"method.steps={STEPS}", f"method.folds={folds}", f"method.draws={draws}"]
    recipe = load_recipe("coloured_digits/maple", changes, seed=0)
    method = recipe.method
    assert isinstance(method, Maple)
    problems = [Problem(recipe.data.load(seed, None), recipe.model, seed) for seed in range(seeds)]
    own: TogetherName = "auto" if together else False
    maples = [replace(method.outer_run(problem, method.inner_run(problem)), together=own) for problem in problems]
    train = [problem.splits.train for problem in problems]
    if not together:
        return (
            sum(_measure.seconds(partial(maple.fit, data))[0] for maple, data in zip(maples, train, strict=True))
            / STEPS
        )
    _check_together(maples, train, folds * draws)
    spent, _ = _measure.seconds(lambda: fit_together(maples, train))
    return spent / STEPS


def _check_together(maples: list[reweight.Maple], train: list[Batch], count: int) -> None:
    """Assert that the `count` inner runs of a step of each of all seeds can be trained as one."""
    pool = Together(list(itertools.chain(*(maple.inner_runs(count) for maple in maples))))
    tasks = [data for data in train for _ in range(count)]
    assert pool.trained(tasks, [torch.ones(len(data)) for data in tasks]) is not None, pool.apart


def once(seeds: int, folds: int, draws: int) -> dict[str, float]:
    """Return the CPU seconds of an outer step, apart and together, and of the bare loops of its training."""
    nets = seeds * folds * draws
    rows = round(KEPT * (folds - 1) / folds) if folds > 1 else KEPT
    spent = [outer_steps(seeds, folds, draws, together) for together in (False, True)]
    return dict(zip(WAYS, [*spent, nets * floor(1, rows), floor(nets, rows)], strict=True))


def runs() -> list[dict[str, Any]]:
    """Return for every run the medians of what was measured in turn."""
    outer_steps(1, 2, 1, together=True)  # libraries load
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for _ in range(REPEATS):
        for name, run in RUNS.items():
            spent[name].append(once(*run))
            print(name, spent[name][-1], flush=True)
    return [
        {"run": name, "nets": math.prod(RUNS[name])} | {way: median(one[way] for one in several) for way in WAYS}
        for name, several in spent.items()
    ]


def report_runs(rows: list[dict[str, Any]]) -> None:
    """Write the table of `runs`."""
    for row in rows:
        row["gain"] = row["apart"] / row["together"]
        row["bare gain"] = row["bare, apart"] / row["bare, together"]
    named = {row["run"]: row for row in rows}
    seed, five = named["1 seed, 4 folds"], named["5 seeds, 4 folds"]
    two, eight = named["1 seed, 2 folds"], named["1 seed, 8 folds"]

    def said(what: str, over: dict[str, Any], under: dict[str, Any]) -> str:
        def ratios(bare: str) -> str:
            pairs = [("together", "together"), ("together", "apart"), ("apart", "apart")]
            return ", ".join(f"{over[bare + one] / under[bare + other]:.2f}" for one, other in pairs)

        return f"| {what} | {ratios('')} | {ratios('bare, ')} |"

    apart = _held(five["together"] / seed["apart"], 2.5), _held(seed["together"] / two["apart"], 1.5)
    as_one = _held(five["together"] / seed["together"], 2.5), _held(seed["together"] / two["together"], 1.5)
    seeds_alone = 5 * seed["together"] / five["together"]
    notes = [
        f"CPU seconds of one thread, an outer step of `coloured_digits/maple` ({INNER} inner steps of 128-64-1 on the",
        f"kept samples outside of a fold), mean over {STEPS} outer steps, hypergradients included, without evaluation;",
        f"median of {REPEATS} repeats, all rows in turn. Bare: a loop that trains as many such nets and does nothing",
        "else, the smallest of three in each repeat. Seeds by `fit_together`. As in `steelyard run`, the process keeps",
        "the memory that it frees.",
        "",
        "Three ratios: both together; together over one after the other; both one after the other.",
        "",
        "| | ratios | of the bare loops |",
        "|---|---|---|",
        said("5 seeds against 1, 4 folds each", five, seed),
        said("4 folds against 2", seed, two),
        said("8 folds against 4", eight, seed),
        "",
        "A fold's model learns of 1 - 1 / folds of the kept samples: 4 folds multiply three times as often as 2, and 8",
        "folds 7 / 3 times as often as 4. Asked for were 5 seeds in 2.5 times one and 4 folds in 1.5 times 2. Against",
        f"one after the other: {' and '.join(apart)}; both together: {' and '.join(as_one)}.",
        "What these nets multiply is most of their time, which no pass of all saves.",
        "",
        f"Seeds one after the other, the folds of each as one, take {seeds_alone:.2f} times as long as all as one:",
        "four nets share already what calling operators costs. So `steelyard run --seeds` trains seed after seed.",
    ]
    columns = ["run", "nets", "apart", "together", "gain", "bare, apart", "bare, together", "bare gain"]
    _measure.write("together", "Inner runs trained as one", notes, rows, columns)


def _held(ratio: float, asked: float) -> str:
    return f"{ratio:.2f} ({'held' if ratio <= asked else 'missed'})"


def report_sizes(rows: list[dict[str, Any]]) -> None:
    """Write the table of `sizes`."""
    for row in rows:
        row["gain"] = row["apart"] / row["together"]
    limits = [
        "CPU seconds of 30 steps of 4 nets, one thread, the smallest of three. `products`: of one net's forward pass.",
        "A module is the same chain of layers inside of a module of its own, which `torch.func.vmap` evaluates.",
    ]
    columns = ["net", "products", "apart", "together", "gain"]
    _measure.write("together", "Nets of several sizes as one", limits, rows, columns, table="together_sizes")


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), help="one of the tables")
    parser.add_argument("--report", action="store_true", help="write the tables of what was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for name, (measure, report) in PARTS.items():
        if arguments.only in (None, name):
            old = json.loads(RAW.read_text()) if RAW.exists() else {}
            if not arguments.report:
                old[name] = measure()
                RAW.parent.mkdir(parents=True, exist_ok=True)
                RAW.write_text(json.dumps(old, indent=1) + "\n")
            report(old[name])


PARTS = {"sizes": (sizes, report_sizes), "runs": (runs, report_runs)}


if __name__ == "__main__":
    main()
