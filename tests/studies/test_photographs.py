"""The set made of photographs: what is drawn, pasted and written, and that the recipes read it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steelyard.experiments.data import CelebA, Waterbirds
from steelyard.experiments.data.transforms import WATERBIRDS as WATERBIRDS_FRAMING
from steelyard.experiments.errors import DataError
from steelyard.experiments.models.backbone import Backbone
from steelyard.experiments.runs.recipe import changed, load_recipe
from steelyard.experiments.runs.run import execute
from studies.photographs import composition as composition_module
from studies.photographs.composition import CELEBA, HARD, WATERBIRDS, Composition, Photograph, Sample, read_pool
from studies.photographs.drawing import FULL, drawn, mask
from studies.photographs.features import FILE, axes, prepare
from studies.photographs.images import SIDE, Images
from studies.photographs.layouts import WATERBIRDS_FOLDER, write_celeba, write_flipped, write_waterbirds
from studies.photographs.place import place_only
from studies.photographs.sets import Sets
from tests.studies import photographed
from tests.studies.photographed import COUNTS, write_pool

TINY = replace(WATERBIRDS, counts=COUNTS, size=(24, 24), rim=2)
CLASSES = (*TINY.objects, *TINY.places)
MODULE = photographed.__name__


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def written(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    write_waterbirds(root, TINY, read_pool(photographs, CLASSES), seed=1)
    return root


def test_counts_of_waterbirds_and_shares_of_celeba() -> None:
    assert [sum(WATERBIRDS.counts[split]) for split in ("train", "validation", "test")] == [4795, 1199, 5794]
    assert WATERBIRDS.counts["train"] == (3498, 184, 56, 1057)
    for split, published in (("train", (71629, 66874, 22880, 1387)), ("test", (9767, 7535, 2480, 180))):
        shares = np.array(CELEBA.counts[split]) / sum(CELEBA.counts[split])
        assert shares == pytest.approx(np.array(published) / sum(published), abs=3e-4)
    assert HARD.objects == ("bird", "automobile")


def test_draws_repeat_nothing_in_training_and_mirror_every_second_pass_of_the_test(photographs: Path) -> None:
    pool = read_pool(photographs, CLASSES)
    samples = TINY.draw(pool, 3)
    for split, name in enumerate(COUNTS):
        own = Counter(2 * one.label + one.place for one in samples if one.split == split)
        assert tuple(own[group] for group in range(4)) == COUNTS[name]
    learned = [one for one in samples if one.split < 2]
    files = [photo.file for one in learned for photo in (one.object_, one.background)]
    assert len(set(files)) == len(files)
    assert not any(one.object_.mirrored or one.background.mirrored for one in learned)
    tested = Counter((one.object_.file, one.object_.mirrored) for one in samples if one.split == 2)
    frogs = {key: count for key, count in tested.items() if "frog" in str(key[0])}
    # 14 frogs of 6 photographs: each once as it is, each once mirrored, two of them once more.
    assert sorted(frogs.values()) == [1] * 10 + [2] * 2
    assert all(not mirrored for (_, mirrored), count in frogs.items() if count == 2)
    assert not {file for file, _ in tested} & set(files)
    assert TINY.passes(pool) == {"automobile": 3, "frog": 3, "deer": 3, "ship": 3}
    assert TINY.draw(pool, 3) == samples
    assert TINY.draw(pool, 4) != samples


def test_too_few_photographs_are_said(photographs: Path, tmp_path: Path) -> None:
    pool = read_pool(photographs, CLASSES)
    many = replace(TINY, counts={**COUNTS, "train": (90, 6, 4, 20)})
    with pytest.raises(DataError, match="more than the 80 training photographs of the class 'automobile'"):
        many.draw(pool, 0)
    with pytest.raises(DataError, match=r"no \.jpg or \.png photographs in .*cifar10/train/automobile"):
        read_pool(tmp_path, CLASSES)
    with pytest.raises(DataError, match="STEELYARD_DATA"):
        read_pool(None, CLASSES)
    with pytest.raises(ValueError, match="must be four classes"):
        Composition(objects=("deer", "frog"))


def test_the_mask_is_full_to_its_share_of_the_radius_and_falls_linearly() -> None:
    values = np.asarray(mask(101)) / 255
    distance = np.abs(np.arange(101) - 50) / 50.5
    expected = np.clip((1 - distance) / (1 - FULL), 0, 1)
    assert values[50] == pytest.approx(expected, abs=0.002)
    assert values[:, 50] == pytest.approx(values[50])
    assert values[0, 0] == 0


def test_an_image_is_the_place_with_the_object_in_its_centre(tmp_path: Path) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, :16] = (0, 0, 250)
    for name, pixels in (("object", np.full((32, 32, 3), (250, 0, 0), np.uint8)), ("place", half)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    thing, place = (Photograph(tmp_path / f"{name}.png", mirrored=True) for name in ("object", "place"))
    sample = Sample(2, 0, 0, thing, place)
    image = np.asarray(drawn(sample, replace(TINY, size=(96, 96), rim=0))).astype(int)
    assert image.shape == (96, 96, 3)
    assert image[48, 48].tolist() == [250, 0, 0]
    assert image[48, 48 - 19].tolist() == [250, 0, 0]  # 0.7 of 29 pixels
    assert image[48, 3].tolist() == [0, 0, 0]  # the place is mirrored
    assert image[48, 92].tolist() == [0, 0, 250]
    alone = np.asarray(drawn(sample, replace(TINY, size=(96, 96), rim=0), with_object=False))
    assert alone[48, 40].tolist() == [0, 0, 0]
    rimmed = np.asarray(drawn(sample, replace(TINY, size=(96, 96), rim=7)))
    assert rimmed.shape == (110, 110, 3)
    assert (rimmed[7:-7, 7:-7] == image).all()
    assert (rimmed[:7] == rimmed[8:15][::-1]).all()


def test_the_framing_of_the_recipes_sees_what_is_composed() -> None:
    """224 of 256 pixels are seen, 96 of 110 are composed: less than a pixel of the rim on each side."""
    seen = 110 * WATERBIRDS_FRAMING.size / 256
    assert abs(seen - WATERBIRDS.size[0]) / 2 < 0.2
    assert WATERBIRDS.size[0] + 2 * WATERBIRDS.rim == 110


def test_the_same_seed_writes_the_same_files(photographs: Path, written: Path, tmp_path: Path) -> None:
    pool = read_pool(photographs, CLASSES)
    write_waterbirds(tmp_path, TINY, pool, seed=1)
    ours, again = ({p.relative_to(root): p.read_bytes() for p in root.rglob("*.*")} for root in (written, tmp_path))
    assert ours == again
    with pytest.raises(DataError, match="is there already; remove"):
        write_waterbirds(tmp_path, TINY, pool, seed=1)


def test_the_preset_reads_the_published_columns_and_groups(written: Path) -> None:
    head = (written / WATERBIRDS_FOLDER / "metadata.csv").read_text().splitlines()[0]
    assert head.startswith("img_id,img_filename,y,split,place,place_filename,")
    backbone = Backbone(f"{MODULE}:pooled", workers=0)
    splits = Waterbirds(backbone=backbone).load(0, written)
    for part, name in ((splits.train, "train"), (splits.validation, "validation"), (splits.test, "test")):
        assert torch.bincount(part.group).tolist() == list(COUNTS[name])
        assert torch.equal(part.group, 2 * part.targets + part.environment)


def test_flipped_labels_are_of_training_alone_and_share_the_images(written: Path, tmp_path: Path) -> None:
    import pandas

    table = write_flipped(written, tmp_path, 0.2, seed=1)
    before, after = (pandas.read_csv(one) for one in (written / WATERBIRDS_FOLDER / "metadata.csv", table))
    changed = before.y != after.y
    assert (changed == (after.label_flipped == 1)).all()
    assert changed.sum() == round(0.2 * sum(COUNTS["train"]))
    assert (after.split[changed] == 0).all()
    rest = [name for name in before.columns if name != "y"]
    assert before[rest].equals(after[rest])
    images = [root / WATERBIRDS_FOLDER / before.img_filename[0] for root in (written, tmp_path)]
    assert os.path.samefile(*images)


def test_axes_are_those_of_the_singular_value_decomposition() -> None:
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 8.0)
    centre, directions = axes(rows, 3)
    _, _, right = torch.linalg.svd(rows - rows.mean(0))
    assert torch.allclose(centre, rows.mean(0), atol=1e-6)
    assert torch.allclose((directions.T @ right[:3].T).abs(), torch.eye(3), atol=1e-4)
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()
    with pytest.raises(DataError, match="principal axes need"):
        axes(rows, 8)


def test_a_recipe_takes_the_features_that_were_prepared(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEELYARD_CACHE", str(tmp_path / "cache"))
    raw, small = f"{MODULE}:pooled", f"{MODULE}:pooled_reduced"
    found = prepare(written, Waterbirds(), raw=raw, small=small, build=photographed.pooled_reduced)
    train = torch.tensor([split == "0" for split in Waterbirds().read(written).table.columns["split"]])
    assert found[train].mean(0) == pytest.approx(torch.zeros(5), abs=1e-4)
    covariance = found[train].T @ found[train]
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-2 * float(covariance.diagonal().min()))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image is decoded"))
    settings = [f"data.backbone.model={small}", f"data.backbone.weights={written / FILE}", "method.training.steps=50"]
    settings += ["data.backbone.workers=0"]
    recipe = load_recipe("waterbirds/features/upweighting", settings)
    run = execute(recipe, tmp_path / "run", name="waterbirds/features/upweighting", data_root=written, allow_code=True)
    assert run.history[-1].test.group_count == COUNTS["test"]
    monkeypatch.undo()
    monkeypatch.setenv(
        "STEELYARD_CACHE", str(tmp_path / "another")
    )  # computed by the file's network, they are the same
    splits = recipe.data.load(0, written)
    assert torch.allclose(splits.train.inputs, found[train], atol=1e-3)


def test_the_recipes_of_whole_images_run_on_the_set(written: Path, tmp_path: Path) -> None:
    changes = {
        "data": {"workers": 0, "per_group": 2},
        "model": {"name": "logistic"},
        "method": {"training": {"steps": 1, "batch_size": 4, "evaluate_every": 1}},
    }
    recipe = changed("waterbirds/group_dro", changes)
    assert recipe.data.inputs == "images"
    run = execute(recipe, tmp_path / "run", name="waterbirds/group_dro", data_root=written)
    assert run.history[-1].test.group_count == (2, 2, 2, 2)


def test_the_recipes_of_celeba_run_on_its_layout(photographs: Path, tmp_path: Path) -> None:
    tiny = replace(CELEBA, counts=COUNTS)
    write_celeba(tmp_path, tiny, read_pool(photographs, CLASSES), seed=0)
    backbone = f"data.backbone.model={MODULE}:pooled"
    recipe = load_recipe("celeba/features/erm", [backbone, "data.backbone.workers=0", "method.training.steps=3"])
    run = execute(recipe, tmp_path / "run", name="celeba/features/erm", data_root=tmp_path, allow_code=True)
    assert run.history[-1].test.group_count == COUNTS["test"]
    images = CelebA().read(tmp_path).images
    assert images.open(0).size == (178, 218)


def test_a_model_of_the_place_is_at_chance_where_place_and_object_are_independent() -> None:
    rng = np.random.default_rng(0)

    def part(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups = np.repeat(np.arange(4), counts)
        return np.stack([groups % 2 + rng.normal(0, 0.1, len(groups))] * 2, 1), groups // 2, groups

    cells = place_only(part((400, 20, 20, 400)), part((60, 60, 40, 40)))
    assert float(cells[0]) == pytest.approx(95.2, abs=0.1)
    assert cells[1].startswith("50.0")
    assert cells[2:] == ["100.0", "0.0", "0.0", "100.0"]


def test_presets_are_within_cifar() -> None:
    for preset in composition_module.PRESETS.values():
        wanted = dict.fromkeys((*preset.objects, *preset.places), 0)
        for split in ("train", "validation"):
            for group, count in enumerate(preset.counts[split]):
                wanted[preset.objects[group // 2]] += count
                wanted[preset.places[group % 2]] += count
        assert max(wanted.values()) <= 5000


def test_whole_images_are_what_lies_within_the_rim(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = replace(TINY, size=(2 * SIDE, 2 * SIDE), rim=3)
    monkeypatch.setitem(composition_module.PRESETS, "waterbirds", twice)
    images = Images(Sets(tmp_path, "waterbirds", 0.25, photographs))
    images.make(5)
    splits = images.load(5)
    assert images.case == "images_flipped25"
    assert splits.train.inputs.shape == (70, 3, SIDE, SIDE)
    assert tuple(splits.test.group.bincount()) == COUNTS["test"]
    assert splits.groups[1] == "automobile on ship"
    plain = Images(replace(images.sets, share=0.0)).load(5)
    assert int((plain.train.targets != splits.train.targets).sum()) == 18  # a quarter of 70
    assert torch.equal(plain.train.inputs, splits.train.inputs)
    first = next((images.sets.root(5) / WATERBIRDS_FOLDER).rglob("00001.png"))
    pixels = np.asarray(Image.open(first)).astype(float)[3:-3, 3:-3] / 255
    halved = pixels.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    expected = (halved - WATERBIRDS_FRAMING.mean) / WATERBIRDS_FRAMING.std
    assert splits.train.inputs[0].permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-5)
