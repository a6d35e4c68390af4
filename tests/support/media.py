"""Small sounds and images, encoded by libraries other than those that read them where there are any."""

import io
import wave

import numpy as np
from PIL import Image


def encode_wav(samples, rate=8000):
    """A wav file of 16 bits: samples are whole numbers, (frames,) or (frames, channels)."""
    samples = np.asarray(samples, dtype="<i2")
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return written.getvalue()


def noise_wav(seed, seconds=0.1, rate=8000):
    """A wav file of noise."""
    return encode_wav(np.random.default_rng(seed).integers(-20_000, 20_000, int(seconds * rate)), rate)


def encode_image(image, kind="PNG", **options):
    """An image file, of an image or of an array."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def noise_png(seed, size=4):
    """A PNG file of noise."""
    return encode_image(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
