"""The page of `steelyard suspects`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from steelyard._support._text import printable
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable
from steelyard.experiments.priors.residuals import TargetNoise
from steelyard.experiments.report.templating import template_named
from steelyard.experiments.weigh.listed import listed, trusted_rows
from steelyard.experiments.weigh.page import OPEN, SUSPECTS, TEMPLATES, shown_columns
from steelyard.experiments.weigh.suspecting import Found
from steelyard.experiments.weigh.thumbnails import pictures_of

__all__ = ["render"]


def render(found: Found, data: OwnTable | OwnArrays | OwnImages, file: Path, command: str, how: str) -> str:
    """Return the page.

    Args:
        found: what was found.
        data: the user's.
        file: where all ranks are.
        command: what makes it again.
        how: a sentence on the models.
    """
    splits, order = found.splits, found.order[:SUSPECTS]
    columns = shown_columns(splits, found.table)
    names = [splits.ids[row] for row in order.tolist()]
    trusted = trusted_rows(splits, found.suspicion, clean=False)
    pictures = pictures_of(data)
    shown = listed(splits, names, order, found.judged[order], trusted, found.table, columns, pictures)
    share = found.noise.share
    return template_named("suspects.html.j2", TEMPLATES).render(
        title=printable(Path(data.source).name),
        target=data.target,
        count=len(splits.train),
        share=share,
        seem=round(share * len(splits.train)),
        planted=found.planted,
        notes=splits.notes,
        classes=splits.classes,
        by_class=_by_class(found),
        scatter=_scatter(found),
        suspects=shown,
        open=OPEN,
        columns=columns,
        all_columns=0 if splits.encoding is None else len(splits.encoding.columns),
        file=file,
        command=command,
        how=how,
    )


def _by_class(found: Found) -> list[dict[str, Any]]:
    """Return a line for each class: rows, how many seem wrong, what its rows are judged to be; none of a regression."""
    labels, classes = found.splits.train.targets, found.splits.classes
    lines = []
    for code, name in enumerate(classes):
        member = labels == code
        judged = torch.bincount(found.judged.argmax(1)[member], minlength=len(classes)).double() / int(member.sum())
        wrong = float((1 - found.noise.right[member].double()).sum())
        lines.append({"name": name, "count": int(member.sum()), "wrong": wrong, "judged": judged.tolist()})
    return lines


def _scatter(found: Found) -> float | None:
    """Return how far right targets of a regression scatter about the predictions, in the target's own unit."""
    scale = found.splits.target_scale
    return scale[1] * found.noise.scale if scale is not None and isinstance(found.noise, TargetNoise) else None
