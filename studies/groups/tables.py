"""The study: its cases one after another, each filed when it is done, and the tables of those that are there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steelyard._support import _files
from steelyard._support._text import parse_json
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import RecipeError, RunError
from studies._kept import check_no_fewer
from studies.groups.case import CASES, GROUPED, PHOTOGRAPHS, TRAINED, carry_out

__all__ = ["study"]

_ROWS = ("MAPLE, last step", *TRAINED)


def study(
    out: Path,
    runs: Path,
    cases: Sequence[str],
    seeds: Sequence[int],
    data_root: Path | None = None,
    methods: Collection[str] = TRAINED,
    photographs: Path = Path("runs/photographs/sets"),
    told: Callable[[str], None] = lambda said: None,
) -> list[dict[str, Any]]:
    """Carry out what is not there yet, write the tables to `out`, and return the rows of all that is there.

    Args:
        out: folder for `recovery.md`, `accuracy.md`, `cases.json` and `summary.json`.
        runs: folder of a JSON file for each case and seed.
        cases: names of `CASES` to carry out.
        seeds: of each.
        data_root: where data sets lie.
        methods: names of `TRAINED`; others of a case may be carried out later.
        photographs: where the sets of photographs lie.
        told: is told of each case that is done.

    Raises:
        RecipeError: an unknown case or method. DataError: data that are not there. RunError: nothing to tabulate, or a
            damaged file. UserError: `out` has tables of more rows.
    """
    if unknown := set(cases) - set(CASES):
        raise RecipeError(f"unknown case {min(unknown)!r}; there are {', '.join(CASES)}")
    if unknown := set(methods) - set(TRAINED):
        raise RecipeError(f"unknown method {min(unknown)!r}; there are {', '.join(map(repr, TRAINED))}")
    for name in cases:
        for seed in seeds:
            path = _place(runs, name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            there = _row(path, name) if path.exists() else {}
            root = photographs if name == PHOTOGRAPHS else data_root
            carry_out(name, seed, root, there, partial(_file, path), path.with_suffix(""), methods)
            told(f"{name}, seed {seed}")
    rows = [row for name in CASES for row in _read(runs, name)]
    if not rows:
        raise RunError(f"no case under {runs} is carried out; --cases names some")
    check_no_fewer(out / "cases.json", len(rows))
    _files.write_text(out / "recovery.md", recovery(rows).markdown())
    _files.write_text(out / "accuracy.md", accuracy(rows).markdown())
    _files.write_text(out / "cases.json", json.dumps(rows, indent=1) + "\n")
    _files.write_text(out / "summary.json", json.dumps(summary(rows), indent=1, ensure_ascii=False) + "\n")
    return rows


def recovery(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of tests and recovery, a line for each case; spreads are sample deviations over seeds."""
    lines = []
    for name in CASES:
        own = [row for row in rows if row["case"] == name]
        if not own:
            continue
        line = [name, str(len(own)), f"{sum(row['accepted'] for row in own)} of {len(own)}"]
        together = sum(row["accepted"] or row.get("accepted with a repeat", False) for row in own)
        line += [f"{together} of {len(own)}"]
        line += [_range(own, "share_between", "{:.2f}"), _range(own, "valley_ratio", "{:.2g}")]
        for cut in ("valley", "two_means"):
            line += [_mean(own, f"{cut} {figure}", 2) for figure in ("precision", "recall", "adjusted Rand")]
        lines.append(line)
    head = ["case", "seeds", "accepted", "or with a repeat", "share of variance", "valley ratio"]
    head += [f"{cut}: {figure}" for cut in ("valley", "two-means") for figure in ("precision", "recall", "Rand")]
    return Table(head, lines)


def accuracy(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of test accuracies and of wrong labels among what is trained on, in per cent."""
    head = ["case", "trained on", "seeds", "test accuracy", "colours balanced", "wrong labels", "against the shortcut"]
    lines = []
    for name in GROUPED:
        own = [row for row in rows if row["case"] == name]
        for method in _ROWS:
            having = [row for row in own if f"{method} accuracy" in row]
            if having:
                columns = ("accuracy", "balanced accuracy", "wrong labels", "against the shortcut")
                figures = [_mean(having, f"{method} {figure}", 1, 100.0) for figure in columns]
                lines.append([name, method, str(len(having)), *figures])
    return Table(head, lines)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and sample deviation of each test accuracy, as every results folder has them."""
    found = []
    for name in GROUPED:
        for method in _ROWS:
            having = [row for row in rows if row["case"] == name and f"{method} accuracy" in row]
            values = [row[f"{method} accuracy"] for row in having]
            if values:
                found.append(
                    {
                        "recipe": CASES[name][0],
                        "dataset": name,
                        "method": method,
                        "metric": "test accuracy",
                        "selection": "last",
                        "mean": statistics.fmean(values),
                        "std": statistics.stdev(values) if len(values) > 1 else None,
                        "seeds": [row["seed"] for row in having],
                        "command": "python -m studies.groups",
                    }
                )
    return found


def _mean(rows: Sequence[dict[str, Any]], key: str, digits: int, scale: float = 1.0) -> str:
    values = [scale * row[key] for row in rows if key in row]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _range(rows: Sequence[dict[str, Any]], key: str, form: str) -> str:
    values = [row[key] for row in rows]
    return f"{form.format(min(values))} to {form.format(max(values))}"


def _file(path: Path, row: Mapping[str, Any]) -> None:
    _files.write_text(path, json.dumps(row, indent=1) + "\n")


def _place(runs: Path, name: str, seed: int) -> Path:
    words = "".join(one if one.isalnum() else "_" for one in name).strip("_").lower()
    return runs / f"{words}_seed{seed}.json"


def _read(runs: Path, name: str) -> list[dict[str, Any]]:
    places = runs.glob(_place(runs, name, 0).name.replace("_seed0", "_seed[0-9]*"))
    return [_row(path, name) for path in sorted(places)]


def _row(path: Path, name: str) -> dict[str, Any]:
    try:
        row = parse_json(_files.read_bytes(path))
        if not isinstance(row, dict) or row.get("case") != name:
            raise ValueError(f"it is not of the case {name!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove it and the case is carried out again") from error
    return row
