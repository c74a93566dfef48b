"""Features of a frozen network instead of images: of noise too, one pass an image, kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.active.frozen import Frozen, Pixels
from steelyard.experiments.active.noise import NoisyBlank, NoisyClass, NoisyDiverse
from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import execute_active
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.models.backbone import Backbone
from tests.support.places import STUDIES

SEEN: list[Tensor] = []


class Corners(nn.Module):
    """The four corners of each channel, twice their value; what it is shown is noted."""

    def forward(self, images: Tensor) -> Tensor:
        SEEN.append(images)
        return 2 * images[:, :, ::7, ::7].flatten(1)


def corners() -> nn.Module:
    return Corners()


FROZEN = Frozen(
    backbone=Backbone(f"{__name__}:corners", batch_size=4), size=8, mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0)
)


def made(inputs: Tensor) -> Batch:
    """Training samples that do without all but inputs: three classes in turn."""
    count = len(inputs)
    return Batch.of(inputs, torch.arange(count) % 3, environment=torch.zeros(count, dtype=torch.long))


def splits(n: int = 12) -> Splits:
    generator = torch.Generator().manual_seed(0)
    parts = (made(torch.rand(count, 3, 8, 8, generator=generator)) for count in (n, 4, 5))
    return Splits("made", *parts, ("a", "b", "c"), ("all",))


def standardised(images: Tensor) -> Tensor:
    """What the network makes of images of its own size, channel by channel."""
    mean, std = torch.tensor([0.5, 0.25, 0.0]), torch.tensor([1.0, 0.5, 2.0])
    return (2 * (images[:, :, ::7, ::7] - mean[:, None, None]) / std[:, None, None]).flatten(1)


@pytest.mark.parametrize("noise", [NoisyBlank(), NoisyDiverse(unique=5), NoisyClass(unique=2)])
def test_every_different_image_is_computed_once(noise: NoisyBlank | NoisyDiverse | NoisyClass, tmp_path: Path) -> None:
    noisy = noise.apply(splits(), torch.Generator().manual_seed(1))
    SEEN.clear()
    found = FROZEN.apply(noisy, tmp_path)
    for part in ("train", "validation", "test"):
        torch.testing.assert_close(getattr(found, part).inputs, standardised(getattr(noisy, part).inputs))
        assert torch.equal(getattr(found, part).targets, getattr(noisy, part).targets)
    shown = torch.cat(SEEN[:-3])
    assert len(shown) == len(noisy.train.inputs.flatten(1).unique(dim=0)) < len(noisy.train)
    assert [len(one) for one in SEEN[-3:]] == [4, 4, 1]  # four of validation, five of test, in batches of four
    assert torch.equal(found.facts["noisy"], noisy.facts["noisy"])


def test_images_are_brought_to_the_size(tmp_path: Path) -> None:
    small = splits()
    flat = replace(small, train=made(torch.full((3, 3, 4, 5), 0.5)))
    SEEN.clear()
    FROZEN.apply(flat, tmp_path)
    assert SEEN[0].shape == (1, 3, 8, 8)


def test_features_are_found_again_until_something_changes(tmp_path: Path) -> None:
    first = FROZEN.apply(splits(), tmp_path)
    SEEN.clear()
    again = FROZEN.apply(splits(), tmp_path)
    assert not SEEN
    assert torch.equal(again.train.inputs, first.train.inputs)
    moved = splits()
    moved.train.inputs[3, 0, 0, 0] += 0.5
    assert not torch.equal(FROZEN.apply(moved, tmp_path).train.inputs, first.train.inputs)
    other = replace(FROZEN, std=(1.0, 1.0, 1.0)).apply(splits(), tmp_path)
    assert not torch.equal(other.train.inputs, first.train.inputs)
    assert Pixels().apply(moved) is moved


def test_inputs_that_are_no_images_are_refused(tmp_path: Path) -> None:
    gray = replace(splits(), train=made(torch.zeros(2, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"takes images \(n, 3, h, w\), got inputs \(2, 1, 8, 8\)"):
        FROZEN.apply(gray, tmp_path)
    with pytest.raises(ValueError, match=r"std must be"):
        Frozen(std=(1.0, 0.0, 1.0))


STUDY = STUDIES / "noisy_pools/recipes/cifar10_features.toml"


def test_fine_tuning_is_refused_for_it_has_no_images() -> None:
    with pytest.raises(RecipeError, match="a frozen encoder leaves none: set fine_tune = false"):
        load_active_recipe(str(STUDY), ["fine_tune=true"])


def test_a_run_on_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import PIL.Image

    monkeypatch.setenv("STEELYARD_CACHE", str(tmp_path / "cache"))
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for part in ("train", "test"):
        for k, name in enumerate(names):
            folder = tmp_path / "cifar10" / part / name
            folder.mkdir(parents=True)
            for number in range(8):
                PIL.Image.new("RGB", (32, 32), (25 * k, 10 * number, 100)).save(folder / f"{number}.png")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(STUDY.read_text().replace("studies.noisy_pools.lite:lite0", f"{__name__}:corners"))
    sets = ["data.samples=40", "data.validation_share=0.2", "schedule.initial=10", "schedule.per_round=5"]
    small = load_active_recipe(str(recipe), [*sets, "schedule.rounds=1", "noise.name=noisy_class", "epochs.epochs=2"])
    with pytest.raises(RecipeError, match="runs code that it names, .*:corners; read it, then say --allow-code"):
        execute_active(small, tmp_path / "run", name="features", data_root=tmp_path)
    run = execute_active(small, tmp_path / "run", name="features", data_root=tmp_path, allow_code=True)
    assert [row["labelled"] for row in run.history] == [10, 15]
