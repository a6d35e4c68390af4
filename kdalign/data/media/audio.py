"""Decode sounds (wav, flac, mp3, ogg) by libsndfile, and resample them by soxr."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32

from kdalign.errors import UsageError

MOST_SAMPLES = 2**29
"""Limit of samples of a sound over all channels, 3 hours of 48 kHz: a small file can unpack to any number."""
_CUT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
"""libsndfile's remark on a wav file whose data end before the size in their header."""
_UNKNOWN_SIZE = 0x7FFF_0000
"""Sizes from here on stand for an unknown one, in files that were written to a pipe."""
_UNKNOWN_FRAMES = 2**63 - 1
"""Frames of a sound of unknown length, in libsndfile."""
_MP3_FRAME = 1152
"""Samples of a frame of an mp3 file; encoders differ in which of the first and last they count."""


def decode_audio(encoded: bytes, rate: int, where: str) -> Float32[np.ndarray[Any, Any], "samples"]:
    """Decode a sound to one channel at a sampling rate.

    Channels are averaged. A sound of this rate is not resampled: its samples are those of the file, between -1 and 1.
    Others are resampled by soxr's very high quality (``VHQ``), which keeps what is below nine tenths of half the lower
    rate as it is.

    Args:
        encoded: bytes of a file.
        rate: samples a second of the result.
        where: name of the sound, for error lines.

    Raises:
        UsageError: no sound, an empty one, one that ends before its header says, samples that are not finite, more than
            ``MOST_SAMPLES``, or a missing package.
    """
    with _open(encoded, where) as sound:
        channels, own_rate = sound.read(dtype="float32", always_2d=True), int(sound.samplerate)
        lacking = sound.frames - len(channels)
        if lacking > (2 * _MP3_FRAME if sound.format == "MP3" else 0):
            raise UsageError(f"{where} is cut off: {len(channels):,} of {sound.frames:,} samples are there")
    samples = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    if not np.isfinite(samples).all():
        raise UsageError(f"{where} has samples that are not finite numbers")
    return samples if own_rate == rate else _resample(samples, own_rate, rate, where)


def check_sound(encoded: bytes, where: str) -> None:
    """Check the header of a sound.

    Raises:
        UsageError: no sound, an empty or cut one, one of unknown length or more than ``MOST_SAMPLES``, or a missing
            package.
    """
    with _open(encoded, where):
        pass


def audio_seconds(encoded: bytes, where: str) -> float:
    """Return the duration of a sound in seconds by its header.

    Raises:
        UsageError: as of ``check_sound``.
    """
    with _open(encoded, where) as sound:
        return float(sound.frames / sound.samplerate)


@contextmanager
def _open(encoded: bytes, where: str) -> Iterator[Any]:
    """Open a sound, and turn errors of reading it into one line."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: without libsndfile, which its wheels hold
        raise _missing_package() from None
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as sound:
            if not sound.frames:
                raise UsageError(f"{where} is an empty sound")
            if sound.frames == _UNKNOWN_FRAMES:
                raise UsageError(f"{where} does not say how long it is, as if written to a pipe: write it to a file")
            if sound.format == "MP3" and not (b"Xing" in encoded or b"Info" in encoded):
                raise UsageError(f"{where} is an mp3 that does not say how long it is: write it anew, or as flac")
            if sound.frames * sound.channels > MOST_SAMPLES:
                raise UsageError(f"{where} has more than {MOST_SAMPLES:,} samples: cut it into shorter sounds")
            cut = _CUT_WAV.search(sound.extra_info)
            if cut is not None and int(cut[2]) < int(cut[1]) < _UNKNOWN_SIZE:
                raise UsageError(f"{where} is cut off: {int(cut[2]):,} of {int(cut[1]):,} bytes of sound are there")
            yield sound
    except soundfile.LibsndfileError as error:
        cause = error.error_string.rstrip(".")
        raise UsageError(f"{where} is no sound that can be read: {cause} (accepted: wav, flac, mp3, ogg)") from None


def _resample(
    samples: Float32[np.ndarray[Any, Any], "in"], own_rate: int, rate: int, where: str
) -> np.ndarray[Any, Any]:
    try:
        import soxr
    except ImportError:
        raise _missing_package() from None
    if len(samples) * rate > MOST_SAMPLES * own_rate:
        raise UsageError(
            f"{where} has a rate of {own_rate:,} Hz, and more than {MOST_SAMPLES:,} samples at {rate:,} Hz"
        )
    resampled: np.ndarray[Any, Any] = soxr.resample(samples, own_rate, rate, quality="VHQ")
    if not len(resampled):
        raise UsageError(f"{where} is too short for a sample at {rate:,} Hz: {len(samples)} at {own_rate:,} Hz")
    return resampled


def _missing_package() -> UsageError:
    return UsageError("reading sounds needs packages: pip install 'kdalign[speech]'")
