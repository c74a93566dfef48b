"""What a stranger's names, tables and images do to ours."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from steelyard.cli import main
from steelyard.experiments.data import parquet
from steelyard.experiments.data.celeba import CelebA
from steelyard.experiments.data.cifar import read_cifar
from steelyard.experiments.data.decoding import open_image
from steelyard.experiments.data.idx import read_idx
from steelyard.experiments.data.table import read_csv
from steelyard.experiments.errors import DataError, RecipeError, RunError
from steelyard.experiments.priors import ComputedPrior, ScoreFile
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute, read_run
from steelyard.experiments.training.selection import CRITERIA
from tests.support.biased import biased_problem
from tests.support.compared import made
from tests.support.shrunk import short

RECIPE = short("coloured_digits/maple_prior")
NAME = "=cmd|'/C calc'!A1\x1b[31m\x07\u202ered\ud800\nnext|line"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(RECIPE, tmp_path_factory.mktemp("strangers") / "run", name="x").directory


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def rewritten(place: Path, change: Callable[[dict[str, object]], object]) -> None:
    config = json.loads(place.read_text())
    change(config)
    place.write_text(json.dumps(config))


def test_a_name_with_controls_is_harmless_everywhere(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(copy / "config.json", lambda config: config.update(name=NAME, overrides=["a=" + NAME]))
    rewritten(copy / "environment.json", lambda facts: facts.update(platform=NAME, **{NAME: NAME}))
    out = tmp_path / "out"
    assert main(["compare", str(copy), "--out", str(out)]) == 0
    assert main(["report", str(copy), "--out", str(out / "page.html")]) == 0
    said = capsys.readouterr()
    written = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
    for where, text in {**written, "terminal": said.out + said.err}.items():
        assert not set(text) & set("\x07\x1b\u202e\ud800"), where
    for name, text in written.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(text)
    rows = list(csv.reader(written["comparison.csv"].splitlines()))
    assert {row[0][:5] for row in rows[1:]} == {"'=cmd"}
    assert all(len(row) == len(rows[0]) for row in rows)
    first, further = (block for block in written["comparison.md"].split("\n\n") if block.startswith("|"))
    assert len(first.splitlines()) == 2 + len(rows[1:])
    assert len(further.splitlines()) == 1 + len(rows[1:])  # but for what is best on the test


def test_a_name_given_to_a_run_is_clean_before_it_is_read_back(tmp_path: Path) -> None:
    one = execute(short("coloured_digits/erm"), tmp_path / "run", name="a\x1bb", overrides=("c\x07=\n1",))
    assert (one.name, one.overrides) == ("a\ufffdb", ("c\ufffd= 1",))
    again = read_run(tmp_path / "run")
    assert (again.name, again.overrides) == (one.name, one.overrides)


def test_an_error_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "a\x1b[2J\x07b")]) == 2
    assert not set(capsys.readouterr().err) & set("\x07\x1b")


def test_compare_reads_no_table_of_samples(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: object, *arguments: object) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("steelyard.experiments.runs.reading.read_columns", read)
    monkeypatch.setattr(ComputedPrior, "load", read)
    for name in ("result.parquet", "prior.safetensors", "model.safetensors", "reweighting.safetensors"):
        (copy / name).write_bytes(b"nothing of this is needed")
    assert main(["compare", str(copy)]) == 0


def test_a_report_reads_the_columns_that_it_shows(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pandas.read_parquet(copy / "result.parquet")
    table = pyarrow.table({name: frame[name] for name in frame})
    for k in range(20):
        table = table.append_column(f"large{k}", pyarrow.array(["x" * 1000] * len(frame)))
    pyarrow.parquet.write_table(table, copy / "result.parquet")
    samples = read_run(copy).samples
    assert samples is not None
    assert list(samples) == list(frame)
    pandas.testing.assert_frame_equal(samples, frame)
    monkeypatch.setattr(parquet, "MOST_ROWS", len(frame) - 1)
    with pytest.raises(RunError, match=rf"it has {len(frame)} rows, from 1 to {len(frame) - 1} are read"):
        read_run(copy)


def column(name: str, values: Callable[[pandas.Series], object]) -> Callable[[pandas.DataFrame], pandas.DataFrame]:
    return lambda frame: frame.assign(**{name: values(frame[name])})


TABLES: dict[str, tuple[Callable[[pandas.DataFrame], pandas.DataFrame], str]] = {
    "index -1": (column("index", lambda old: [-1, *old[1:]]), "'index' must be finite and >= 0; 1 of"),
    "index twice": (column("index", lambda old: 0), "must name each sample once"),
    "index as text": (column("index", lambda old: old.astype(str)), "'index' must hold whole numbers, it holds"),
    "index with halves": (column("index", lambda old: old + 0.5), "'index' must hold whole numbers"),
    "probability 2": (column("probability", lambda old: 2.0), r"'probability' must be in \[0, 1\]"),
    "probability NaN": (column("probability", lambda old: numpy.nan), "empty cells in the columns probability"),
    "weight below 0": (column("weight", lambda old: -old), "'weight' must be finite and >= 0"),
    "weight infinite": (column("weight", lambda old: numpy.inf), "'weight' must be finite and >= 0"),
    "weights in lists": (column("weight", lambda old: [[x] for x in old]), "'weight' must hold numbers"),
    "weight empty": (column("weight", lambda old: old.astype("Float64").where(old.index > 0)), "empty cells in the"),
    "a fact of text": (column("label_flipped", lambda old: old.astype(str)), "'label_flipped' must hold true and"),
    "no rows": (lambda frame: frame.iloc[:0], "it has 0 rows"),
    "no column": (lambda frame: frame.drop(columns="target"), "it has no column 'target'"),
    "target below 0": (column("target", lambda old: old - 1), "'target' must be finite and >= 0"),
    "another target": (column("target", lambda old: 7), "of the data"),
    "another sample": (column("index", lambda old: old + 10**9), "of the data"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_samples_that_is_none(
    name: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = TABLES[name]
    (copy / "prior.safetensors").unlink()
    change(pandas.read_parquet(copy / "result.parquet")).to_parquet(copy / "result.parquet", index=False)
    assert main(["report", str(copy), "--out", str(tmp_path / "page.html")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "result.parquet" in said
    with pytest.raises(RunError, match=message):
        raise RunError(said)


PRIORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "nothing": lambda tensors: None,
    "fewer samples": lambda tensors: tensors.update({name: value[:-1] for name, value in tensors.items()}),
    "other samples": lambda tensors: tensors.update(index=tensors["index"].flip(0).contiguous()),
    "a matrix": lambda tensors: tensors.update({"scores.0": tensors["scores.0"][None]}),
    "above one": lambda tensors: tensors.update(probabilities=tensors["probabilities"] + 1),
    "NaN": lambda tensors: tensors.update({"probabilities.0": tensors["probabilities.0"] * float("nan")}),
    "whole numbers": lambda tensors: tensors.update(probabilities=tensors["index"].clone()),
    "halves as ids": lambda tensors: tensors.update(index=tensors["scores.0"].clone()),
}
HEADERS = ("[", "[" * 10**5, "{}", "[1]", '[{"name": "x"}]', '[{"weight": [1]}]')
ROW = {"name": "x", "weight": 1.0, "keep": "high", "figures": {}}
ROWS = [{"weight": 10**400}, {"weight": [1]}, {"keep": ["high"]}, {"figures": [1]}, {"figures": {"a": 10**400}}]
ROWS += [{"figures": {"radius": 1.0}}, {"figures": {"radius": 1.0, "gap": 2.0}}, {"name": "x", "figures": {"a": "b"}}]


def reported(copy: Path, header: dict[str, str], tensors: dict[str, torch.Tensor], tmp_path: Path) -> int:
    save_file(tensors, copy / "prior.safetensors", header)
    return main(["report", str(copy), "--out", str(tmp_path / "page.html")])


@pytest.mark.parametrize("damage", [*PRIORS, *HEADERS, *(json.dumps([{**ROW, **row}]) for row in ROWS)])
def test_a_prior_that_is_none(damage: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior = ComputedPrior.load(copy / "prior.safetensors")
    tensors = {"index": prior.index, "probabilities": prior.probabilities}
    tensors |= {"scores.0": prior.scores[0].scores, "probabilities.0": prior.scores[0].probabilities}
    header = {"format": "steelyard.prior", "version": "1", "digest": "x", "scores": json.dumps([ROW])}
    if damage in PRIORS:
        PRIORS[damage](tensors)
    else:
        header["scores"] = damage
    assert reported(copy, header, tensors, tmp_path) == (0 if damage == "nothing" else 2)
    if damage == "nothing":
        return
    assert "prior.safetensors" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("selection", [name for name in CRITERIA if "environment" in name or "extrapolated" in name])
def test_a_selection_by_environments_that_are_not_there(selection: str) -> None:
    one = made(0, [(0.9, 0.5, 0.5)])
    blank = [replace(e.visible, validation=replace(e.visible.validation, environment_accuracy=())) for e in one.history]
    with pytest.raises(RecipeError, match="needs the figures of each environment on validation"):
        CRITERIA[selection](blank)


def test_celebas_first_line_of_5000_digits(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.txt").write_text("1.jpg 0\n")
    for count in ("9" * 5000, "2", "\u0661"):
        (tmp_path / "list_attr_celeba.txt").write_text(f"{count}\nBlond_Hair Male\n1.jpg 1 -1\n", encoding="utf-8")
        with pytest.raises(
            DataError, match=r"list_attr_celeba\.txt, line 1: announces .* rows, the file has 1"
        ) as caught:
            CelebA().read(tmp_path)
        assert len(str(caught.value)) < 400
    (tmp_path / "list_attr_celeba.txt").write_text(f"{'0' * 5000}1\nBlond_Hair Male\n1.jpg 1 -1\n")
    assert len(CelebA().read(tmp_path).table) == 1


def test_a_table_of_many_columns_names_five(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(",".join(f"c{k}" for k in range(10**5)) + "\n")
    with pytest.raises(DataError, match=r"c0, c1, c2, c3, c4, \.\.\. \(100000 in all\)"):
        read_csv(tmp_path / "table.csv", ["a"])
    (tmp_path / "scores.csv").write_text(",".join(f"c{k}" for k in range(10**4)) + "\n" + ",".join("1" * 10**4))
    with pytest.raises(RecipeError, match=r"c0, c1, c2, c3, c4, \.\.\. \(10000 in all\)"):
        ScoreFile(path=str(tmp_path / "scores.csv")).scores(biased_problem(n=8))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"


def test_an_image_of_another_format_is_handed_to_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def ghostscript(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    for part in ("train", "test"):
        (tmp_path / part / "ship").mkdir(parents=True)
        (tmp_path / part / "ship" / "1.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"1\.png cannot be decoded: it is no image that is read here"):
        read_cifar(tmp_path, "train", ["ship"])
    with pytest.raises(DataError, match=r"1\.png \(x\) cannot be decoded"):
        open_image(tmp_path / "train" / "ship" / "1.png", "x")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO", "TGA", "PCX", "SGI"])
def test_images_are_read_in_the_formats_that_are_named(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "image", format=kind)
    with pytest.raises(DataError, match="formats: JPEG, PNG, WEBP, BMP"):
        open_image(tmp_path / "image")
    for known in ("JPEG", "PNG", "BMP"):
        Image.new("RGB", (32, 32)).save(tmp_path / "image", format=known)
        assert open_image(tmp_path / "image").size == (32, 32)


@pytest.fixture(params=["pipe", "socket", "device"])
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put something that is no file at a name."""
    import os

    def put(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            monkeypatch.chdir(path.parent)  # a socket's name has 108 letters at most
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path.name)
        return path

    return put


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recipe": ("recipe.toml", lambda path: load_recipe(str(path))),
    "csv": ("table.csv", lambda path: read_csv(path, ["a"])),
    "idx": ("images-idx3", lambda path: read_idx(path, 3)),
    "image": ("1.png", open_image),
    "scores": ("scores.csv", lambda path: ScoreFile(path=str(path)).scores(biased_problem(n=8))),
    "more scores": ("scores.parquet", lambda path: ScoreFile(path=str(path)).scores(biased_problem(n=8))),
    "prior": ("prior.safetensors", ComputedPrior.load),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits_for_what_is_no_file(reader: str, odd: Callable[[str], Path]) -> None:
    name, read = READERS[reader]
    with pytest.raises((DataError, RecipeError, RunError), match="not a file"):
        read(odd(name))
