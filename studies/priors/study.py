"""The benchmark of priors: which parts it has, and what each writes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas

from steelyard._support import _files
from steelyard._support._text import parse_json
from steelyard.experiments.compare.spreadsheet import frame_text
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import RecipeError, RunError
from studies._kept import check_no_fewer
from studies.priors import plots
from studies.priors.cells import carry_out, collect
from studies.priors.plan import (
    CONDITIONS,
    Cell,
    ablation_cells,
    main_cells,
    mnist_cells,
    noise_cells,
)
from studies.priors.separation import separation
from studies.priors.tables import grouped, markdown, paired, summary, with_common_level

__all__ = ["OFFLINE", "PARTS", "priors"]

KEYS = {
    "main": ("kind", "share", "method"),
    "noise": ("noise", "kind", "share", "method"),
    "ablation": ("noise", "kind", "share", "method"),
    "mnist": ("kind", "share", "method"),
}
PARTS = (*KEYS, "scores")
OFFLINE = tuple(part for part in PARTS if part != "mnist")
_SCORED = CONDITIONS[:2]


def priors(
    output: str | os.PathLike[str],
    runs: str | os.PathLike[str],
    *,
    parts: Sequence[str] = OFFLINE,
    seeds: Sequence[int] = (5, 6, 7, 8, 9),
    complete: bool = True,
    data_root: str | os.PathLike[str] | None = None,
    watch: Callable[[Cell], None] = lambda cell: None,
) -> dict[str, pandas.DataFrame]:
    """Carry out the benchmark and write its tables and figures to `output`; return the tables by name.

    A cell (corruption x method x seed) is a run directory under `runs`; those that are complete there are read, so that
    the command can be stopped and started again.

    Args:
        output: folder for tables (Markdown, CSV), figures (SVG) and `summary.json`; made if it is not there.
            What is there of parts that have no run under `runs` stays.
        runs: folder of the run directories.
        parts: of `PARTS`, what to run; of the others what is there is tabulated. "main": the methods over kinds and
            shares of corruption; "noise": labels that are right but for the corruption; "ablation": start, anchor,
            ensemble size, draws, what is ranked among what; "scores": what scores tell apart; "mnist": Colored MNIST,
            for which `data_root` must hold MNIST.
        seeds: of "main", "noise" and "mnist" (there those of MAPLE, the other methods take the first); the others take
            the first two.
        complete: False to tabulate the runs that are there and run nothing.
        data_root: where MNIST lies.
        watch: called before each run.

    Raises:
        RecipeError: an unknown part, or no seeds. RunError: a directory under `runs` holds a run of other settings;
            nothing is there to tabulate; or the `summary.json` that is there cannot be read.
        DataError: MNIST is not there.
    """
    if not seeds or set(parts) - set(PARTS):
        raise RecipeError(f"parts must be among {', '.join(PARTS)}, and seeds at least one; got {parts} and {seeds}")
    folder, place = Path(output), Path(runs)
    command = f"python -m studies.priors --out {shlex.quote(folder.as_posix())}"
    root = None if data_root is None else Path(data_root)
    plan = {
        "main": main_cells(seeds),
        "noise": noise_cells(seeds),
        "ablation": ablation_cells(seeds[:2]),
        "mnist": mnist_cells(seeds),
    }
    tables: dict[str, pandas.DataFrame] = {}
    rows = _rows_of_parts(folder / "summary.json")
    for part, cells in plan.items():
        run = complete and part in parts
        found = carry_out(cells, place, watch, root) if run else collect(cells, place, root)
        if len(found):
            found = with_common_level(found)
            tables[part] = grouped(found, KEYS[part])
            rows[part] = summary(tables[part], KEYS[part], f"{command} --parts {part}")
            _write(part, tables[part], found, folder)
    if complete and "scores" in parts:
        tables["scores"] = separation(_SCORED, seeds[:2])
        _files.write_text(folder / "scores.csv", frame_text(tables["scores"], "%.4f"))
        _files.write_text(folder / "scores.md", _plain_markdown(tables["scores"]))
    if not tables:
        raise RunError(f"no runs under {place} that are complete; --runs names their folder, --parts what to carry out")
    kept = [row for part in KEYS for row in rows.get(part, ())]
    _files.write_text(folder / "summary.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    return tables


def _rows_of_parts(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of an earlier summary by their part, which is what their command ends with."""
    if not path.exists():
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for row in parse_json(_files.read_bytes(path)):
            found.setdefault(row["command"].rpartition(" --parts ")[2], []).append(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is not an earlier summary ({error}); move it away, or give another --out") from error
    return found


def _write(part: str, table: pandas.DataFrame, cells: pandas.DataFrame, folder: Path) -> None:
    keys = KEYS[part]
    check_no_fewer(folder / f"{part}_runs.csv", len(cells))
    _files.write_text(folder / f"{part}.md", markdown(table, keys))
    _files.write_text(folder / f"{part}.csv", frame_text(table))
    _files.write_text(folder / f"{part}_runs.csv", frame_text(cells.drop(columns="curve")))
    if part in ("main", "mnist"):
        _files.write_text(folder / f"{part}_paired.md", paired(cells))
    if part == "main":
        _files.write_text(folder / "main.svg", plots.accuracies(table))
        _files.write_text(folder / "steps.svg", plots.curves(cells, CONDITIONS[:2]))


def _plain_markdown(table: pandas.DataFrame) -> str:
    lines = [
        [f"{x:.2f}" if isinstance(x, float) and x == x else "" if x != x else str(x) for x in row]
        for row in table.itertuples(index=False)
    ]
    return Table(list(table.columns), lines).markdown()
