"""Convolutions by Winograd's filtering, and both their gradients, against torch's direct ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from steelyard.bilevel import _winograd
from steelyard.bilevel._float64_convolution import Float64Convolutions
from tests.support.problems import relative

SHAPES = {  # images, channels, filters, height, width, padding
    "whole tiles": (3, 5, 4, 8, 12, (1, 1)),
    "cut tiles": (2, 3, 6, 7, 9, (1, 1)),
    "no padding": (2, 3, 2, 6, 5, (0, 0)),
    "other padding an axis": (2, 2, 3, 8, 8, (0, 1)),
    "more padding than the kernel reads": (1, 2, 2, 4, 3, (3, 3)),
    "one pixel": (4, 3, 2, 1, 1, (1, 1)),
    "several chunks": (140, 1, 2, 4, 4, (1, 1)),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_the_convolution_and_its_gradients(shape: tuple[int, int, int, int, int, tuple[int, int]]) -> None:
    images, channels, filters, height, width, padding = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, height, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(filters, channels, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(filters, generator=generator, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, 1, padding)
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    by_input, by_weight = torch.autograd.grad(expected, [x, weight], cotangent)
    with torch.no_grad():
        assert relative(_winograd.convolution(x, weight, bias, padding), expected) < 1e-13
        assert relative(_winograd.input_gradient(cotangent, weight, padding), by_input) < 1e-13
        assert relative(_winograd.weight_gradient(cotangent, x, padding), by_weight) < 1e-13


def test_it_is_taken_where_it_saves_half_of_the_multiplications() -> None:
    assert _winograd.pays(64, 64, 32, 32)
    assert _winograd.pays(512, 512, 4, 4)
    assert _winograd.pays(256, 256, 7, 7)
    assert not _winograd.pays(3, 64, 32, 32)  # transforms are most of it
    assert not _winograd.pays(512, 512, 2, 2)  # a tile covers four times as much


def test_layers_of_a_net_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("convolution", "input_gradient", "weight_gradient"):
        function = getattr(_winograd, name)
        monkeypatch.setattr(_winograd, name, lambda *a, f=function, n=name: (taken.append(n), f(*a))[1])
    layer = torch.nn.Conv2d(48, 64, 3, padding=1).double()
    x = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    expected = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])
    with Float64Convolutions():
        found = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])
    assert taken == ["convolution", "input_gradient", "weight_gradient"]
    assert all(relative(one, other) < 1e-12 for one, other in zip(found, expected, strict=True))
