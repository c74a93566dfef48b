"""Colored MNIST read from files in the published layout (a tiny generated set; the real one where it is at hand)."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from steelyard.cli import main
from steelyard.experiments.data import ColoredMNIST
from steelyard.experiments.data.idx import read_idx
from steelyard.experiments.errors import DataError
from tests.support.layouts import REAL_ROOT

Writer = Callable[..., Path]


def digits_of(inputs: torch.Tensor) -> torch.Tensor:
    """The digit that `mnist_writer` drew: every pixel is 10 (1 + digit) / 255."""
    return (inputs.flatten(1).amax(1) * 255 / 10).round().long() - 1


@pytest.mark.parametrize("packed", [True, False])
def test_the_published_construction(tmp_path: Path, packed: bool, mnist_writer: Writer) -> None:
    splits = ColoredMNIST(label_noise=0.0).load(seed=0, root=mnist_writer(tmp_path, packed))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [200, 40, 40]
    assert splits.train.inputs.shape[1:] == (2, 14, 14)
    assert splits.train.environment.tolist() == [0, 1] * 100
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal((digits_of(part.inputs) < 5).long(), part.targets)
        colour = part.inputs.flatten(2).amax(2).argmax(1)
        other = part.inputs[torch.arange(len(part)), 1 - colour]
        assert float(other.max()) == 0
    agrees = splits.train.inputs.flatten(2).amax(2).argmax(1) == splits.train.targets
    assert torch.equal(agrees, splits.facts["colour_agrees"])
    assert not splits.facts["label_flipped"].any()


def test_test_images_are_the_last_sixth_in_order_and_unshuffled(mnist_root: Path) -> None:
    labels = read_idx(mnist_root / "MNIST/raw/train-labels-idx1-ubyte.gz", 1)
    splits = ColoredMNIST().load(seed=5, root=mnist_root)
    assert digits_of(splits.test.inputs).tolist() == labels[200:].tolist()
    assert sorted(digits_of(splits.train.inputs).tolist()) == sorted(labels[:200].tolist())


def test_holdout_takes_validation_out_of_training(mnist_root: Path) -> None:
    whole = ColoredMNIST().load(seed=0, root=mnist_root)
    held = ColoredMNIST(validation="holdout", holdout=50).load(seed=0, root=mnist_root)
    assert [len(held.train), len(held.validation), len(held.test)] == [150, 50, 40]
    assert torch.equal(torch.cat([held.train.targets, held.validation.targets]), whole.train.targets)
    assert held.validation.index.tolist() == list(range(50))
    assert len(held.facts["label_flipped"]) == 150
    with pytest.raises(ValueError, match="holdout"):
        ColoredMNIST(validation="holdout", holdout=199).load(seed=0, root=mnist_root)


def test_more_environments_are_dealt_in_turn(mnist_root: Path) -> None:
    flips = (0.0, 1.0, 0.5, 0.0)
    for validation in ("t10k", "holdout"):
        data = ColoredMNIST(train_flips=flips, label_noise=0.0, validation=validation, holdout=20)
        splits = data.load(seed=0, root=mnist_root)
        assert splits.environments == ("colour flip 0", "colour flip 1", "colour flip 0.5", "colour flip 0")
        for part in (splits.train, splits.validation):
            assert part.environment[:8].tolist() == [0, 1, 2, 3] * 2
            agrees = part.inputs.flatten(2).amax(2).argmax(1) == part.targets
            for environment, expected in ((0, True), (1, False), (3, True)):
                assert bool((agrees[part.environment == environment] == expected).all())
    with pytest.raises(ValueError, match="train_flips"):
        ColoredMNIST(train_flips=())


def test_seeds(mnist_root: Path) -> None:
    one, same, other = (ColoredMNIST().load(seed, mnist_root) for seed in (0, 0, 1))
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert not torch.equal(one.train.targets, other.train.targets)


def test_grayscale(mnist_root: Path) -> None:
    assert ColoredMNIST(grayscale=True).load(0, mnist_root).test.inputs.shape == (40, 1, 14, 14)


def test_missing_data_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a data root"):
        ColoredMNIST().load(0)
    with pytest.raises(DataError, match=r"4 of 4 files are missing.*train-images-idx3-ubyte.*MNIST/raw.*--download"):
        ColoredMNIST().load(0, tmp_path)


def test_nothing_is_downloaded_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("steelyard.experiments.data.mnist._download", lambda root: asked.append(root))
    with pytest.raises(DataError):
        ColoredMNIST().load(0, tmp_path)
    assert asked == []
    with pytest.raises(DataError):
        ColoredMNIST().load(0, tmp_path, download=True)
    assert asked == [tmp_path]


def _damage(kind: str, root: Path, write_idx: Writer) -> None:
    images = root / "MNIST/raw/train-images-idx3-ubyte.gz"
    labels = root / "MNIST/raw/train-labels-idx1-ubyte.gz"
    data = gzip.decompress(images.read_bytes())
    match kind:
        case "truncated":
            images.write_bytes(gzip.compress(data[:-5]))
        case "broken gzip":
            images.write_bytes(images.read_bytes()[:-40])
        case "not idx":
            images.write_bytes(b"<html>not found</html>")
        case "swapped":
            images.write_bytes(labels.read_bytes())
        case "short header":
            images.write_bytes(data[:6])
        case "fewer labels":
            write_idx(labels.with_suffix(""), np.zeros(10), True)
        case "label 12":
            write_idx(labels.with_suffix(""), np.full(240, 12), True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "truncated or damaged"),
        ("broken gzip", "cannot be read"),
        ("not idx", "not an IDX file"),
        ("swapped", "has 1 dimensions, expected 3"),
        ("short header", "ends within its header"),
        ("fewer labels", "240 images.*10 labels"),
        ("label 12", "label 12 in row 0"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, kind: str, words: str, mnist_writer: Writer, idx_writer: Writer
) -> None:
    root = mnist_writer(tmp_path)
    _damage(kind, root, idx_writer)
    with pytest.raises(DataError, match=words) as caught:
        ColoredMNIST().load(0, root)
    assert str(root) in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_idx(bomb, 3, limit=1000)


def test_a_run_from_the_command_line(mnist_root: Path, tmp_path: Path) -> None:
    sets = ["--set", "method.steps=2", "--set", "method.inner.steps=2", "--set", "method.budget=50"]
    out = str(tmp_path / "run")
    assert main(["run", "colored_mnist/maple", *sets, "--data-root", str(mnist_root), "--out", out]) == 0
    assert (tmp_path / "run" / "seed0" / "result.parquet").is_file()


@pytest.mark.data
@pytest.mark.skipif(not (REAL_ROOT / "MNIST" / "raw").is_dir(), reason="MNIST is not at hand")
def test_the_real_files() -> None:
    splits = ColoredMNIST().load(seed=0, root=REAL_ROOT)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [50_000, 10_000, 10_000]
    train = splits.train
    colour = train.inputs.flatten(2).amax(2).argmax(1)
    for environment, rate in ((0, 0.1), (1, 0.2)):
        member = train.environment == environment
        count = int((colour != train.targets)[member].sum())
        # a fixed seed; an exact interval that one seed in 10^9 misses
        assert binom.ppf(5e-10, 25_000, rate) <= count <= binom.ppf(1 - 5e-10, 25_000, rate)
    flipped = int(splits.facts["label_flipped"].sum())
    assert binom.ppf(5e-10, 50_000, 0.25) <= flipped <= binom.ppf(1 - 5e-10, 50_000, 0.25)
