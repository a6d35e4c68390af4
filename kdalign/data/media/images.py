"""Decode images by Pillow."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from kdalign.errors import UsageError, library_errors

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are decoded; others of Pillow's start programs, such as Ghostscript."""


def decode_image(encoded: bytes, where: str) -> UInt8[np.ndarray[Any, Any], "height width 3"]:
    """Decode an image to red, green and blue, upright.

    As Transformers' ``load_image`` does, an image is turned as its EXIF data say and converted to RGB: grey is
    repeated, a palette looked up, an alpha channel dropped. Grey of 16 bits is scaled, where Pillow's conversion would
    clip it at 255. Of an animation, the first image is decoded.

    Args:
        encoded: bytes of a file.
        where: name of the image, for error lines.

    Raises:
        UsageError: no image, a cut one, one of more pixels than Pillow takes for safe, or a missing package.
    """
    with _open(encoded, where) as image:
        from PIL import ImageOps

        if image.format == "TIFF" and image.mode == "I":  # 16 bits are I;16 there, and in other formats I
            raise _unknown_white(where)
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            return _scale_grey(np.asarray(upright), where)
        if upright.mode == "F":
            raise UsageError(f"{where} is an image of floating-point grey, whose black and white are unknown")
        if "transparency" in upright.info:  # of a palette, which Pillow converts by way of RGBA alone
            upright = upright.convert("RGBA")
        return np.array(upright.convert("RGB"))


def check_image(encoded: bytes, where: str) -> None:
    """Check the header of an image.

    Raises:
        UsageError: no image, one of too many pixels, or a missing package.
    """
    with _open(encoded, where):
        pass


@contextmanager
def _open(encoded: bytes, where: str) -> Iterator["Image"]:
    """Open an image, and turn errors of reading it into one line."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError("reading images needs a package: pip install 'kdalign[vision]'") from None
    with library_errors(f"{where} is no image that can be read"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UsageError(
                f"{where} is an image of more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller"
            ) from None
        except UnidentifiedImageError:
            accepted = ", ".join(FORMATS)
            raise UsageError(f"{where} is no image that can be read (accepted: {accepted})") from None
        with image:
            yield image


def _unknown_white(where: str) -> UsageError:
    return UsageError(f"{where} is an image of 32-bit grey, whose black and white are unknown")


def _scale_grey(grey: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Scale grey from 0 to 65535 to three channels from 0 to 255, to the nearest."""
    values = grey.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _unknown_white(where)
    return np.repeat(((values * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
