"""Texts that models write, for every family: greedily or by beams, by filling gaps, or from left to right."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kdalign.data.tasks.generation_cases import GenerationCase
from kdalign.data.tokenization import special_frame
from kdalign.errors import NotFinite, UsageError
from kdalign.models.architecture import accepted_inputs, layout_of
from kdalign.models.capture import CaptureSpec, forward, inference_mode
from kdalign.models.checkpoint_files import max_positions
from kdalign.observer import ProgressCallback

ROWS = 32
"""Texts that are written at once."""


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are written.

    Attributes:
        beams: 1 writes the likeliest token each time.
        new_tokens: at most so many, where a model ends its text itself.
        rounds: of Mask-Predict.
        max_length: longest source in tokens.
    """

    beams: int = 1
    new_tokens: int = 256
    rounds: int = 10
    max_length: int = 256


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    writing: GenerationSettings,
    tell: ProgressCallback,
) -> tuple[list[str], int]:
    """A text for each case, in the model's own precision, and how many prompts were too long and cut.

    A continuation goes on until it has as many words as what is held out, or the model ends it. Of a prompt that is too
    long the beginning is left out (of a source, the end).

    Raises:
        UsageError: an encoder-decoder is to continue texts and knows no mask to fill.
    """
    families: dict[str, Any] = {
        "causal": _go_on, "seq2seq": _answer, "masked": _fill, "permutation": _from_left_to_right
    }  # fmt: skip
    family = families[layout_of(model.config).family]
    written: dict[int, str] = {}
    cut = 0
    with inference_mode(model), _plain(model, tokenizer):
        for rows in _batches(cases):
            texts, long = family(model, tokenizer, [cases[row] for row in rows], writing)
            cut += long
            written |= {row: cases[row].cut(text) for row, text in zip(rows, texts, strict=True)}
            tell(len(written), len(cases))
    return [written[row] for row in range(len(cases))], cut


def _batches(cases: Sequence[GenerationCase]) -> Iterator[list[int]]:
    """Cases of one room together, so that nobody ends by the others; of them those of like lengths, to pad little."""
    order = sorted(range(len(cases)), key=lambda number: (-cases[number].room, -len(cases[number].prompt)))
    for _, group in groupby(order, key=lambda number: cases[number].room):
        rows = list(group)
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS]


def describe_generation(family: str, continuing: bool, writing: GenerationSettings) -> str:
    """How a family's texts were made, for a score's signature."""
    search = "greedy" if writing.beams == 1 else f"{writing.beams} beams"
    way = {
        "causal": search,
        "seq2seq": f"{search}, its mask filled" if continuing else search,
        "masked": f"Mask-Predict, {writing.rounds} rounds, told how many tokens are held out",
        "permutation": "left to right, greedy",
    }[family]
    if not continuing:
        return f"{way}, at most {writing.new_tokens} new tokens a text"
    return f"{way}, ends after as many words as the reference"


def _go_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    writing: GenerationSettings,
) -> tuple[list[str], int]:
    """A causal model's continuations, padded on the left."""
    before = special_frame(tokenizer)[0]
    prompts = tokenizer([case.prompt for case in cases], add_special_tokens=False, verbose=False)["input_ids"]
    ids = [[*before, *prompt] or [tokenizer.eos_token_id] for prompt in prompts]
    most = min(_room(cases, writing), max_positions(model.config) // 2)
    longest = max_positions(model.config) - most
    cut = sum(len(one) > longest for one in ids)
    ids = [one if len(one) <= longest else [*before, *one[len(before) - longest :]] for one in ids]
    padded, real = _padded(ids, int(tokenizer.pad_token_id), model.device, left=True)
    stop = StoppingCriteriaList()
    if writing.beams == 1:
        stop.append(_Ended(tokenizer, padded.size(1), cases))
    found = model.generate(padded, attention_mask=real, stopping_criteria=stop, **_search(writing, most))
    return _decoded(tokenizer, found[:, padded.size(1) :]), cut


class _Ended(StoppingCriteria):  # type: ignore[misc]  # Transformers' are not typed
    """Ends the rows whose cases need no more."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: int, cases: Sequence[GenerationCase]) -> None:
        self._tokenizer, self._prompt, self._cases = tokenizer, prompt, cases

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = _decoded(self._tokenizer, input_ids[:, self._prompt :])
        ended = [case.ended(text) for text, case in zip(texts, self._cases, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    writing: GenerationSettings,
) -> tuple[list[str], int]:
    """An encoder-decoder's answers to sources; beginnings of texts are given with a mask after them, to be filled."""
    continuing = all(case.words for case in cases)
    sentinels = _sentinels(tokenizer) if continuing else ()
    mask = sentinels[0] if sentinels else tokenizer.mask_token
    if continuing and mask is None:
        raise UsageError(f"a {model.config.model_type} model knows no mask to fill, so it does not continue texts")
    limit = min(writing.max_length, max_positions(model.config))
    texts = [case.prompt for case in cases]
    if continuing:  # whatever is cut, the mask stays
        texts = [f"{_last_tokens(tokenizer, text, limit - 8)} {mask}" for text in texts]
    cut = sum(len(ids) > limit for ids in tokenizer([case.prompt for case in cases], verbose=False)["input_ids"])
    found = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt", verbose=False)
    most = min(_room(cases, writing, with_prompt=continuing and not sentinels), max_positions(model.config) - 1)
    inputs = accepted_inputs(model, {name: value.to(model.device) for name, value in found.items()})
    new = model.generate(**inputs, **_search(writing, most))
    if sentinels:  # T5: <extra_id_0> what fills the first gap <extra_id_1> ...
        said = tokenizer.batch_decode(new, skip_special_tokens=False)
        gaps = [text.partition(sentinels[0])[2].partition(sentinels[1])[0] for text in said]
        special = [tokenizer.pad_token, tokenizer.eos_token]
        return [_without(gap, special) for gap in gaps], cut
    said = _decoded(tokenizer, new)
    if not continuing:
        return said, cut
    # BART writes the whole text again.
    return [" ".join(text.split()[len(case.prompt.split()) :]) for text, case in zip(said, cases, strict=True)], cut


def _last_tokens(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) <= most else str(tokenizer.decode(ids[-most:]))


def can_continue(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an encoder-decoder has a mask that it can fill."""
    return bool(_sentinels(tokenizer)) or tokenizer.mask_token is not None


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """T5's masks, if it has them."""
    masks = ("<extra_id_0>", "<extra_id_1>")
    return masks if set(masks) <= set(tokenizer.get_vocab()) else ()


def _without(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, " ")
    return text


def _fill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    writing: GenerationSettings,
) -> tuple[list[str], int]:
    r"""A masked model's continuations by Mask-Predict: Ghazvininejad et al. 2019, arXiv:1904.09324, section 3.

    As many masks as the held-out text has tokens are filled at once; in round t of T the
    :math:`\lfloor N (T - t) / T \rfloor` of the N least probable are masked again.
    """
    before, after = special_frame(tokenizer)
    mask, special = int(tokenizer.mask_token_id), torch.tensor(tokenizer.all_special_ids, device=model.device)
    rows, spans, cut = [], [], 0
    for case in cases:
        prompt, gap = _tokens_of(tokenizer, case)
        room = max_positions(model.config) - len(before) - len(after)
        gap = min(gap, room // 2)
        cut += len(prompt) > room - gap
        prompt = prompt[-(room - gap) :]
        spans.append((len(before) + len(prompt), gap))
        rows.append([*before, *prompt, *[mask] * gap, *after])
    ids, real = _padded(rows, int(tokenizer.pad_token_id), model.device)
    gaps = torch.zeros_like(ids, dtype=torch.bool)
    for row, (start, size) in enumerate(spans):
        gaps[row, start : start + size] = True
    sizes, masked = gaps.sum(dim=1), gaps.clone()
    sure = torch.zeros(ids.shape, device=model.device)
    for turn in range(1, writing.rounds + 1):
        signals = forward(
            model, accepted_inputs(model, {"input_ids": ids, "attention_mask": real}), CaptureSpec(), None
        )
        assert signals.head is not None, "a language model has a vocabulary"
        logits = signals.head.logits(signals.features[masked])
        check_logits(logits)
        logits[:, special] = -torch.inf
        probability, token = logits.softmax(dim=-1).max(dim=-1)
        ids[masked], sure[masked] = token, probability
        again = sizes * (writing.rounds - turn) // writing.rounds
        ranks = torch.where(gaps, sure, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        masked = gaps & (ranks < again[:, None])
        if not masked.any():
            break
        ids = torch.where(masked, mask, ids)
    return _decoded(tokenizer, [ids[row, start : start + size] for row, (start, size) in enumerate(spans)]), cut


def _tokens_of(tokenizer: PreTrainedTokenizerBase, case: GenerationCase) -> tuple[list[int], int]:
    """A prompt's tokens, and how many more the held-out text has after it."""
    found = tokenizer(case.whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prompt = [
        token
        for token, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)
        if end <= len(case.prompt)
    ]
    return prompt, max(1, len(found["input_ids"]) - len(prompt))


def _from_left_to_right(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    writing: GenerationSettings,
) -> tuple[list[str], int]:
    """A permutation model's continuations: each next position is predicted from all before it, the text read anew."""
    prompts = tokenizer([case.prompt for case in cases], add_special_tokens=False, verbose=False)["input_ids"]
    special = torch.tensor([*set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}], device=model.device)
    ids = [list(prompt) for prompt in prompts]
    going = list(range(len(cases)))
    for _ in range(_room(cases, writing)):
        # The position to be predicted holds some token, which nobody sees.
        padded, real = _padded([[*ids[row], 0] for row in going], 0, model.device)
        last = real.sum(dim=1) - 1
        place = torch.arange(padded.size(1), device=model.device)
        unseen = (place[None, None, :] >= place[None, :, None]) | (real == 0)[:, None, :]
        inputs = {
            "input_ids": padded,
            "attention_mask": real,
            "perm_mask": unseen.to(model.dtype),
            "target_mapping": torch.nn.functional.one_hot(last, padded.size(1))[:, None, :].to(model.dtype),
        }
        signals = forward(model, inputs, CaptureSpec(), None)
        assert signals.head is not None, "a language model has a vocabulary"
        logits = signals.head.logits(signals.features[:, 0])
        check_logits(logits)
        logits[:, special] = -torch.inf
        for row, token in zip(going, logits.argmax(dim=-1).tolist(), strict=True):
            ids[row].append(token)
        texts = _decoded(tokenizer, [ids[row][len(prompts[row]) :] for row in going])
        going = [
            row
            for row, text in zip(going, texts, strict=True)
            if ids[row][-1] != tokenizer.eos_token_id and not cases[row].ended(text)
        ]
        if not going:
            break
    return _decoded(tokenizer, [one[len(prompt) :] for one, prompt in zip(ids, prompts, strict=True)]), 0


def _room(cases: Sequence[GenerationCase], writing: GenerationSettings, with_prompt: bool = False) -> int:
    """The most tokens that may be written: for continuations what surely holds their words, else what is allowed."""
    if not cases[0].room:
        return writing.new_tokens
    return cases[0].room + (max(len(case.prompt.encode()) for case in cases) if with_prompt else 0)


def _search(writing: GenerationSettings, new_tokens: int) -> dict[str, Any]:
    """What ``generate`` is told; the special tokens stand in the model's plain settings."""
    beams = writing.beams
    watch = LogitsProcessorList([_OfNumbers()])
    search = {"do_sample": False, "num_beams": beams, "early_stopping": beams > 1, "max_new_tokens": new_tokens}
    return {**search, "logits_processor": watch}


class _OfNumbers(LogitsProcessor):  # type: ignore[misc]  # Transformers' are not typed
    """Lets all logits through that a token can be chosen by."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_logits(scores)
        return scores


def check_logits(logits: Tensor) -> None:
    """Refuse logits (rows, entries) of which the greatest is no number: the first token would be taken for it.

    Raises:
        NotFinite: how many rows are such.
    """
    bad = int((~logits.amax(dim=-1).isfinite()).sum())
    if bad:
        raise NotFinite(f"{bad:,} of {len(logits):,} texts that are written have logits that are NaN or infinite")


@contextmanager
def _plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """A model whose settings are its special tokens alone: no penalties, no forced lengths, nothing suppressed."""
    if not model.can_generate():
        yield
        return
    own = model.generation_config
    assert own is not None, "a model that generates has settings"
    tokens = {name: vars(own).get(name) for name in _SPECIAL} | {"pad_token_id": tokenizer.pad_token_id}
    if tokens["decoder_start_token_id"] is None:
        tokens["decoder_start_token_id"] = vars(model.config).get("decoder_start_token_id")
    model.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        model.generation_config = own


_SPECIAL = (
    *("bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
)


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """(rows, time) token ids, and 1 where they are real."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    real = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(list(row))
        real[number, place] = 1
    return ids.to(device), real.to(device)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Any] | Iterator[Any] | Tensor) -> list[str]:
    return [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
