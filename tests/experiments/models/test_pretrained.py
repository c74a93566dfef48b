"""Pretrained networks: the weights of the file, a new last layer, and what is said when they are not there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelyard._support._torchvision import torchvision
from steelyard.experiments.data import CelebA
from steelyard.experiments.errors import DataError
from steelyard.experiments.methods import ERM
from steelyard.experiments.models import PretrainedResNet
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.trainer import Training
from tests.support.layouts import write_weights

SHAPE = (3, 224, 224)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "resnet18.pth")


@pytest.fixture
def settings(weights: Path) -> PretrainedResNet:
    return PretrainedResNet(architecture="resnet18", weights=str(weights))


def test_the_weights_are_those_of_the_file_and_the_last_layer_is_new(settings: PretrainedResNet, weights: Path) -> None:
    model, state = settings.build(SHAPE, 2, seed=0), torch.load(weights, weights_only=True)
    ours = model.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in ours if not name.startswith("fc."))
    assert model.fc.weight.shape == (2, 512)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training


def test_it_computes_what_torchvisions_does(settings: PretrainedResNet) -> None:
    model = settings.build(SHAPE, 2, seed=0).eval()
    theirs = torchvision.models.resnet18(weights=None, num_classes=2)
    theirs.load_state_dict(model.state_dict())
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(inputs), theirs.eval()(inputs))


def test_the_seed_decides_the_last_layer_alone(settings: PretrainedResNet) -> None:
    before = torch.get_rng_state()
    one, same, other = (settings.build(SHAPE, 2, seed).requires_grad_(False).fc for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.weight, same.weight)
    assert torch.equal(one.bias, same.bias)
    assert not torch.equal(one.weight, other.weight)
    drawn = torch.cat([one.weight.flatten(), other.weight.flatten()]) * 512**0.5  # uniform on [-1, 1], 2,048 draws
    assert float(drawn.abs().max()) <= 1.0
    assert float(drawn.var()) == pytest.approx(1 / 3, abs=4 * (4 / 45 / 2048) ** 0.5)


def test_one_logit(settings: PretrainedResNet) -> None:
    assert replace(settings, head="one_logit").build(SHAPE, 2, 0).fc.out_features == 1


@pytest.mark.parametrize("shape", [(512,), (1, 28, 28)])
def test_other_inputs_are_refused(settings: PretrainedResNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"'pretrained_resnet' takes images \(3, h, w\)"):
        settings.build(shape, 2, 0)


def test_missing_weights_are_said_before_anything_is_written(tmp_path: Path) -> None:
    model = PretrainedResNet(weights=str(tmp_path / "absent.pth"))
    recipe = Recipe(CelebA(inputs="images"), model, ERM(training=Training(batch_size=2)))
    with pytest.raises(DataError, match=r"absent\.pth cannot be read"):
        execute(recipe, tmp_path / "run", name="test", data_root=tmp_path)
    assert not (tmp_path / "run").exists()


def test_no_weights_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="weights must name"):
        PretrainedResNet(weights="")


def test_weights_in_half_precision_become_single(tmp_path: Path, settings: PretrainedResNet, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({name: v.half() if v.is_floating_point() else v for name, v in state.items()}, tmp_path / "half.pth")
    model = replace(settings, weights=str(tmp_path / "half.pth")).build(SHAPE, 2, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1.weight, state["conv1.weight"].half().float())
