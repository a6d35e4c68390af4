"""Score Whisper on a split by Transformers and jiwer alone, without kdalign: numbers to hold kdalign's own against.

    python -m benchmarks.speech.reference MODEL SPLIT.parquet OUT.json [--sound wav] [--text text] [--rows 0:100]
        [--batch-size 1] [--precision fp32]

MODEL is a folder of Transformers, SPLIT a file with a column of wav (or flac, ...) bytes of at most 30 seconds and one
of transcripts. Texts are written greedily by the checkpoint's own generation_config; of a multilingual one, in English.
OUT has each text with its reference, word and character error rates of the corpus, and seconds by part of the work:

    raw           texts as they are, but for white space around them and in rows
    normalised    by Whisper's English normaliser (Radford et al. 2022, arXiv:2212.04356, appendix C), with the table of
                  British spellings in the folder's normalizer.json if there is one, else without any
    real_time     seconds of work for one second of sound
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import jiwer
import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Stopwatch:
    """Seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def skip(self) -> None:
        """Count what has passed for no part."""
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count what has passed for a part."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def read_sound(encoded: bytes, rate: int) -> np.ndarray:
    """Decode a sound to one channel at a rate, of shape (samples,)."""
    sound, own_rate = soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)
    resampled: np.ndarray = soxr.resample(sound.mean(axis=1), own_rate, rate)
    return resampled


class Transcript(TypedDict):
    """What a model wrote for a sound, and its text tokens: those that stand before Whisper's special ones."""

    text: str
    tokens: int


class Recogniser:
    """A Whisper checkpoint that writes down sounds."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        english = {"language": "en", "task": "transcribe"}
        self.options = english if self.model.generation_config.is_multilingual else {}

    @torch.inference_mode()
    def write(self, sounds: list[np.ndarray], stopwatch: Stopwatch) -> Iterator[Transcript]:
        """Yield what is written for each sound, a batch."""
        stopwatch.skip()
        extracted = self.extractor(sounds, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        features = extracted.input_features.to(self.model.dtype)
        stopwatch.lap("features")
        encoded = self.model.get_encoder()(features)
        stopwatch.lap("encoder")
        rows = self.model.generate(encoder_outputs=encoded, do_sample=False, num_beams=1, **self.options)
        stopwatch.lap("decoder")
        end = self.model.generation_config.eos_token_id
        for row in rows.tolist():
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            yield {"text": text, "tokens": sum(1 for token in row if token < end)}


def error_rates(references: list[str], texts: list[str]) -> dict[str, dict[str, float]]:
    """Count edits over the words and characters of a corpus."""
    words = jiwer.process_words([" ".join(one.split()) for one in references], [" ".join(one.split()) for one in texts])
    characters = jiwer.process_characters([one.strip() for one in references], [one.strip() for one in texts])
    rates = {}
    for name, found in (("wer", words), ("cer", characters)):
        edits = found.substitutions + found.deletions + found.insertions
        units = found.substitutions + found.deletions + found.hits
        rates[name] = {"rate": edits / units, "edits": edits, "units": units}
    return rates


def make_normaliser(folder: str) -> EnglishTextNormalizer:
    """Return Whisper's English normaliser with the table of spellings that the folder has, if any."""
    table = Path(folder) / "normalizer.json"
    return EnglishTextNormalizer(json.loads(table.read_text()) if table.exists() else {})


def score(given: argparse.Namespace) -> dict[str, object]:
    """Write down a split, and return what OUT holds."""
    recogniser = Recogniser(given.model, DTYPES[given.precision])
    rate = recogniser.extractor.sampling_rate
    table = pd.read_parquet(given.split, columns=[given.sound, given.text])[given.rows]
    sounds = [read_sound(encoded, rate) for encoded in table[given.sound]]
    if max(map(len, sounds)) > recogniser.extractor.n_samples:
        sys.exit(f"{given.split} has sounds of more than {recogniser.extractor.chunk_length} seconds")
    list(recogniser.write(sounds[:1], Stopwatch()))  # the first forward is slower
    stopwatch, rows = Stopwatch(), list[Transcript]()
    for begin in range(0, len(sounds), given.batch_size):
        rows += recogniser.write(sounds[begin : begin + given.batch_size], stopwatch)
    references, texts = table[given.text].tolist(), [row["text"] for row in rows]
    normal = make_normaliser(given.model)
    heard = sum(map(len, sounds)) / rate
    total = sum(stopwatch.seconds.values())
    return {
        "settings": {key: str(value) for key, value in vars(given).items()},
        "threads": torch.get_num_threads(),
        "rows": len(rows),
        "raw": error_rates(references, texts),
        "normalised": error_rates([normal(one) for one in references], [normal(one) for one in texts]),
        "spellings": len(normal.standardize_spellings.mapping),
        "tokens": sum(row["tokens"] for row in rows),
        "seconds_of_sound": heard,
        "seconds": {**stopwatch.seconds, "total": total},
        "real_time": total / heard,
        "texts": [{"reference": one, **row} for one, row in zip(references, rows, strict=True)],
    }


def read_slice(text: str) -> slice:
    """Read BEGIN:END, where either may be missing."""
    begin, end = text.split(":")
    return slice(int(begin) if begin else None, int(end) if end else None)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="folder of a Whisper checkpoint")
    parser.add_argument("split", type=Path, help="parquet file")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--sound", default="wav", help="column of encoded sounds")
    parser.add_argument("--text", default="text", help="column of transcripts")
    parser.add_argument("--rows", type=read_slice, default=slice(None), help="BEGIN:END, of the rows to read")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    return parser.parse_args(arguments)


def main() -> None:
    """Score the split of the command line, and print the scores without the texts."""
    given = parse(sys.argv[1:])
    found = score(given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({key: value for key, value in found.items() if key != "texts"}))


if __name__ == "__main__":
    main()
