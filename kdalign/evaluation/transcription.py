"""Transcribe speech: sounds longer than a model reads at once are cut where they are quietest."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.media.audio import audio_seconds
from kdalign.data.media.readers import AudioReader, Decoded
from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.evaluation.decoding import Answer, CheckLogits, GenerationSettings, decode_rows
from kdalign.models.generation_settings import end_tokens
from kdalign.models.sharding import needs_every_rank

CUT_SECONDS, QUIET_SECONDS = 5.0, 0.2
"""Last seconds of a chunk, at most half of it, in which it may be cut; and the length of what is compared to find the
quietest place."""


def transcribe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> list[Answer]:
    """Transcribe the sounds of cases with an encoder-decoder, each chunk by itself.

    The model's own generation settings hold but for the search: suppressed tokens are a part of how Whisper writes.

    Raises:
        NotFinite: the model gives NaN.
    """
    reader = settings.media
    assert isinstance(reader, AudioReader), "speech is read by a feature extractor"
    sounds = [reader.decode(case.media.read(), case.media.name) for case in cases if case.media is not None]
    assert len(sounds) == len(cases), "a task of speech has sounds"
    chunks = [(number, chunk) for number, sound in enumerate(sounds) for chunk in split_sound(sound, reader)]
    limit = min(settings.new_tokens, int(model.config.max_target_positions) - _PROMPT_TOKENS)
    texts, counts, ended = [list[str]() for _ in cases], [0] * len(cases), [True] * len(cases)
    for start in range(0, len(chunks), settings.rows):
        part = chunks[start : start + settings.rows]
        features = reader.inputs([chunk for _, chunk in part])
        rows = write_speech(model, tokenizer, features, limit, settings.beams, settings.language)
        for (number, _), row, text in zip(part, rows, decode_rows(tokenizer, rows), strict=True):
            texts[number].append(text.strip())
            counts[number] += len(row)
            ended[number] &= len(row) < limit
    return [
        Answer(" ".join(filter(None, written)), closed, new_tokens=count)
        for written, closed, count in zip(texts, ended, counts, strict=True)
    ]


_PROMPT_TOKENS = 4
"""Most tokens before a transcript: its start, its language, the task, and that no timestamps follow."""


def write_speech(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Mapping[str, Tensor],
    limit: int,
    beams: int = 1,
    language: str = "",
) -> list[list[int]]:
    """Write what is said in sounds: the tokens of each, without what precedes a transcript and what follows its end.

    Args:
        model: an encoder-decoder of speech.
        tokenizer: the model's.
        features: the model's inputs.
        limit: most new tokens of a text.
        beams: number of beams; 1 is greedy.
        language: code of the spoken language; found by a multilingual model if empty.
    """
    own = model.generation_config
    assert own is not None, "a model that writes has settings"
    multilingual = bool(getattr(own, "is_multilingual", False))
    said: dict[str, Any] = {"task": "transcribe", "language": language or None} if multilingual else {}
    output = model.generate(
        **{name: value.to(model.device, model.dtype) for name, value in features.items()},
        **said,
        generation_config=GenerationConfig.from_dict(own.to_dict()),
        max_new_tokens=limit,
        do_sample=False,
        num_beams=beams,
        logits_processor=[CheckLogits()],
        synced_gpus=needs_every_rank(model),
    )
    special, ends = set(tokenizer.all_special_ids), {*end_tokens(own, tokenizer)}
    return [list(_content(row, special | _prompt_ids(model), ends)) for row in output.tolist()]


def _prompt_ids(model: PreTrainedModel) -> set[int]:
    """Tokens that precede a transcript, which its tokenizer may not call special."""
    own = model.generation_config
    found = {model.config.decoder_start_token_id, getattr(own, "no_timestamps_token_id", None)}
    for name in ("lang_to_id", "task_to_id"):
        found |= set((getattr(own, name, None) or {}).values())
    return {token for token in found if token is not None}


def _content(row: Sequence[int], before: set[int], ends: set[int]) -> Iterator[int]:
    inside = False
    for token in row:
        if not inside and token in before:
            continue
        inside = True
        if token in ends:
            return
        yield token


def split_sound(sound: Decoded, reader: AudioReader) -> list[Decoded]:
    """Split a sound into chunks that a model can read, each cut at the quietest place of its last seconds."""
    assert reader.width is not None, "this model reads sounds of one length"
    most, chunks = reader.width * reader.stride, list[Decoded]()
    last = min(round(CUT_SECONDS * reader.rate), most // 2)
    while len(sound) > most:
        end = _quietest(sound[:most], last, round(QUIET_SECONDS * reader.rate))
        chunks.append(sound[:end])
        sound = sound[end:]
    return [*chunks, sound]


def _quietest(sound: Decoded, last: int, window: int) -> int:
    """Return the middle of the window with the least energy in the last samples of a sound."""
    begin = len(sound) - last
    sums = np.concatenate([[0.0], np.cumsum(np.square(sound[begin:], dtype=np.float64))])
    return begin + int((sums[window:] - sums[:-window]).argmin()) + window // 2


def sound_seconds(cases: Sequence[GenerationCase]) -> float:
    """Return the duration of all sounds of cases together."""
    return sum(audio_seconds(case.media.read(), case.media.name) for case in cases if case.media is not None)
