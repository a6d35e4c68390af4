"""Tiny sounds with transcripts, CTC models that read them, and a Whisper that teaches features."""

from functools import cache

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from kdalign.data.input_reader import InputReader
from kdalign.data.media.rows import MediaRows, media_digest
from kdalign.data.tasks import DataSource, Examples, LanguageTask
from kdalign.data.tokenizer_training import character_tokenizer
from kdalign.evaluation.adapters.ctc import CTCAdapter
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec
from kdalign.models.media_reader import new_media_reader
from support.media import noise_wav

KINDS = ("wav2vec2", "hubert", "wavlm")
WORDS = ("one", "two", "zero", "nine")
TEXTS = ("one", "two zero", "no one", "nine", "zoo", "tone")
SPEC = "layers=2,width=32,heads=2,feed_forward=64,conv=8,dropout=0"
TASK = LanguageTask("asr", "speech-recognition", ("wav", "text"), DataSource(), language="en", by_frames=True)


def tokenizer():
    return character_tokenizer(TEXTS)


def model(kind="wav2vec2", seed=0, spec=SPEC):
    new = parse_scratch_spec(f"new:{kind},{spec}")
    return build_from_scratch(new.config(len(tokenizer()), 0), seed).eval()


@cache
def config(kind="wav2vec2"):
    return parse_scratch_spec(f"new:{kind},{SPEC}").config(len(tokenizer()), 0)


def reader(kind="wav2vec2"):
    return InputReader(tokenizer(), config(kind), new_media_reader(config(kind), None))


def rows(seconds=(0.2, 0.35, 0.3, 0.25, 0.4, 0.3)):
    cells = [noise_wav(seed, length, 16_000) for seed, length in enumerate(seconds)]
    return MediaRows("audio", cells, [f"{n}.wav" for n in range(len(cells))], [media_digest(cell) for cell in cells])


def examples(texts=TEXTS, **options):
    return Examples("train", (rows(**options).take(range(len(texts))), tuple(texts)), None)


def adapter():
    return CTCAdapter(TASK, 256)


def encoded(*, scored=False, **options):
    return adapter().tokenize(examples(**options), reader(), scored=scored)


def write_splits(folder):
    """A folder with splits of sounds of 8 kHz, each word a tone of its own."""
    import pandas as pd

    from support.media import encode_wav

    for split, count in (("train", 16), ("validation", 6)):
        cells, texts = [], []
        for number in range(count):
            word = WORDS[number % len(WORDS)]
            times = np.arange(int(8000 * (0.3 + 0.01 * number))) / 8000
            cells.append(encode_wav(9_000 * np.sin(2 * np.pi * (300 + 400 * WORDS.index(word)) * times), 8000))
            texts.append(word)
        folder.mkdir(exist_ok=True, parents=True)
        pd.DataFrame({"wav": cells, "text": texts}).to_parquet(folder / f"{split}.parquet")
    return folder


def save_whisper(folder):
    """A tiny random Whisper that reads a second at once; it has no tokenizer, since only its features are read."""
    torch.manual_seed(0)
    made = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=30,
            d_model=16,
            encoder_layers=3,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_source_positions=50,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )
    made.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return str(folder)
