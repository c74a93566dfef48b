"""The user's data as options of `weigh` and `suspects` name them: rows of a table, arrays, images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from steelyard._support._errors import UserError
from steelyard.cli.own_options import Network, Task
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable, Splits
from steelyard.experiments.data.label_columns import NotClasses
from steelyard.experiments.errors import DataError
from steelyard.experiments.models.backbone import Backbone

__all__ = [
    "ARRAYS",
    "Own",
    "check_environments",
    "data_of",
    "loaded",
    "recognised",
    "said_in_options",
]

_FIELDS = "target|id|split|features|drop|numeric|categorical|missing|separator|clean"  # those that are options, too
ARRAYS = (".safetensors", ".npy")
Own: TypeAlias = OwnTable | OwnArrays | OwnImages


def data_of(
    table: Path,
    clean: Path | None,
    network: Network,
    columns: Mapping[str, tuple[str, ...]],
    missing: Literal["category", "refuse"],
    separator: str,
    task: Task,
    shared: dict[str, object],
) -> Own:
    """Return the data set that the options name, which `check_source` passed; UserError where they do not fit.

    Args:
        table: a table, arrays, or a folder of images.
        clean: rows or images whose labels are right.
        network: of images.
        columns: the options features, drop, numeric and categorical.
        missing: of a table's features.
        separator: of a line's values.
        task: see `loaded`.
        shared: settings of `Labelled`.
    """
    shared = {**shared, "task": "regression" if task == "regression" else "classification"}
    own = {"clean": "" if clean is None else str(clean), "separator": separator}
    given = [name for name, names in columns.items() if names]
    try:
        if table.is_dir() or network.images is not None:
            if given:
                raise ValueError(f"--{given[0]} is for tables, and these are images")
            return _images(table, network, {**shared, **own})
        if table.suffix not in ARRAYS:
            return OwnTable(file=str(table), missing=missing, **own, **columns, **shared)  # type: ignore[arg-type]
        given = [*given, *["clean"] * (clean is not None)]
        if told := next((name for name in given if name != "features"), None):
            raise ValueError(f"--{told} is for tables, and {table} holds arrays, which have no columns")
        return _arrays(table, columns["features"], shared)
    except ValueError as error:
        raise UserError(str(error)) from error


def _images(table: Path, network: Network, shared: dict[str, object]) -> OwnImages:
    backbone = Backbone(network.backbone, network.weights) if network.weights else Backbone(network.backbone)
    where = {"folder": str(table)}
    if network.images is not None:
        where = {"folder": str(network.images), "table": str(table), "file": network.file}
    return OwnImages(**where, size=network.size, backbone=backbone, **shared)  # type: ignore[arg-type]


def _arrays(table: Path, features: tuple[str, ...], shared: dict[str, object]) -> OwnArrays:
    if table.suffix == ".npy":
        return OwnArrays(features=str(table), **shared)  # type: ignore[arg-type]
    if len(features) != 1:
        raise ValueError(f"{table} holds arrays: name the one of the inputs, as in --features x")
    return OwnArrays(file=str(table), features=features[0], **shared)  # type: ignore[arg-type]


def loaded(data: Own, load: Callable[[Own], Splits], task: Task) -> tuple[Own, Splits]:
    """Return the data set and its samples; with the task "auto" it is a regression where the target is no class."""
    try:
        return data, load(data)
    except NotClasses:
        if task != "auto":
            raise
    data = replace(data, task="regression")
    return data, load(data)


def recognised(data: Own, splits: Splits, task: Task) -> list[str]:
    """Return the sentence that says so where "auto" made a regression of the target."""
    if task != "auto" or splits.target_scale is None:
        return []
    return [f"{data.target} holds numbers: a regression (--task classification would say otherwise)."]


def check_environments(data: Own, splits: Splits) -> None:
    """Raise UserError where environments are told and all training rows are of one."""
    if data.environment and len(splits.environments) < 2:
        raise UserError(
            f"{data.source}, column {data.environment!r}: all training rows are of the environment "
            f"{splits.environments[0]!r}, and what is sought is what holds in several; name a column with two values "
            "or more, or leave --environments out"
        )


@contextmanager
def said_in_options() -> Iterator[None]:
    """Name options of the command line where an error names a recipe's fields."""
    try:
        yield
    except DataError as error:
        text = re.sub(r'data\.missing = "category"', "--missing category", str(error))
        text = text.replace("data.groups_on = 'validation'", "--groups-on validation")
        text = re.sub(r'data\.separator = "(.*?)"', r"--separator '\1'", text)
        text = re.sub(r"data\.(file|table|folder): ", "", text)
        text = re.sub(r"(?<=in a table)(, data\.table| \(data\.table\))", ", with --images FOLDER", text)
        text = re.sub(r"list them as `classes`, or set data\.task = 'regression'", "or say --task regression", text)
        raise DataError(re.sub(rf"(?<![\w./\\-])data\.({_FIELDS})\b", r"--\1", text)) from error
