"""Sample texts from a model's own distribution, so that each is a function of its seed and prompt alone.

Shapes: ``rows`` texts, ``entries`` of a vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from kdalign.errors import NotFinite
from kdalign.metrics.arrays import Array
from kdalign.models.lm_head import LMHead, vocabulary_head
from kdalign.models.modes import in_mode

ROWS = 32
"""Texts that are sampled at a time."""


@dataclass(frozen=True)
class Sampling:
    """Settings of samples.

    Attributes:
        new_tokens: most tokens of a sample, its end token included.
        temperature: divisor of the logits, above 0.
        top_p: share of the probability from which tokens are drawn, the likeliest ones.
        ends: tokens that end a text.
        entries: number of the vocabulary's first entries from which tokens are drawn.
        positions: most positions of a model.
    """

    new_tokens: int
    temperature: float
    top_p: float
    ends: frozenset[int]
    entries: int
    positions: int


def uniform_numbers(key: str, count: int) -> Array:
    """Return numbers from 0 to 1 that are a function of a text, such as seed, step and a row's tokens."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest)).random(count)


def draw_tokens(
    logits: Float[Tensor, "rows entries"], uniform: Float[Tensor, "rows"], temperature: float, top_p: float = 1.0
) -> Int[Tensor, "rows"]:
    """Draw a token of each row by its own uniform number, at a temperature, from the nucleus.

    A row's token is the first at which the cumulative distribution, in the vocabulary's order, exceeds its number. The
    nucleus holds the likeliest tokens whose probabilities sum to ``top_p`` (Holtzman et al. 2020, arXiv:1904.09751,
    section 3.1).
    """
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # which has no float64
    probabilities = (logits.to(exact) / temperature).softmax(dim=-1)
    if top_p < 1:
        ordered = probabilities.sort(dim=-1, descending=True).values
        before = ordered.cumsum(dim=-1) - ordered
        least = ordered.masked_fill(before >= top_p, torch.inf).amin(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    reached = cumulative <= uniform.to(exact)[:, None] * cumulative[:, -1:]
    return reached.sum(dim=-1).clamp(max=logits.size(-1) - 1)


def sample_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[Array],
    sampling: Sampling,
    start: int = 0,
    dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Sample a continuation of each prompt of a causal model, or an answer to each source of an encoder-decoder.

    The model is in eval mode meanwhile, and reads each position once. No setting of its generation configuration has
    an effect. Texts that have ended leave the batch once they are half of it.

    Args:
        model: causal or encoder-decoder.
        prompts: tokens of each prompt or source, one at least.
        draws: for each prompt ``new_tokens`` numbers from 0 to 1.
        sampling: settings.
        start: token by which a decoder begins.
        dtype: precision of matrix products; the weights' own if None.

    Returns:
        Each sample's tokens, with its end token if it has one: at most ``new_tokens``, and as far as positions reach.

    Raises:
        NotFinite: logits are NaN.
    """
    samples: list[list[int]] = []
    with _eval_mode(model), torch.autocast(model.device.type, dtype, enabled=dtype is not None):
        for first in range(0, len(prompts), ROWS):
            rows = slice(first, first + ROWS)
            reader: _CausalReader | _Seq2SeqReader
            if model.config.is_encoder_decoder:
                reader = _Seq2SeqReader(model, prompts[rows], start)
                limits = [min(sampling.new_tokens, sampling.positions)] * len(prompts[rows])
            else:
                reader = _CausalReader(model, prompts[rows], sampling.positions)
                # The last token is not read.
                limits = [max(1, min(sampling.new_tokens, sampling.positions + 1 - len(row))) for row in prompts[rows]]
            with _last_features(model, dtype) as predict:
                samples += _sample(reader, predict, torch.tensor(np.array(draws[rows])), limits, sampling)
    return samples


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Run a model in eval mode without gradients, and put it back.

    Not in inference mode, in which autocast would cast every weight again for every token.
    """
    with in_mode(model, training=False), torch.no_grad():
        yield


class _CausalReader:
    """Reads prompts, padded on the left, and then one token of each row at a time."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], positions: int) -> None:
        self._model, self._last, device = model, positions - 1, model.device
        longest = max(map(len, prompts))
        self._ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        self._real = torch.zeros_like(self._ids)
        for number, prompt in enumerate(prompts):
            self._ids[number, longest - len(prompt) :] = torch.tensor(list(prompt))
            self._real[number, longest - len(prompt) :] = 1
        self._ids, self._real = self._ids.to(device), self._real.to(device)
        self._positions = (self._real.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)

    def read(self) -> None:
        """Read what is new."""
        self._model(
            input_ids=self._ids,
            attention_mask=self._real,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )

    def append(self, tokens: Int[Tensor, "rows"]) -> None:
        """Take these tokens as what is new."""
        self._ids = tokens[:, None]
        self._real = torch.cat([self._real, torch.ones_like(self._ids)], dim=1)
        self._positions = (self._positions[:, -1:] + 1).clamp(max=self._last)  # texts that have ended read on

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Keep these rows alone."""
        self._ids, self._real, self._positions = self._ids[rows], self._real[rows], self._positions[rows]
        self._cache.batch_select_indices(rows)


class _Seq2SeqReader:
    """Reads sources once, and then one token of each answer at a time."""

    def __init__(self, model: PreTrainedModel, sources: Sequence[Sequence[int]], start: int) -> None:
        self._model, device = model, model.device
        lengths = torch.tensor([len(source) for source in sources])
        ids = torch.zeros(len(sources), int(lengths.max()), dtype=torch.long)
        for number, source in enumerate(sources):
            ids[number, : len(source)] = torch.tensor(list(source))
        self._real = (torch.arange(ids.size(1)) < lengths[:, None]).long().to(device)
        self._encoded = model.get_encoder()(input_ids=ids.to(device), attention_mask=self._real)
        self._ids = torch.full((len(sources), 1), start, device=device)
        self._cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))

    def read(self) -> None:
        """Read what is new."""
        self._model(
            encoder_outputs=self._encoded,
            attention_mask=self._real,
            decoder_input_ids=self._ids,
            past_key_values=self._cache,
            use_cache=True,
        )

    def append(self, tokens: Int[Tensor, "rows"]) -> None:
        """Take these tokens as what is new."""
        self._ids = tokens[:, None]

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Keep these rows alone."""
        self._ids, self._real = self._ids[rows], self._real[rows]
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]
        self._cache.batch_select_indices(rows)


@dataclass
class _LastFeatures:
    """Logits of the last position that a model has read."""

    head: LMHead
    features: Tensor | None = None

    def logits(self, entries: int) -> Float[Tensor, "rows entries"]:
        """Compute the logits of the first entries.

        Raises:
            NotFinite: some are NaN, or above all bounds.
        """
        assert self.features is not None, "the model was called"
        logits = self.head.logits(self.features)[:, :entries]
        bad = int((~logits.amax(dim=-1).isfinite()).sum())
        if bad:
            raise NotFinite(f"{bad:,} of {len(logits):,} samples have logits that are NaN or infinite")
        return logits


@contextmanager
def _last_features(model: PreTrainedModel, dtype: torch.dtype | None) -> Iterator[_LastFeatures]:
    """Keep the last position's features of each forward inside; the vocabulary's map is given no row to compute."""
    module, head = vocabulary_head(model)
    last = _LastFeatures(head.detached(dtype or head.weight.dtype))

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> Tensor:
        last.features = args[0][:, -1]
        nothing: Tensor = args[0][:, :0]
        return nothing

    handle = module.register_forward_pre_hook(keep)
    try:
        yield last
    finally:
        handle.remove()


def _sample(
    reader: _CausalReader | _Seq2SeqReader,
    predict: _LastFeatures,
    draws: Tensor,
    limits: Sequence[int],
    sampling: Sampling,
) -> list[list[int]]:
    """Sample the texts of one batch, token by token."""
    samples: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))
    """Numbers of the texts that are in the batch."""
    for number in range(max(limits)):
        reader.read()
        logits = predict.logits(sampling.entries)
        tokens = draw_tokens(logits, draws[rows, number].to(logits.device), sampling.temperature, sampling.top_p)
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if not _has_ended(samples[row], limits[row], sampling.ends):
                samples[row].append(token)
            if not _has_ended(samples[row], limits[row], sampling.ends):
                going.append(place)
        if not going:
            break
        reader.append(tokens)
        if 2 * len(going) <= len(rows):
            reader.keep(torch.tensor(going, device=tokens.device))
            rows = [rows[place] for place in going]
    return samples


def _has_ended(sample: Sequence[int], limit: int, ends: frozenset[int]) -> bool:
    return len(sample) >= limit or bool(sample and sample[-1] in ends)
