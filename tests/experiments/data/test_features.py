"""Frozen backbones and the cache of their features."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from steelyard._support._plain import plain
from steelyard._support._torchvision import torchvision
from steelyard.experiments.data import CelebA, Waterbirds
from steelyard.experiments.data.features import cache_folder, features, key
from steelyard.experiments.data.transforms import CELEBA, WATERBIRDS, evaluation_transform, training_transform
from steelyard.experiments.errors import DataError
from steelyard.experiments.models.backbone import Backbone, skeleton
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.runs.schema import parse
from tests.support.layouts import write_celeba, write_waterbirds, write_weights

TRANSFORM = evaluation_transform(WATERBIRDS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "resnet18.pth")


@pytest.fixture
def backbone(weights: Path) -> Backbone:
    return Backbone("resnet18", str(weights), batch_size=16, workers=0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_CACHE", str(tmp_path / "cache"))


def reference(root: Path, weights: Path) -> torch.Tensor:
    """The penultimate layer of torchvision's own model, image by image."""
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    found = []
    model.avgpool.register_forward_hook(lambda module, args, output: found.append(output.flatten(1)))
    images = Waterbirds().read(root).images
    with torch.no_grad():
        for row in (0, 20, 35):
            model(TRANSFORM(images.open(row))[None])
    return torch.cat(found)


def test_waterbirds_as_features(tmp_path: Path, backbone: Backbone, weights: Path) -> None:
    write_waterbirds(tmp_path)
    splits = Waterbirds(backbone=backbone).load(0, tmp_path)
    assert [tuple(part.inputs.shape) for part in (splits.train, splits.validation, splits.test)] == [
        (16, 512),
        (8, 512),
        (12, 512),
    ]
    assert splits.groups == ("landbird, land", "landbird, water", "waterbird, land", "waterbird, water")
    assert torch.bincount(splits.train.group).tolist() == [6, 3, 2, 5]
    ours = torch.stack([splits.train.inputs[0], splits.validation.inputs[4], splits.test.inputs[11]])
    torch.testing.assert_close(ours, reference(tmp_path, weights))


def test_the_second_time_no_image_is_decoded_and_no_network_built(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_celeba(tmp_path)
    data = CelebA(backbone=backbone)
    first = data.load(0, tmp_path)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image is decoded"))
    monkeypatch.setattr(Backbone, "build", lambda *_, **__: pytest.fail("the network is built"))
    again = data.load(0, tmp_path)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_the_key_moves_with_all_that_features_depend_on(tmp_path: Path, backbone: Backbone) -> None:
    folder = write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    keys = {key(images, backbone, TRANSFORM)}
    keys.add(key(images, backbone, evaluation_transform(CELEBA)))
    keys.add(key(images, backbone, training_transform(WATERBIRDS)))
    other = write_weights(tmp_path / "other.pth", seed=1)
    keys.add(key(images, replace(backbone, weights=str(other)), TRANSFORM))
    keys.add(key(images, Backbone("resnet18", "IMAGENET1K_V1"), TRANSFORM))
    keys.add(key(images, Backbone("resnet50", "IMAGENET1K_V1"), TRANSFORM))
    keys.add(key(images, Backbone("resnet50", "IMAGENET1K_V2"), TRANSFORM))
    keys.add(key(replace(images, files=images.files[::-1]), backbone, TRANSFORM))
    os.utime(folder / images.files[0], ns=(1, 1))
    keys.add(key(images, backbone, TRANSFORM))
    assert len(keys) == 9


def test_the_key_does_not_move_with_the_rest(tmp_path: Path, backbone: Backbone, weights: Path) -> None:
    folder = write_waterbirds(tmp_path)
    one = key(Waterbirds().read(tmp_path).images, backbone, TRANSFORM)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights.read_bytes())
    settings = replace(backbone, weights=str(copy), batch_size=3, workers=1)
    folder.rename(tmp_path / "waterbirds_v1.0")
    assert key(Waterbirds().read(tmp_path).images, settings, evaluation_transform(WATERBIRDS)) == one


@pytest.fixture(scope="module")
def cached(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """A folder of images, a folder with the cache of their features, and the features."""
    root, folder = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("cached")
    write_waterbirds(root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("STEELYARD_CACHE", str(folder))
        backbone = Backbone("resnet18", str(weights), batch_size=16, workers=0)
        return root, folder, features(Waterbirds().read(root).images, backbone, TRANSFORM)


@pytest.mark.parametrize("damage", ["truncated", "other key", "other length"])
def test_a_damaged_cache_is_computed_anew(
    tmp_path: Path, backbone: Backbone, damage: str, cached: tuple[Path, Path, torch.Tensor]
) -> None:
    root, folder, right = cached
    images = Waterbirds().read(root).images
    (path,) = Path(shutil.copytree(folder, tmp_path / "cache")).iterdir()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other key":
        save_file({"features": torch.zeros_like(right)}, path, metadata={"key": "another"})
    else:
        save_file({"features": right[:-1]}, path, metadata={"key": key(images, backbone, TRANSFORM)})
    assert torch.equal(features(images, backbone, TRANSFORM), right)
    assert torch.equal(features(images, backbone, TRANSFORM), right)
    assert list((tmp_path / "cache").iterdir()) == [path]  # it was that file's turn


def test_a_failure_leaves_nothing_in_the_cache(tmp_path: Path, backbone: Backbone) -> None:
    folder = write_waterbirds(tmp_path)
    images = Waterbirds().read(tmp_path).images
    (folder / images.files[30]).write_bytes(b"")
    with pytest.raises(DataError, match="line 32"):
        features(images, backbone, TRANSFORM)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path, backbone: Backbone) -> None:
    write_waterbirds(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set STEELYARD_CACHE"):
        features(Waterbirds().read(tmp_path).images, backbone, TRANSFORM, cache=tmp_path / "file")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEELYARD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/steelyard/features")


def test_weights_in_safetensors_and_without_a_last_layer(tmp_path: Path, weights: Path, backbone: Backbone) -> None:
    state = torch.load(weights, weights_only=True)
    bare = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in state.items() if not name.startswith("fc.")}, bare)
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other = backbone.build(), replace(backbone, weights=str(bare)).build()
    assert torch.equal(one(inputs), other(inputs))
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert not one.training


def test_building_leaves_the_global_generator_alone(backbone: Backbone) -> None:
    before = torch.get_rng_state()
    backbone.build()
    assert torch.equal(before, torch.get_rng_state())


class Evil:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("/tmp/steelyard-evil",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a checkpoint", "cannot be read"),
        ({"state_dict": {"conv1.weight": torch.ones(1)}}, "must hold a state dict"),
        ({"conv1.weight": torch.ones(1)}, "does not hold the weights of a resnet18"),
        ({"conv1.weight": Evil()}, "cannot be read"),
    ],
)
def test_weights_that_are_not(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DataError, match=words) as caught:
        Backbone("resnet18", str(path)).build()
    assert str(path) in str(caught.value)
    assert not Path("/tmp/steelyard-evil").exists()


def test_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"absent\.pth cannot be read"):
        Backbone(weights=str(tmp_path / "absent.pth")).identity()
    with pytest.raises(DataError, match="did you mean 'IMAGENET1K_V1'"):
        Backbone(weights="IMAGENET_V1").build()
    with pytest.raises(DataError, match=r"not at .*checkpoints/resnet50-0676ba61\.pth: allow --download, copy it"):
        Backbone().build()


def test_offline_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match=r"could not download https://.*not known; offline, copy it .* `weights`"):
        Backbone().build(download=True)


def test_weights_that_torchvision_keeps_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    write_weights(tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert Backbone("resnet18").build()(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"batch_size": 0}, {"workers": -1}, {"weights": ""}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Backbone(**settings)


def test_methods_run_on_features_from_a_recipe(tmp_path: Path, backbone: Backbone) -> None:
    write_waterbirds(tmp_path)
    erm = {"name": "erm", "training": {"steps": 3, "evaluate_every": 1}}
    maple = {"name": "maple", "budget": 12, "steps": 2, "inner": {"steps": 2}}
    for method in (erm, maple):
        table = {
            "data": plain(Waterbirds(backbone=backbone)),
            "model": {"name": "logistic"},
            "method": method,
            "selection": "validation_worst_group",
        }
        recipe = parse(Recipe, table, "test")
        run = execute(recipe, tmp_path / str(method["name"]), name="test", data_root=tmp_path)
        assert run.history[-1].test.group_count == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("model", "layer", "width"),
    [
        ("resnet18", "fc", 512),
        ("efficientnet_b0", "classifier.1", 1280),
        ("densenet121", "classifier", 1024),
        ("vit_b_16", "heads.head", 768),
        ("swin_t", "head", 768),
        ("convnext_tiny", "classifier.2", 768),
        ("vgg11", "classifier.6", 4096),
        ("inception_v3", "fc", 2048),
    ],
)
def test_the_last_layer_of_torchvisions_networks_is_found(model: str, layer: str, width: int) -> None:
    _, *found = skeleton(model)
    assert found == [layer, width]


def test_another_network_of_torchvisions_with_weights_of_a_file(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "mobilenet.safetensors", "mobilenet_v3_small")
    features = Backbone("mobilenet_v3_small", str(weights)).build()(torch.ones(2, 3, 32, 32))
    whole = torchvision.models.get_model("mobilenet_v3_small", weights=None)
    whole.load_state_dict(load_file(weights))
    expected = []
    whole.classifier[-1].register_forward_pre_hook(lambda module, args: expected.append(args[0]))
    whole.eval()(torch.ones(2, 3, 32, 32))
    torch.testing.assert_close(features, expected[0].detach())


def test_networks_that_cannot_be_backbones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must be one of torchvision's .* got 'resnet5'; did you mean 'resnet"):
        Backbone("resnet5")
    with pytest.raises(ValueError, match="weights of a module of your own must be a file"):
        Backbone("my_net:build", "IMAGENET1K_V2")
    with pytest.raises(ValueError, match="model must be 'module:function'"):
        Backbone("my net:build")
    weights = write_weights(tmp_path / "squeezenet.pth", "squeezenet1_1")
    with pytest.raises(DataError, match="squeezenet1_1 does not end in a linear layer"):
        Backbone("squeezenet1_1", str(weights)).build()
