"""Runs in groups, the seeds of one recipe together, and what to call the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.run import Run

__all__ = ["group_runs", "labels", "short"]


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs grouped by recipe (all of it but the seed) and by the bytes of the user's files.

    Groups stand in order of first appearance, their runs by seed.

    Raises:
        RunError: two of them have the same settings and the same seed.
    """
    groups: dict[tuple[str, object, str], list[Run]] = {}
    for run in runs:
        files = str(sorted(run.environment.get("files", {}).items()))
        group = groups.setdefault((run.name, replace(run.recipe, seed=0), files), [])
        twin = next((other for other in group if other.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise RunError(
                f"{twin.directory} and {run.directory} are the same run of {run.name}, seed {run.recipe.seed}: "
                "name one of them, or the spread over seeds is wrong"
            )
        group.append(run)
    return [sorted(group, key=lambda run: run.recipe.seed) for group in groups.values()]


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a label for each group, no two alike: the recipe's name and, of its variants, the overrides that differ.

    Variants that no override tells apart (a recipe file that was edited between runs) are numbered.
    """
    variants: dict[str, list[set[str]]] = {}
    for group in groups:
        variants.setdefault(group[0].name, []).append(set(group[0].overrides))
    made: list[str] = []
    for group in groups:
        shared = set.intersection(*variants[group[0].name])
        own = [_brief(override) for override in dict.fromkeys(group[0].overrides) if override not in shared]
        label = " ".join([group[0].name, *own])
        count = sum(other == label or other.startswith(f"{label} (") for other in made)
        made.append(f"{label} ({count + 1})" if count else label)
    return made


def _brief(override: str) -> str:
    """Return an override with the last two parts of its field: method.training.steps=4 -> training.steps=4."""
    field, equals, value = override.partition("=")
    return ".".join(field.split(".")[-2:]) + equals + value


def short(names: Sequence[str], dataset: str) -> list[str]:
    """Return labels of one data set's groups for where its name is given already: without it, if that is no loss."""
    brief = [name.removeprefix(f"{dataset}/") for name in names]
    return [one if brief.count(one) == 1 else name for one, name in zip(brief, names, strict=True)]
