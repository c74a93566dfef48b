"""A folder of images for each class, and a tint that misleads: MAPLE keeps the images that contradict it.

    python examples/image_folder.py [FOLDER]

The script writes scikit-learn's digits as PNG files, `images/low/...` (0 to 4) and `images/high/...` (5 to 9). Two
cameras took them, which the file's name says. A red tint goes with "low" in 95 % of the images of camera a and in 80 %
of camera b's; in the test it goes with "high". A quarter of the labels is wrong, so the tint pays more than the shape.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from steelyard import Batch, InnerRun, Maple, Sqrt, VREx, WeightedLoss

CLASSES, CAMERAS = ("low", "high"), ("a", "b")
AGREES = {"a": 0.95, "b": 0.8, "test": 0.1}


def write_images(folder: Path) -> None:
    """Write `folder`/CLASS/CAMERA_NUMBER_TINT.png, 8 x 8 pixels each."""
    draws = np.random.default_rng(0)
    pixels, digits = load_digits(return_X_y=True)
    for number, (image, digit) in enumerate(zip(pixels, digits, strict=True)):
        camera = ("a", "b", "a", "b", "test")[number % 5]
        label = int((digit >= 5) ^ (draws.random() < 0.25))
        tint = label ^ int(draws.random() > AGREES[camera])  # the channel that is bright: 0 red, 1 green
        coloured = np.zeros((8, 8, 3), dtype=np.uint8)
        coloured[:, :, tint] = image.reshape(8, 8) * 15.9
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(coloured).save(folder / CLASSES[label] / f"{camera}_{number:04}_{tint}.png")


def read_images(folder: Path, cameras: tuple[str, ...]) -> tuple[Batch, torch.Tensor]:
    """Return the images of some cameras with class and environment, and whether each one's tint agrees."""
    files = sorted(file for file in folder.glob("*/*.png") if file.stem.split("_")[0] in cameras)
    inputs = torch.stack([torch.from_numpy(np.asarray(Image.open(file)).astype("float32")) / 255 for file in files])
    targets = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    environment = torch.tensor([cameras.index(file.stem.split("_")[0]) for file in files])
    tint = torch.tensor([int(file.stem.split("_")[2]) for file in files])
    return Batch.of(inputs[:, :, :, :2].flatten(1), targets, environment=environment), tint == targets


def main(folder: str | None = None) -> dict[str, float]:
    """Write the images, learn which to keep, print what came out and return it."""
    with tempfile.TemporaryDirectory() as temporary:
        write_images(place := Path(folder or temporary) / "images")
        (train, agrees), (test, _) = read_images(place, CAMERAS), read_images(place, ("test",))
    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    inner = InnerRun(lambda: torch.nn.Linear(128, 2), partial(torch.optim.Adam, lr=0.02), objective, steps=60)
    result = Maple(inner, Sqrt(VREx()), budget=0.3, folds=2, steps=20).fit(train)

    def accuracy(weight: torch.Tensor) -> float:
        model, _ = inner(train, weight)
        return float((model(test.inputs).argmax(1) == test.targets).double().mean())

    figures = {
        "keep-probability where the tint agrees": float(result.probabilities[agrees].mean()),
        "keep-probability where it contradicts": float(result.probabilities[~agrees].mean()),
        "test accuracy of plain training": accuracy(torch.ones(len(train))),
        "test accuracy under the weights": accuracy(result.expected_weights),
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:])
