"""Small images on a page, as data addresses: nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from PIL import Image

from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable

__all__ = ["SIDE", "pictures_of", "thumbnail"]

SIDE = 96  # pixels of the longer side


def pictures_of(data: OwnTable | OwnArrays | OwnImages) -> Callable[[int], str]:
    """Return what makes a row's image small; it returns "" where rows are no images.

    What it returns raises DataError for an image that cannot be decoded.
    """
    if not isinstance(data, OwnImages):
        return lambda row: ""
    opened = data.opener()
    return lambda row: thumbnail(opened(row))


def thumbnail(image: Image.Image) -> str:
    """Return an image, at most `SIDE` pixels wide and high, as a data address of a JPEG."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
