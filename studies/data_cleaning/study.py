"""The study: a file for each method, share and seed, then the tables of those that are there."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from steelyard._support import _files
from steelyard._support._text import parse_json
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import RecipeError, RunError
from studies._kept import check_no_fewer
from studies.data_cleaning.clean import clean_alone, cleaned, cleaned_by_net, net_of_clean, on_weights, with_clean
from studies.data_cleaning.problem import SHARES, Digits, Problem
from studies.data_cleaning.softmax import error
from studies.data_cleaning.weights import maple_weights, weight_a_sample

__all__ = ["GOALS", "METHODS", "study", "tables"]

Row = dict[str, Any]
Trained = tuple[str, Tensor | None, Tensor | nn.Module | None, dict[str, Any]]  # name, the two final models, figures

GOALS = {"the weights alone": (0.094, 0.097, 0.102), "weights and clean images": (0.089, 0.093, 0.095)}


def _function(problem: Problem, seed: int) -> Iterator[Trained]:
    for number, found in enumerate(cleaned(problem, seed), 1):
        more = {"line": found.line, "seconds": found.seconds, "auroc": _auroc(problem, found.weights)}
        yield f"function of the loss, round {number}", found.alone, found.together, more


def _net(problem: Problem, seed: int, scaled: bool = False) -> Iterator[Trained]:
    found = cleaned_by_net(problem, seed, scaled)
    more = {"line": found.line, "seconds": found.seconds, "auroc": _auroc(problem, found.weights)}
    yield "function of a net's loss" + ", scaled" * scaled, found.alone, found.together, more


def _sample(problem: Problem, seed: int) -> Iterator[Trained]:
    yield _a_weight_a_sample("a weight a sample", weight_a_sample, problem, seed)


def _maple(problem: Problem, seed: int) -> Iterator[Trained]:
    yield _a_weight_a_sample("a weight a sample, Maple", maple_weights, problem, seed)


def _a_weight_a_sample(name: str, learn: Callable[[Problem, int], Tensor], problem: Problem, seed: int) -> Trained:
    since = time.process_time()
    weights = learn(problem, seed)
    alone = on_weights(problem, weights)
    more = {"seconds": time.process_time() - since, "auroc": _auroc(problem, weights)}
    return name, alone, with_clean(problem, weights, alone), more


def _oracles(problem: Problem, seed: int) -> Iterator[Trained]:
    yield "the clean images alone", None, (start := clean_alone(problem)), {}
    right = problem.right.float()
    alone = on_weights(problem, right, start)
    yield "right labels only (oracle)", alone, with_clean(problem, right, alone), {}


def _reference(problem: Problem, seed: int) -> Iterator[Trained]:
    yield "the net that gives the losses, itself", None, net_of_clean(problem, seed), {}


def _all(problem: Problem, seed: int) -> Iterator[Trained]:
    weights = problem.right.float() * 0 + 1
    alone = on_weights(problem, weights)
    yield "all samples alike", alone, with_clean(problem, weights, alone), {}


Way = Callable[[Problem, int], Iterator[Trained]]

METHODS: dict[str, Way] = {
    "net": _net,
    "scaled": partial(_net, scaled=True),
    "oracles": _oracles,
    "function": _function,
    "sample": _sample,
    "maple": _maple,
    "all": _all,
    "reference": _reference,
}


def study(
    out: Path,
    runs: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    data_root: Path | None,
    told: Callable[[str], None] = lambda said: None,
    shares: Sequence[float] = SHARES,
) -> list[Row]:
    """Carry out what is not there yet, write the tables to `out`, and return all rows.

    Args:
        out: folder for the tables.
        runs: folder of the files.
        methods: names of `METHODS` to carry out.
        seeds: of the split, the corruption and the minibatches.
        data_root: where MNIST lies.
        told: is told of each file.
        shares: of the labels that are drawn again, among `SHARES`.

    Raises:
        RecipeError: an unknown method or share. DataError: MNIST is not there. RunError: nothing to tabulate.
        UserError: `out` has tables of more rows.
    """
    if other := set(shares) - set(SHARES):
        raise RecipeError(f"unknown share {min(other):g}; there are {', '.join(map(str, SHARES))}")
    if unknown := set(methods) - set(METHODS):
        raise RecipeError(f"unknown method {min(unknown)!r}; there are {', '.join(METHODS)}")
    digits = Digits.read(data_root) if methods else None
    for seed in seeds:
        for method in methods:
            for share in shares:
                path = runs / f"{method}-{share}-{seed}.json"
                if digits is not None and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    rows = carry_out(method, digits, seed, share)
                    _files.write_text(path, json.dumps(rows, indent=1) + "\n")
                    told(f"{method}, share {share}, seed {seed}")
    rows = [row for path in sorted(runs.glob("*.json")) for row in parse_json(path.read_text(encoding="utf-8"))]
    if not rows:
        raise RunError(f"nothing under {runs} is carried out; --methods names some")
    check_no_fewer(out / "cases.json", len(rows))
    for name, table in tables(rows).items():
        _files.write_text(out / f"{name}.md", table.markdown())
    _files.write_text(out / "cases.json", json.dumps(rows, indent=1) + "\n")
    return rows


def carry_out(method: str, digits: Digits, seed: int, share: float) -> list[Row]:
    """Return the rows of a method on one problem: errors on the test images, of two final models."""
    problem = digits.problem(seed, share)
    test = digits.test_inputs()
    rows = []
    for name, alone, together, more in METHODS[method](problem, seed):
        row = {"method": name, "share": share, "seed": seed, **more}
        for key, theta in (("alone", alone), ("together", together)):
            if theta is not None:
                row[key] = error(theta, test, digits.test_labels)
        rows.append(row)
    return rows


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """Return the table of test errors and that of the AUROC of wrong labels, in per cent."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    errors = []
    for key, what in (("alone", "the weights alone"), ("together", "weights and clean images")):
        errors += [
            [what, name, *_cells(rows, name, key)] for name in names if any(key in row for row in _of(rows, name))
        ]
        errors.append([what, "goal", *(f"{100 * goal:.1f}" for goal in GOALS[what])])
    head = [*(f"share {share}" for share in SHARES)]
    found = [name for name in names if any("auroc" in row for row in _of(rows, name))]
    auroc = [[name, *_cells(rows, name, "auroc"), *_cells(rows, name, "seconds", 1)] for name in found]
    return {
        "errors": Table(["trained on", "weights", *head], errors),
        "auroc": Table(["weights", *head, *(f"CPU s at {share}" for share in SHARES)], auroc),
    }


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["method"] == name]


def _cells(rows: Sequence[Row], name: str, key: str, factor: float = 100) -> list[str]:
    """Return mean and sample deviation over seeds, a cell a share; how many seeds where they are not five."""
    cells = []
    for share in SHARES:
        values = [factor * row[key] for row in _of(rows, name) if row["share"] == share and key in row]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{spread}{_few(values)}" if values else "")
    return cells


def _few(values: Sequence[float]) -> str:
    return "" if len(values) == 5 else f" ({len(values)} seeds)" if len(values) > 1 else " (1 seed)"


def _auroc(problem: Problem, weights: Tensor) -> float:
    return float(roc_auc_score(problem.right.numpy(), weights.numpy()))
