"""Parts of text generation that every family shares: settings, answers, padding, and the check of logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from kdalign.data.conversations import SourcePrompts
from kdalign.data.media.readers import MediaReader
from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.errors import NotFinite

ROWS = 32
"""Texts of a batch."""


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of text generation.

    Attributes:
        beams: number of beams; 1 is greedy.
        new_tokens: most new tokens, if a model ends its text itself.
        rounds: rounds of Mask-Predict.
        max_length: longest source in tokens.
        temperature: temperature of samples; 0 for the likeliest token at each position, or for beams.
        top_p: share of the probability from which samples are drawn, its likeliest tokens.
        seed: seed of samples.
        rows: texts of a batch.
        prompts: prompts in which a causal model reads sources; None if a case's prompt is all that is read.
        prompt_length: longest such prompt in tokens; as long as the model's positions allow if None.
        media: reader of sounds or images; None for a model of text.
        language: code of the spoken language, for a multilingual model of speech; found by the model if empty.
    """

    beams: int = 1
    new_tokens: int = 256
    rounds: int = 10
    max_length: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    rows: int = ROWS
    prompts: SourcePrompts | None = None
    prompt_length: int | None = None
    media: MediaReader | None = None
    language: str = ""


@dataclass(frozen=True)
class Answer:
    """A generated text.

    Attributes:
        text: the text, cut at its end.
        ended: True if the model or the case's stop ended it; False if the token limit cut it off.
        cut: True if the prompt was too long and lost a part.
        prompt_tokens: tokens of the prompt that were read.
        new_tokens: tokens that were generated, the end token included.
    """

    text: str
    ended: bool = True
    cut: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0


def token_budget(cases: Sequence[GenerationCase], settings: GenerationSettings, with_prompt: bool = False) -> int:
    """Return the most new tokens: for continuations enough for all of their words, else the setting."""
    if not cases[0].token_budget:
        return settings.new_tokens
    return cases[0].token_budget + (max(len(case.prompt.encode()) for case in cases) if with_prompt else 0)


class CheckLogits(LogitsProcessor):  # type: ignore[misc]  # Transformers' are not typed
    """Checks logits, and passes them on unchanged."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, or raise NotFinite."""
        check_logits(scores)
        return scores


def check_logits(logits: Tensor) -> None:
    """Refuse logits (rows, vocabulary) whose greatest is NaN or infinite: argmax would return the first token.

    Raises:
        NotFinite: some rows have such a maximum.
    """
    bad = int((~logits.amax(dim=-1).isfinite()).sum())
    if bad:
        raise NotFinite(f"{bad:,} of {len(logits):,} generated texts have logits that are NaN or infinite")


def pad_rows(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Return token ids (rows, time), and a mask that is 1 where they are real."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    real = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        columns = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[number, columns] = torch.tensor(list(row))
        real[number, columns] = 1
    return ids.to(device), real.to(device)


def decode_rows(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Any] | Iterator[Any] | Tensor) -> list[str]:
    """Decode each row of token ids, without special tokens."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
