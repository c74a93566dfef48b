"""The page of `steelyard weigh`: one file, nothing loaded from elsewhere, every string escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from steelyard._support._text import printable
from steelyard.experiments.compare.plots import accuracy_curves, histograms
from steelyard.experiments.data import OwnTable, Splits
from steelyard.experiments.data.encoding import NumberColumn
from steelyard.experiments.data.table import Table
from steelyard.experiments.report.learned import svg_source
from steelyard.experiments.report.templating import template_named
from steelyard.experiments.training.evaluation import SplitMetrics
from steelyard.experiments.weigh import plots
from steelyard.experiments.weigh.error_figures import ErrorFigures, ErrorModel
from steelyard.experiments.weigh.figures import Figures, ModelFigures, outputs_of
from steelyard.experiments.weigh.listed import Suspect, listed, trusted_rows
from steelyard.experiments.weigh.plan import PLAIN
from steelyard.experiments.weigh.spread import spreads
from steelyard.experiments.weigh.thumbnails import pictures_of
from steelyard.experiments.weigh.work import Outcome
from steelyard.experiments.weigh.written import MODEL, WEIGHTS, suspects

__all__ = ["CALLED", "OPEN", "PAGE", "SUSPECTS", "TEMPLATES", "in_short", "render", "shown_columns"]

PAGE = "page.html"
TEMPLATES = Path(__file__).parent / "templates"
SUSPECTS = 20  # rows that the page shows
OPEN = 10  # of them, without a click
_COLUMNS = 10  # of the user's table that are shown beside a suspect

CALLED = {
    PLAIN: "plain training",
    "online": "weighed online",
    "self_cleaning": "weighed by label",
    "maple": "weighed by MAPLE",
    "group_dro": "Group DRO",
    "upweighting": "up-weighting",
    "dfr": "DFR",
}


def render(outcome: Outcome, figures: Figures | ErrorFigures, folder: Path, command: str) -> str:
    """Return the page.

    Args:
        outcome: what was carried out.
        figures: see `figures_of` and, where the target is a number, `errors_of`.
        folder: where weights and models lie, as a reader of the page names it.
        command: what makes it again.
    """
    run = outcome.runs[outcome.plan.weighed][0]
    columns = shown_columns(outcome.splits, outcome.table)
    others = [model for model in figures.models if model.name not in (PLAIN, figures.weighed.name)]
    numbers = isinstance(figures, ErrorFigures)
    return template_named("weigh_numbers.html.j2" if numbers else "weigh.html.j2", TEMPLATES).render(
        numbers=numbers,
        title=printable(Path(outcome.data.source).name),
        target=outcome.data.target,
        plan=outcome.plan,
        clean=outcome.clean,
        figures=figures,
        models=[figures.weighed, figures.plain, *others],
        called=CALLED,
        seeds=_seeds(outcome),
        notes=outcome.splits.notes,
        calibration=_calibration(figures),
        histograms=svg_source(
            histograms(outcome.reweighting.weights.tolist(), outcome.reweighting.probabilities.tolist())
        ),
        curves=[(title, svg_source(plot)) for title, plot in _curves(outcome)],
        spreads=spreads(outcome),
        suspects=_listed(outcome, columns),
        open=OPEN,
        columns=columns,
        all_columns=len(outcome.splits.encoding.columns) if outcome.splits.encoding else 0,
        lines=_lines(outcome, folder),
        model_lines=_model_lines(outcome, folder),
        weights_file=folder / WEIGHTS,
        command=command,
        environment=run.environment,
    )


def in_short(figures: Figures | ErrorFigures) -> str:
    """Return two sentences on the test rows."""
    weighed, plain, by = figures.weighed, figures.plain, figures.grouped_by
    if isinstance(weighed, ErrorModel) and isinstance(plain, ErrorModel):
        return (
            f"Mean squared error on the test rows: {weighed.splits['test'].mse:.5g}, plain training "
            f"{plain.splits['test'].mse:.5g}. In the worst {by}: {weighed.worst.error.mse:.5g} ({weighed.worst.name}), "
            f"plain training {plain.worst.error.mse:.5g} ({plain.worst.name})."
        )
    assert isinstance(weighed, ModelFigures)
    assert isinstance(plain, ModelFigures)
    return (
        f"Right on the test rows: {weighed.splits['test'].share:.1%}, plain training "
        f"{plain.splits['test'].share:.1%}. In the worst {by}: {weighed.worst.accuracy.share:.1%} "
        f"({weighed.worst.name}), plain training {plain.worst.accuracy.share:.1%} ({plain.worst.name})."
    )


def shown_columns(splits: Splits, table: Table | None) -> tuple[str, ...]:
    """Return the columns of the user's table that are shown beside a suspect."""
    if splits.encoding is None or table is None:
        return ()
    seen = set(splits.encoding.columns)
    return tuple(name for name in table.columns if name in seen)[:_COLUMNS]


def _calibration(figures: Figures | ErrorFigures) -> Markup:
    if isinstance(figures, ErrorFigures):
        return Markup()
    return svg_source(plots.calibration([(CALLED[m.name], m.calibration) for m in (figures.weighed, figures.plain)]))


def _listed(outcome: Outcome, columns: tuple[str, ...]) -> tuple[Suspect, ...]:
    order, splits = suspects(outcome)[:SUSPECTS], outcome.splits
    outputs = outputs_of(outcome.models[outcome.plan.weighed], splits.train.take(order))
    judged = outputs.softmax(1) if splits.target_scale is None else outputs.squeeze(1)
    names = [outcome.name_of(row) for row in splits.rows["train"][order].tolist()]
    trusted = trusted_rows(splits, outcome.suspicion, outcome.clean)
    return listed(splits, names, order, judged, trusted, outcome.table, columns, pictures_of(outcome.data))


def _reached(metrics: SplitMetrics) -> float:
    """Return the accuracy, of a regression the mean squared error."""
    return metrics.accuracy if metrics.errors is None else metrics.errors.mse


def _seeds(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the test accuracy (or error) of each seed and method, where there is more than one seed."""
    found = [
        {"name": CALLED[name], "found": [(run.recipe.seed, _reached(run.history[-1].test)) for run in runs]}
        for name, runs in outcome.runs.items()
    ]
    return found if len(found[0]["found"]) > 1 else []


def _curves(outcome: Outcome) -> list[tuple[str, str]]:
    """Return accuracy (or error) over the course of the runs on the training and on the test rows."""
    what = "Accuracy" if outcome.splits.target_scale is None else "Mean squared error"
    found = []
    for title, split in (("training rows", "train"), ("test rows", "test")):
        curves: Mapping[str, Sequence[Any]] = {
            CALLED[name]: [
                (
                    [one.visible.step for one in run.history],
                    [_reached(one.test if split == "test" else one.visible.train) for one in run.history],
                )
                for run in runs
            ]
            for name, runs in outcome.runs.items()
        }
        top, band = 1.0 if what == "Accuracy" else None, len(curves) <= 2
        found.append((title, accuracy_curves(curves, f"{what} on the {title}", what.lower(), band=band, top=top)))
    return found


def _lines(outcome: Outcome, folder: Path) -> str:
    """Return a few lines of Python that train a model of another library under the weights."""
    data, encoding = outcome.data, outcome.splits.encoding
    if not isinstance(data, OwnTable) or encoding is None or Path(data.file).suffix == ".npz":
        return (
            "import pandas\n\n"
            f"weights = pandas.read_csv({str(folder / WEIGHTS)!r})\n"
            'train = weights["split"] == "train"\n'
            'sample_weight = (weights["weight"] * weights["keep_probability"])[train]\n'
        )
    kind, labels = "Classifier", ".astype(str)"
    if outcome.splits.target_scale is not None:
        kind, labels = "Regressor", ""
    read = "read_parquet" if Path(data.file).suffix in (".parquet", ".pq") else "read_csv"
    more = "" if read == "read_parquet" else ", skipinitialspace=True"
    more += f", sep={data.separator!r}" if data.separator != "," else ""
    return (
        "import pandas\n"
        f"from sklearn.ensemble import HistGradientBoosting{kind}\n\n"
        f"weights = pandas.read_csv({str(folder / WEIGHTS)!r})\n"
        f"table = pandas.{read}({data.file!r}{more}).rename(columns=str.strip)\n"
        f"{''.join(map(_seconds_line, encoding.numbers))}"
        'train = weights["split"] == "train"\n'
        'sample_weight = (weights["weight"] * weights["keep_probability"])[train]\n'
        f"features = pandas.get_dummies(table[{list(encoding.columns)!r}])\n"
        f"model = HistGradientBoosting{kind}()\n"
        f"model.fit(features[train], table.loc[train, {data.target!r}]{labels}, sample_weight=sample_weight)\n"
    )


def _seconds_line(column: NumberColumn) -> str:
    """Return the line that makes a column of dates one of seconds; none for numbers."""
    if not column.dates:
        return ""
    how = "format='mixed', utc=True" + (", dayfirst=True" if column.dates == "day first" else "")
    name, first = repr(column.name), "pandas.Timestamp(0, tz='UTC')"
    return f"table[{name}] = (pandas.to_datetime(table[{name}], {how}) - {first}).dt.total_seconds()\n"


def _model_lines(outcome: Outcome, folder: Path) -> str:
    """Return lines that use the written model."""
    if outcome.splits.encoding is None:
        return ""
    return (
        "from steelyard.experiments.weigh import Predictor\n\n"
        f"model = Predictor.load({str(folder / MODEL)!r})\n"
        f"{'classes' if outcome.splits.target_scale is None else 'values'} = model.predict({outcome.data.source!r})\n"
    )
