"""`steelyard weigh` and `suspects` on images: tables that name them, folders, clean ones, pages, what is refused."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from steelyard.cli.command import main
from steelyard.experiments.data import OwnImages
from steelyard.experiments.models.backbone import Backbone
from tests.experiments.weigh.recomputed import OfArrays, agree, figures_on

NETS = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
"""
NET = ["--backbone", "weigh_nets:build", "--size", "16", "--model", "linear", "--epochs", "1"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty pictures, brighter for one class, in a folder for each class and in a table."""
    draws, rows = np.random.default_rng(0), []
    for number in range(60):
        kind = ("cat", "dog")[number % 2]
        place = tmp_path / "photos" / kind
        place.mkdir(parents=True, exist_ok=True)
        pixels = draws.normal(90 + 60 * (kind == "dog"), 20, (16, 16, 3)).clip(0, 255)
        Image.fromarray(pixels.astype("uint8")).save(place / f"{number:02}.png")
        rows.append([f"{kind}/{number:02}.png", kind, "ab"[number % 3 == 0]])
    with open(tmp_path / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "kind", "camera"], *rows])
    (tmp_path / "weigh_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def rows_of(folder: str) -> list[dict[str, str]]:
    with open(Path(folder) / "weights.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_that_names_images(photos: Path) -> None:
    named = ["photos.csv", "--images", "photos", "--file", "path", "--target", "kind"]
    assert main(["weigh", *named, *NET, "--allow-code"]) == 0
    rows = rows_of("runs/weigh/photos")
    assert {row["id"] for row in rows} == {f"{('cat', 'dog')[k % 2]}/{k:02}.png" for k in range(60)}
    trained = [row for row in rows if row["split"] == "train"]
    assert sorted(int(row["suspect_rank"]) for row in trained) == list(range(1, len(trained) + 1))
    assert (photos / "runs/weigh/photos/page.html").is_file()
    assert (photos / "runs/weigh/photos/model.safetensors").is_file()


def test_a_folder_for_each_class(photos: Path) -> None:
    assert main(["weigh", "photos", *NET, "--allow-code", "--out", "out"]) == 0
    assert len(rows_of("out")) == 60


def test_the_guide_computes_the_features_that_the_model_takes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[3] / "docs/guides/weigh.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", text, re.S)
    (photos / "weigh_nets.py").rename(photos / "my_nets.py")
    words = ["photos", "--backbone", "my_nets:build", "--allow-code", "--model", "linear", "--epochs", "1"]
    assert main(["weigh", *words]) == 0
    new = photos / "new"
    new.mkdir()
    for file in (photos / "photos").rglob("*.png"):  # those of the table again: their features are known
        (new / f"{file.parent.name}_{file.name}").write_bytes(file.read_bytes())
    capsys.readouterr()
    names: dict = {}
    exec(block, names)
    splits = OwnImages(folder="photos", backbone=Backbone("my_nets:build")).load(0)
    known = dict(zip(splits.ids, splits.train.inputs, strict=True))
    features = {
        f"{file.name}".replace("_", "/"): row for file, row in zip(names["files"], names["features"], strict=True)
    }
    assert len(features) == 60
    for name, row in known.items():
        torch.testing.assert_close(features[name], row)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 60
    assert lines[0].startswith("new/cat_00.png ")


def seen(files: list[str]) -> np.ndarray:
    """What the network of `NETS` makes of images: the means of blocks of 4 x 4, standardised as ImageNet's are."""
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float64) / 255 for file in files])
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    blocks = pixels.reshape(len(files), 4, 4, 4, 4, 3).mean((2, 4))
    return blocks.transpose(0, 3, 1, 2).reshape(len(files), -1)


def checked(photos: Path, folder: str = "photos") -> pandas.DataFrame:
    """Write twelve more images into a folder, and a table of them; return it."""
    draws, rows = np.random.default_rng(1), []
    for number in range(12):
        kind = ("cat", "dog")[number % 2]
        (photos / folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = draws.normal(90 + 60 * (kind == "dog"), 20, (16, 16, 3)).clip(0, 255)
        Image.fromarray(pixels.astype("uint8")).save(photos / folder / kind / f"more{number:02}.png")
        rows.append([f"{kind}/more{number:02}.png", kind])
    frame = pandas.DataFrame(rows, columns=["path", "kind"])
    frame.to_csv(photos / "checked.csv", index=False)
    return frame


TABLE = ["photos.csv", "--images", "photos", "--file", "path", "--target", "kind"]


@pytest.mark.parametrize("known", ["environments", "clean"])
def test_every_figure_is_one_of_the_weights_the_models_and_the_images(known: str, photos: Path) -> None:
    clean = checked(photos) if known == "clean" else None
    told = ["--clean", "checked.csv"] if known == "clean" else ["--environments", "camera"]
    assert main(["weigh", *TABLE, *NET, "--allow-code", "--out", "out", *told]) == 0
    table = pandas.read_csv("photos.csv")
    files = [*table["path"], *([] if clean is None else clean["path"])]
    written = OfArrays(Path("out"), table, seen([f"photos/{file}" for file in files]), clean)
    assert len(written.rows("test")) == 12
    shown, test, train = figures_on(Path("out/page.html").read_text()), written.rows("test"), written.rows("train")
    groups = test["kind" if known == "clean" else "camera"].astype("category")
    spreads = [(train["kind"], ["cat", "dog"]), *[(train["camera"], ["a", "b"])] * (known == "environments")]
    method = {"clean": "online", "environments": "maple"}[known]
    ours = written.figures({method: "model", "plain": "plain"}, groups, spreads)
    assert sorted(set(shown) - set(ours)) == []
    assert len(shown) > 80
    assert {key: (texts, ours[key]) for key, texts in shown.items() if not agree(texts, ours[key])} == {}


def pictures(page: str) -> list[tuple[int, np.ndarray]]:
    """The row of each picture on a page, and its pixels."""
    found = re.findall(r'<img alt="image (\d+)" src="data:image/jpeg;base64,([^"]*)"', page)
    return [(int(row), np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for row, data in found]


def test_suspects_are_shown_beside_the_nearest_trusted_images(photos: Path) -> None:
    table = pandas.read_csv("photos.csv")
    assert main(["weigh", *TABLE, *NET, "--allow-code", "--out", "out"]) == 0
    shown = pictures(Path("out/page.html").read_text())
    assert len(shown) == 20 * 4
    for row, pixels in shown:
        original = np.asarray(Image.open(f"photos/{table['path'][row]}"), dtype=float)
        assert abs(original.mean() - pixels.mean()) < 2  # JPEG
    ranked = pandas.read_csv("out/weights.csv").dropna().sort_values("suspect_rank")
    assert [row for row, _ in shown[::4]] == ranked["row"].tolist()[:20]


def test_clean_images_of_a_second_folder(photos: Path) -> None:
    checked(photos, "sure")
    words = ["weigh", "photos", *NET, "--allow-code", "--clean", "sure", "--out", "out"]
    assert main(words) == 0
    rows = pandas.read_csv("out/weights.csv", keep_default_na=False)
    assert len(rows) == 60
    assert set(rows["split"]) == {"train", "test"}
    beside = {row for row, _ in pictures(Path("out/page.html").read_text()) if row >= 60}
    assert beside
    assert beside <= set(range(60, 72))
    assert main([*words, "--resume"]) == 0
    (photos / "sure/cat/more00.png").write_bytes((photos / "sure/cat/more02.png").read_bytes() + b" " * 200)
    assert main([*words, "--resume"]) == 2  # its size is another


def test_an_image_that_is_among_the_clean_ones_is_not_trained_on(photos: Path) -> None:
    frame = pandas.concat([checked(photos), pandas.read_csv("photos.csv")[["path", "kind"]].head(8)])
    frame.to_csv("checked.csv", index=False)
    assert main(["weigh", *TABLE, *NET, "--allow-code", "--clean", "checked.csv", "--out", "out"]) == 0
    rows = pandas.read_csv("out/weights.csv", keep_default_na=False)
    assert (rows["split"] == "clean").tolist() == [row < 8 for row in range(60)]


def test_suspects_of_images(photos: Path) -> None:
    table = pandas.read_csv("photos.csv")
    table.loc[5, "kind"] = "cat"  # it is bright
    table.to_csv("photos.csv", index=False)
    words = ["--model", "linear", "--epochs", "60", "--no-check", "--allow-code"]
    assert main(["suspects", *TABLE, *NET[:4], *words, "--out", "found"]) == 0
    found = pandas.read_csv("found/suspects.csv")
    assert (found["id"][0], found["row"][0], found["label"][0], found["predicted"][0]) == (
        "dog/05.png",
        5,
        "cat",
        "dog",
    )
    shown = pictures(Path("found/page.html").read_text())
    assert [row for row, _ in shown[::4]] == found["row"].tolist()[:20]
    assert "dog/" in table["path"][shown[1][0]]


def test_a_resumed_one_shows_the_same(photos: Path) -> None:
    words = ["suspects", "photos", *NET[:4], "--epochs", "1", "--no-check", "--allow-code", "--out", "found"]
    assert main(words) == 0
    assert len(pandas.read_csv("found/suspects.csv")) == 60
    assert main(words) == 2


def _with(photos: Path, row: int, **values: str) -> None:
    frame = pandas.read_csv("photos.csv").astype(object)
    for column, value in values.items():
        frame.loc[row, column] = value
    frame.to_csv("photos.csv", index=False)


def test_a_row_or_an_image_that_is_wrong_is_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["weigh", *TABLE, *NET, "--allow-code"]
    for values, said in (
        ({"path": "cat/99.png"}, "1 of 60 images that photos.csv names are not in photos; it is 'cat/99.png' (line 7)"),
        ({"path": "../x.png"}, "photos.csv, line 7: the path '../x.png' leaves the folder photos"),
        ({"path": ""}, "photos.csv, line 7: 'path' is '', expected a path"),
        ({"path": "dog/03.png"}, "photos.csv, line 7: 'path' is 'dog/03.png', expected an id that no other line has"),
        ({"path": "dog/05.png", "kind": ""}, "photos.csv, line 7: 'kind' is '', expected a value"),
    ):
        _with(photos, 5, **values)
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["weigh", "suspects"])
def test_an_image_that_cannot_be_decoded_is_named(
    command: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path("photos/dog/05.png").read_bytes()
    for data, said in ((whole[:200], "truncated"), (b"no image", "it is no image that is read here")):
        Path("photos/dog/05.png").write_bytes(data)
        for words, place in ((TABLE, "photos.csv, line 7"), (["photos"], "photos, image 33")):
            assert main([command, *words, *NET, "--allow-code"]) == 2
            error = capsys.readouterr().err
            assert f"photos/dog/05.png ({place}) cannot be decoded: " in error
            assert said in error
            assert "mend it or leave it out" in error


def test_folders_that_hold_no_classes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("none/cat").mkdir(parents=True)
    for words, said in (
        (["none"], "none has no image in a folder of a class"),
        (["nowhere"], "there is no file or folder nowhere"),
        (["photos", "--clean", "none"], "none has no image in a folder of a class"),
        (
            ["photos", "--environments", "camera"],
            "photos (no table is given, so a folder is a class): there is no colu",
        ),
    ):
        assert main(["weigh", *words, *NET, "--allow-code"]) == 2
        assert said in capsys.readouterr().err
    Path("photos/stray.png").write_bytes(Path("photos/cat/00.png").read_bytes())
    assert main(["weigh", "photos", *NET, "--allow-code"]) == 2
    error = capsys.readouterr().err
    assert "the image 'stray.png' is in no folder of a class" in error
    assert "data.table" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["photos", *NET], "say --allow-code"),
        (["photos", "--allow-code"], "--backbone is missing"),
        (["photos", *NET, "--allow-code", "--clean", "photos.csv"], "--clean: there is no folder photos.csv"),
        (["photos", *NET, "--allow-code", "--drop", "x"], "--drop is for tables"),
        (["photos", "--backbone", "resnet1"], "must be one of torchvision's classifiers"),
        (["photos.csv"], "--target is missing"),
        (["photos.csv", "--images", "nowhere", "--file", "path", "--target", "kind", *NET, "--allow-code"], "nowhere"),
        (["photos.csv", "--images", "photos", "--target", "kind", *NET, "--allow-code"], "'file'"),
    ],
    ids=["code", "no backbone", "clean", "drop", "unknown network", "no target", "no folder", "no such column"],
)
def test_what_is_refused(photos: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weigh", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (photos / "runs").exists()
