"""LeNet-5, PreActResNet-18, VGG-8 and VGG-16: known sizes, torchvision's VGG, the block against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard._support._modules import last_linear
from steelyard._support._torchvision import torchvision
from steelyard.experiments.active.view import read
from steelyard.experiments.models import VGG8, VGG16, LeNet5, Model, PreActResNet18

NETS = {"lenet5": LeNet5(), "preact_resnet18": PreActResNet18(width=4), "vgg8": VGG8(), "vgg16": VGG16()}
FEATURES = {"lenet5": 84, "preact_resnet18": 32, "vgg8": 512, "vgg16": 512}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 48)])
def test_outputs_embedding_and_seed(name: str, shape: tuple[int, int, int]) -> None:
    before = torch.get_rng_state()
    one, same, other = (NETS[name].build(shape, 7, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    inputs = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    logits, hidden = read(one, inputs)
    assert logits.shape == (3, 7)
    assert hidden.shape == (3, FEATURES[name])
    torch.testing.assert_close(last_linear(one)(hidden), logits)
    assert torch.equal(read(same, inputs)[0], logits)
    assert not torch.equal(read(other, inputs)[0], logits)


@pytest.mark.parametrize(("name", "side"), [("lenet5", 16), ("vgg8", 32), ("vgg16", 32)])
def test_images_that_are_too_small_or_none(name: str, side: int) -> None:
    with pytest.raises(ValueError, match=f"{side} x {side}"):
        NETS[name].build((3, side - 1, side), 10, 0)
    with pytest.raises(ValueError, match="takes images"):
        NETS[name].build((8,), 10, 0)


def test_lenet_has_its_61706_parameters() -> None:
    for shape in ((1, 28, 28), (1, 32, 32)):
        assert count(LeNet5(), shape) == 61_706


def count(model: Model, shape: tuple[int, ...]) -> int:
    return sum(parameter.numel() for parameter in model.build(shape, 10, 0).parameters())


def test_vgg16_is_torchvisions_without_biases_and_hidden_linear_layers() -> None:
    ours = VGG16().build((3, 32, 32), 10, 0).eval()
    theirs = torchvision.models.vgg16_bn(weights=None).features.eval()
    mine = [module for module in ours if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    other = [module for module in theirs if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    for one, two in zip(mine, other, strict=True):
        two.load_state_dict({**two.state_dict(), **one.state_dict()})
        if isinstance(two, nn.Conv2d):
            nn.init.zeros_(two.bias)
    inputs = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours[:-1](inputs), theirs(inputs).mean((2, 3)))
    assert sum(isinstance(module, nn.Conv2d) for module in VGG8().build((3, 32, 32), 10, 0)) == 7


def test_a_preactivated_block_is_its_formula() -> None:
    net = PreActResNet18(width=4).build((3, 8, 8), 10, 0).eval()
    same, wider = net[1], net[3]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def branch(block: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        first = F.relu(block.norm1(x))
        return first, block.conv2(F.relu(block.norm2(block.conv1(first))))

    with torch.no_grad():
        torch.testing.assert_close(same(x), x + branch(same)[1])
        first, changed = branch(wider)
        torch.testing.assert_close(wider(x), F.conv2d(first, wider.shortcut.weight, stride=2) + changed)
    assert same.shortcut is None
    # ResNet-18's convolutions: the stem, 16 in blocks, 3 shortcuts
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 20
    with pytest.raises(ValueError, match="width"):
        PreActResNet18(width=0)
