"""Convolutions in float64 on a CPU: by Winograd's filtering where that pays, small images by one product for all.

torch has no blocked kernel for these: it takes a product of its own for each image, which at 4 x 4 pixels and 512
channels packs 19 MB of weights to multiply 16 columns. Seen on one core (AVX-512): 14 GFLOP/s forward and 6 back to the
input, where a large product has 45; all images at once give 27. Above 64 pixels torch's way is as fast. Where a layer
takes kernels of 3 x 3 in steps of 1, `_winograd` is two to three times faster than either.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from steelyard.bilevel import _winograd

__all__ = ["Float64Convolutions", "convolution"]

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_PIXELS = 64


class Float64Convolutions(TorchDispatchMode):
    """Inside, such convolutions and their backward passes are taken so; the same values up to float64's rounding."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and func is _FORWARD and (way := _way(args[0], args[1], args[3:9])):
            return _by_tiles(*args[:5]) if way == "tiles" else convolution(*args[:5])
        if not kwargs and func is _BACKWARD and (way := _way(args[1], args[2], args[4:10])):
            return _backward_by_tiles(args) if way == "tiles" else _backward(args)
        return func(*args, **(kwargs or {}))


def _way(x: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Literal["tiles", "at once"] | None:
    """Return how such a convolution is taken here; None: as torch does."""
    stride, padding, dilation, transposed, _, groups = settings
    if type(x) is not Tensor or x.ndim != 4 or x.dtype != torch.float64 or x.device.type != "cpu":
        return None
    if transposed or groups != 1 or any(one != 1 for one in dilation) or not x.numel():
        return None
    rows, columns = _size(x, weight, stride, padding)
    if rows <= 0 or columns <= 0:
        return None
    plain = weight.shape[2:] == (3, 3) and all(one == 1 for one in stride)
    if plain and _winograd.pays(weight.shape[1], len(weight), rows, columns):
        return "tiles"
    return "at once" if rows * columns <= _PIXELS else None


def _size(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> tuple[int, int]:
    """Return the height and width of the output."""
    rows, columns = (
        (x.shape[axis] + 2 * _one_of(padding, axis - 2) - weight.shape[axis]) // _one_of(stride, axis - 2) + 1
        for axis in (2, 3)
    )
    return rows, columns


def _one_of(values: list[int], axis: int) -> int:
    """Return what belongs to an axis, of one number for all or one for each."""
    return values[axis] if len(values) > 1 else values[0]


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """Return the convolution of images ``(images, channels, height, width)``, of all in one product."""
    rows, columns = _size(x, weight, stride, padding)
    images, height, width = len(x), weight.shape[2], weight.shape[3]
    padded = _padded(x, padding)
    a, b, c, d = padded.stride()
    down, right = _one_of(stride, 0), _one_of(stride, 1)
    shape = (images, rows, columns, height, width, x.shape[1])
    patches = padded.as_strided(shape, (a, b * down, c * right, b, c, d)).reshape(images * rows * columns, -1)
    along = weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
    found = torch.mm(patches, along) if bias is None else torch.addmm(bias, patches, along)
    return found.view(images, rows, columns, len(weight)).permute(0, 3, 1, 2).contiguous()


def _padded(x: Tensor, padding: list[int]) -> Tensor:
    """Return images ``(images, height, width, channels)`` with zeros around them."""
    above, left = _one_of(padding, 0), _one_of(padding, 1)
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, above, above)).contiguous()


def _backward(args: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients by input, weight and bias, as far as they are asked for; the last two are torch's."""
    gradient, x, weight, _, stride, padding = args[:6]
    by_input, *others = args[10]
    _, of_weight, of_bias = _BACKWARD(*args[:10], [False, *others]) if any(others) else (None, None, None)
    return (_by_input(gradient, x, weight, stride, padding) if by_input else None), of_weight, of_bias


def _by_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    rows, columns = gradient.shape[2:]
    height, width = weight.shape[2:]
    along = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    patches = torch.mm(gradient.permute(0, 2, 3, 1).reshape(-1, len(weight)), along)
    patches = patches.view(len(x), rows, columns, height, width, x.shape[1])
    found = torch.zeros_like(_padded(x, padding))
    down, right = _one_of(stride, 0), _one_of(stride, 1)
    for i in range(height):
        for j in range(width):
            found[:, i : i + down * rows : down, j : j + right * columns : right] += patches[:, :, :, i, j]
    above, left = _one_of(padding, 0), _one_of(padding, 1)
    found = found[:, above : above + x.shape[2], left : left + x.shape[3]]
    return found.permute(0, 3, 1, 2).contiguous()


def _by_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    return _winograd.convolution(x, weight, bias, (_one_of(padding, 0), _one_of(padding, 1)))


def _backward_by_tiles(args: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    gradient, x, weight, _, _, padding = args[:6]
    around = _one_of(padding, 0), _one_of(padding, 1)
    by_input, by_weight, by_bias = args[10]
    return (
        _winograd.input_gradient(gradient, weight, around) if by_input else None,
        _winograd.weight_gradient(gradient, x, around) if by_weight else None,
        gradient.sum((0, 2, 3)) if by_bias else None,
    )
