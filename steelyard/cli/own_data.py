"""The user's data as options of `weigh` and `suspects` name them: rows of a table, arrays, images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from steelyard._support._errors import UserError
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable
from steelyard.experiments.errors import DataError
from steelyard.experiments.models.backbone import Backbone
from steelyard.experiments.weigh.plan import Knowledge

__all__ = ["ARRAYS", "images_of", "known_of", "rows_of", "said_in_options"]

ARRAYS = (".safetensors", ".npy")


def known_of(clean: Path | None, groups: Sequence[str], groups_on: str, environments: str) -> Knowledge:
    """Return what the user has; UserError where two things are told."""
    told: dict[str, Knowledge] = {}
    if clean is not None:
        told["--clean"] = "clean rows"
    if groups:
        told["--groups"] = "groups on validation" if groups_on == "validation" else "groups"
    if environments:
        told["--environments"] = "environments"
    if len(told) > 1:
        raise UserError(f"{' and '.join(told)} ask for different methods: give one of them")
    if groups_on == "validation" and not groups:
        raise UserError("--groups-on validation needs --groups: the columns that make the groups")
    return next(iter(told.values()), "nothing")


def rows_of(
    table: Path,
    features: tuple[str, ...],
    clean: Path | None,
    drop: tuple[str, ...],
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    missing: Literal["category", "refuse"],
    separator: str,
    shared: dict[str, object],
) -> OwnTable | OwnArrays:
    """Return the data set that the options name; UserError where they do not fit each other."""
    try:
        if table.suffix not in ARRAYS:
            return OwnTable(
                file=str(table),
                clean="" if clean is None else str(clean),
                features=features,
                drop=drop,
                numeric=numeric,
                categorical=categorical,
                missing=missing,
                separator=separator,
                **shared,  # type: ignore[arg-type]
            )
        if clean is not None or drop or numeric or categorical:
            raise ValueError(
                f"{table} holds arrays, which have no columns: --clean, --drop and the like are for tables"
            )
        if table.suffix == ".npy":
            return OwnArrays(features=str(table), **shared)  # type: ignore[arg-type]
        if len(features) != 1:
            raise ValueError(f"{table} holds arrays: name the one of the inputs, as in --features x")
        return OwnArrays(file=str(table), features=features[0], **shared)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error


def images_of(
    table: Path,
    folder: Path | None,
    file: str,
    backbone: tuple[str, str, int],
    separator: str,
    shared: dict[str, object],
    *,
    allow_code: bool,
) -> OwnImages:
    """Return the images that the options name; UserError where they do not fit each other."""
    model, weights, size = backbone
    if not model:
        raise UserError("--backbone is missing: the network that makes features of the images, such as resnet18")
    try:
        network = Backbone(model, weights) if weights else Backbone(model)
        where: dict[str, object] = {"folder": str(table)}
        if folder is not None:
            where = {"folder": str(folder), "table": str(table), "file": file, "separator": separator}
        data = OwnImages(**where, size=size, backbone=network, **shared)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error
    if data.code and not allow_code:
        raise UserError(f"--backbone {model} runs code of yours; say --allow-code, too")
    return data


@contextmanager
def said_in_options() -> Iterator[None]:
    """Name options of the command line where an error names a recipe's fields."""
    try:
        yield
    except DataError as error:
        text = re.sub(r'data\.missing = "category"', "--missing category", str(error))
        text = re.sub(r'data\.separator = "(.*?)"', r"--separator '\1'", text)
        text = re.sub(r"data\.file: ", "", text)
        text = re.sub(r"list them as `classes`, or set data\.task = 'regression'", "this command classifies", text)
        raise DataError(re.sub(r"\bdata\.(\w+)", r"--\1", text)) from error
