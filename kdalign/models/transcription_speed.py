"""Measure the real-time factor of a model of speech: seconds of work for each second of a fixed sound."""

import io
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.io import wavfile
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from kdalign.data.media.readers import AudioReader
from kdalign.models.capture import inference_mode
from kdalign.models.checkpoint_files import quiet_transformers
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import reads_samples

SECONDS = 30.0
"""Length of the sound for a model that reads sounds of any length."""
PROMPT_TOKENS = 4
"""Most tokens before a transcript (see ``evaluation.transcription``)."""
LEAST_TURNS, MOST_TURNS, TURN_SECONDS = 3, 15, 5.0
"""Turns after a warm-up: the least, the most, and the seconds after which there are no more than the least."""


@dataclass(frozen=True)
class TranscriptionSpeed:
    """Time that a model takes to transcribe one sound by itself.

    Attributes:
        real_time_factor: median seconds of work, decoding of the file included, for each second of sound.
        seconds: length of the sound.
        tokens: tokens that are written, whatever the sound; 0 for a model that labels frames.
        turns: number of times that it was measured.
    """

    real_time_factor: float
    seconds: float
    tokens: int
    turns: int


def measure_transcription(model: PreTrainedModel, reader: AudioReader, tokens: int) -> TranscriptionSpeed:
    """Time the transcription of a sound of noise, as long as the model reads at once, greedily.

    An encoder-decoder writes a fixed number of tokens, so that models are compared at equal work: what it would write
    by itself depends on the sound. A model that labels frames chooses the likeliest label of each.

    Args:
        model: with the head by which it transcribes.
        reader: how it reads sounds.
        tokens: tokens that are written; fewer if the model has fewer positions.
    """
    seconds = SECONDS if reader.width is None else reader.width * reader.stride / reader.rate
    file, labels = _noise(reader.rate, seconds), reads_samples(model.config.model_type)
    if not labels:
        tokens = min(tokens, int(model.config.max_target_positions) - PROMPT_TOKENS)
    times = list[float]()
    with inference_mode(model), quiet_transformers():
        while len(times) < 1 + LEAST_TURNS or (len(times) <= MOST_TURNS and sum(times[1:]) < TURN_SECONDS):
            begun = time.perf_counter()
            inputs = reader.inputs([reader.decode(file, "the sound")])
            inputs = accepted_inputs(model, {name: value.to(model.device) for name, value in inputs.items()})
            if labels:
                model(**inputs)[0].argmax(-1).tolist()
            else:
                _write(model, inputs, tokens)
            times.append(time.perf_counter() - begun)
    return TranscriptionSpeed(statistics.median(times[1:]) / seconds, seconds, 0 if labels else tokens, len(times) - 1)


def _write(model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: int) -> None:
    """Write a number of tokens greedily, with the model's own settings but for its end."""
    own = model.generation_config
    assert own is not None, "a model that writes has settings"
    languages = [word.strip("<|>") for word in getattr(own, "lang_to_id", None) or {}]
    told = {"task": "transcribe", "language": "en" if "en" in languages or not languages else languages[0]}
    written = model.generate(
        **inputs,
        **(told if getattr(own, "is_multilingual", False) else {}),
        generation_config=GenerationConfig.from_dict(own.to_dict() | {"num_return_sequences": 1}),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
    )
    assert tokens <= written.shape[1] <= tokens + PROMPT_TOKENS, "it may not end before"


def _noise(rate: int, seconds: float) -> bytes:
    """A wav file of noise, of 16 bits a sample."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(rate * seconds))
    written = io.BytesIO()
    wavfile.write(written, rate, (samples * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16))
    return written.getvalue()
