"""`steelyard weigh` on images: a table that names them, a folder for each class, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steelyard.cli.command import main

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
