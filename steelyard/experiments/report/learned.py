"""The report's part about learned weights: which samples a method kept, and how it came to keep them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pandas
import torch
from markupsafe import Markup
from PIL import Image
from torch.nn import functional

from steelyard.experiments.compare import plots
from steelyard.experiments.data import OwnData, Splits, called
from steelyard.experiments.data.splits import pictures
from steelyard.experiments.errors import DataError, RunError
from steelyard.experiments.report.found_groups import groups_section
from steelyard.experiments.report.priors import prior_section
from steelyard.experiments.runs.folder import REMEDY, RESULT
from steelyard.experiments.runs.run import Run
from steelyard.experiments.runs.user_code import code_of

__all__ = ["learned", "svg_source"]

FACTS = {
    "colour_agrees": ("Colour and label", {True: "colour agrees with the label", False: "colour disagrees"}),
    "digit_agrees": ("Digit and label", {True: "digit agrees with the label", False: "digit disagrees"}),
    "label_flipped": ("Label noise", {True: "label flipped by noise", False: "label right"}),
    "label_corrupted": ("Corrupted labels", {True: "label corrupted", False: "label left as it was"}),
}
_SIDE = 64  # pixels of an image of the gallery, at most
GALLERY = 24  # images in each of the two rows of the gallery


def learned(group: list[Run], name: str, data_root: Path | None) -> dict[str, Any]:
    """Return what a method that learns sample weights learned: figures and plots over all seeds, one seed's images."""
    samples = pandas.concat([run.samples for run in group if run.samples is not None])
    facts = [
        {
            "title": title,
            "groups": [_kept(samples, fact, value, called) for value, called in names.items()],
            "plot": svg_source(plots.distributions(samples, fact, names)),
        }
        for fact, (title, names) in FACTS.items()
        if fact in samples
    ]
    first = group[0]
    groups = groups_section(first, FACTS)
    high = None if groups is None or groups["refused"] else groups["high"]
    try:
        gallery, missing = _gallery(first, _data(first, data_root), high) if _has_pictures(first) else [], ""
    except DataError as error:
        gallery, missing = [], str(error)
    return {
        "name": name,
        "seed": first.recipe.seed,
        "budget": float(samples["probability"].sum()) / len(group),
        "count": len(samples) // len(group),
        "facts": facts,
        "trained": [
            (title, ", ".join(ways))
            for title in ("inner runs", "nets that score")
            if (ways := dict.fromkeys(str(run.environment[title]) for run in group if title in run.environment))
        ],
        "prior": prior_section(group, FACTS),
        "groups": groups,
        "groups_plot": None if groups is None else svg_source(groups["plot"]),
        "steps": _outer_steps(group, len(samples) // len(group)),
        "colours": "colour_agrees" in samples,
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
    return svg_source(plots.outer_steps(seeds, count)) if all(seeds.values()) else None


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


def _has_pictures(run: Run) -> bool:
    """Return whether the data may be images. The user's own are not opened for a page: a run may be a stranger's."""
    return not isinstance(run.recipe.data, OwnData) and not code_of(run.recipe)


def _data(run: Run, root: Path | None) -> Splits:
    """Return the run's data; DataError where they are not there, or its settings do not fit them."""
    try:
        return run.recipe.data.load(run.recipe.seed, root)
    except (ValueError, RuntimeError, LookupError, MemoryError) as error:
        raise DataError(f"{called(run.recipe.data)} cannot be loaded as the run's recipe says: {error}") from error


def _gallery(run: Run, splits: Splits, high: list[bool] | None = None) -> list[dict[str, Any]]:
    """Return the most and the least kept images of one run, best and worst first; of found groups some of each."""
    assert run.samples is not None
    if splits.train.inputs.ndim != 4:  # rows of a table and features have no picture
        return []
    order = run.samples.sort_values(["probability", "weight", "index"], ascending=[False, False, True])
    rows = {"Most kept": order.head(GALLERY), "Least kept": order.tail(GALLERY).iloc[::-1]}
    if high is not None:
        rows |= {"Found group: above the cut": _some(run.samples[high])}
        rows |= {"The rest: below the cut": _some(run.samples[[not one for one in high]])}
    position = {int(identity): k for k, identity in enumerate(splits.train.index.tolist())}
    shown = pandas.concat(rows.values())
    if not (shown["index"].isin(list(position)) & (shown["target"] < len(splits.classes))).all():
        raise RunError(
            f"{run.directory / RESULT} is not of the data that the run's recipe names: it has samples or classes that "
            f"these do not have; {REMEDY}"
        )
    return [
        {
            "title": title,
            "images": [
                {
                    "source": _png(_picture(splits, position[int(sample["index"])])),
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


def _some(samples: pandas.DataFrame) -> pandas.DataFrame:
    """Return some samples, drawn at random but the same ones each time."""
    return samples.sample(min(GALLERY, len(samples)), random_state=0)


def _picture(splits: Splits, position: int) -> torch.Tensor:
    """Return a training image ``(channels, h, w)``, a large one made small."""
    image = splits.train.take(torch.tensor([position])).inputs
    side = max(image.shape[2:])
    if side > _SIDE:
        image = functional.interpolate(image, scale_factor=_SIDE / side, mode="area")
    return image[0]


def _png(image: torch.Tensor) -> str:
    """Return an image ``(channels, h, w)`` as a data address."""
    pixels = (pictures(image[None])[0] * 255).round().to(torch.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def svg_source(text: str) -> Markup:
    """Return a plot as an image element's source; matplotlib escapes the strings within."""
    return Markup("data:image/svg+xml;base64,") + base64.b64encode(text.encode()).decode()
