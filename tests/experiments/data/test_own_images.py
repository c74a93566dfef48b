"""Images of one's own: what the table or the folders say, what the backbone makes of them, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from steelyard.experiments.data import OwnImages, OwnTable, Splits, Waterbirds
from steelyard.experiments.errors import DataError, RecipeError, RunError
from steelyard.experiments.methods import ERM, Maple
from steelyard.experiments.methods.maple import InnerSettings
from steelyard.experiments.models import MLP
from steelyard.experiments.models.backbone import Backbone
from steelyard.experiments.report.page import render
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.trainer import Training
from tests.support.own import PICTURES, Means, write_pictures

MEANS = Backbone("tests.support.own:means", workers=0)


@pytest.fixture(autouse=True)
def frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pandas.DataFrame:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEELYARD_CACHE", str(tmp_path / "cache"))
    return write_pictures()


def images(**settings: object) -> OwnImages:
    known = {"folder": "pictures", "inputs": "images", "workers": 0, "size": 8, "backbone": MEANS, **PICTURES}
    return OwnImages(**{**known, **settings})  # type: ignore[arg-type]


def parts(splits: Splits) -> tuple:
    return splits.train, splits.validation, splits.test


def same_labels(one: Splits, other: Splits) -> bool:
    names = ("targets", "environment", "group")
    pairs = zip(parts(one), parts(other), strict=True)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)


def test_labels_are_those_of_a_table(frame: pandas.DataFrame) -> None:
    """The settings of labels and splits are shared, so the same table says the same."""
    frame.assign(x=range(len(frame))).to_csv("table.csv", index=False)
    as_table = OwnTable(file="table.csv", target="kind", attributes=("tone",), split="part", id="picture").load(0)
    splits = images().load(0)
    assert same_labels(splits, as_table)
    assert (splits.classes, splits.groups, splits.environments, splits.ids) == (
        as_table.classes,
        as_table.groups,
        as_table.environments,
        as_table.ids,
    )
    assert splits.name == "images-pictures"
    shares = {"split": "", "test_share": 0.4, "validation_share": 0.4}
    dealt = images(**shares, split_seed=3).load(0)
    assert dealt.ids == images(**shares).load(3).ids != splits.ids


def test_an_image_is_framed_as_pillow_frames_it(frame: pandas.DataFrame) -> None:
    row = int((frame["part"] == "train").to_numpy().nonzero()[0][4])
    image = Image.open(Path("pictures") / frame["picture"][row])
    with_pillow = {
        "squash": image.resize((8, 8), Image.Resampling.BILINEAR),
        "crop": image.resize((9, 8), Image.Resampling.BILINEAR).crop((0, 0, 8, 8)),  # 12 x 10: the shorter side to 8
    }
    for shape, expected in with_pillow.items():
        data = images(shape=shape, mean=(0.5, 0.0, 0.25), std=(2.0, 1.0, 0.5))
        pixels = torch.tensor(np.asarray(expected), dtype=torch.float32).permute(2, 0, 1) / 255
        scaled = (pixels - torch.tensor([0.5, 0, 0.25])[:, None, None]) / torch.tensor([2, 1, 0.5])[:, None, None]
        found = data.load(0).train.take(torch.tensor([4])).inputs[0]
        assert found.shape == (3, 8, 8)
        torch.testing.assert_close(found, scaled, atol=0.03 if shape == "crop" else 1e-6, rtol=0)


def test_features_are_what_the_backbone_makes(frame: pandas.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = images(inputs="features").load(0)
    whole = images().load(0)
    for one, other in zip(parts(splits), parts(whole), strict=True):
        expected = Means()(other.take(torch.arange(len(other))).inputs)
        torch.testing.assert_close(one.inputs, expected.detach())
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image is decoded"))
    assert torch.equal(images(inputs="features").load(0).train.inputs, splits.train.inputs)


def test_weights_of_a_file_are_put_into_ones_own_module() -> None:
    save_file({"scale": torch.tensor([2.0, 2.0, 2.0])}, "weights.safetensors")
    plain = images(inputs="features").load(0)
    scaled = images(inputs="features", backbone=replace(MEANS, weights="weights.safetensors")).load(0)
    torch.testing.assert_close(scaled.train.inputs, 2 * plain.train.inputs)
    assert "weights.safetensors" in scaled.sources
    save_file({"other": torch.ones(3)}, "weights.safetensors")
    with pytest.raises(DataError, match=r"weights\.safetensors does not hold the weights of a tests\.support\.own"):
        images(inputs="features", backbone=replace(MEANS, weights="weights.safetensors")).load(0)


def folders(frame: pandas.DataFrame, place: Callable[[pandas.Series], str]) -> Path:
    for _, row in frame.iterrows():
        target = Path("folders") / place(row) / Path(row["picture"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("pictures") / row["picture"], target)
    (Path("folders") / "README.txt").write_text("no image")
    return Path("folders")


BARE: dict = {"folder": "folders", "table": "", "file": "file", "target": "", "attributes": (), "split": ""}


def test_a_folder_for_each_split_and_class(frame: pandas.DataFrame) -> None:
    folders(frame, lambda row: f"{row['part']}/{row['kind']}")
    splits = images(**BARE).load(0)
    assert splits.classes == ("cat", "dog")
    assert [len(part) for part in parts(splits)] == [24, 12, 12]
    own = frame[frame["part"] == "train"].sort_values(["kind", "picture"])
    assert splits.train.targets.tolist() == (own["kind"] == "dog").astype(int).tolist()
    assert splits.ids[0] == f"train/cat/{Path(own['picture'].iloc[0]).name}"
    assert any("1 files in folders that are no images" in note for note in splits.notes)


def test_a_folder_for_each_class_and_splits_that_are_dealt(frame: pandas.DataFrame) -> None:
    folders(frame, lambda row: f"{row['kind']}/{row['tone']}")
    splits = images(**{**BARE, "attributes": ("folder",)}, test_share=0.4, validation_share=0.4).load(0)
    assert splits.groups == ("cat, cold", "cat, warm", "dog, cold", "dog, warm")
    assert "dealt at random by the run's seed" in splits.notes[0]
    assert sum(len(part) for part in parts(splits)) == len(frame)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ("stray", {}, r"the image 'stray.png' is in no folder of a class"),
        ("beside", {}, r"'odd' stands beside the folders of splits"),
        ("link", {}, r"linked is a symbolic link to a folder"),
        ("none", {"folder": "nowhere"}, "data.folder: there is no folder nowhere .paths begin"),
        ("none", {"attributes": ("tone",)}, r"folders \(no table is given, .* no column 'tone'"),
        ("test", {}, r"folders: no image has 'test' in the column 'split'"),
    ],
    ids=["stray", "beside", "link", "nowhere", "column", "no test"],
)
def test_folders_that_are_refused(frame: pandas.DataFrame, change: str, settings: dict, words: str) -> None:
    folder = folders(frame, lambda row: f"{row['part']}/{row['kind']}")
    if change == "stray":
        shutil.copy(Path("pictures") / frame["picture"][0], folder / "stray.png")
    elif change == "beside":
        (folder / "odd").mkdir()
    elif change == "link":
        (folder / "train" / "linked").symlink_to(Path("pictures").resolve())
    elif change == "test":
        shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match=words):
        images(**{**BARE, **settings}).load(0)


def edit(line: int, old: str, new: str) -> None:
    path = Path("pictures/data.csv")
    lines = path.read_text().split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("line", "old", "new", "words"),
    [
        (1, "kind", "knid", r"pictures/data\.csv, line 1: there is no column 'kind'; did you mean 'knid'"),
        (1, "picture", "image", r"line 1: there is no column 'picture'"),
        (3, "b/001", "c/001", r"1 of 48 images that pictures/data\.csv names .* it is 'c/001\.png' \(line 3\)"),
        (3, "b/001", "../b/001", r"line 3: the path '\.\./b/001\.png' leaves the folder pictures"),
        (3, "b/001", "b/003", r"line 5: 'picture' is 'b/003\.png', expected an id that no other line has"),
        (3, "dog", "", "line 3: 'kind' is '', expected a value"),
        (3, "train", "hold-out", "line 3: 'part' is 'hold-out', expected one of"),
        (3, "dog", "cow", "column 'kind': the class 'cow' has no sample in the validation split .1 row in all"),
        (3, "dog,train", "dog", "line 3: has 3 values, expected 4"),
    ],
    ids=["target", "file", "missing", "outside", "twice", "label", "split", "absent", "short"],
)
def test_errors_name_file_line_and_column(line: int, old: str, new: str, words: str) -> None:
    edit(line, old, new)
    with pytest.raises(DataError, match=words):
        images().load(0)


def test_a_damaged_image_is_named_by_its_line(frame: pandas.DataFrame) -> None:
    (Path("pictures") / frame["picture"][7]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"pictures/b/007\.png \(pictures/data\.csv, line 9\) cannot be decoded"):
        images(inputs="features").load(0)


def test_windows_separators_and_endings_of_ones_own(frame: pandas.DataFrame) -> None:
    whole = images().load(0)
    names = frame["picture"].str.removesuffix(".png").str.replace("/", "\\")
    frame.assign(picture=names).to_csv("pictures/data.csv", index=False)
    assert images(ending=".png").load(0).ids == whole.ids
    frame.assign(picture=".\\" + names).to_csv("pictures/data.txt", index=False, sep=" ")
    assert images(table="pictures/data.txt", separator=" ", ending=".png").load(0).ids == whole.ids
    frame.to_parquet("pictures/data.parquet")
    assert images(table="pictures/data.parquet").load(0).ids == whole.ids


def test_groups_may_be_known_outside_of_training_alone(frame: pandas.DataFrame) -> None:
    frame.loc[frame["part"] == "train", "tone"] = ""
    frame.to_csv("pictures/data.csv", index=False)
    splits = images().load(0)
    assert splits.groups_hidden
    assert len(splits.groups) == 4
    assert splits.environments == ("all",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folder": ""}, "folder must name"),
        ({"table": "", "file": "picture"}, "give the table"),
        ({"target": ""}, "target must name"),
        ({"file": "kind"}, "file names 'kind', which is a label"),
        ({"size": 0}, "size"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"separator": ";;"}, "one character"),
        ({"augment": True, "inputs": "features"}, "augment draws"),
    ],
    ids=["folder", "table", "target", "file", "size", "std", "separator", "augment"],
)
def test_settings_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        images(**settings)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("tests.support.own:half", r"must return features \(48, d\), got torch.float32 of shape .*flatten or pool"),
        ("tests.support.own:not_a_module", r"must return a torch.nn.Module, got 3"),
        ("tests.support.own:meens", "has no function 'meens'; did you mean 'means'"),
        ("tests.experiments.owm:means", "there is no module 'tests.experiments.owm'; begin in the folder of tests.py"),
        ("own_broken:make", r"the module 'own_broken' cannot be imported: ZeroDivisionError"),
        ("own_needs:make", r"the module 'own_needs' cannot be imported: No module named 'not_there_at_all'"),
    ],
    ids=["shape", "no module", "function", "module", "broken", "needs"],
)
def test_backbones_that_are_none(model: str, words: str) -> None:
    Path("own_broken.py").write_text("1 / 0\n")
    Path("own_needs.py").write_text("import not_there_at_all\n")
    with pytest.raises(DataError, match=words):
        images(inputs="features", backbone=Backbone(model, workers=0)).load(0)


RECIPE = """
base = "coloured_digits/maple"
[data]
name = "images"
folder = "pictures"
table = "pictures/data.csv"
file = "picture"
target = "kind"
attributes = ["tone"]
split = "part"
size = 8
[data.backbone]
model = "tests.support.own:means"
workers = 0
[model]
name = "logistic"
[method]
budget = 12
steps = 3
folds = 2
[method.inner]
steps = 3
"""


def written_recipe() -> Recipe:
    Path("mine.toml").write_text(RECIPE)
    return load_recipe("mine.toml")


def test_a_recipe_runs_and_names_each_sample(frame: pandas.DataFrame) -> None:
    recipe = written_recipe()
    with pytest.raises(RecipeError, match=r"runs code that it names, tests\.support\.own:means; .* --allow-code"):
        execute(recipe, Path("run"), name="mine.toml")
    assert not Path("run").exists()
    run = execute(recipe, Path("run"), name="mine.toml", allow_code=True)
    assert run.samples is not None
    assert run.samples["id"].tolist() == frame[frame["part"] == "train"]["picture"].tolist()
    assert set(run.environment["files"]) == {"pictures", "pictures/data.csv", "tests.support.own:means"}
    again = execute(recipe, Path("run"), name="mine.toml", allow_code=True, resume=True)
    assert again.history == run.history


def test_a_run_is_not_resumed_on_images_that_changed(frame: pandas.DataFrame) -> None:
    recipe = written_recipe()
    execute(recipe, Path("run"), name="mine.toml", allow_code=True)
    Image.new("RGB", (40, 40), (1, 2, 3)).save(Path("pictures") / frame["picture"][3])
    with pytest.raises(RunError, match="pictures"):
        execute(recipe, Path("run"), name="mine.toml", allow_code=True, resume=True)


def test_methods_run_on_the_images_themselves() -> None:
    inner = InnerSettings(2, batch_size=6)
    for number, method in enumerate((ERM(training=Training(steps=2, batch_size=6)), Maple(12, steps=2, inner=inner))):
        run = execute(Recipe(images(), MLP(hidden=(2,)), method), Path(f"run{number}"), name="test")
        assert sum(run.history[-1].test.group_count) == 12


def test_published_networks_are_no_code_of_the_users() -> None:
    assert images(inputs="images").code == ()
    assert images(inputs="features").code == ("tests.support.own:means",)
    assert images(inputs="features", backbone=Backbone("resnet18")).code == ()


def test_a_page_imports_no_code_and_opens_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory may be a stranger's: one whose recipe names a function is shown without its data."""
    run = execute(written_recipe(), Path("run"), name="mine.toml", allow_code=True)
    birds = replace(run.recipe, data=Waterbirds(backbone=Backbone("stranger:build")))
    monkeypatch.setattr(OwnImages, "load", lambda *_: pytest.fail("loaded"))
    Path("stranger.py").write_text("raise AssertionError('imported')\n")
    for shown in (run, replace(run, recipe=birds)):
        assert "mine.toml" in render([shown], Path())
