"""The HTML report of one or several runs: one file, nothing loaded from elsewhere, every string escaped."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas
import torch
from markupsafe import Markup
from PIL import Image

from steelyard._files import write_text
from steelyard.experiments import plots
from steelyard.experiments.compare import BEST_ON_TEST, Row, compare, footnotes, group_runs, labels, short
from steelyard.experiments.data import Splits
from steelyard.experiments.data.splits import pictures
from steelyard.experiments.errors import DataError
from steelyard.experiments.run import Run
from steelyard.experiments.schema import plain

__all__ = ["render", "write_report"]

FACTS = {
    "colour_agrees": ("Colour and label", {True: "colour agrees with the label", False: "colour disagrees"}),
    "digit_agrees": ("Digit and label", {True: "digit agrees with the label", False: "digit disagrees"}),
    "label_flipped": ("Label noise", {True: "label flipped by noise", False: "label right"}),
}
GALLERY = 24  # images in each of the two rows of the gallery


def write_report(runs: Sequence[Run], path: Path, data_root: Path | None = None) -> None:
    """Write the page for `runs` (at least one) to `path`; see `render`."""
    write_text(path, render(runs, data_root))


def render(runs: Sequence[Run], data_root: Path | None = None) -> str:
    """Return the page: for each data set its table and curves, and for runs that learned weights what these became.

    Args:
        runs: the runs, in any order; seeds of one recipe are averaged.
        data_root: where data sets lie that are not installed; without the data the gallery is left out.
    """
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    names = list(dict.fromkeys(run.recipe.data.name for run in runs))
    sections = [_section([run for run in runs if run.recipe.data.name == name], data_root) for name in names]
    return template.render(title=" and ".join(names), sections=sections, environment=runs[0].environment)


def _section(runs: list[Run], data_root: Path | None) -> dict[str, Any]:
    """Return what the template shows of one data set."""
    groups = group_runs(runs)
    full = labels(groups)
    names = short(full, runs[0].recipe.data.name)
    rows = compare(runs)
    curves = test_curves(runs)
    return {
        "name": runs[0].recipe.data.name,
        "story": runs[0].recipe.data.story,
        "about": inspect.getdoc(type(runs[0].recipe.data)),
        "seeds": sorted({len(group) for group in groups}),
        "table": [
            _line([row for row in rows if row.label == label], group, name)
            for label, name, group in zip(full, names, groups, strict=True)
        ],
        "selections": _selections(groups, names),
        "notes": footnotes(rows),
        "curves": None if curves is None else _svg(curves),
        "learned": [
            _learned(group, name, data_root)
            for name, group in zip(names, groups, strict=True)
            if group[0].samples is not None
        ],
        "recipes": [
            {"name": label, "fields": plain(group[0].recipe)} for label, group in zip(full, groups, strict=True)
        ],
        "commands": list(dict.fromkeys(row.command for row in rows)),
    }


def test_curves(runs: Sequence[Run]) -> str | None:
    """Return the plot of test accuracy over the runs of one data set, as SVG; None if all of them are oracles."""
    groups = group_runs(runs)
    names = short(labels(groups), runs[0].recipe.data.name)
    oracles = [group for group in groups if group[0].recipe.data.grayscale]
    oracle = compare(oracles[0])[0].test.mean if oracles else None  # the first row: the last step
    curves = {
        name: [([e.visible.step for e in run.history], [e.test.accuracy for e in run.history]) for run in group]
        for name, group in zip(names, groups, strict=True)
        if not group[0].recipe.data.grayscale
    }
    if not curves:
        return None
    title = "Test accuracy while training (mean over seeds; band: lowest to highest)"
    return plots.accuracy_curves(curves, title, "test accuracy", oracle)


def _selections(groups: list[list[Run]], names: list[str]) -> dict[str, str]:
    """Return each selection criterion in use, and the names of the recipes that use it (none where all do)."""
    used: dict[str, list[str]] = {}
    for name, group in zip(names, groups, strict=True):
        used.setdefault(group[0].recipe.selection, []).append(name)
    return {selection: ", ".join(them) if len(used) > 1 else "" for selection, them in used.items()}


def _line(rows: list[Row], group: list[Run], name: str) -> dict[str, Any]:
    """Return one group's line of the table: its three selections side by side, in per cent."""
    by = {row.selection: row for row in rows}
    recipe = group[0].recipe
    chosen = by.get(recipe.selection, by["last"])
    return {
        "name": name,
        "marks": by["last"].marks,
        "oracle": recipe.data.grayscale,
        "seeds": len(group),
        "seconds": sum(run.environment["seconds"] for run in group) / len(group),
        "selection": recipe.selection,
        "last": by["last"],
        "selected": chosen,
        "best": by[BEST_ON_TEST],
    }


def _learned(group: list[Run], name: str, data_root: Path | None) -> dict[str, Any]:
    """Return what a method that learns sample weights learned: figures and plots over all seeds, one seed's images."""
    samples = pandas.concat([run.samples for run in group if run.samples is not None])
    facts = [
        {
            "title": title,
            "groups": [_kept(samples, fact, value, called) for value, called in names.items()],
            "plot": _svg(plots.distributions(samples, fact, names)),
        }
        for fact, (title, names) in FACTS.items()
        if fact in samples
    ]
    first = group[0]
    try:
        splits = first.recipe.data.load(first.recipe.seed, data_root)
        gallery, missing = _gallery(first, splits), ""
    except DataError as error:
        gallery, missing = [], str(error)
    return {
        "name": name,
        "seed": first.recipe.seed,
        "budget": float(samples["probability"].sum()) / len(group),
        "count": len(samples) // len(group),
        "facts": facts,
        "steps": _outer_steps(group, len(samples) // len(group)),
        "coloured": not first.recipe.data.grayscale,
        "gallery": gallery,
        "missing": missing,
    }


def _outer_steps(group: list[Run], count: int) -> Markup | None:
    """Return the plot of the outer optimisation from the methods' own figures; None where they are not there."""
    seeds = {
        f"seed {run.recipe.seed}": [e.extra for e in run.history if {"step", "outer_loss", "kept"} <= set(e.extra)]
        for run in group
    }
    return _svg(plots.outer_steps(seeds, count)) if all(seeds.values()) else None


def _kept(samples: pandas.DataFrame, fact: str, value: bool, name: str) -> dict[str, Any]:
    """Return a group's share of the data, and of what training saw: the sum of probability x weight."""
    member = samples[fact] == value
    seen = samples["probability"] * samples["weight"]
    return {
        "name": name,
        "before": float(member.mean()),
        "after": float(seen[member].sum() / seen.sum()),
        "probability": float(samples.loc[member, "probability"].mean()),
        "weight": float(samples.loc[member, "weight"].mean()),
    }


def _gallery(run: Run, splits: Splits) -> list[dict[str, Any]]:
    """Return the most and the least kept images of one run, best and worst first."""
    assert run.samples is not None
    if splits.train.inputs.ndim != 4:  # rows of a table and features have no picture
        return []
    order = run.samples.sort_values(["probability", "weight", "index"], ascending=[False, False, True])
    rows = {"Most kept": order.head(GALLERY), "Least kept": order.tail(GALLERY).iloc[::-1]}
    position = {int(identity): k for k, identity in enumerate(splits.train.index.tolist())}
    return [
        {
            "title": title,
            "images": [
                {
                    "source": _png(splits.train.inputs[position[int(sample["index"])]]),
                    "label": splits.classes[int(sample["target"])],
                    "probability": float(sample["probability"]),
                    "weight": float(sample["weight"]),
                    "agrees": bool(sample.get("colour_agrees", True)),
                    "flipped": bool(sample.get("label_flipped", False)),
                }
                for sample in table.to_dict("records")
            ],
        }
        for title, table in rows.items()
    ]


def _png(image: torch.Tensor) -> str:
    """Return an image ``(channels, h, w)`` as a data address."""
    pixels = (pictures(image[None])[0] * 255).round().to(torch.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _svg(text: str) -> Markup:
    """Return a plot as an image element's source; matplotlib escapes the strings within."""
    return Markup("data:image/svg+xml;base64,") + base64.b64encode(text.encode()).decode()
