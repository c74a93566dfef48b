"""Sets written as files: Waterbirds' metadata.csv or CelebA's tables of attributes and partition, and the images."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from steelyard._support import _check
from steelyard._support._files import write_text
from steelyard._support._random import seed_of
from steelyard.experiments.data.corruption import uniform_flips
from steelyard.experiments.data.table import read_csv
from steelyard.experiments.errors import DataError
from studies.photographs.composition import Composition, Pool
from studies.photographs.drawing import drawn

__all__ = ["CELEBA_FOLDER", "TABLES", "WATERBIRDS_FOLDER", "write_celeba", "write_flipped", "write_waterbirds"]

WATERBIRDS_FOLDER = "waterbird_complete95_forest2water2"
CELEBA_FOLDER = "celeba"
_WATERBIRDS_TABLE = f"{WATERBIRDS_FOLDER}/metadata.csv"
TABLES = {
    "waterbirds": _WATERBIRDS_TABLE,
    "hard": _WATERBIRDS_TABLE,
    "celeba": f"{CELEBA_FOLDER}/list_attr_celeba.txt",
}
"""Where the table of each preset lies below the data root; it is written last."""

_HEAD = ("img_id", "img_filename", "y", "split", "place", "place_filename")  # as published
_MORE = ("object_filename", "object_mirrored", "place_mirrored")
_QUALITY = 95


def write_waterbirds(
    root: Path, composition: Composition, pool: Pool, seed: int, told: Callable[[int], None] = lambda done: None
) -> Path:
    """Write the set in Waterbirds' layout below `root`, and return its table, which is written last.

    Args:
        root: the data root for the recipes `waterbirds/*`.
        composition: what is drawn.
        pool: the photographs.
        seed: of all draws; the same seed and photographs give the same pixels.
        told: is told how many images are there, now and then.

    Raises:
        DataError: too few photographs, or `root` has a set already.
    """
    folder, samples = root / WATERBIRDS_FOLDER, composition.draw(pool, seed)
    table = _free(folder / "metadata.csv")
    rows: list[list[Any]] = []
    for number, sample in enumerate(samples):
        name = f"{composition.objects[sample.label]}_on_{composition.places[sample.place]}/{number + 1:05d}.png"
        _save(drawn(sample, composition), folder / name)
        published = [number + 1, name, sample.label, sample.split, sample.place, sample.background.file.name]
        mirrored = [int(sample.object_.mirrored), int(sample.background.mirrored)]
        rows.append([*published, sample.object_.file.name, *mirrored])
        told(number + 1)
    write_text(table, _csv([(*_HEAD, *_MORE), *rows]))
    return table


def write_flipped(root: Path, target: Path, share: float, seed: int) -> Path:
    """Write the set below `root` once more below `target`, with a share of the training labels flipped.

    Validation and test keep theirs. The images are the same files (hard links, or copies where there can be none), so
    features that are kept are found again. `label_flipped` is a further column.

    Raises:
        DataError: no set below `root`, or one below `target`.
    """
    source, folder = root / WATERBIRDS_FOLDER, target / WATERBIRDS_FOLDER
    wanted = _free(folder / "metadata.csv")
    table = read_csv(source / "metadata.csv", (*_HEAD, *_MORE))
    columns = {name: list(table.columns[name]) for name in (*_HEAD, *_MORE)}
    train = [row for row, split in enumerate(columns["split"]) if split == "0"]
    labels = torch.tensor([int(columns["y"][row]) for row in train])
    generator = torch.Generator().manual_seed(seed_of(seed, 1))
    flipped, chosen = uniform_flips(labels, 2, _check.in_range("share", share, low=0.0, high=1.0), generator)
    columns["label_flipped"] = ["0"] * len(columns["y"])
    for row, label, wrong in zip(train, flipped.tolist(), chosen.tolist(), strict=True):
        columns["y"][row], columns["label_flipped"][row] = str(label), str(int(wrong))
    for name in columns["img_filename"]:
        _link(source / name, folder / name)
    write_text(wanted, _csv([tuple(columns), *zip(*columns.values(), strict=True)]))
    return wanted


def write_celeba(
    root: Path, composition: Composition, pool: Pool, seed: int, told: Callable[[int], None] = lambda done: None
) -> Path:
    """Write the set in CelebA's layout below `root`; args, errors and what is returned are those of `write_waterbirds`.

    Label 1 is Blond_Hair = 1, place 1 is Male = 1; the tables are those of the authors, and the images JPEGs.
    """
    folder, samples = root / CELEBA_FOLDER, composition.draw(pool, seed)
    table = _free(folder / "list_attr_celeba.txt")
    attributes, partition = [str(len(samples)), "Blond_Hair Male"], []
    for number, sample in enumerate(samples):
        name = f"{number + 1:06d}.jpg"
        _save(drawn(sample, composition), folder / "img_align_celeba" / name)
        attributes.append(f"{name} {2 * sample.label - 1:2d} {2 * sample.place - 1:2d}")
        partition.append(f"{name} {sample.split}")
        told(number + 1)
    write_text(folder / "list_eval_partition.txt", "\n".join(partition) + "\n")
    write_text(table, "\n".join(attributes) + "\n")
    return table


def _free(table: Path) -> Path:
    """Return where a set's table is to be; DataError if there is one."""
    if os.path.lexists(table):
        raise DataError(
            f"{table} is there already; remove {table.parent} to make the set again, or name another folder"
        )
    return table


def _save(image: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    image.save(path, **({"quality": _QUALITY} if path.suffix == ".jpg" else {}))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
