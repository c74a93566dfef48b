"""Data of a user's own, made up: patients of two hospitals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import torch
from PIL import Image
from torch import Tensor, nn

__all__ = ["PICTURES", "Means", "half", "means", "not_a_module", "patients", "write_patients", "write_pictures"]


def patients(rows: int = 240) -> pandas.DataFrame:
    """Return a table: age tells the label, dose in the hospital "south" alone; no training row is of ward "c"."""
    rng = np.random.default_rng(0)
    ill = np.arange(rows) % 2
    south = np.arange(rows) // 2 % 2
    part = np.array(["train", "train", "val", "test"])[np.arange(rows) // 8 % 4]
    ward = rng.choice(["a", "b", "c"], rows)
    ward[(ward == "c") & (part == "train")] = "a"
    return pandas.DataFrame(
        {
            "patient": [f"p{row}" for row in range(rows)],
            "age": np.round(50 + 8 * ill + rng.normal(0, 5, rows), 1),
            "dose": np.round(rng.normal(0, 1, rows) + 2 * ill * south, 3),
            "ward": ward,
            "beds": rng.choice([1, 2, 4], rows),
            "sex": np.array(["F", "M"])[np.arange(rows) // 4 % 2],
            "hospital": np.array(["north", "south"])[south],
            "part": part,
            "ill": np.array(["no", "yes"])[ill],
        }
    )


def write_patients(path: Path, rows: int = 240) -> Path:
    """Write `patients` as comma-separated text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patients(rows).to_csv(path, index=False)
    return path


PICTURES = {"table": "pictures/data.csv", "file": "picture", "target": "kind", "attributes": ("tone",), "split": "part"}
"""The settings that go with `write_pictures`, which writes into the working directory."""


def write_pictures(folder: Path = Path("pictures"), rows: int = 48) -> pandas.DataFrame:
    """Write images of 12 x 10 in folders a and b, with data.csv: a tone that mostly goes with the kind."""
    rng = np.random.default_rng(0)
    kind = np.arange(rows) % 2
    tone = np.where(np.arange(rows) // 2 % 4 == 0, 1 - kind, kind)
    part = np.array(["train", "val", "test"])[np.repeat([0, 0, 1, 2], rows // 4)]
    names = [f"{'ab'[row % 2]}/{row:03}.png" for row in range(rows)]
    for row, name in enumerate(names):
        pixels = rng.integers(0, 60, (10, 12, 3)) + 120 * kind[row]
        pixels[:, :, 0] += 60 * tone[row]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    frame = pandas.DataFrame({"picture": names, "kind": np.array(["cat", "dog"])[kind], "part": part})
    frame["tone"] = np.array(["cold", "warm"])[tone]
    frame.to_csv(folder / "data.csv", index=False)
    return frame


class Means(nn.Module):
    """A backbone: the channels' means in each quarter of the image, scaled by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images * self.scale[:, None, None], 2).flatten(1)


def means() -> nn.Module:
    """Return the backbone."""
    return Means()


def half() -> nn.Module:
    """Return a backbone that forgets to pool."""
    return nn.AvgPool2d(2)


def not_a_module() -> int:
    """Return no backbone."""
    return 3
