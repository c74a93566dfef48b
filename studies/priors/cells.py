"""Carry out the cells of a plan, each in a run directory of its own; those that are there already are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas

from steelyard.experiments.runs.folder import check_place, is_finished
from steelyard.experiments.runs.run import Run, execute
from studies.priors.figures import figures
from studies.priors.plan import Cell

__all__ = ["carry_out", "collect"]

Watch = Callable[[Cell], None]


def carry_out(
    cells: Sequence[Cell], runs: Path, watch: Watch = lambda cell: None, data_root: Path | None = None
) -> pandas.DataFrame:
    """Run what is missing of `cells` under `runs`, and return the table of all of them, see `collect`.

    A run that was cut short is resumed. `watch` is called before each cell; `data_root` is where data lie that are
    not installed.

    Raises:
        RunError: a directory holds a run of other settings, or is being written by another process.
    """
    rows = []
    for cell in cells:
        watch(cell)
        rows.append(_row(cell, _run(cell, runs, data_root), data_root))
    return pandas.DataFrame(rows)


def collect(cells: Sequence[Cell], runs: Path, data_root: Path | None = None) -> pandas.DataFrame:
    """Return a row for each of `cells` that is complete under `runs`: the cell's fields and its `figures`."""
    done = [cell for cell in cells if is_finished(runs / cell.place)]
    return pandas.DataFrame([_row(cell, _run(cell, runs, data_root), data_root) for cell in done])


def _run(cell: Cell, runs: Path, root: Path | None) -> Run:
    place = runs / cell.place
    check_place(place, below=runs)
    return execute(cell.load(), place, name=cell.recipe, overrides=cell.overrides, resume=True, data_root=root)


def _row(cell: Cell, run: Run, root: Path | None) -> dict[str, Any]:
    fields = {key: value for key, value in asdict(cell).items() if key not in ("overrides", "place")}
    return {**fields, **figures(run, root), "overrides": " ".join(cell.overrides)}
