"""Waterbirds and CelebA in every published layout: what metadata say, and what is refused before any training."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from steelyard.experiments.data import CelebA, Waterbirds
from steelyard.experiments.data.decoding import open_image
from steelyard.experiments.data.images import ImageList, decode
from steelyard.experiments.data.photographs import Photographs
from steelyard.experiments.data.transforms import CELEBA, WATERBIRDS, evaluation_transform, training_transform
from steelyard.experiments.errors import DataError
from tests.support.layouts import (
    ATTRIBUTES,
    CELEBA_LAYOUTS,
    TINY,
    WATERBIRDS_LAYOUTS,
    group_rows,
    replace_line,
    write_celeba,
    write_waterbirds,
)

LAYOUTS = [(Waterbirds, write_waterbirds, layout) for layout in WATERBIRDS_LAYOUTS]
LAYOUTS += [(CelebA, write_celeba, layout) for layout in CELEBA_LAYOUTS]


@pytest.mark.parametrize(("data", "write", "layout"), LAYOUTS)
def test_groups_and_splits_without_opening_an_image(
    data: type, write: Callable, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, layout)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    check_labels(data, tmp_path)


def check_labels(data: type, root: Path) -> None:
    """What `data` reads under `root` are the groups and splits that were written there."""
    splits = data(inputs="images").load(0, root)
    for number, part in enumerate((splits.train, splits.validation, splits.test)):
        rows = [row for row in group_rows(TINY) if row[0] == number]
        assert part.targets.tolist() == [label for _, label, _ in rows]
        assert part.environment.tolist() == [attribute for _, _, attribute in rows]
        assert part.group.tolist() == [2 * label + attribute for _, label, attribute in rows]
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 8, 12]
    assert (splits.name, splits.ids, splits.notes) == (data().name, (), ())


def edited(path: Path, change: Callable[[str], str]) -> Path:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


def waterbirds_of_subpopbench(root: Path) -> None:
    (root / "waterbirds").mkdir()
    folder = write_waterbirds(root).rename(root / "waterbirds" / WATERBIRDS_LAYOUTS["group_DRO"])
    frame = pandas.read_csv(folder / "metadata.csv")
    frame = frame.rename(columns={"img_id": "id", "img_filename": "filename", "place": "a"})
    frame[["id", "filename", "split", "y", "a"]].to_csv(root / "waterbirds" / "metadata_waterbirds.csv", index=False)
    (folder / "metadata.csv").unlink()


def waterbirds_of_jtt(root: Path) -> None:
    folder = write_waterbirds(root)
    cub = root / "cub" / "data"
    cub.mkdir(parents=True)
    frame = pandas.read_csv(folder / "metadata.csv").assign(wrong_1_times=0, spurious=False)
    frame.to_csv(folder / "metadata_aug.csv")  # with the rows' numbers in a column without a name
    (folder / "metadata.csv").unlink()
    folder.rename(cub / folder.name)


def waterbirds_of_windows(root: Path) -> None:
    edited(write_waterbirds(root) / "metadata.csv", lambda text: text.replace(".Some_bird/", ".Some_bird\\"))


def waterbirds_with_signs(root: Path) -> None:
    path = write_waterbirds(root) / "metadata.csv"
    frame = pandas.read_csv(path)
    frame.assign(y=2 * frame["y"] - 1, place=2.0 * frame["place"] - 1).to_csv(path, index=False)


def celeba_of_jtt(root: Path) -> None:
    folder = write_celeba(root, "group_DRO")
    frame = pandas.read_csv(folder / "list_attr_celeba.csv")
    frame["split"] = pandas.read_csv(folder / "list_eval_partition.csv")["partition"]
    frame.to_csv(folder / "metadata.csv")
    for name in ("list_attr_celeba.csv", "list_eval_partition.csv"):
        (folder / name).unlink()


def celeba_of_subpopbench(root: Path) -> None:
    folder = write_celeba(root, "torchvision")
    rows = [f"{n + 1},{n + 1:06}.jpg,{split},{y},{a}" for n, (split, y, a) in enumerate(group_rows(TINY))]
    (folder / "metadata_celeba.csv").write_text("\n".join(["id,filename,split,y,a", *rows]) + "\n")
    (folder / "list_attr_celeba.txt").unlink()


def celeba_of_its_authors(root: Path) -> None:
    folder = write_celeba(root, "torchvision").rename(root / "CelebA")
    for place, name in (
        ("Anno", "list_attr_celeba.txt"),
        ("Eval", "list_eval_partition.txt"),
        ("Img", "img_align_celeba"),
    ):
        (folder / place).mkdir()
        (folder / name).rename(folder / place / name)


def celeba_mixed(root: Path) -> None:
    folder, other = write_celeba(root, "WILDS"), write_celeba(root / "other", "torchvision")
    (other / "list_eval_partition.txt").rename(folder / "list_eval_partition.txt")
    (folder / "list_eval_partition.csv").unlink()


def celeba_under_another_ending(root: Path) -> None:
    """Comma-separated text that is called .txt, with 0 and 1 for -1 and 1."""
    folder = write_celeba(root, "WILDS")
    for name in ("list_attr_celeba", "list_eval_partition"):
        (folder / f"{name}.csv").rename(folder / f"{name}.txt")
    edited(folder / "list_attr_celeba.txt", lambda text: text.replace("-1", "0"))


VARIANTS: list[tuple[type, Callable[[Path], None]]] = [
    (Waterbirds, waterbirds_of_subpopbench),
    (Waterbirds, waterbirds_of_jtt),
    (Waterbirds, waterbirds_of_windows),
    (Waterbirds, waterbirds_with_signs),
    (CelebA, celeba_of_jtt),
    (CelebA, celeba_of_subpopbench),
    (CelebA, celeba_of_its_authors),
    (CelebA, celeba_mixed),
    (CelebA, celeba_under_another_ending),
]


@pytest.mark.parametrize(("data", "write"), VARIANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_layouts_that_people_have(data: type, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    check_labels(data, tmp_path)


def test_minus_one_and_zero_in_one_column_are_refused(tmp_path: Path) -> None:
    """In some tables -1 stands for what nobody knows."""
    path = write_waterbirds(tmp_path) / "metadata.csv"
    replace_line(path, 3, ",0,0,0,", ",-1,0,0,")
    with pytest.raises(DataError, match="line 2: 'y' is '0', expected -1 or 1, as in other rows"):
        Waterbirds().read(tmp_path)


def test_group_names() -> None:
    assert ATTRIBUTES.index("Blond_Hair") == 9
    assert ATTRIBUTES.index("Male") == 20
    assert len(ATTRIBUTES) == 40


def test_a_missing_data_set_names_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"looked for one of metadata\.csv, .* in waterbird_complete95_forest2water2.*waterbirds_v1"
    ):
        Waterbirds().read(tmp_path)
    with pytest.raises(DataError, match=r"list_attr_celeba\.csv and .*, list_attr_celeba\.txt and .*celebA_v1\.0"):
        CelebA().read(tmp_path)
    with pytest.raises(DataError, match="needs a data root"):
        CelebA().load(0)


WATERBIRDS_ERRORS = [
    (1, "place,", "background,", r"line 1: there is no column 'place' \(the columns are img_id, "),
    (3, ",0,0,0,", ",0,3,0,", "line 3: 'split' is '3', expected one of '0', '1', '2'"),
    (3, ",0,0,0,", ",0,0,water,", "line 3: 'place' is 'water', expected one of '0', '1'"),
    (3, ",0,0,0,", ",,0,0,", "line 3: 'y' is '', expected one of"),
    (3, ",0,0,0,", ",0,0,", "line 3: has 5 values, expected 6"),
    (4, "003.Some_bird/", "../", r"line 4: the path '\.\./Some_Bird_0002\.jpg' leaves the folder"),
    (4, "003.Some_bird/", "/etc/", "line 4: the path '/etc/.* leaves the folder"),
    (4, "003.Some_bird/", "C:/", "line 4: the path 'C:/.* leaves the folder"),
    (4, "003.Some_bird/", r"a\..\..\b", "line 4: the path .* leaves the folder"),
]


@pytest.mark.parametrize(("line", "old", "new", "words"), WATERBIRDS_ERRORS)
def test_waterbirds_errors_name_file_and_line(tmp_path: Path, line: int, old: str, new: str, words: str) -> None:
    path = write_waterbirds(tmp_path) / "metadata.csv"
    replace_line(path, line, old, new)
    with pytest.raises(DataError, match=words) as caught:
        Waterbirds(inputs="images").load(0, tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "file", "line", "old", "new", "words"),
    [
        ("WILDS", "list_attr_celeba.csv", 1, "Blond_Hair", "Blonde_Hair", "line 1: .* did you mean 'Blonde_Hair'"),
        ("torchvision", "list_attr_celeba.txt", 2, "Male", "Man", "line 2: there is no column 'Male'"),
        ("torchvision", "list_attr_celeba.txt", 1, "36", "37", "line 1: announces 37 rows, the file has 36"),
        ("torchvision", "list_attr_celeba.txt", 5, "1 ", "1 0 ", "line 5: has 42 values, expected 41"),
        ("Kaggle", "list_eval_partition.csv", 3, ",0", ",train", "line 3: 'partition' is 'train', expected one of '0'"),
        ("torchvision", "list_eval_partition.txt", 2, " 0", " 4", "line 2: 'partition' is '4'"),
        (
            "WILDS",
            "list_eval_partition.csv",
            3,
            "000002",
            "000009",
            "line 3: 'image_id' is '000009.jpg', expected '000002",
        ),
    ],
)
def test_celeba_errors_name_file_and_line(
    tmp_path: Path, layout: str, file: str, line: int, old: str, new: str, words: str
) -> None:
    path = write_celeba(tmp_path, layout) / file
    replace_line(path, line, old, new)
    with pytest.raises(DataError, match=words) as caught:
        CelebA().read(tmp_path)
    assert str(path) in str(caught.value)


def test_partition_and_attributes_of_different_lengths(tmp_path: Path) -> None:
    path = write_celeba(tmp_path) / "list_eval_partition.csv"
    path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(DataError, match="has 35 rows, .* has 36"):
        CelebA().read(tmp_path)


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_waterbirds(tmp_path) / "metadata.csv"
    path.write_bytes(path.read_bytes().replace(b"Some_Bird_0004", b"Some_B\xefrd_0004"))
    with pytest.raises(DataError, match="line 6: not UTF-8 .byte 0xef."):
        Waterbirds().read(tmp_path)


def test_an_empty_group_is_named(tmp_path: Path) -> None:
    write_waterbirds(tmp_path, counts=((6, 3, 2, 5), (2, 2, 0, 2), (3, 3, 3, 3)))
    with pytest.raises(DataError, match="the group 'waterbird, land' has no sample in the validation split"):
        Waterbirds(inputs="images").load(0, tmp_path)


def test_missing_images_are_listed_with_their_count(tmp_path: Path) -> None:
    folder = write_waterbirds(tmp_path)
    for row in (0, 3, 6, 9, 12, 15, 18, 21):  # all in the folder 001
        (folder / f"001.Some_bird/Some_Bird_{row:04}.jpg").unlink()
    with pytest.raises(DataError, match=r"8 of 36 images .*'001\.Some_bird/Some_Bird_0000\.jpg' .line 2.") as caught:
        Waterbirds(inputs="images").load(0, tmp_path)
    assert str(caught.value).count(".jpg") == 5
    (folder / "001.Some_bird").rename(folder / "away")
    with pytest.raises(DataError, match="12 of 36 images"):
        Waterbirds(inputs="images").load(0, tmp_path)


def test_links_out_of_the_folder_are_refused_and_links_within_are_not(tmp_path: Path) -> None:
    folder = write_waterbirds(tmp_path / "data")
    images = Waterbirds().read(tmp_path / "data").images
    file = folder / images.files[5]
    outside = tmp_path / "outside.jpg"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(DataError, match="line 7: .* is a link that leaves the folder"):
        images.check()
    file.unlink()
    file.symlink_to(folder / images.files[2])
    images.check()
    (folder / "001.Some_bird").rename(tmp_path / "birds")
    (folder / "001.Some_bird").symlink_to(tmp_path / "birds")
    with pytest.raises(DataError, match="line 2: .* is a link that leaves the folder"):
        images.check()


def test_the_data_set_itself_may_be_a_link(tmp_path: Path) -> None:
    folder = write_waterbirds(tmp_path / "disk")
    (tmp_path / "data").mkdir()
    os.symlink(folder, tmp_path / "data" / folder.name)
    Waterbirds().read(tmp_path / "data").images.check()


def load_all(images: ImageList, workers: int) -> torch.Tensor:
    rows = torch.arange(len(images)).split(5)
    return torch.cat(list(decode(images, rows, evaluation_transform(WATERBIRDS), workers=workers)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "not an image", "empty"])
def test_a_damaged_image_names_its_file_and_line(tmp_path: Path, damage: str, workers: int) -> None:
    folder = write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    file = folder / images.files[7]
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "not an image": b"<html>", "empty": b""}[damage])
    images.check()
    with pytest.raises(DataError, match=r"line 9. cannot be decoded") as caught:
        load_all(images, workers)
    assert str(caught.value).startswith(str(file))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("factor", [1.5, 3.0])  # Pillow itself warns of the first and refuses the second
def test_an_image_past_pillows_limit_is_refused(tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    width, height = images.open(7).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(width * height / factor))
    with pytest.raises(DataError, match=r"line 9. cannot be decoded: .*exceeds limit") as caught:
        images.open(7)
    assert str(caught.value).startswith(str(folder / images.files[7]))


def test_workers_give_what_the_main_process_gives(tmp_path: Path) -> None:
    write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    before = torch.get_rng_state()
    assert torch.equal(load_all(images, 0), load_all(images, 2))
    assert torch.equal(before, torch.get_rng_state())


class Parent:
    """A transform that says which process the worker was started from."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor(os.getppid())


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no server to start from")
def test_workers_are_no_copies_of_this_process(tmp_path: Path) -> None:
    write_waterbirds(tmp_path)
    (parents,) = decode(Waterbirds().read(tmp_path).images, [torch.arange(2)], Parent(), workers=1)
    assert os.getpid() not in parents.tolist()


def test_rows_are_asked_for_only_a_little_ahead(tmp_path: Path) -> None:
    write_waterbirds(tmp_path)
    asked = []

    def endless() -> Iterator[torch.Tensor]:
        while True:
            asked.append(len(asked))
            yield torch.tensor([len(asked) % 36])

    found = decode(Waterbirds().read(tmp_path).images, endless(), evaluation_transform(WATERBIRDS), workers=1)
    first = next(found)
    assert first.shape == (1, 3, 224, 224)
    assert len(asked) <= 1 + 2 + 1


def standardised(image: Image.Image) -> torch.Tensor:
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def test_transforms_are_the_published_ones(tmp_path: Path) -> None:
    """Against PIL alone."""
    write_waterbirds(tmp_path)
    bird = Waterbirds().read(tmp_path).images.open(3)
    resized = bird.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    torch.testing.assert_close(evaluation_transform(WATERBIRDS)(bird), standardised(resized))
    write_celeba(tmp_path)
    face = CelebA().read(tmp_path).images.open(3)
    assert face.size == (178, 218)
    square = face.crop((0, 20, 178, 198)).resize((224, 224), Image.Resampling.BILINEAR)
    torch.testing.assert_close(evaluation_transform(CELEBA)(face), standardised(square))


def test_augmentation_depends_on_seed_batch_and_place_alone(tmp_path: Path) -> None:
    write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    batches = [torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([2, 1])]

    def decoded(workers: int, seed: int = 0, first: int = 0) -> torch.Tensor:
        transform = training_transform(WATERBIRDS)
        return torch.cat(list(decode(images, batches[first:], transform, workers=workers, seed=seed, first=first)))

    whole = decoded(0)
    assert torch.equal(whole, decoded(2))
    assert torch.equal(whole[2:], decoded(0, first=1))
    assert not torch.equal(whole, decoded(0, seed=1))
    assert not torch.equal(whole[0], whole[2])  # the same image in another batch
    assert not torch.equal(whole[2], whole[3])  # and in another place


def test_a_few_of_each_group(tmp_path: Path) -> None:
    write_waterbirds(tmp_path)

    def parts(count: int) -> tuple[Photographs, ...]:
        splits = Waterbirds(inputs="images", per_group=count).load(0, tmp_path)
        return splits.train, splits.validation, splits.test

    few, everything = parts(2), parts(0)
    assert [torch.bincount(part.group).tolist() for part in few] == [[2, 2, 2, 2]] * 3
    files = [image.images.files[int(row)] for image in few[:1] for row in image.rows]
    assert files[:2] == list(everything[0].images.files[:2])
    assert parts(100)[0].images.files == everything[0].images.files


def test_gray_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    folder = write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    Image.new("L", (9, 9), 7).save(folder / images.files[0])
    assert images.open(0).getpixel((0, 0)) == (7, 7, 7)


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "scan.png")
    found = np.asarray(open_image(tmp_path / "scan.png"))
    assert found.shape == (32, 32, 3)
    np.testing.assert_allclose(found / 255, np.repeat(levels[..., None], 3, 2) / 65535, atol=0.5 / 255 + 1e-9)
