"""Make a data set of spoken sentences by espeak-ng: wav bytes with their transcripts, in several voices.

    python -m benchmarks.speech.make_speech OUT --sentences captions.parquet:en [--count 2000 200 300] [--seed 1]
        [--voices en-us en-us+f3] [--snr 20]

It writes OUT/{train,validation,test}.parquet with these columns:

    wav       a file's bytes: 16 kHz, mono, 16 bits
    text      the sentence as it is written
    voice     espeak-ng's name of the voice
    speed     words a minute, as espeak-ng counts them
    pitch     0 to 99, as espeak-ng counts it; 50 is the voice's own
    seconds   length of the sound

No sentence is in two splits, whatever its case and punctuation. The seed decides which sentences, voices and noise are
drawn: the same seed with the same espeak-ng gives the same bytes. With --snr a row has the voice that it has without.
It needs espeak-ng (Debian: apt-get install espeak-ng) and kdalign[speech].
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import soxr

RATE = 16_000
SPLITS = ("train", "validation", "test")
WORDS = (5, 20)
# British English is `en` here: espeak-ng drops a variant after `en-gb`, a second name of it, without a word.
VOICES = (
    "en-us", "en-us+f2", "en-us+f3", "en-us+m3", "en-us-nyc", "en", "en+f4", "en+m3", "en+m7", "en-gb-scotland",
    "en-gb-x-rp+f1", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip
SPEEDS = (130, 150, 170, 190)
PITCHES = (35, 50, 65)


@dataclass(frozen=True)
class Manner:
    """How a sentence is spoken, in espeak-ng's units."""

    voice: str
    speed: int
    pitch: int


def read_sentences(source: str) -> list[str]:
    """Read a column, given as FILE.parquet:COLUMN, and keep each sentence of 5 to 20 words once.

    Sentences are the same if their letters and digits are, in any case.
    """
    file, _, column = source.rpartition(":")
    kept: dict[str, str] = {}
    for text in pd.read_parquet(file, columns=[column])[column]:
        words = re.findall(r"[a-z0-9]+", text.lower())
        if WORDS[0] <= len(words) <= WORDS[1]:
            kept.setdefault(" ".join(words), text.strip())
    return list(kept.values())


def speak(text: str, manner: Manner) -> np.ndarray:
    """Return espeak-ng's sound of a text at 16 kHz, of shape (samples,), between -1 and 1."""
    options = "-v", manner.voice, "-s", str(manner.speed), "-p", str(manner.pitch), "--stdin", "--stdout"
    wav = subprocess.run(["espeak-ng", *options], input=text.encode(), capture_output=True, check=True).stdout
    sound, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    resampled: np.ndarray = soxr.resample(sound, rate, RATE)
    return resampled


def add_noise(sound: np.ndarray, snr: float, generator: np.random.Generator) -> np.ndarray:
    """Add white noise at a ratio of mean powers in decibels; where the sum would clip, make it quieter."""
    power = np.mean(np.square(sound)) / 10 ** (snr / 10)
    noisy: np.ndarray = sound + np.sqrt(power) * generator.standard_normal(len(sound))
    noisy /= max(1.0, np.abs(noisy).max())
    return noisy


def encode(sound: np.ndarray) -> bytes:
    """Return the bytes of a wav file of 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@dataclass(frozen=True)
class Studio:
    """Where sentences are spoken: the voices to draw from, and the signal-to-noise ratio in decibels, if any."""

    voices: tuple[str, ...] = VOICES
    snr: float | None = None


def make_rows(texts: Iterable[str], studio: Studio, seed: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Yield the rows of a split: the voice of each is drawn, and its noise if any by a generator of the row's own."""
    draw = np.random.default_rng(seed)
    for row, text in enumerate(texts):
        manner = Manner(str(draw.choice(studio.voices)), int(draw.choice(SPEEDS)), int(draw.choice(PITCHES)))
        sound = speak(text, manner)
        if studio.snr is not None:
            sound = add_noise(sound, studio.snr, np.random.default_rng((*seed, row)))
        yield {"wav": encode(sound), "text": text, **asdict(manner), "seconds": len(sound) / RATE}


def make_speech(out: Path, sentences: list[str], counts: tuple[int, ...], studio: Studio, seed: int) -> None:
    """Write a file for each split, of as many rows as `counts` says of each."""
    order = np.random.default_rng(seed).permutation(len(sentences))
    ends = np.cumsum(counts)
    out.mkdir(parents=True, exist_ok=True)
    for number, (split, begin, end) in enumerate(zip(SPLITS, ends - counts, ends, strict=True)):
        rows = make_rows([sentences[i] for i in order[begin:end]], studio, (seed, number))
        pd.DataFrame(list(rows)).to_parquet(out / f"{split}.parquet", index=False)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--sentences", required=True, metavar="FILE.parquet:COLUMN", help="where sentences are")
    parser.add_argument("--count", type=int, nargs=3, default=[2000, 200, 300], metavar=("TRAIN", "VALIDATION", "TEST"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--voices", nargs="+", choices=VOICES, default=VOICES, metavar="VOICE", help="of those here")
    parser.add_argument("--snr", type=float, help="add white noise at this signal-to-noise ratio in decibels")
    return parser.parse_args(arguments)


def main() -> None:
    """Make the data set of the command line."""
    given = parse(sys.argv[1:])
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    sentences = read_sentences(given.sentences)
    if sum(given.count) > len(sentences):
        sys.exit(
            f"--count asks for {sum(given.count)} sentences; {given.sentences} has {len(sentences)} of 5 to 20 words"
        )
    make_speech(given.out, sentences, tuple(given.count), Studio(tuple(given.voices), given.snr), given.seed)


if __name__ == "__main__":
    main()
