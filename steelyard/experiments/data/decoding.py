"""Decode image files that other people made."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

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


def open_image(path: Path, where: str = "") -> Image.Image:
    """Return an image decoded to RGB; DataError, which names `where` it was asked for, if it cannot be decoded.

    One with more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, of which Pillow only warns, is refused too, before it is
    unpacked: a file of a few bytes can say that it is gigabytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _files.open_file(path) as file, Image.open(file, formats=_FORMATS) as image:
                return image.convert("RGB")
    except _UNREADABLE as error:
        place = f"{path} ({where})" if where else str(path)
        what = "it is no image that is read here" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        formats = ", ".join(_FORMATS)
        raise DataError(f"{place} cannot be decoded: {what}; mend it or leave it out (formats: {formats})") from error
