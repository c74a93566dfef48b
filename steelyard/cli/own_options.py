"""The options of `weigh` and `suspects` that name the user's data, and what is wrong with them by themselves.

Nothing here imports torch: what cannot be right is said before its seconds of import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from steelyard._support._errors import UserError

__all__ = ["Known", "Network", "Task", "check_source", "known_of"]

Task: TypeAlias = Literal["auto", "classification", "regression"]
Known: TypeAlias = Literal["nothing", "clean rows", "groups", "groups on validation", "environments"]


@dataclass(frozen=True)
class Network:
    """What is told of images, and of what makes their features; the fields are options of `weigh`."""

    images: Path | None
    file: str
    backbone: str
    weights: str
    size: int
    allow_code: bool


def known_of(clean: Path | None, groups: Sequence[str], groups_on: str, environments: str) -> Known:
    """Return what the user has; UserError where two things are told."""
    told: dict[str, Known] = {}
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


def check_source(table: Path, target: str, network: Network) -> None:
    """Raise UserError where the data that the options name cannot be, or would run code that nobody allowed.

    Args:
        table: a table, arrays, or a folder of images.
        target: the column.
        network: of images.
    """
    if not (table.exists() or table.suffix):
        raise UserError(f"there is no file or folder {table} (paths begin in the working directory, {Path.cwd()})")
    if not target and not table.is_dir():
        raise UserError("--target is missing: the column of the class, or of the number")
    images = table.is_dir() or network.images is not None
    if network.backbone and not images:
        raise UserError(f"--backbone {network.backbone} is for images: name their folder by --images, or give a folder")
    if images and not network.backbone:
        raise UserError("--backbone is missing: the network that makes features of the images, such as resnet18")
    if ":" in network.backbone and not network.allow_code:
        raise UserError(f"--backbone {network.backbone} runs code of yours; say --allow-code, too")
