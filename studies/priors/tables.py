"""Tables of the benchmark: mean and spread over seeds, as Markdown, CSV and rows of a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas

from steelyard.experiments.compare.rows import Spread
from studies.priors.figures import steps_to

__all__ = ["FIGURES", "grouped", "markdown", "paired", "piped", "summary", "with_common_level"]

# column of `figures` -> heading
FIGURES = {
    "train_last": "train, last",
    "test_last": "test, last",
    "test_selected": "test, selected",
    "test_balanced": "test, colours balanced",
    "aligned": "aligned",
    "wrong": "wrong",
    "corrupted": "corrupted",
    "steps_95": "steps to 95 %",
    "steps_common": "steps to MAPLE's 95 %",
}
_STEPS = ("steps_95", "steps_common")
PLAIN, SELECTED = "MAPLE", "validation_vrex"


def with_common_level(cells: pandas.DataFrame) -> pandas.DataFrame:
    """Return `cells` with steps_common: the first outer step at 95 % of what plain MAPLE ends with, same data and seed.

    A run that never gets there, or whose plain twin is missing, has no entry.
    """
    twin = ["kind", "share", "noise", "seed"]
    plain = cells[cells["method"] == PLAIN].set_index(twin)["test_last"]
    found = [
        steps_to(curve, 0.95 * plain[key]) if key in plain.index else None
        for curve, key in zip(cells["curve"], cells[twin].itertuples(index=False, name=None), strict=True)
    ]
    return cells.assign(steps_common=pandas.array(found, dtype="Int64"))


def grouped(cells: pandas.DataFrame, keys: Sequence[str]) -> pandas.DataFrame:
    """Return a row for each setting, in order of appearance: `keys`, seeds, and mean, std and count of each figure."""
    rows = []
    for values, group in cells.groupby(list(keys), sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, values if isinstance(values, tuple) else (values,), strict=True))
        row |= {"recipe": group["recipe"].iloc[0], "seeds": " ".join(map(str, group["seed"]))}
        for name in FIGURES:
            known = [float(value) for value in group[name] if not pandas.isna(value)] if name in group else []
            spread = Spread.of(known) if known else None
            row[f"{name}_mean"] = None if spread is None else spread.mean
            row[f"{name}_std"] = None if spread is None else spread.std
            row[f"{name}_count"] = len(known)
        rows.append(row)
    return pandas.DataFrame(rows)


def markdown(table: pandas.DataFrame, keys: Sequence[str]) -> str:
    """Return a table of `grouped` as Markdown: shares and accuracies in per cent, mean ± standard deviation."""
    shown = [name for name in FIGURES if table[f"{name}_count"].any()]
    lines = [[*keys, *(FIGURES[name] for name in shown), "seeds"]]
    lines.append(["---"] * len(lines[0]))
    for row in table.to_dict("records"):
        count = len(row["seeds"].split())
        cells = [_cell(row, name, count) for name in shown]
        lines.append([*(f"{row[key]:g}" if isinstance(row[key], float) else str(row[key]) for key in keys), *cells])
        lines[-1].append(str(count))
    return piped(lines)


def piped(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as the lines of a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: dict[str, Any], name: str, seeds: int) -> str:
    if not row[f"{name}_count"]:
        return ""
    scale = 1 if name in _STEPS else 100
    text = f"{scale * row[f'{name}_mean']:.1f}"
    text += f" ± {scale * row[f'{name}_std']:.1f}" if row[f"{name}_count"] > 1 else ""
    return text if row[f"{name}_count"] == seeds else f"{text} ({row[f'{name}_count']} of {seeds})"


def summary(table: pandas.DataFrame, keys: Sequence[str], command: str) -> list[dict[str, Any]]:
    """Return the rows of `summary.json` for a table of `grouped`; the setting is in `method`."""
    rows = []
    for row in table.to_dict("records"):
        method = ", ".join(f"{key} {row[key]:g}" if isinstance(row[key], float) else str(row[key]) for key in keys)
        for name in FIGURES:
            if row[f"{name}_count"]:
                rows.append(
                    {
                        "recipe": row["recipe"],
                        "dataset": row["recipe"].partition("/")[0],
                        "method": method,
                        "metric": name,
                    }
                    | {"selection": SELECTED if name == "test_selected" else "last"}
                    | {"mean": round(row[f"{name}_mean"], 6), "std": round(row[f"{name}_std"], 6)}
                    | {"seeds": [int(seed) for seed in row["seeds"].split()], "command": command}
                )
    return rows


def paired(cells: pandas.DataFrame) -> str:
    """Return what priors change, seed by seed, as Markdown: mean ± standard deviation of (figure - plain MAPLE's).

    Points of per cent; in brackets on how many of the seeds it is above 0. Same data and seed in each pair.
    """
    twin = ["kind", "share", "noise", "seed"]
    shown = ("test_last", "test_selected", "test_balanced", "wrong")
    plain = cells[cells["method"] == PLAIN].set_index(twin)
    lines = [["kind", "share", "method", *(FIGURES[name] for name in shown)], ["---"] * (3 + len(shown))]
    others = cells[cells["method"].str.startswith(f"{PLAIN} +")]
    for (kind, share, method), group in others.groupby(["kind", "share", "method"], sort=False):
        rows = group.set_index(twin)
        lines.append([kind, f"{share:g}", method])
        for name in shown:
            change = (100 * (rows[name] - plain[name])).dropna()
            spread = Spread.of(list(change)) if len(change) else None
            up = f" ({int((change > 0).sum())} of {len(change)})"
            lines[-1].append("" if spread is None else f"{spread.mean:+.1f} ± {spread.std:.1f}{up}")
    return piped(lines)
