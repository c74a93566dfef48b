"""The page of `steelyard suspects`."""

from __future__ import annotations

from pathlib import Path

import torch

from steelyard._support._text import printable
from steelyard.experiments.data import OwnTable
from steelyard.experiments.report.templating import template_named
from steelyard.experiments.weigh.listed import listed, trusted_rows
from steelyard.experiments.weigh.page import OPEN, SUSPECTS, TEMPLATES, shown_columns
from steelyard.experiments.weigh.suspecting import Found

__all__ = ["render"]


def render(found: Found, data: OwnTable, file: Path, command: str, how: str) -> str:
    """Return the page.

    Args:
        found: what was found.
        data: the table.
        file: where all ranks are.
        command: what makes it again.
        how: a sentence on the models.
    """
    splits, order = found.splits, found.order[:SUSPECTS]
    columns = shown_columns(splits, found.table)
    names = [splits.ids[row] for row in order.tolist()]
    trusted = trusted_rows(splits, found.suspicion, clean=False)
    shown = listed(splits, names, order, found.scores.probabilities[order], trusted, found.table, columns)
    labels, predicted = splits.train.targets, found.scores.probabilities.argmax(1)
    by_class = []
    for code, name in enumerate(splits.classes):
        member = labels == code
        judged = torch.bincount(predicted[member], minlength=len(splits.classes)).double() / int(member.sum())
        wrong = float((1 - found.noise.right[member].double()).sum())
        by_class.append({"name": name, "count": int(member.sum()), "wrong": wrong, "judged": judged.tolist()})
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
        by_class=by_class,
        suspects=shown,
        open=OPEN,
        columns=columns,
        all_columns=0 if splits.encoding is None else len(splits.encoding.columns),
        file=file,
        command=command,
        how=how,
    )
