"""Every check of Theorem 1: tables (CSV), figures (PNG), `summary.json`, and a README with each claim's verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steelyard._support import _check, _files
from steelyard.experiments.compare.spreadsheet import frame_text
from steelyard.experiments.compare.summary import summary_row
from studies.theorem1 import figures, identities, networks, thresholds
from studies.theorem1.claims import PrintedClaim, claims, markdown

__all__ = ["theorem1"]

Advance = Callable[[], None]


def theorem1(
    output: str | os.PathLike[str], *, quick: bool = False, seed: int = 0, progress: bool = True
) -> dict[str, pandas.DataFrame]:
    """Write the tables and figures of the bound to `output` and return the tables by name.

    Args:
        output: folder for the results; made if it is not there.
        quick: fewer draws and sizes, and no MAPLE: seconds instead of minutes.
        seed: of all draws.
        progress: show a progress bar on the terminal.
    """
    _check.integer("seed", seed, low=0)
    folder = Path(output)
    tables = _run(_plan(quick, seed), progress)
    command = (
        f"python -m studies.theorem1 --out {folder.as_posix()}"
        + (" --quick" if quick else "")
        + (f" --seed {seed}" if seed else "")
    )
    _write(tables, folder, command, seed)
    return tables


@dataclass(frozen=True)
class _Part:
    """One experiment: its name, how many times it advances, and how to run it."""

    name: str
    steps: int
    run: Callable[[Advance], pandas.DataFrame]


def _plan(quick: bool, seed: int) -> list[_Part]:
    pairs = ((16, 16), (16, 8), (16, 2))
    sizes = (200,) if quick else (200, 1000)
    lengths = (100, 1000, 10_000) if quick else (100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    tops = (1, 5, 10, 15, 20) if quick else (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    rates = (0.0, 0.2, 0.4) if quick else tuple(round(0.05 * step, 2) for step in range(10))
    proxies = (10, 100, 1000) if quick else (10, 30, 100, 300, 600, 1000)
    methods = networks.METHODS[:2] if quick else networks.METHODS
    ascent = (4, 100) if quick else (8, 300)
    few = quick
    at, ids, nets = thresholds, identities, networks
    return [
        _Part("identities", 3, partial(ids.identities, 300 if few else 3000, seed)),
        _Part("coverage", 18 * len(sizes), partial(at.coverage, 500 if few else 5000, sizes, pairs, seed)),
        _Part("gaps", 4 * len(lengths), partial(at.gaps, lengths, 50_000 if few else 2_000_000, 16, 4, seed)),
        _Part(
            "factor_signs", 6 * len(rates), partial(at.factor_signs, 50 if few else 200, 1000, 20, tops, rates, seed)
        ),
        _Part("terms", 18, partial(at.terms, 100 if few else 500, 2000, 16, (1, 2, 4, 8, 12, 16), seed)),
        _Part("certificates", len(proxies), partial(ids.certificates, 40 if few else 300, proxies, seed)),
        _Part(
            "networks",
            len(methods) * (1 if few else 3),
            lambda advance: nets.networks(1 if few else 3, *ascent, advance, methods),
        ),
    ]


def _run(parts: list[_Part], progress: bool) -> dict[str, pandas.DataFrame]:
    columns = (TextColumn("{task.description:>14}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    tables = {}
    with Progress(*columns, TimeElapsedColumn(), disable=not progress) as bar:
        tasks = [bar.add_task(part.name, total=part.steps, start=False) for part in parts]
        for part, task in zip(parts, tasks, strict=True):
            bar.start_task(task)
            tables[part.name] = part.run(partial(bar.advance, task))
    return tables


def _write(tables: Mapping[str, pandas.DataFrame], folder: Path, command: str, seed: int) -> None:
    for name, table in tables.items():
        _write_table(table, folder / f"{name}.csv")
        if name in figures.FIGURES:
            figures.draw(name, table, folder / f"{name}.png")
    found = claims(tables)
    _files.write_text(folder / "summary.json", json.dumps(_summary(tables, found, command, seed), indent=1) + "\n")
    _files.write_text(folder / "README.md", _readme(found, command))


def _write_table(table: pandas.DataFrame, path: Path) -> None:
    _files.write_text(path, frame_text(table))


_MEASURED: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str | None], ...]]] = {
    # table: (columns that name the setting), (metric, column of its standard deviation or error)
    "coverage": (("corruption", "n", "s", "q"), (("coverage", None), ("slack", "slack_std"), ("looseness", None))),
    "gaps": (
        ("setting", "n"),
        (("worst_gap", "worst_gap_error"), ("chosen_gap", "chosen_gap_error"), ("minus_q", "minus_q_error")),
    ),
    "certificates": (("proxies",), (("coverage", None), ("certified", None))),
}


def _summary(
    tables: Mapping[str, pandas.DataFrame], found: list[PrintedClaim], command: str, seed: int
) -> list[dict[str, Any]]:
    """Return one row a figure: recipe, dataset, method, metric, selection, mean, std, seeds, command.

    `std` is over independent draws, whose number is in `method` (None: not measured); of the networks, over seeds.
    """
    rows: list[dict[str, Any]] = []

    def add(
        recipe: str, dataset: str, method: str, metric: str, mean: float, std: float | None, seeds: list[int]
    ) -> None:
        named: dict[str, Any] = {
            "recipe": recipe,
            "dataset": dataset,
            "method": method,
            "metric": metric,
            "selection": "none",
        }
        rows.append(summary_row(**named, mean=mean, std=std, seeds=seeds, command=command))

    for name, (keys, metrics) in _MEASURED.items():
        for row in tables[name].to_dict("records"):
            setting = ", ".join(f"{key} {row[key]}" for key in keys)
            for metric, error in metrics:
                std = None if error is None else row[error] * (row["draws"] ** 0.5 if error.endswith("_error") else 1.0)
                add(
                    f"theory/{name}",
                    "thresholds" if name != "certificates" else "blocks",
                    f"{setting}, {row['draws']} draws",
                    metric,
                    row[metric],
                    std,
                    [seed],
                )
    for method, group in tables["networks"].groupby("method", sort=False):
        for metric in ("risk", "training", "at_least", "at_most"):
            std = group[metric].std() if len(group) > 1 else None
            add(
                "theory/networks",
                "coloured_digits",
                str(method),
                metric,
                group[metric].mean(),
                std,
                group["seed"].tolist(),
            )
    for claim in found:
        add("theory/claims", "", claim.statement, claim.verdict, float(claim.verdict != "NOT REPRODUCED"), None, [seed])
    return rows


_CAPTIONS = {
    "coverage": "What 2 R^_n + deviation allows, and what the worst threshold needed in 95% of the draws.",
    "gaps": "The gap against n: the worst over Theta, that of the minimiser of L_q, and -Q.",
    "factor_signs": "Where Q is negative. Rows: noise rate (or standard deviation); columns: q/s (s = 20).",
    "terms": "The terms against q, and the risk that they bound.",
    "certificates": "DR-IS's certificate on ensembles whose expected disagreement is known.",
    "networks": "Trained networks: the theorem's right-hand side is between the two triangles; no loss exceeds 1.",
}


def _readme(found: list[PrintedClaim], command: str) -> str:
    shown = "\n\n".join(f"{_CAPTIONS[name]}\n\n![{name}]({name}.png)" for name in figures.FIGURES)
    return f"""# Theorem 1, checked

Remake everything here with `{command}` (this file included).

The theorem: S. Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic
Distributions, section 6 and appendix C. With probability 1 - delta over n samples D, for all theta,

    E l <= L_q(theta; g(D)) + 2 R^_n(Theta) + M (2 + s/q) sqrt(ln(2/delta) / 2n) - Q_n,q(Theta, g)

Threshold classifiers on [0, 1] under the 0-1 loss make every term exact (Q: exact for each draw, averaged
over draws). The networks are trained by the shipped recipes on coloured digits. Tables are beside this file
as CSV.

## Claims

{markdown(found)}
## Figures

{shown}
"""
