"""The envelope of a sound, by hand, and its picture."""

import re

import numpy as np

from kdalign.data.media.rows import MediaItem, MediaRows, media_digest
from kdalign.report import waveform
from kdalign.report.waveform import BINS, HEIGHT, draw_waveform, envelope
from support.media import encode_wav, noise_wav


def item(encoded, name="a.wav"):
    return MediaItem(MediaRows("audio", [encoded], [name], [media_digest(encoded)]), 0)


def test_the_envelope_is_the_least_and_greatest_sample_of_equal_parts_relative_to_the_peak():
    low, high = envelope(np.array([0.1, -0.2, 0.4, 0.0, 0.05, -0.05], dtype=np.float32), 3)
    np.testing.assert_allclose(low, [-0.5, 0.0, -0.125], atol=1e-6)
    np.testing.assert_allclose(high, [0.25, 1.0, 0.125], atol=1e-6)


def test_a_silent_sound_is_flat_and_a_short_one_has_a_part_for_each_sample():
    low, high = envelope(np.zeros(500, dtype=np.float32))
    assert (len(low), set(low), set(high)) == (BINS, {0.0}, {0.0})
    low, high = envelope(np.array([0.5, -1.0, 0.25], dtype=np.float32))
    assert (low.tolist(), high.tolist()) == ([0.5, -1.0, 0.25], [0.5, -1.0, 0.25])


def test_the_picture_goes_through_the_greatest_samples_and_back_through_the_least():
    # A second of 8 kHz: silence, but for a half of full scale up and a quarter down.
    samples = np.zeros(8000, dtype=np.int16)
    samples[4000], samples[6000] = 16_384, -8_192
    drawn = str(draw_waveform(item(encode_wav(samples, 8000))))
    [points] = re.findall(r'points="([^"]*)"', drawn)
    heights = [float(point.split(",")[1]) for point in points.split(" ")]
    assert len(heights) == 2 * BINS
    middle = HEIGHT / 2
    assert (heights.index(1.0), heights[:BINS].count(middle)) == (60, BINS - 1)  # the peak is one unit from the edge
    below = middle + 0.5 * (middle - 1)
    assert (heights.index(below), heights[BINS:].count(middle)) == (2 * BINS - 1 - 90, BINS - 1)
    assert ">1.0 s<" in drawn


def test_the_picture_of_a_long_sound_is_no_larger_than_that_of_a_short_one():
    sizes = [len(draw_waveform(item(noise_wav(0, seconds, 16_000)))) for seconds in (1, 20)]
    assert max(sizes) < 4_000
    assert abs(sizes[0] - sizes[1]) < 400


def test_what_cannot_be_read_any_more_has_no_picture_and_what_is_too_long_its_length(monkeypatch):
    assert draw_waveform(item(b"no sound")) == ""
    monkeypatch.setattr(waveform, "LONGEST", 1.0)
    assert "svg" in draw_waveform(item(noise_wav(0, 1.0)))
    assert draw_waveform(item(noise_wav(0, 2.0))) == "<small>2 s</small> "


def test_a_name_is_no_markup():
    assert 'aria-label="&lt;b&gt;&#34;.wav, waveform"' in draw_waveform(item(noise_wav(0), '<b>".wav'))
