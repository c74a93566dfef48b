"""What runs in the processes that decode images.

A module of its own, imported late: unpickling a torchvision transform imports torchvision, which has to go through
`steelyard._support._torchvision`, and that import takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from steelyard._support._random import seeded
from steelyard._support._torchvision import torchvision as _torchvision  # noqa: F401  before the transform is unpickled
from steelyard.experiments.data.decoding import open_image
from steelyard.experiments.errors import DataError

__all__ = ["Decoded", "Wanted", "collate"]

Wanted = tuple[int, int]  # the row of an image, and the seed of the transform's draws


@dataclass(frozen=True)
class Decoded(Dataset[Tensor | str]):
    """Item (row, seed) is the transformed image, or the message of the error: an exception would come with the
    worker's traceback.
    """

    folder: Path
    files: tuple[str, ...]
    source: str  # the metadata file and what its lines are called, for messages
    lines: tuple[int | str, ...]
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, wanted: Wanted) -> Tensor | str:
        row, seed = wanted
        try:
            image = open_image(self.folder / self.files[row], f"{self.source} {self.lines[row]}")
        except DataError as error:
            return str(error)
        with seeded(torch.device("cpu"), seed):  # the draws are the sample's, in whichever process it is decoded
            return self.transform(image)


def collate(items: list[Tensor | str]) -> Tensor | str:
    """Return the images stacked, or the first message; of none, nothing ``(0,)``."""
    if not items:
        return torch.empty(0)
    found = [item for item in items if isinstance(item, Tensor)]
    return torch.stack(found) if len(found) == len(items) else next(item for item in items if isinstance(item, str))
