"""The table's rows, one or several at a time, each filed when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steelyard._support._files import write_text
from steelyard._support._text import parse_json
from steelyard._support._workers import worker_context
from steelyard.experiments.errors import RecipeError, RunError
from studies.photographs.rows import Row, rows_of
from studies.photographs.search import Search, carry_out
from studies.photographs.sets import Source

__all__ = ["Job", "carry_out_all", "read", "rows_named"]


@dataclass(frozen=True)
class Job:
    """A row on a set.

    Attributes:
        row: the row.
        sets: what it is trained on.
        search: how it is tuned.
        runs: the folder of all rows.
    """

    row: Row
    sets: Source
    search: Search
    runs: Path

    @property
    def folder(self) -> Path:
        """Where the row's trials and figures are filed."""
        return self.runs / self.sets.case / self.row.key

    @property
    def file(self) -> Path:
        """The row's figures."""
        return self.folder / "row.json"


def carry_out_all(jobs: Sequence[Job], processes: int = 1, told: Callable[[str], None] = lambda said: None) -> None:
    """Carry out and file what is not filed yet.

    Args:
        jobs: the rows.
        processes: at once.
        told: is told of each row that is done.
    """
    left = [job for job in jobs if not job.file.exists()]

    def note(job: Job, why: str) -> None:
        told(f"{job.row.title} ({job.sets.case}): {why or 'done'}")

    if processes == 1:
        for job in left:
            note(job, _carried_out(job))
        return
    context = worker_context(__name__)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(_carried_out, job): job for job in left}
        for future in as_completed(futures):
            note(futures[future], future.result())


def _carried_out(job: Job) -> str:
    """File a row; return why it has no figures, "" if it has."""
    search = replace(job.search, overrides=(*job.search.overrides, *job.sets.options(job.search.tuned_on)))
    try:
        found = carry_out(job.row, job.sets.load, search, job.folder)
    except (RecipeError, RunError) as error:
        found = {"row": job.row.title, "known": job.row.known, "refused": str(error), "choices": {}}
    write_text(job.file, json.dumps(found, indent=1) + "\n")
    return str(found.get("refused", ""))


def read(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the figures of the rows that are filed; RunError if a file is damaged."""
    found = []
    for job in jobs:
        if not job.file.exists():
            continue
        try:
            row = parse_json(job.file.read_text(encoding="utf-8"))
            if not isinstance(row, dict) or "choices" not in row:
                raise ValueError("it holds no figures")
        except ValueError as error:
            raise RunError(f"{job.file} cannot be read: {error}; remove it and the row is carried out again") from error
        found.append({**row, "known": job.row.known})
    return found


def rows_named(titles: Sequence[str], name: str = "waterbirds") -> tuple[Row, ...]:
    """Return a set's rows with these titles, all of them where none is named; RecipeError if one is unknown."""
    rows = rows_of(name)
    known = [row.title for row in rows]
    if unknown := [title for title in titles if title not in known]:
        raise RecipeError(f"unknown row {unknown[0]!r}; there are {', '.join(known)}")
    return tuple(row for row in rows if not titles or row.title in titles)
