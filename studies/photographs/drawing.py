"""An object's photograph pasted on a place's, under a round mask that fades at its rim."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageOps

from studies.photographs.composition import Composition, Photograph, Sample

__all__ = ["FULL", "drawn", "mask"]

FULL = 0.7
"""The share of the mask's radius up to which the object alone is seen."""


@cache
def mask(side: int) -> Image.Image:
    """Return the mask ``(side, side)``: 255 up to `FULL` of the radius ``side / 2``, falling linearly to 0 at it."""
    centre = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side]
    distance = np.hypot(rows - centre, columns - centre) / (side / 2)
    share = np.clip((1 - distance) / (1 - FULL), 0, 1)
    return Image.fromarray(np.round(255 * share).astype(np.uint8))


def drawn(sample: Sample, composition: Composition, *, with_object: bool = True) -> Image.Image:
    """Return a sample's image, RGB.

    Args:
        sample: what is put where.
        composition: how large.
        with_object: false leaves the place alone.
    """
    width, height = composition.size
    image = _opened(sample.background).resize((width, height), Image.Resampling.BICUBIC)
    if with_object:
        side = round(composition.scale * width)
        pasted = _opened(sample.object_).resize((side, side), Image.Resampling.BICUBIC)
        image.paste(pasted, ((width - side) // 2, (height - side) // 2), mask(side))
    around = [(composition.rim, composition.rim)] * 2
    return Image.fromarray(np.pad(np.asarray(image), [*around, (0, 0)], mode="reflect"))


def _opened(photograph: Photograph) -> Image.Image:
    with Image.open(photograph.file) as opened:
        image = opened.convert("RGB")
    return ImageOps.mirror(image) if photograph.mirrored else image
