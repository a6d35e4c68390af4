"""Generate texts with models of every family: greedily or by beams, by filling gaps, or from left to right."""

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
"""Texts of a batch."""


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of text generation.

    Attributes:
        beams: number of beams; 1 is greedy.
        new_tokens: most new tokens, if a model ends its text itself.
        rounds: rounds of Mask-Predict.
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
    settings: GenerationSettings,
    progress: ProgressCallback,
) -> tuple[list[str], int]:
    """Generate a text for each case, in the model's own precision.

    A continuation ends after as many words as its reference has, or where the model ends it. A prompt that is too long
    loses its beginning (a source, its end).

    Returns:
        The texts, and the number of prompts that were cut.

    Raises:
        UsageError: an encoder-decoder should continue texts and has no mask to fill.
        NotFinite: the model gives NaN.
    """
    generators: dict[str, Any] = {
        "causal": _generate_causal,
        "seq2seq": _generate_seq2seq,
        "masked": _generate_masked,
        "permutation": _generate_permutation,
    }
    generator = generators[layout_of(model.config).family]
    written: dict[int, str] = {}
    cut = 0
    with inference_mode(model), _without_defaults(model, tokenizer):
        for rows in _batches(cases):
            texts, shortened = generator(model, tokenizer, [cases[row] for row in rows], settings)
            cut += shortened
            written |= {row: cases[row].trim(text) for row, text in zip(rows, texts, strict=True)}
            progress(len(written), len(cases))
    return [written[row] for row in range(len(cases))], cut


def _batches(cases: Sequence[GenerationCase]) -> Iterator[list[int]]:
    """Group cases by token budget, so that each ends by its own, then sort by length to pad little."""
    order = sorted(range(len(cases)), key=lambda number: (-cases[number].token_budget, -len(cases[number].prompt)))
    for _, group in groupby(order, key=lambda number: cases[number].token_budget):
        rows = list(group)
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS]


def describe_generation(family: str, continuing: bool, settings: GenerationSettings) -> str:
    """Describe how a family's texts are generated, for a note."""
    search = "greedy" if settings.beams == 1 else f"{settings.beams} beams"
    way = {
        "causal": search,
        "seq2seq": f"{search}, its mask filled" if continuing else search,
        "masked": f"Mask-Predict, {settings.rounds} rounds, given the number of held-out tokens",
        "permutation": "left to right, greedy",
    }[family]
    if not continuing:
        return f"{way}, at most {settings.new_tokens} new tokens a text"
    return f"{way}, ends after as many words as the reference"


def _generate_causal(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> tuple[list[str], int]:
    """Continue prompts with a causal model; prompts are padded on the left."""
    before = special_frame(tokenizer)[0]
    prompts = tokenizer([case.prompt for case in cases], add_special_tokens=False, verbose=False)["input_ids"]
    ids = [[*before, *prompt] or [tokenizer.eos_token_id] for prompt in prompts]
    new_tokens = min(_budget(cases, settings), max_positions(model.config) // 2)
    longest = max_positions(model.config) - new_tokens
    cut = sum(len(row) > longest for row in ids)
    ids = [row if len(row) <= longest else [*before, *row[len(before) - longest :]] for row in ids]
    padded, real = _pad(ids, int(tokenizer.pad_token_id), model.device, left=True)
    stop = StoppingCriteriaList()
    if settings.beams == 1:
        stop.append(_CasesEnded(tokenizer, padded.size(1), cases))
    output = model.generate(padded, attention_mask=real, stopping_criteria=stop, **_search(settings, new_tokens))
    return _decode(tokenizer, output[:, padded.size(1) :]), cut


class _CasesEnded(StoppingCriteria):  # type: ignore[misc]  # Transformers' are not typed
    """Ends the rows whose cases need no more tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: int, cases: Sequence[GenerationCase]) -> None:
        self._tokenizer, self._prompt, self._cases = tokenizer, prompt, cases

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = _decode(self._tokenizer, input_ids[:, self._prompt :])
        ended = [case.is_complete(text) for text, case in zip(texts, self._cases, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


def _generate_seq2seq(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> tuple[list[str], int]:
    """Answer sources with an encoder-decoder; to continue a text, it fills a mask after the prompt."""
    continuing = all(case.words for case in cases)
    sentinels = _sentinels(tokenizer) if continuing else ()
    mask = sentinels[0] if sentinels else tokenizer.mask_token
    if continuing and mask is None:
        raise UsageError(f"a {model.config.model_type} model knows no mask to fill, so it does not continue texts")
    limit = min(settings.max_length, max_positions(model.config))
    texts = [case.prompt for case in cases]
    if continuing:  # whatever is cut, the mask stays
        texts = [f"{_last_tokens(tokenizer, text, limit - 8)} {mask}" for text in texts]
    cut = sum(len(ids) > limit for ids in tokenizer([case.prompt for case in cases], verbose=False)["input_ids"])
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt", verbose=False)
    new_tokens = _budget(cases, settings, with_prompt=continuing and not sentinels)
    new_tokens = min(new_tokens, max_positions(model.config) - 1)
    inputs = accepted_inputs(model, {name: value.to(model.device) for name, value in batch.items()})
    output = model.generate(**inputs, **_search(settings, new_tokens))
    if sentinels:  # T5: <extra_id_0> what fills the first gap <extra_id_1> ...
        decoded = tokenizer.batch_decode(output, skip_special_tokens=False)
        gaps = [text.partition(sentinels[0])[2].partition(sentinels[1])[0] for text in decoded]
        special = [tokenizer.pad_token, tokenizer.eos_token]
        return [_blank_out(gap, special) for gap in gaps], cut
    answers = _decode(tokenizer, output)
    if not continuing:
        return answers, cut
    # BART writes the whole text again.
    return [" ".join(text.split()[len(case.prompt.split()) :]) for text, case in zip(answers, cases, strict=True)], cut


def _last_tokens(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> str:
    """Return the end of a text, at most ``limit`` tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return text if len(ids) <= limit else str(tokenizer.decode(ids[-limit:]))


def can_continue(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether an encoder-decoder has a mask that it can fill."""
    return bool(_sentinels(tokenizer)) or tokenizer.mask_token is not None


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return T5's masks, if the tokenizer has them."""
    masks = ("<extra_id_0>", "<extra_id_1>")
    return masks if set(masks) <= set(tokenizer.get_vocab()) else ()


def _blank_out(text: str, tokens: Sequence[str]) -> str:
    """Replace tokens in a text by spaces."""
    for token in tokens:
        text = text.replace(token, " ")
    return text


def _generate_masked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> tuple[list[str], int]:
    r"""Continue prompts with a masked model by Mask-Predict: Ghazvininejad et al. 2019, arXiv:1904.09324, section 3.

    As many masks as the held-out text has tokens are filled at once; in round t of T the
    :math:`\lfloor N (T - t) / T \rfloor` of the N least probable are masked again.
    """
    before, after = special_frame(tokenizer)
    mask, special = int(tokenizer.mask_token_id), torch.tensor(tokenizer.all_special_ids, device=model.device)
    rows, spans, cut = [], [], 0
    for case in cases:
        prompt, gap = _tokenize_case(tokenizer, case)
        positions = max_positions(model.config) - len(before) - len(after)
        gap = min(gap, positions // 2)
        cut += len(prompt) > positions - gap
        prompt = prompt[-(positions - gap) :]
        spans.append((len(before) + len(prompt), gap))
        rows.append([*before, *prompt, *[mask] * gap, *after])
    ids, real = _pad(rows, int(tokenizer.pad_token_id), model.device)
    gaps = torch.zeros_like(ids, dtype=torch.bool)
    for row, (start, size) in enumerate(spans):
        gaps[row, start : start + size] = True
    sizes, masked = gaps.sum(dim=1), gaps.clone()
    sure = torch.zeros(ids.shape, device=model.device)
    for turn in range(1, settings.rounds + 1):
        signals = forward(
            model, accepted_inputs(model, {"input_ids": ids, "attention_mask": real}), CaptureSpec(), None
        )
        assert signals.head is not None, "a language model has a vocabulary"
        logits = signals.head.logits(signals.features[masked])
        check_logits(logits)
        logits[:, special] = -torch.inf
        probability, token = logits.softmax(dim=-1).max(dim=-1)
        ids[masked], sure[masked] = token, probability
        again = sizes * (settings.rounds - turn) // settings.rounds
        ranks = torch.where(gaps, sure, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        masked = gaps & (ranks < again[:, None])
        if not masked.any():
            break
        ids = torch.where(masked, mask, ids)
    return _decode(tokenizer, [ids[row, start : start + size] for row, (start, size) in enumerate(spans)]), cut


def _tokenize_case(tokenizer: PreTrainedTokenizerBase, case: GenerationCase) -> tuple[list[int], int]:
    """Return a prompt's tokens, and the number of tokens of the held-out text after it."""
    tokens = tokenizer(case.full_text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prompt = [
        token
        for token, (_, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        if end <= len(case.prompt)
    ]
    return prompt, max(1, len(tokens["input_ids"]) - len(prompt))


def _generate_permutation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[GenerationCase],
    settings: GenerationSettings,
) -> tuple[list[str], int]:
    """Continue prompts with a permutation model: each next token in a new pass, from all tokens before it."""
    prompts = tokenizer([case.prompt for case in cases], add_special_tokens=False, verbose=False)["input_ids"]
    special = torch.tensor([*set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}], device=model.device)
    ids = [list(prompt) for prompt in prompts]
    going = list(range(len(cases)))
    for _ in range(_budget(cases, settings)):
        # The predicted position holds any token, which no position sees.
        padded, real = _pad([[*ids[row], 0] for row in going], 0, model.device)
        last = real.sum(dim=1) - 1
        position = torch.arange(padded.size(1), device=model.device)
        unseen = (position[None, None, :] >= position[None, :, None]) | (real == 0)[:, None, :]
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
        texts = _decode(tokenizer, [ids[row][len(prompts[row]) :] for row in going])
        going = [
            row
            for row, text in zip(going, texts, strict=True)
            if ids[row][-1] != tokenizer.eos_token_id and not cases[row].is_complete(text)
        ]
        if not going:
            break
    return _decode(tokenizer, [row[len(prompt) :] for row, prompt in zip(ids, prompts, strict=True)]), 0


def _budget(cases: Sequence[GenerationCase], settings: GenerationSettings, with_prompt: bool = False) -> int:
    """Return the most new tokens: for continuations enough for all of their words, else the setting."""
    if not cases[0].token_budget:
        return settings.new_tokens
    return cases[0].token_budget + (max(len(case.prompt.encode()) for case in cases) if with_prompt else 0)


def _search(settings: GenerationSettings, new_tokens: int) -> dict[str, Any]:
    """Return the arguments of ``generate`` for a search; special tokens stand in the model's own configuration."""
    beams = settings.beams
    search = {"do_sample": False, "num_beams": beams, "early_stopping": beams > 1, "max_new_tokens": new_tokens}
    return {**search, "logits_processor": LogitsProcessorList([_CheckLogits()])}


class _CheckLogits(LogitsProcessor):  # type: ignore[misc]  # Transformers' are not typed
    """Checks logits, and passes them on unchanged."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
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


@contextmanager
def _without_defaults(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Clear a model's generation settings but for special tokens: no penalties, forced lengths or suppressed tokens."""
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


def _pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token ids (rows, time), and a mask that is 1 where they are real."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    real = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        columns = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[number, columns] = torch.tensor(list(row))
        real[number, columns] = 1
    return ids.to(device), real.to(device)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Any] | Iterator[Any] | Tensor) -> list[str]:
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
