"""CIFAR-MNIST from both layouts of CIFAR-10."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from steelyard._support._torchvision import torchvision
from steelyard.experiments.data import CIFARMNIST, Splits
from steelyard.experiments.data.cifar import read_cifar
from steelyard.experiments.data.cifar_mnist import stack
from steelyard.experiments.errors import DataError
from tests.experiments.conftest import write_mnist
from tests.support.layouts import REAL_ROOT, write_cifar_archive, write_cifar_folder

# the tiny MNIST has 24 zeros and 24 ones to train with, 4 and 4 for the test
SIZES = {"train_size": 14, "validation_size": 4, "test_size": 4}
TINY = CIFARMNIST(train_agreements=(1.0, 0.5), test_agreement=0.0, **SIZES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_mnist(tmp_path_factory.mktemp("data"))
    write_cifar_folder(root)
    return root


def pixels(splits: Splits) -> list[torch.Tensor]:
    """The parts' images as bytes again, by the statistics that the padding (0) and one known pixel give."""
    train = splits.train.inputs
    low = train.amin((0, 2, 3), keepdim=True)  # the padding
    # the photographs' plain pixels are 40 (automobile) and 60 (truck), 41 and 61 in the test images
    plain = train[:, :, 40, 5]
    scale = (60 - 40) / (plain.amax(0) - plain.amin(0)).reshape(1, 3, 1, 1)
    return [((part.inputs - low) * scale).round() for part in (splits.train, splits.validation, splits.test)]


def test_the_construction(root: Path) -> None:
    splits = TINY.load(0, root)
    assert splits.train.inputs.shape == (28, 3, 64, 32)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [28, 8, 4]
    for part, found in zip(("train", "validation", "test"), pixels(splits), strict=True):
        batch = getattr(splits, part)
        digit = (found[:, 0, 16, 16] / 10).long() - 1  # the tiny MNIST's pixels are 10 (1 + digit)
        kind = (found[:, 0, 40, 5] >= 60).long()
        assert torch.bincount(kind).tolist() == [len(batch) // 2] * 2
        assert bool((found[:, :, :2] == 0).all())  # the padding
        assert bool((found[:, :, 40, 5] % 20 == (part != "train")).all())  # photographs of the right part
        if part == "test":
            assert batch.environment is None
            assert bool((digit != batch.targets).all())
            continue
        agrees = digit == batch.targets
        assert torch.bincount(batch.environment).tolist() == [len(batch) // 2] * 2
        assert bool(agrees[batch.environment == 0].all())
        assert int(agrees[batch.environment == 1].sum()) == len(batch) // 4
        if part == "train":
            assert torch.equal(splits.facts["digit_agrees"], agrees)
            assert torch.equal(splits.facts["label_flipped"], kind != batch.targets)


def test_standardised_by_the_training_images(root: Path) -> None:
    splits = TINY.load(0, root)
    torch.testing.assert_close(splits.train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(splits.train.inputs.std((0, 2, 3), correction=0), torch.ones(3))
    padding = [part.inputs[:, :, 0, 0].unique() for part in (splits.train, splits.validation, splits.test)]
    assert torch.equal(padding[0], padding[1])  # the same black in every part
    assert torch.equal(padding[0], padding[2])


def test_no_photograph_is_used_twice(root: Path) -> None:
    found = pixels(TINY.load(3, root))
    for images in (found[0], torch.cat(found[1:])):
        named = {(int(image[0, 40, 5]) // 20, int(image[0, 32, 0])) for image in images}
        assert len(named) == len(images)


def test_seeds(root: Path) -> None:
    before = torch.get_rng_state()
    one, same, other = (TINY.load(seed, root) for seed in (0, 0, 1))
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert not torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(before, torch.get_rng_state())


def test_the_digit_is_above_and_the_colours_are_kept() -> None:
    digits = torch.arange(28 * 28).reshape(1, 28, 28).remainder(256).to(torch.uint8)
    photographs = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32).remainder(256).to(torch.uint8)
    made = (stack(digits, photographs) * 255).round().to(torch.uint8)
    assert torch.equal(made[:, :, 32:], photographs)
    for channel in range(3):
        assert torch.equal(made[:, channel, 2:30, 2:30], digits)
    assert not made[:, :, :2].any()


def test_both_layouts_give_the_same_images(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = write_cifar_archive(tmp_path)
    data = torchvision.datasets.CIFAR10
    monkeypatch.setattr(data, "train_list", sums["train"])
    monkeypatch.setattr(data, "test_list", sums["test"])
    (name, digest) = sums["meta"][0]
    monkeypatch.setattr(data, "meta", {"filename": name, "key": "label_names", "md5": digest})
    for part in ("train", "test"):
        folder = read_cifar(root, part, ("automobile", "truck"))
        archive = read_cifar(tmp_path, part, ("automobile", "truck"))
        assert all(torch.equal(one, other) for one, other in zip(folder, archive, strict=True))


def test_an_archive_other_than_the_published_one_is_not_unpickled(tmp_path: Path) -> None:
    write_cifar_archive(tmp_path)
    with pytest.raises(DataError, match="cifar-10-batches-py cannot be read: .*corrupted"):
        read_cifar(tmp_path, "train", ("truck",))


@pytest.mark.parametrize("folder", ["cifar10", "cifar10-imagefolder", "."])
def test_where_the_folder_may_lie(tmp_path: Path, folder: str) -> None:
    write_cifar_folder(tmp_path, folder)
    (trucks,) = read_cifar(tmp_path, "test", ("truck",))
    assert trucks[:, 0, 0, 0].tolist() == list(range(20))  # in the order of their names


def test_missing_data_names_the_layouts(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match="CIFAR-10 needs a data root"):
        TINY.load(0)
    with pytest.raises(DataError, match=r"looked for .*cifar10/.*cifar-10-batches-py/ .*--download"):
        TINY.load(0, tmp_path)
    write_cifar_folder(tmp_path)
    with pytest.raises(DataError, match="MNIST is not under"):
        TINY.load(0, tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"), [("text", "cannot be decoded"), ("size", "is 9 x 8, CIFAR-10's images are 32 x 32")]
)
def test_damaged_images_are_named(tmp_path: Path, damage: str, words: str) -> None:
    file = write_cifar_folder(tmp_path) / "train" / "truck" / "0070.png"
    if damage == "text":
        file.write_text("<html>")
    else:
        Image.new("RGB", (9, 8)).save(file)
    with pytest.raises(DataError, match=words) as caught:
        read_cifar(tmp_path, "train", ("truck",))
    assert str(file) in str(caught.value)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "truck").mkdir(parents=True)
    with pytest.raises(DataError, match=r"truck holds no \.jpg or \.png"):
        read_cifar(tmp_path, "train", ("truck",))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train_size": 40}, "ask for 40 automobile of the training images, there are 30"),
        ({"validation_size": 20}, "ask for 22 automobile of the test images, there are 20"),
        ({"test_size": 20}, "ones of the test images, there are 4|zeros of the test images, there are 4"),
    ],
)
def test_sizes_that_the_files_do_not_have(root: Path, sizes: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        CIFARMNIST(**{**SIZES, **sizes}).load(0, root)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_noise": -0.1}, "label_noise"),
        ({"train_agreements": ()}, "train_agreements"),
        ({"train_agreements": (0.9, 1.1)}, "train_agreements"),
        ({"test_agreement": 2.0}, "test_agreement"),
        ({"train_size": 5}, "train_size must be even"),
        ({"test_size": 0}, "test_size"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CIFARMNIST(**settings)


def _real() -> bool:
    return any((REAL_ROOT / folder / "train" / "truck").is_dir() for folder in ("cifar10", "cifar10-imagefolder", "."))


@pytest.mark.data
@pytest.mark.skipif(not _real(), reason="CIFAR-10 is not at hand as an image folder")
def test_the_real_files() -> None:
    splits = CIFARMNIST().load(0, REAL_ROOT)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [10_000, 1_000, 1_000]
    agrees = splits.facts["digit_agrees"]
    assert [int(agrees[splits.train.environment == e].sum()) for e in (0, 1)] == [4995, 3500]
    assert 850 <= int(splits.facts["label_flipped"].sum()) <= 1150  # 1,000 expected, five deviations; a fixed seed
