"""Sounds are decoded to the samples that were written, and resampled to the same sound."""

import io
import sys

import numpy as np
import pytest
import soundfile
from scipy.io import wavfile
from scipy.signal import resample

from kdalign.data.media.audio import audio_seconds, check_sound, decode_audio
from kdalign.errors import UsageError
from support.media import encode_wav, noise_wav

SAMPLES = np.random.default_rng(0).integers(-(2**15), 2**15, 5000)


def encode(samples, rate=8000, **options):
    written = io.BytesIO()
    soundfile.write(written, samples, rate, **options)
    return written.getvalue()


def sine(frequency, rate, seconds=1.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def with_length(encoded, samples):
    """A flac file whose header says another number of samples (36 bits); 0 for none, as programs write to a pipe."""
    return encoded[:21] + bytes([encoded[21] & 0xF0]) + samples.to_bytes(4, "big") + encoded[26:]


def test_samples_of_the_files_own_rate_are_those_that_were_written():
    decoded = decode_audio(encode_wav(SAMPLES), 8000, "a.wav")
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, SAMPLES / 2**15)
    assert np.array_equal(decode_audio(encode(decoded, format="FLAC"), 8000, "a.flac"), decoded)


def test_channels_are_averaged():
    left, right = SAMPLES[:2500], SAMPLES[2500:]
    decoded = decode_audio(encode_wav(np.stack([left, right], axis=1)), 8000, "a.wav")
    assert np.array_equal(decoded, ((left + right) / 2**16).astype(np.float32))


@pytest.mark.parametrize(("kind", "error"), [("OGG", 0.05), ("MP3", 0.05)])
def test_lossy_formats_keep_length_and_sound(kind, error):
    written = sine(440, 16000)
    decoded = decode_audio(encode(written, 16000, format=kind), 16000, f"a.{kind}")
    assert len(decoded) == len(written)
    assert np.abs(decoded - written)[2000:-2000].max() < error


@pytest.mark.parametrize(("own", "rate"), [(22050, 16000), (8000, 16000), (48000, 16000), (44100, 16000)])
def test_resampling_keeps_frequency_phase_and_amplitude(own, rate):
    resampled = decode_audio(encode(sine(440, own), own, format="WAV", subtype="FLOAT"), rate, "a.wav")
    wanted = sine(440, rate)
    assert len(resampled) == len(wanted)
    middle = slice(rate // 10, -rate // 10)  # at its ends, a sound begins and ends suddenly
    assert np.abs(resampled - wanted)[middle].max() < 1e-4


def test_resampling_drops_what_the_lower_rate_cannot_carry():
    resampled = decode_audio(encode(sine(7000, 22050), 22050, format="WAV", subtype="FLOAT"), 8000, "a.wav")
    assert np.abs(resampled)[800:-800].max() < 1e-4  # 7 kHz would come back as 1 kHz


def test_read_speech_is_resampled_as_by_scipy_below_the_filters_edge(shared):
    if not (shared / "data" / "ljspeech32").is_dir():
        pytest.skip("LJ Speech is not beside this checkout (../shared)")
    import pyarrow.parquet as pq

    for encoded in pq.read_table(shared / "data" / "ljspeech32" / "test.parquet")["wav"].to_pylist():
        rate, samples = wavfile.read(io.BytesIO(encoded))
        assert audio_seconds(encoded, "a.wav") == len(samples) / rate
        found = decode_audio(encoded, 16000, "a.wav")
        assert len(found) == pytest.approx(len(samples) * 16000 / rate, abs=1)
        whole = np.pad(samples / 2**15, (0, -len(samples) % 441))  # 22,050 to 16,000 is 441 to 320
        wanted = resample(whole, len(whole) // 441 * 320)[: len(found)]  # by Fourier's transform
        below = np.fft.rfftfreq(len(found), 1 / 16000) < 7000
        spectra = np.fft.rfft(found)[below], np.fft.rfft(wanted)[below]
        assert np.linalg.norm(spectra[0] - spectra[1]) < 1e-4 * np.linalg.norm(spectra[1])


def test_a_header_says_how_long_a_sound_is():
    assert audio_seconds(encode_wav(SAMPLES), "a.wav") == 5000 / 8000


WAV, FLAC = encode_wav(SAMPLES), encode(SAMPLES / 2**15, format="FLAC")
MP3 = encode(np.tile(SAMPLES / 2**15, 8), format="MP3", bitrate_mode="VARIABLE")


@pytest.mark.parametrize(
    ("encoded", "line"),
    [
        (b"", r"row 7 is no sound that can be read: .* \(accepted: wav, flac, mp3, ogg\)"),
        (b"hello" * 100, r"row 7 is no sound that can be read: .*"),
        (encode_wav([]), "row 7 is an empty sound"),
        (WAV[:3000], "row 7 is cut off: 2,956 of 10,000 bytes of sound are there"),
        (MP3[: len(MP3) // 2], r"row 7 is cut off: [\d,]+ of 40,000 samples are there"),
        (with_length(FLAC, 5001), r"row 7 is no sound that can be read: .*"),
        (with_length(FLAC, 2**30), "row 7 has more than 536,870,912 samples: cut it into shorter sounds"),
        (with_length(FLAC, 0), "row 7 does not say how long it is, as if written to a pipe: write it to a file"),
        (FLAC[:3000], "row 7 is (cut off|no sound that can be read): .*"),
        (encode([0.0, np.nan], format="WAV", subtype="FLOAT"), "row 7 has samples that are not finite numbers"),
        (encode([0.0, np.inf], format="WAV", subtype="FLOAT"), "row 7 has samples that are not finite numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",  # some bytes hold the time
)
def test_what_is_no_whole_sound_is_refused_in_a_line_that_names_it(encoded, line):
    with pytest.raises(UsageError, match=f"^{line}$"):
        decode_audio(encoded, 8000, "row 7")


def test_a_wav_file_that_was_written_to_a_pipe_has_a_size_that_means_none():
    unknown = WAV[:40] + b"\xff\xff\xff\xff" + WAV[44:]
    assert np.array_equal(decode_audio(unknown, 8000, "a.wav"), SAMPLES / 2**15)


def test_an_mp3_file_without_a_header_of_its_length_is_refused():
    """Its length is guessed from its first frame: 4.6 of 25 seconds were read of one that begins aloud."""
    encoded = encode(np.tile(SAMPLES / 2**15, 8), 16_000, format="MP3", bitrate_mode="VARIABLE")
    bare = encoded[encoded.index(encoded[:2], encoded.index(b"Xing")) :]
    for read in (lambda: audio_seconds(bare, "a.mp3"), lambda: decode_audio(bare, 16_000, "a.mp3")):
        with pytest.raises(UsageError, match=r"a\.mp3 is an mp3 that does not say how long it is"):
            read()


def test_a_rate_that_is_next_to_nothing_is_refused():
    with pytest.raises(
        UsageError, match=r"^a\.wav has a rate of 1 Hz, and more than 536,870,912 samples at 200,000 Hz$"
    ):
        decode_audio(encode_wav(SAMPLES, 1), 200_000, "a.wav")


def test_a_sound_may_be_too_short_for_a_lower_rate():
    with pytest.raises(UsageError, match=r"^a\.wav is too short for a sample at 1,000 Hz: 1 at 48,000 Hz$"):
        decode_audio(encode_wav([5], 48000), 1000, "a.wav")


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_is_named_by_its_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"^reading sounds needs packages: pip install 'kdalign\[speech\]'$"):
        decode_audio(noise_wav(0), 16000, "a.wav")


def test_the_header_alone_is_checked_first():
    check_sound(FLAC[:3000], "a.flac")
    with pytest.raises(UsageError, match=r"^a\.wav is cut off"):
        check_sound(WAV[:3000], "a.wav")
