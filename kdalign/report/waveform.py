"""A sound as a small picture: the envelope of its samples, as SVG."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from kdalign.data.media.audio import audio_seconds, decode_audio
from kdalign.data.media.rows import MediaItem
from kdalign.errors import UsageError, printable
from kdalign.metrics.arrays import Array

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 240, 44
"""Size of the picture in its own units."""
BINS = 120
RATE = 8_000
"""Samples a second at which a sound is looked at."""
LONGEST = 600.0
"""Seconds of a sound up to which it is drawn: all of it is decoded."""


def envelope(samples: Float32[np.ndarray[Any, Any], "samples"], bins: int = BINS) -> tuple[Array, Array]:
    """Return the least and the greatest sample of equal parts of a sound, relative to its greatest magnitude.

    Args:
        samples: of one channel.
        bins: number of parts; fewer for a sound of fewer samples.

    Returns:
        Two arrays, (bins,), between -1 and 1; 0 for a silent sound.
    """
    starts = np.linspace(0, len(samples), min(bins, len(samples)), endpoint=False).astype(int)
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    peak = float(np.abs(samples).max()) or 1.0
    return low / peak, high / peak


def draw_waveform(item: MediaItem) -> "Markup":
    """Draw the envelope of a sound as SVG, scaled to its peak, with its length; empty if it cannot be read any more."""
    from markupsafe import Markup

    try:
        encoded = item.read()
        seconds = audio_seconds(encoded, item.name)
        if seconds > LONGEST:
            return Markup("<small>{} s</small> ").format(f"{seconds:,.0f}")
        low, high = envelope(decode_audio(encoded, RATE, item.name))
    except UsageError:
        return Markup()
    step, middle = WIDTH / len(low), HEIGHT / 2
    upper = [f"{(place + 0.5) * step:.1f},{middle - (middle - 1) * value:.1f}" for place, value in enumerate(high)]
    lower = [f"{(place + 0.5) * step:.1f},{middle - (middle - 1) * value:.1f}" for place, value in enumerate(low)]
    return Markup(
        '<svg class="waveform" role="img" aria-label="{}, waveform" viewBox="0 0 {} {}">'
        '<polygon points="{}"/></svg><small>{} s</small> '
    ).format(printable(item.name), WIDTH, HEIGHT, " ".join([*upper, *reversed(lower)]), f"{seconds:.1f}")
