"""Speech of sentences, made by espeak-ng."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
from benchmarks.speech import make_speech as speech  # noqa: E402  (it needs both)

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
SENTENCES = [
    f"The {animal} walks across the {place}." for animal in ("dog", "cat", "cow") for place in ("road", "hill")
]


def make(out, monkeypatch, *options):
    source = out.parent / "captions.parquet"
    pd.DataFrame({"en": [*SENTENCES, "Too short."]}).to_parquet(source)
    counted = ["--sentences", f"{source}:en", "--count", "3", "1", "2"]
    monkeypatch.setattr("sys.argv", ["make_speech", str(out), *counted, *options])
    speech.main()
    return {split: pd.read_parquet(out / f"{split}.parquet") for split in speech.SPLITS}


def test_sentences_that_differ_in_case_and_punctuation_alone_are_read_once(tmp_path):
    texts = ["A man walks his dog.", "a man walks, his dog", "Too short.", "Five words are just enough "]
    pd.DataFrame({"en": texts}).to_parquet(tmp_path / "it.parquet")
    assert speech.read_sentences(f"{tmp_path}/it.parquet:en") == ["A man walks his dog.", "Five words are just enough"]


@needs_espeak
def test_each_sentence_is_spoken_in_one_split_and_again_with_the_same_bytes(tmp_path, monkeypatch):
    made = make(tmp_path / "first", monkeypatch)
    assert [len(made[split]) for split in speech.SPLITS] == [3, 1, 2]
    assert sorted(pd.concat(made.values()).text) == sorted(SENTENCES)
    for row in pd.concat(made.values()).itertuples():
        sound = soundfile.SoundFile(io.BytesIO(row.wav))
        assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")
        assert sound.frames / 16_000 == row.seconds > 1
    again, other = make(tmp_path / "again", monkeypatch), make(tmp_path / "other", monkeypatch, "--seed", "2")
    assert all(again[split].equals(made[split]) for split in speech.SPLITS)
    assert not other["train"].equals(made["train"])


@needs_espeak
def test_voices_are_drawn_from_those_that_are_given(tmp_path, monkeypatch):
    made = make(tmp_path / "out", monkeypatch, "--voices", "en-us", "en+m3")
    assert set(pd.concat(made.values()).voice) == {"en-us", "en+m3"}
    with pytest.raises(SystemExit):  # espeak-ng would speak as en-gb
        make(tmp_path / "out", monkeypatch, "--voices", "en-gb+m3")


@needs_espeak
def test_each_voice_sounds_different():
    """espeak-ng takes a voice or variant that it does not know for another one, without a word."""
    sounds = [speech.speak("hello there", speech.Manner(voice, 150, 50)).tobytes() for voice in speech.VOICES]
    assert len(set(sounds)) == len(speech.VOICES)


@needs_espeak
def test_noise_changes_the_sound_and_nothing_else_of_a_row(tmp_path, monkeypatch):
    clean, noisy = make(tmp_path / "clean", monkeypatch), make(tmp_path / "noisy", monkeypatch, "--snr", "10")
    for split in speech.SPLITS:
        assert clean[split].drop(columns="wav").equals(noisy[split].drop(columns="wav"))
        assert not set(clean[split].wav) & set(noisy[split].wav)


def test_the_power_of_noise_is_the_ratio_that_was_asked_for():
    sound = np.sin(np.arange(200_000) / 10) / 10
    noise = speech.add_noise(sound, 20, np.random.default_rng(0)) - sound
    assert 10 * np.log10(np.mean(sound**2) / np.mean(noise**2)) == pytest.approx(20, abs=0.1)


def test_a_noisy_sound_that_would_clip_is_scaled_as_a_whole():
    sound = np.sin(np.arange(200_000) / 10)
    noisy = speech.add_noise(sound, 10, np.random.default_rng(0))
    assert np.abs(noisy).max() == 1
    gain = noisy @ sound / (sound @ sound)
    assert 10 * np.log10(np.mean((gain * sound) ** 2) / np.mean((noisy - gain * sound) ** 2)) == pytest.approx(
        10, abs=0.1
    )


@needs_espeak
def test_more_sentences_than_there_are_end_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"asks for 306 sentences; .*captions\.parquet:en has 6 of 5 to 20 words"):
        make(tmp_path / "out", monkeypatch, "--count", "300", "1", "5")
    assert not (tmp_path / "out").exists()
