"""Random distortions of whole batches of images: one affine map and one cut-out square an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check

__all__ = ["Distortion", "check_images"]


@dataclass(frozen=True)
class Distortion:
    """Shear, shift, rotate and cut out, each by an amount drawn evenly from its range for each image.

    The ranges are FixMatch's; what leaves the image at one side leaves the mean colour at the other.

    Attributes:
        shear: greatest shear, along each axis, of either sign.
        shift: greatest shift, along each axis, as a share of the side.
        rotation: greatest rotation, in degrees.
        cutout: greatest side of the square that is cut out, as a share of the image's shorter side; at least one
            pixel is. 0: none.

    References:
        K. Sohn et al., FixMatch, NeurIPS 2020, appendix D (ranges of its transformations).
    """

    shear: float = 0.1
    shift: float = 0.1
    rotation: float = 30.0
    cutout: float = 0.5

    def __post_init__(self) -> None:
        _check.in_range("shear", self.shear, low=0.0, high=1.0)
        _check.in_range("shift", self.shift, low=0.0, high=1.0)
        _check.in_range("rotation", self.rotation, low=0.0, high=180.0)
        _check.in_range("cutout", self.cutout, low=0.0, high=1.0)

    def __call__(
        self, images: Float[Tensor, "n c h w"], fill: Float[Tensor, " c"], generator: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return the images distorted.

        Args:
            images: of any range.
            fill: the colour of what is empty.
            generator: a CPU generator: the source of all draws.

        Raises:
            ValueError: inputs that are no images.
        """
        check_images(images)
        colour = fill.to(images)[:, None, None]
        moved = images
        if self.shear or self.shift or self.rotation:
            grid = F.affine_grid(self._maps(images, generator), list(images.shape), align_corners=False)
            moved = F.grid_sample(images - colour, grid, mode="bilinear", align_corners=False) + colour
        if self.cutout:
            moved = torch.where(self._squares(images, generator), colour, moved)
        return moved

    def _maps(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``(n, 2, 3)`` maps of output to input coordinates, which run from -1 to 1."""
        count, _, height, width = images.shape
        draws = 2 * torch.rand(5, count, generator=generator, dtype=torch.float64) - 1
        angle = math.radians(self.rotation) * draws[0]
        shear_x, shear_y = self.shear * draws[1], self.shear * draws[2]
        shift_x, shift_y = 2 * self.shift * draws[3], 2 * self.shift * draws[4]
        cosine, sine = angle.cos(), angle.sin()
        ratio = height / width  # a rotation of pixels is none of these coordinates where the sides differ
        turn = torch.stack([torch.stack([cosine, -sine * ratio]), torch.stack([sine / ratio, cosine])])
        one = torch.ones(count, dtype=torch.float64)
        slant = torch.stack([torch.stack([one, shear_x * ratio]), torch.stack([shear_y / ratio, one])])
        linear = torch.einsum("ijn,jkn->nik", turn, slant)
        return torch.cat([linear, torch.stack([shift_x, shift_y], 1)[:, :, None]], 2).to(images)

    def _squares(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``(n, 1, h, w)`` where the squares are, their centres anywhere in the images."""
        count, _, height, width = images.shape
        longest = max(1, round(self.cutout * min(height, width)))
        side = torch.randint(1, longest + 1, (count,), generator=generator)
        top = torch.randint(height, (count,), generator=generator) - side // 2
        left = torch.randint(width, (count,), generator=generator) - side // 2
        rows, columns = torch.arange(height), torch.arange(width)
        inside_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
        inside_columns = (columns >= left[:, None]) & (columns < (left + side)[:, None])
        return (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.device)


def check_images(inputs: Tensor) -> None:
    """Raise ValueError unless `inputs` are images ``(n, 1 or 3 channels, h, w)``."""
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        raise ValueError(
            f"fine-tuning augments images (m, 1 or 3 channels, h, w), got inputs of shape {tuple(inputs.shape)}"
        )
