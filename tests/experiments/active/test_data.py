"""Four-Moons and the image data sets: sizes, noise, disjoint splits, files in the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steelyard.experiments.active.images import CIFAR10, MNIST, SVHN, Digits
from steelyard.experiments.active.moons import NOISY_MOON, FourMoons
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.errors import DataError


def test_four_moons_has_the_sizes_of_the_paper() -> None:
    splits = FourMoons().load(seed=0)
    noisy = splits.facts["noisy"]
    assert len(splits.train) == 30_000
    assert float(noisy.double().mean()) == pytest.approx(0.7)
    assert torch.bincount(splits.test.targets).tolist() == [750] * 4
    # the clean moons keep their labels; one lies to the right of the other
    clean = splits.train.take(~noisy)
    assert torch.bincount(clean.targets, minlength=4).tolist() == [0, 3000, 3000, 3000]
    assert bool(((clean.inputs[:, 0] > 2.45) == (clean.targets >= 2)).double().mean() > 0.999)
    shares = torch.bincount(splits.train.targets[noisy], minlength=4) / int(noisy.sum())
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_the_copies_of_a_noisy_point_share_its_label() -> None:
    splits = FourMoons(samples=400, copies=5).load(seed=3)
    rows = splits.train.inputs[splits.facts["noisy"]]
    points, which, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    assert counts.tolist() == [5] * 100
    labels = splits.train.targets[splits.facts["noisy"]]
    assert all(len(labels[which == k].unique()) == 1 for k in range(len(points)))


def test_validation_is_labelled_like_training_and_the_test_by_the_moons() -> None:
    splits = FourMoons(samples=8000).load(seed=0)
    left_above = (splits.validation.inputs[:, 0] < 0.2) & (splits.validation.inputs[:, 1] > 0.8)
    assert len(splits.validation.targets[left_above].unique()) == 4
    left_above = (splits.test.inputs[:, 0] < 0.2) & (splits.test.inputs[:, 1] > 0.8)
    assert splits.test.targets[left_above].unique().tolist() == [NOISY_MOON]
    assert not torch.equal(FourMoons(samples=8000).load(seed=1).test.inputs, splits.test.inputs)


def parts(splits: Splits) -> list[torch.Tensor]:
    return [part.inputs for part in (splits.train, splits.validation, splits.test)]


def test_digits_are_dealt_without_overlap() -> None:
    splits = Digits().load(seed=1)
    assert [len(part) for part in parts(splits)] == pytest.approx([1213, 135, 449], abs=1)
    from sklearn.datasets import load_digits

    images = torch.cat([part.flatten(1) for part in parts(splits)])
    expected = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    order = [sorted(map(tuple, rows.tolist())) for rows in (images, expected)]
    assert order[0] == order[1]
    few = Digits(samples=100).load(seed=1)
    assert torch.equal(few.train.inputs, splits.train.inputs[:100])
    assert torch.equal(few.test.inputs, splits.test.inputs)


def test_mnist_from_its_files(tmp_path: Path, mnist_writer: Callable[..., Path]) -> None:
    splits = MNIST(validation_share=0.25).load(seed=0, root=mnist_writer(tmp_path, True))
    assert [len(part) for part in parts(splits)] == [180, 60, 40]
    assert splits.train.inputs.shape[1] == 1
    drawn = (splits.train.inputs.flatten(1).amax(1) * 255 / 10).round().long() - 1  # what the writer drew
    assert torch.equal(drawn, splits.train.targets)


def test_cifar_from_an_image_folder(tmp_path: Path) -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for part, count in (("train", 4), ("test", 1)):
        for value, name in enumerate(names):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(np.full((32, 32, 3), 10 * value, np.uint8)).save(folder / f"{k}.png")
    splits = CIFAR10(validation_share=0.25).load(seed=0, root=tmp_path)
    assert [len(part) for part in parts(splits)] == [30, 10, 10]
    assert torch.equal((splits.train.inputs[:, 0, 0, 0] * 25.5).round().long(), splits.train.targets)


def test_missing_files_name_the_layout(tmp_path: Path) -> None:
    for data in (MNIST(), CIFAR10(), SVHN()):
        for root in (None, tmp_path):
            with pytest.raises(DataError, match="looked for"):
                data.load(seed=0, root=root)
    with pytest.raises(ValueError, match="validation_share"):
        MNIST(validation_share=0.0)
