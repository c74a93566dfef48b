"""Runs compared by what is known of groups: in training, in validation, or nowhere; a table for each.

What is known decides which methods there are and how a step is chosen, as in SubpopBench (Yang et al. 2023, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.compare.rows import GROUP_METRICS, Row, chosen_row
from steelyard.experiments.compare.run_groups import group_runs, labels
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import UserError
from steelyard.experiments.methods import Method
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.selection import KNOWN, criterion

__all__ = ["KNOWN_GROUPS", "allowed", "known_table", "write_known"]

KNOWN_GROUPS = "known_groups.md"
_HEADS = {
    "training": "Groups known in training and validation",
    "validation": "Groups known in validation alone",
    "nowhere": "Groups known nowhere",
}
_METRICS = ("test accuracy", *GROUP_METRICS)
_FURTHER = ("test worst-class accuracy", "test balanced accuracy", "test AUROC", "test calibration error")


def allowed(method: Method, known: str) -> bool:
    """Return whether `method`, as it is set, reads no more than is known of groups.

    Environments count as groups: in data with groups they are an attribute, and tell the groups apart.
    """
    if known == "training":
        return True
    reads = method.needs_training_groups or method.needs_environments
    return not reads and (known == "validation" or not method.needs_validation_groups)


def known_table(runs: Sequence[Run], known: str) -> Table:
    """Return the table of the methods that are allowed where groups are known as `known` says, a key of `KNOWN`.

    Figures are of the test split, at the step that `KNOWN` prefers on validation.

    Raises:
        UserError: a run has no groups on validation, or is a regression.
        RecipeError: runs of an earlier version, which have no accuracy of each class.
    """
    groups = group_runs(runs)
    rows, left = [], []
    for label, group in zip(labels(groups), groups, strict=True):
        _check_groups(group[0])
        if not allowed(group[0].recipe.method, known):
            left.append(label)
            continue
        choose = criterion(KNOWN[known], group[0].recipe.train_floor)
        places = [choose([evaluation.visible for evaluation in run.history]) for run in group]
        chosen = [run.history[place] for run, place in zip(group, places, strict=True)]
        rows.append(chosen_row(group, label, KNOWN[known], chosen))
    names = [name for name in (*_METRICS, *_FURTHER) if any(name in {**row.metrics, **row.scores} for row in rows)]
    lines = [(row.label, *(_cell(row, name) for name in names), str(len(row.seeds))) for row in rows]
    return Table((_HEADS[known], *(name.removeprefix("test ") for name in names), "seeds"), lines, _notes(known, left))


def write_known(runs: Sequence[Run], folder: Path, which: Sequence[str]) -> None:
    """Write the tables of `which`, keys of `KNOWN`, into `folder` as `KNOWN_GROUPS`."""
    write_text(folder / KNOWN_GROUPS, "\n".join(known_table(runs, known).markdown() for known in which))


def _check_groups(run: Run) -> None:
    last = run.history[-1]
    if not last.visible.validation.group_count or last.test.errors is not None:
        raise UserError(
            f"{run.directory} has no accuracies of groups on validation, so there is nothing to know of them; leave "
            "that run out, or --groups"
        )


def _cell(row: Row, name: str) -> str:
    spread = {**row.metrics, **row.scores}.get(name)
    if spread is None:
        return ""
    low, high = row.intervals.get(name, (None, None))
    return str(spread) if low is None or high is None else f"{spread} [{low:.3f}, {high:.3f}]"


def _notes(known: str, left: Sequence[str]) -> tuple[str, ...]:
    said = (
        f"Test figures at the step that {KNOWN[known]} prefers; ± over seeds, brackets a 95 % interval over test "
        f"samples. Settings are the recipes': tune them by `steelyard tune --groups {known}`."
    )
    if not left:
        return (said,)
    return (said, f"Left out, for they read groups or attributes that are not known then: {', '.join(left)}.")
