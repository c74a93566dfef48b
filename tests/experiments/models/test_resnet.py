"""ResNet-18 for small images, against torchvision's and layer by layer."""

import pytest
import torch
from torch import nn

from steelyard._support._torchvision import torchvision
from steelyard.experiments.models import HEADS, ResNet18


def test_width_64_is_torchvisions_net_but_for_the_stem() -> None:
    ours = ResNet18().build((3, 32, 32), 10, seed=0)
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    values = list(ours.state_dict().values())
    assert [v.shape for v in values] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(inputs), theirs.eval()(inputs))


@pytest.mark.parametrize(("shape", "sizes"), [((3, 32, 32), [32, 16, 8, 4]), ((1, 28, 28), [28, 14, 7, 4])])
def test_the_narrow_net(shape: tuple[int, int, int], sizes: list[int]) -> None:
    net = ResNet18(width=16).build(shape, 3, seed=0)
    seen = []
    handles = [
        net.get_submodule(f"stage{k}").register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        for k in (1, 2, 3, 4)
    ]
    assert net(torch.zeros(2, *shape)).shape == (2, 3)
    assert [s[1] for s in seen] == [16, 32, 64, 128]
    assert [s[2] for s in seen] == sizes
    assert len(handles) == 4


def test_a_picture_need_not_be_square_and_one_logit_is_one_output() -> None:
    net = ResNet18(width=4, head="one_logit").build((3, 64, 32), 2, seed=0)
    outputs = net(torch.zeros(2, 3, 64, 32))
    assert outputs.shape == (2, 1)
    assert HEADS["one_logit"].predict(outputs).shape == (2,)


def test_a_seed_gives_the_same_parameters_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (ResNet18(width=4).build((3, 8, 8), 2, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)
    torch.rand(3)
    again = ResNet18(width=4).build((3, 8, 8), 2, 0)
    assert torch.equal(one.linear.weight, again.linear.weight)


def test_convolutions_begin_as_hes_normal() -> None:
    net = ResNet18(width=32).build((3, 32, 32), 10, seed=0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan = module.out_channels * module.kernel_size[0] ** 2
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert not bool(module.bias.any())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="width must be"):
        ResNet18(width=0)
    with pytest.raises(ValueError, match="takes images"):
        ResNet18().build((10,), 2, seed=0)
