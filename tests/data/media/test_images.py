"""Images are decoded to the pixels that were written, as Transformers decodes them."""

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from kdalign.data.media.images import check_image, decode_image
from kdalign.errors import UsageError
from support.media import encode_image, noise_png

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (5, 7, 3), dtype=np.uint8)
CLEAR = Image.fromarray(DRAW.integers(0, 256, (5, 7, 4), dtype=np.uint8), "RGBA")


def png_header(width, height):
    """A PNG file that says a size, and has no pixels to speak of."""
    head, data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0")
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (head, data)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode_image(PIXELS, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels_are_those_that_were_written(kind):
    decoded = decode_image(encode_image(PIXELS, kind), "a")
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, PIXELS)


def test_a_photograph_is_turned_as_its_exif_data_say():
    assert np.array_equal(decode_image(turned(6), "a"), np.rot90(PIXELS, -1))  # 6: the top is at the right
    assert np.array_equal(decode_image(turned(3), "a"), PIXELS[::-1, ::-1])


def test_grey_of_16_bits_is_scaled_and_not_clipped():
    grey = np.array([[0, 127, 128, 129], [257, 32768, 65406, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode_image(encode_image(grey, kind), "a")
        assert decoded[:, :, 0].tolist() == [[0, 0, 0, 1], [1, 128, 254, 255]]  # value / 257, to the nearest
        assert (decoded == decoded[:, :, :1]).all()


PALETTE = CLEAR.quantize(16)


@pytest.mark.parametrize(
    "encoded",
    [
        encode_image(PIXELS[:, :, 0]),
        encode_image(PIXELS[:, :, 0] > 127),
        encode_image(CLEAR),
        encode_image(CLEAR.convert("LA")),
        encode_image(CLEAR, "WEBP", lossless=True),
        encode_image(PALETTE),
        encode_image(CLEAR.convert("RGB").quantize(16), "GIF"),
        encode_image(Image.fromarray(PIXELS), "JPEG"),
        encode_image(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
        turned(8),
    ],
    ids=["grey", "black and white", "alpha", "grey and alpha", "webp", "palette", "gif", "jpeg", "cmyk", "turned"],
)
def test_an_image_is_what_transformers_makes_of_it(encoded):
    decoded = decode_image(encoded, "a")
    with warnings.catch_warnings(action="ignore"):  # of transparent palettes, which Transformers converts directly
        assert np.array_equal(decoded, np.asarray(load_image(Image.open(io.BytesIO(encoded)))))


@pytest.mark.parametrize(
    ("encoded", "line"),
    [
        (b"", r"row 7 is no image that can be read \(accepted: PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM\)"),
        (b"RIFF....WAVEfmt ", r"row 7 is no image that can be read \(accepted: .*\)"),
        (encode_image(PIXELS, "EPS"), r"row 7 is no image that can be read \(accepted: .*\)"),
        (noise_png(0, 64)[:5000], "row 7 is no image that can be read: .*truncated.*"),
        (encode_image(PIXELS, "JPEG")[:-40], "row 7 is no image that can be read: .*truncated.*"),
        (png_header(10_000, 10_000), "row 7 is an image of more than 89,478,485 pixels: make it smaller"),
        (png_header(100_000, 100_000), "row 7 is an image of more than 89,478,485 pixels: make it smaller"),
        (
            encode_image(np.float32([[0.5]]), "TIFF"),
            "row 7 is an image of floating-point grey, whose black and white are unknown",
        ),
        (
            encode_image(np.int32([[70_000]]), "TIFF"),
            "row 7 is an image of 32-bit grey, whose black and white are unknown",
        ),
    ],
)
def test_what_is_no_whole_image_is_refused_in_a_line_that_names_it(encoded, line):
    with pytest.raises(UsageError, match=f"^{line}$"):
        decode_image(encoded, "row 7")


def test_a_missing_package_is_named_by_its_extra(monkeypatch):
    encoded = noise_png(0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for read in (decode_image, check_image):
        with pytest.raises(UsageError, match=r"^reading images needs a package: pip install 'kdalign\[vision\]'$"):
            read(encoded, "a.png")


def test_the_header_alone_is_checked_first():
    check_image(noise_png(0, 64)[:5000], "a.png")
    with pytest.raises(UsageError, match="more than 89,478,485 pixels"):
        check_image(png_header(10_000, 10_000), "a.png")
