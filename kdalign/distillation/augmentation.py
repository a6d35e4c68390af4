"""Data augmentation by a masked language model: words replaced by others that it finds likely at their position.

TinyBERT, Jiao et al. 2020, arXiv:1909.10351, algorithm 1. Texts are made once, and read from the cache afterwards.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.tasks import Examples
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.files import read_json, write_text, writing
from kdalign.models import checkpoint_files, loading
from kdalign.models.architecture import layout_of
from kdalign.models.capture import inference_mode
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.tokenizer import load_tokenizer
from kdalign.observer import Observer
from kdalign.recipe import AugmentSettings

KEY_VERSION = 1
"""Counts up when the same settings would make other texts."""
_BATCH_TOKENS = 16_384
"""Token budget of a forward, with padding."""


def substitute_model(augment: AugmentSettings) -> Checkpoint:
    """Find the masked language model that replaces words; its weights are not loaded yet.

    Raises:
        UsageError: none is named, or it does not predict masked tokens.
    """
    if augment.model is None:
        raise UsageError("data.augment.by=masked-lm needs a model: give data.augment.model, an id or a folder")
    checkpoint = checkpoint_files.find_checkpoint(augment.model)
    if layout_of(checkpoint.config).family != "masked" or head_of(checkpoint.config) is not HeadKind.MASKED:
        raise UsageError(f"data.augment.model {augment.model!r} is not a masked language model")
    tokenizer = load_tokenizer(checkpoint)
    if not tokenizer.is_fast or tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer of data.augment.model {augment.model!r} has no character offsets or no mask token "
            f"(accepted: a fast tokenizer with a mask token)"
        )
    return checkpoint


@dataclass(frozen=True)
class Substitutes:
    """A masked language model that replaces words.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: the model's own.
        candidates: number of likely words to draw from.
        max_length: longest text in tokens; later words are not replaced.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    candidates: int
    max_length: int

    @cached_property
    def words(self) -> torch.Tensor:
        """(vocabulary,): true for whole words, of letters only, that are one token by themselves."""
        texts = [str(self.tokenizer.decode([entry])).strip() for entry in range(len(self.tokenizer))]
        letters = [entry for entry, word in enumerate(texts) if word.isalpha()]
        again = self.tokenizer([f"a {texts[entry]}" for entry in letters], add_special_tokens=False)["input_ids"]
        alone = self.tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
        words = torch.zeros(int(self.model.config.vocab_size), dtype=torch.bool)
        special = set(self.tokenizer.all_special_ids)
        for entry, ids in zip(letters, again, strict=True):
            words[entry] = ids == [*alone, entry] and entry not in special
        return words

    def places(self, text: str) -> list[tuple[int, int, int]]:
        """Find a text's replaceable words, of one token: (position among its tokens, first character, end)."""
        if int(self.words.sum()) < 2:
            return []
        read = self.tokenizer(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        tokens, words = read["input_ids"], read.word_ids()
        places = []
        for position, (start, end) in enumerate(read["offset_mapping"]):
            word = words[position]
            if word is None or words.count(word) > 1 or not self.words[tokens[position]]:
                continue
            start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokens hold the space before them
            if text[start:end].isalpha():
                places.append((position, start, end))
        return places

    def likely(self, queries: Sequence[tuple[str, int]]) -> list[list[str]]:
        """For each (text, position) the likeliest words there except its own, the likeliest first."""
        rows = []
        for text, position in queries:
            ids = list(self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"])
            own, ids[position] = ids[position], int(self.tokenizer.mask_token_id)
            rows.append((ids, position, own))
        answers: list[list[str]] = [[]] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
        device, words = self.model.device, self.words.to(self.model.device)
        number = min(self.candidates, int(words.sum()) - 1)
        with inference_mode(self.model):
            for part in _batches(order, [len(ids) for ids, _, _ in rows]):
                longest = max(len(rows[row][0]) for row in part)
                inputs = torch.full((len(part), longest), int(self.tokenizer.pad_token_id))
                mask = torch.zeros_like(inputs)
                for line, row in enumerate(part):
                    ids = rows[row][0]
                    inputs[line, : len(ids)], mask[line, : len(ids)] = torch.tensor(ids), 1
                at = torch.tensor([rows[row][1] for row in part], device=device)
                logits = self.model(input_ids=inputs.to(device), attention_mask=mask.to(device)).logits
                logits = logits[torch.arange(len(part), device=device), at].float()
                own = torch.tensor([rows[row][2] for row in part], device=device)
                logits = logits.masked_fill(~words, -torch.inf).scatter(1, own[:, None], -torch.inf)
                for row, best in zip(part, logits.topk(number).indices.tolist(), strict=True):
                    answers[row] = [str(self.tokenizer.decode([entry])).strip() for entry in best]
        return answers


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group rows in this order, shortest first, by token budget."""
    part: list[int] = []
    for row in order:
        if part and (len(part) + 1) * lengths[row] > _BATCH_TOKENS:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


@dataclass(frozen=True)
class AugmentedTexts:
    """New texts.

    Attributes:
        rows: number of the example that each new text is made from.
        texts: the new texts, each one text or a pair.
    """

    rows: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]

    def to_json(self) -> str:
        """Write as JSON."""
        return json.dumps({"rows": self.rows, "texts": self.texts}, ensure_ascii=False)

    @classmethod
    def read(cls, file: Path, examples: Examples) -> "AugmentedTexts | None":
        """Read the new texts of examples from the cache; None if the file is missing or damaged."""
        with suppress(UsageError, KeyError, TypeError):
            tree = read_json(file)
            cached = cls(tuple(tree["rows"]), tuple(map(tuple, tree["texts"])))
            if (
                all(isinstance(row, int) and 0 <= row < len(examples) for row in cached.rows)
                and [len(texts) for texts in cached.texts] == [len(examples.texts)] * len(cached.rows)
                and all(isinstance(text, str) for texts in cached.texts for text in texts)
            ):
                return cached
        return None


def augment_texts(
    examples: Examples,
    checkpoint: Checkpoint,
    augment: AugmentSettings,
    max_length: int,
    accelerator: Accelerator,
    observer: Observer,
) -> AugmentedTexts:
    """Make new texts of examples, or read them from the cache.

    Args:
        examples: rows to make new texts of.
        checkpoint: the masked language model.
        augment: number of copies, rate, candidates and seed.
        max_length: longest text in the model's tokens; later words are not replaced.
        accelerator: device and ranks.
        observer: receives progress.
    """
    tokenizer = load_tokenizer(checkpoint)
    length = min(max_length, checkpoint_files.max_positions(checkpoint.config))
    file = cached_augmentation_path(examples, checkpoint, tokenizer, augment, length)
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    # Of several runs that need the same texts at the same time, one makes them and the others wait.
    with FileLock(f"{file}.lock") if accelerator.is_main_process else nullcontext():
        [cached] = broadcast_object_list(
            [accelerator.is_main_process and AugmentedTexts.read(file, examples) is not None]
        )
        if cached:
            observer.announce(f"augmented: new texts by {checkpoint.name} are in the cache: {file}")
        elif accelerator.is_main_process:
            observer.announce(
                f"augmented: {checkpoint.name} makes {augment.copies} new text{'s' * (augment.copies > 1)} of each of "
                f"{len(examples):,} rows, cached for the next run"
            )
            model = loading.load_language_model(checkpoint).to(accelerator.device)
            texts = substitute_words(
                examples,
                Substitutes(model, tokenizer, augment.candidates, length),
                augment.rate_used,
                augment.copies,
                augment.seed,
            )
            write_text(file, texts.to_json())
    accelerator.wait_for_everyone()
    augmented = AugmentedTexts.read(file, examples)
    assert augmented is not None, "it was read before, or has just been written"
    return augmented


def cached_augmentation_path(
    examples: Examples,
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    augment: AugmentSettings,
    max_length: int,
) -> Path:
    """Cache file of new texts, whether it is there yet or not: by a hash of all that decides them but the device."""
    content = {
        "version": KEY_VERSION,
        "texts": [list(column) for column in examples.texts],
        "model": checkpoint.hash,
        "config": checkpoint.config.to_dict(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "rate": augment.rate_used,
        "candidates": augment.candidates,
        "copies": augment.copies,
        "seed": augment.seed,
        "max_length": max_length,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()
    return cache_folder() / "texts" / f"{key[:16]}.json"


def substitute_words(
    examples: Examples, substitutes: Substitutes, rate: float, copies: int, seed: int
) -> AugmentedTexts:
    """Make new texts of examples; a copy without a replaced word is left out.

    Each word of one token is replaced with probability ``rate``, at least one per text that has any, by one of the
    likely words at its position in the original text, drawn uniformly. Words of several tokens are not replaced, where
    the paper takes neighbours in GloVe. Draws are a function of (seed, row, copy, column).
    """
    columns = [[substitutes.places(text) for text in column] for column in examples.texts]
    chosen: dict[tuple[int, int, int], list[tuple[int, float]]] = {}
    queries: dict[tuple[int, int, int], None] = {}
    for row in range(len(examples)):
        for copy in range(copies):
            for column, places in enumerate(columns):
                replaceable = places[row]
                if not replaceable:
                    continue
                generator = np.random.default_rng([seed, row, copy, column])
                chances, which = generator.random((2, len(replaceable)))
                drawn = [n for n in range(len(replaceable)) if chances[n] < rate] or [int(chances.argmin())]
                chosen[row, copy, column] = [(n, float(which[n])) for n in drawn]
                queries |= dict.fromkeys((row, column, n) for n in drawn)
    positions = [(examples.texts[column][row], columns[column][row][n][0]) for row, column, n in queries]
    answers = dict(zip(queries, substitutes.likely(positions), strict=True))
    augmented = list[tuple[int, tuple[str, ...]]]()
    for row in range(len(examples)):
        original = tuple(column[row] for column in examples.texts)
        for copy in range(copies):
            copied = []
            for column, text in enumerate(original):
                for n, share in reversed(chosen.get((row, copy, column), [])):  # from the end, as positions shift
                    _, start, end = columns[column][row][n]
                    words = answers[row, column, n]
                    word = words[int(share * len(words))]
                    text = text[:start] + (word.capitalize() if text[start].isupper() else word) + text[end:]
                copied.append(text)
            if tuple(copied) != original:
                augmented.append((row, tuple(copied)))
    return AugmentedTexts(tuple(row for row, _ in augmented), tuple(texts for _, texts in augmented))
