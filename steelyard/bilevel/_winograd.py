"""Convolutions by 3 x 3 kernels in float64 on a CPU, by Winograd's minimal filtering: a quarter of the multiplications.

A tile of 4 x 4 outputs reads 6 x 6 inputs; transformed (B' d B), both the convolution and its two backward passes are
products of 36 pairs of matrices, tiles by channels, where a direct way takes 144. Rounding is some 100 times that of a
direct sum, 4e-14 of the largest value with 512 channels: too much in float32, and of no account in float64. Seen on one
core (AMD EPYC), 32 images: 64 channels of 32 x 32 in 37 ms (torch 113), 512 of 4 x 4 in 40 ms (torch 135).

References:
    Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016: F(4 x 4, 3 x 3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["convolution", "input_gradient", "pays", "weight_gradient"]

_Transform: TypeAlias = tuple[tuple[float | int, ...], ...]

_INPUT: _Transform = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0))
_INPUT += ((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_KERNEL: _Transform = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6))
_KERNEL += ((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUT: _Transform = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_TILES = 64  # at a time, or half as many as channels: the caches hold them, or kernels would be read too often


def pays(channels: int, filters: int, rows: int, columns: int) -> bool:
    """Whether at most half of the multiplications are left, transforms and what tiles cover in vain included.

    Args:
        channels, filters: of the input and of the output.
        rows, columns: of the output.
    """
    tiles = -(-rows // 4) * -(-columns // 4)
    ours = tiles * (36 * 36 * channels + 36 * channels * filters + 16 * 36 * filters)
    return 2 * ours <= 9 * rows * columns * channels * filters


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Return the convolution ``(images, filters, rows, columns)`` of images ``(images, channels, height, width)``.

    Args:
        x: the images.
        weight: ``(filters, channels, 3, 3)``.
        bias: ``(filters,)`` or None.
        padding: zeros above (and below), left (and right); also -1, -2: less than the image is read.
    """
    kernel = torch.mm(_twice(_KERNEL), weight.reshape(-1, 9).t()).view(36, len(weight), -1).transpose(1, 2)
    found = _multiplied(x, kernel, padding)
    return found if bias is None else found.add_(bias.view(-1, 1, 1))


def input_gradient(gradient: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the gradient by the images, from the `gradient` by the output: a convolution by the turned kernels."""
    kernel = torch.mm(_twice(_KERNEL).flip(1), weight.reshape(-1, 9).t()).view(36, len(weight), -1)
    return _multiplied(gradient, kernel, (2 - padding[0], 2 - padding[1]))


def _multiplied(x: Tensor, kernel: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the convolution by transformed kernels ``(36, channels, filters)``."""
    rows, columns = x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2
    channels, filters = kernel.shape[1:]
    height, width = _covered(rows, columns)
    found = x.new_empty(len(x), filters, height, width)
    for some, into in zip(_chunks(x, channels, rows, columns), _chunks(found, channels, rows, columns), strict=True):
        products = torch.bmm(_tiles(some, padding, rows, columns), kernel)
        tiles = torch.mm(_twice(_OUTPUT), products.view(36, -1))
        tiles = tiles.view(4, 4, len(some), height // 4, width // 4, filters)
        into.view(len(some), filters, height // 4, 4, width // 4, 4).copy_(tiles.permute(2, 5, 3, 0, 4, 1))
    return found[:, :, :rows, :columns].contiguous()


def weight_gradient(gradient: Tensor, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the gradient by the kernels, from the `gradient` by the output."""
    channels, (rows, columns) = x.shape[1], gradient.shape[2:]
    total = x.new_zeros(36, gradient.shape[1], channels)
    for some, sent in zip(_chunks(x, channels, rows, columns), _chunks(gradient, channels, rows, columns), strict=True):
        total.baddbmm_(_spread(sent).transpose(1, 2), _tiles(some, padding, rows, columns))
    return torch.mm(total.view(36, -1).t(), _twice(_KERNEL)).view(*total.shape[1:], 3, 3)


@lru_cache(maxsize=3)
def _twice(transform: _Transform) -> Tensor:
    """Return the matrix that applies `transform` along both axes of a tile."""
    one = torch.tensor(transform, dtype=torch.float64)
    return torch.kron(one, one)


def _chunks(images: Tensor, channels: int, rows: int, columns: int) -> tuple[Tensor, ...]:
    """Return the images, so many at a time that their tiles stay in the caches."""
    return images.split(max(1, max(_TILES, channels // 2) // (-(-rows // 4) * -(-columns // 4))))


def _covered(rows: int, columns: int) -> tuple[int, int]:
    """Return height and width of what whole tiles cover."""
    return 4 * -(-rows // 4), 4 * -(-columns // 4)


def _tiles(x: Tensor, padding: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Return the transformed tiles ``(36, tiles, channels)`` that the outputs ``(rows, columns)`` read."""
    height, width = _covered(rows, columns)
    padded = _placed(x, padding, height + 2, width + 2)
    a, b, c, d = padded.stride()
    shape = (6, 6, len(x), height // 4, width // 4, x.shape[1])
    patches = padded.as_strided(shape, (b, c, a, 4 * b, 4 * c, d)).reshape(36, -1)
    return torch.mm(_twice(_INPUT), patches).view(36, -1, x.shape[1])


def _spread(gradient: Tensor) -> Tensor:
    """Return the gradients of the transformed products ``(36, tiles, filters)``."""
    images, filters, rows, columns = gradient.shape
    height, width = _covered(rows, columns)
    padded = _placed(gradient, (0, 0), height, width)
    tiles = padded.reshape(images, height // 4, 4, width // 4, 4, filters).permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
    return torch.mm(_twice(_OUTPUT).t(), tiles).view(36, -1, filters)


def _placed(x: Tensor, padding: tuple[int, int], height: int, width: int) -> Tensor:
    """Return images ``(images, height, width, channels)``: those of `x` with zeros above, left and after them."""
    found = x.new_zeros(len(x), height, width, x.shape[1])
    x = x.permute(0, 2, 3, 1)[:, max(0, -padding[0]) :, max(0, -padding[1]) :]
    above, left = max(0, padding[0]), max(0, padding[1])
    x = x[:, : height - above, : width - left]
    found[:, above : above + x.shape[1], left : left + x.shape[2]] = x
    return found
