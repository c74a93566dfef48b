"""Published figures, each with its source, to stand beside ours: "as reported", never mixed with what we measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from steelyard._support import _check
from steelyard._support._toml import tomllib
from steelyard.experiments.compare.rows import BEST_ON_TEST, Row
from steelyard.experiments.runs.schema import parse

__all__ = ["Beside", "Figure", "Problem", "Published", "Source", "beside", "published"]

Metric = Literal["train accuracy", "test accuracy", "test adjusted accuracy", "test worst-group accuracy"]


@dataclass(frozen=True)
class Source:
    """Where figures were read; `second_hand` if not in the paper or the code of those who measured them."""

    key: str
    text: str
    second_hand: bool = False


@dataclass(frozen=True)
class Figure:
    """One published accuracy.

    Attributes:
        dataset: our name of the data set.
        method: our name of the method; "oracle" is ERM on data that hides the shortcut.
        metric: what was measured, as `compare.Row.metrics` names it.
        value: per cent.
        source: the key of its `Source`.
        spread: standard deviation over runs, per cent; 0 where none was published.
        selected_on: what its step or hyperparameters were selected on.
        note: what else differs from our set-up.
    """

    dataset: str
    method: str
    metric: Metric
    value: float
    source: str
    spread: float = 0.0
    selected_on: Literal["test", "validation", "not stated"] = "not stated"
    note: str = ""

    def __post_init__(self) -> None:
        _check.in_range("value", self.value, low=0.0, high=100.0)
        _check.in_range("spread", self.spread, low=0.0, high=100.0)

    def percent(self) -> str:
        """Return it in per cent, as published."""
        return f"{self.value:.1f} ± {self.spread:.1f}" if self.spread else f"{self.value:.1f}"

    def __str__(self) -> str:
        value = f"{self.value / 100:.3f}"
        return f"{value} ± {self.spread / 100:.3f}" if self.spread else value


@dataclass(frozen=True)
class Problem:
    """The settings of a data set that define its problem: figures are comparable only where these are its defaults."""

    dataset: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """All published figures that are shipped.

    Raises:
        ValueError: a figure of an unknown source or data set, or two figures for one place.
    """

    problems: tuple[Problem, ...]
    sources: tuple[Source, ...]
    figures: tuple[Figure, ...]

    def __post_init__(self) -> None:
        places = set()
        for figure in self.figures:
            _check.choice("source", figure.source, [source.key for source in self.sources])
            _check.choice("dataset", figure.dataset, [problem.dataset for problem in self.problems])
            place = (figure.dataset, figure.method, figure.metric)
            if place in places:
                raise ValueError(f"two figures for the {figure.metric} of {figure.method} on {figure.dataset}")
            places.add(place)

    def of(self, row: Row) -> dict[str, Figure]:
        """Return the figures of the row's method on its data set, by metric; none where the problem is another one."""
        defining = next((set(problem.settings) for problem in self.problems if problem.dataset == row.dataset), set())
        if defining & set(row.data_changes):
            return {}
        method = ("oracle" if row.method == "erm" else "") if row.oracle else row.method
        return {f.metric: f for f in self.figures if (f.dataset, f.method) == (row.dataset, method)}

    def note(self, figure: Figure) -> str:
        """Return what has to be said of a figure: its source, and what its step was selected on."""
        source = next(source for source in self.sources if source.key == figure.source)
        kind = "as reported, second-hand" if source.second_hand else "as reported"
        selected = "not stated here" if figure.selected_on == "not stated" else figure.selected_on.upper()
        return f"{kind}: {'; '.join(filter(None, (source.text, figure.note)))}; selected on: {selected}."


@cache
def published() -> Published:
    """Return the figures in `published.toml`."""
    path = Path(__file__).with_name("published.toml")
    return parse(Published, tomllib.loads(path.read_text(encoding="utf-8")), str(path))


@dataclass(frozen=True)
class Beside:
    """The published figures that stand beside the rows of a comparison.

    Attributes:
        labels: of the rows.
        figures: for each row its figures, by metric.
        metrics: the metrics that any row has a figure of, in order.
        notes: the sources, each with its number.
        numbers: the number of each figure's note.
    """

    labels: tuple[str, ...]
    figures: tuple[Mapping[str, Figure], ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...]
    numbers: Mapping[Figure, int]

    def cell(self, row: int, metric: str) -> str:
        """Return a row's figure with the number of its note, or an empty string."""
        figure = self.figures[row].get(metric)
        return f"{figure} [{self.numbers[figure]}]" if figure else ""

    def of(self, label: str, metric: str) -> str:
        """Return the figure of the rows with one label (a line of a table), in per cent, or an empty string."""
        own = [figures for figures, name in zip(self.figures, self.labels, strict=True) if name == label]
        figure = next((figures[metric] for figures in own if metric in figures), None)
        return f"{figure.percent()} [{self.numbers[figure]}]" if figure else ""


def beside(rows: Sequence[Row], known: Published | None = None) -> Beside:
    """Return the published figures for `rows`, like beside like.

    A figure that was selected on test stands in its method's row "best on test", any other in the row selected on
    validation (in that of the last step where there is no such row), and in no other: see `compare.compare`.
    """
    known = published() if known is None else known
    figures = []
    for row in rows:
        selections = [other.selection for other in rows if other.label == row.label]
        validated = next((s for s in selections if s not in ("last", BEST_ON_TEST)), "last")
        figures.append(
            {
                metric: figure
                for metric, figure in known.of(row).items()
                if row.selection == (BEST_ON_TEST if figure.selected_on == "test" else validated)
            }
        )
    shown = [figure for own in figures for figure in own.values()]
    notes = list(dict.fromkeys(known.note(figure) for figure in shown))
    return Beside(
        labels=tuple(row.label for row in rows),
        figures=tuple(figures),
        metrics=tuple(metric for metric in get_args(Metric) if any(metric in own for own in figures)),
        notes=tuple(f"[{number}] {note}" for number, note in enumerate(notes, 1)),
        numbers={figure: 1 + notes.index(known.note(figure)) for figure in shown},
    )
