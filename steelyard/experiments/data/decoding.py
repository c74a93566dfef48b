"""Decode image files that other people made."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy
from PIL import Image

from steelyard._support import _files
from steelyard.experiments.errors import DataError

__all__ = ["open_image"]

# What the data sets are published in. Pillow knows many more, and hands some of them to programs (EPS: Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# A damaged file makes Pillow's decoders raise nearly anything.
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(struct.error, zlib.error, *_BOMBS),
)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits a pixel, which `convert` would cut off at 255, scaled to 8; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    values = numpy.asarray(image).astype(numpy.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values go from {values.min()} to {values.max()}, those of 16 bits from 0 to 65535")
    return Image.fromarray((values / 257).round().astype(numpy.uint8))


def open_image(path: Path, where: str = "") -> Image.Image:
    """Return an image decoded to RGB, 8 bits a channel; DataError, which names `where` it was asked for, if it cannot.

    One with more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, of which Pillow only warns, is refused too, before it is
    unpacked: a file of a few bytes can say that it is gigabytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _files.open_file(path) as file, Image.open(file, formats=_FORMATS) as image:
                return _eight_bits(image).convert("RGB")
    except _UNREADABLE as error:
        place = f"{path} ({where})" if where else str(path)
        what = "it is no image that is read here" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        formats = ", ".join(_FORMATS)
        raise DataError(f"{place} cannot be decoded: {what}; mend it or leave it out (formats: {formats})") from error
