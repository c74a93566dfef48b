"""CIFAR-10 under a data root, from an image folder or in torchvision's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from steelyard.experiments.data.decoding import open_image
from steelyard.experiments.errors import DataError

__all__ = ["read_cifar"]

_FOLDERS = ("cifar10", "cifar10-imagefolder", ".")
_ARCHIVE = "cifar-10-batches-py"
_LAYOUT = (
    "looked for {train,test}/CLASS/*.{jpg,png} in cifar10/, cifar10-imagefolder/ and the root itself, "
    f"and for {_ARCHIVE}/ (torchvision's)"
)
_SIZE = 32


def read_cifar(
    root: Path | None, part: Literal["train", "test"], classes: Sequence[str], download: bool = False
) -> tuple[UInt8[Tensor, "_ 3 32 32"], ...]:
    """Return the images of some classes of CIFAR-10, a tensor for each class.

    Images of a folder come in the order of their names, those of torchvision's files in their order there. (torchvision
    unpickles these files, but only ones whose MD5 is the published one.)

    Args:
        root: the data root; required.
        part: CIFAR-10's training or test images.
        classes: names of classes ("automobile", "truck", ...).
        download: let torchvision download CIFAR-10 to `root` if it is there in neither layout.

    Raises:
        DataError: no root, nothing there, a file is damaged or not 32 x 32.
    """
    if root is None:
        raise DataError(f"CIFAR-10 needs a data root (--data-root, or STEELYARD_DATA): {_LAYOUT}")
    for folder in _FOLDERS:
        if all((root / folder / part / name).is_dir() for name in classes):
            return tuple(_folder(root / folder / part / name) for name in classes)
    if not download and not (root / _ARCHIVE).is_dir():
        raise DataError(
            f"CIFAR-10 is not under {root}: {_LAYOUT}. Put it there, or let torchvision fetch it with --download."
        )
    return _archive(root, part, classes, download)


def _folder(folder: Path) -> Tensor:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise DataError(f"{folder} holds no .jpg or .png files")
    return torch.from_numpy(np.stack([_decode(file) for file in files])).permute(0, 3, 1, 2).contiguous()


def _decode(file: Path) -> np.ndarray:
    pixels = np.asarray(open_image(file))
    if pixels.shape != (_SIZE, _SIZE, 3):
        raise DataError(f"{file} is {pixels.shape[1]} x {pixels.shape[0]}, CIFAR-10's images are 32 x 32")
    return pixels


def _archive(root: Path, part: str, classes: Sequence[str], download: bool) -> tuple[Tensor, ...]:
    from steelyard._support._torchvision import torchvision

    try:
        data = torchvision.datasets.CIFAR10(str(root), train=part == "train", download=download)
    except (OSError, RuntimeError) as error:
        raise DataError(f"CIFAR-10 in {root / _ARCHIVE} cannot be read: {error}; {_LAYOUT}") from error
    images, labels = torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)
    return tuple(images[labels == data.class_to_idx[name]].contiguous() for name in classes)
