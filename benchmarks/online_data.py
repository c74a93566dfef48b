"""CIFAR-10 for `benchmarks.online`: features of a frozen net or small pixels, wrong labels, long tails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from steelyard.bilevel import Batch

__all__ = ["COUNTS", "NOISES", "corrupted", "extracted"]

COUNTS = {
    "few": {"train": 3000, "clean": 500, "test": 1500},
    "all": {"train": 49_000, "clean": 1000, "test": 10_000},
    "pixels": {"train": 2000, "clean": 500, "test": 2000},
}
NOISES = ("uniform", "flip", "long tail")
_WRONG, _TAIL = 0.4, 0.01


def extracted(root: Path, cache: Path, images: str) -> dict[str, Tensor]:
    """Return standardised inputs and labels of the images; they are computed once, and kept in `cache`.

    Args:
        root: where ``cifar10/{train,test}/CLASS/*`` lies.
        cache: a safetensors file.
        images: a name of `COUNTS`: which images, and whether features of them or pixels.
    """
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(_read(root, COUNTS[images], _small if images == "pixels" else _features()), cache)
    found = load_file(cache)
    train = found["train"].float()
    over = (0, 2, 3) if train.ndim == 4 else (0,)
    centre, spread = train.mean(over, keepdim=True), train.std(over, keepdim=True) + 1e-6
    return {name: (one - centre) / spread if one.is_floating_point() else one for name, one in found.items()}


def _read(root: Path, counts: dict[str, int], inputs: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return inputs in 16 bits and labels of the first images of each class, in random order."""
    found: dict[str, Tensor] = {}
    random = numpy.random.RandomState(0)
    for part, folder in (("train", "train"), ("clean", "train"), ("test", "test")):
        each, first = counts[part] // 10, counts["train"] // 10 if part == "clean" else 0
        rows, labels = [], []
        for label, kind in enumerate(sorted((root / "cifar10" / folder).iterdir())):
            paths = sorted(kind.iterdir())[first : first + each]
            pixels = torch.stack([torch.from_numpy(numpy.asarray(Image.open(path).convert("RGB"))) for path in paths])
            images = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
            rows += [inputs(some).half() for some in images.split(100)]
            labels.append(torch.full((each,), label))
        order = torch.from_numpy(random.permutation(10 * each))
        found[part], found[f"{part}_labels"] = torch.cat(rows)[order].contiguous(), torch.cat(labels)[order]
    return found


def _small(images: Tensor) -> Tensor:
    """Return means of 2 x 2 pixels."""
    return F.avg_pool2d(images, 2)


def _features() -> Callable[[Tensor], Tensor]:
    """Return the frozen net: 1,280 features of an image at 64 x 64."""
    from studies.photographs.backbone import whole

    network = whole().eval().network.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def features(images: Tensor) -> Tensor:
        large = F.interpolate(images, (64, 64), mode="bilinear", align_corners=False)
        with torch.inference_mode():
            found: Tensor = network.extract_features(large.to(memory_format=torch.channels_last)).mean((2, 3))
            return found.clone()

    return features


def corrupted(data: dict[str, Tensor], noise: str, seed: int) -> tuple[Batch, Tensor]:
    """Return the training samples of a noise, and which labels are wrong ``(n,)``.

    "uniform": 40 % of the labels become another one, drawn uniformly; "flip": 40 % become that of one other class, the
    same for all of a class; "long tail": the last class has a hundredth of the first one's samples.
    """
    random = numpy.random.RandomState(seed)
    labels = data["train_labels"]
    if noise == "long tail":
        kept = _long_tail(labels, random)
        return Batch.of(data["train"][kept], labels[kept]), torch.zeros(len(kept), dtype=torch.bool)
    wrong = torch.from_numpy(random.rand(len(labels)) < _WRONG)
    shift = random.randint(1, 10, len(labels)) if noise == "uniform" else random.randint(1, 10, 10)[labels.numpy()]
    return Batch.of(data["train"], torch.where(wrong, (labels + torch.from_numpy(shift)) % 10, labels)), wrong


def _long_tail(labels: Tensor, random: numpy.random.RandomState) -> Tensor:
    most = int((labels == 0).sum())
    counts = [max(1, round(most * _TAIL ** (label / 9))) for label in range(10)]
    kept = torch.cat([(labels == label).nonzero()[:count, 0] for label, count in enumerate(counts)])
    return kept[torch.from_numpy(random.permutation(len(kept)))]
