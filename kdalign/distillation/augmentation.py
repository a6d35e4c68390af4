"""New texts by a masked language model: words replaced by others that it finds likely at their place, and kept.

Data augmentation of TinyBERT, Jiao et al. 2020, arXiv:1909.10351, algorithm 1. The texts are made once, and read from
the cache afterwards.
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
"""Counts up when the same settings would give other texts."""
_BATCH_TOKENS = 16_384
"""Positions that are read at a time."""


def substitute_model(augment: AugmentSettings) -> Checkpoint:
    """The masked language model that replaces words, its weights not loaded yet.

    Raises:
        UsageError: none is named, or it gives no tokens for a mask.
    """
    if augment.model is None:
        raise UsageError(
            "data.augment.by=masked-lm takes words from a model: give data.augment.model, an id or a folder"
        )
    found = checkpoint_files.find_checkpoint(augment.model)
    if layout_of(found.config).family != "masked" or head_of(found.config) is not HeadKind.MASKED:
        raise UsageError(f"data.augment.model {augment.model!r} is no masked language model, which fills in words")
    tokenizer = load_tokenizer(found)
    if not tokenizer.is_fast or tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer of data.augment.model {augment.model!r} cannot say where its tokens lie, or has no mask "
            f"(accepted: a fast tokenizer with one)"
        )
    return found


@dataclass(frozen=True)
class Substitutes:
    """A masked language model that replaces words.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: its own.
        candidates: so many likely words, one of which is drawn.
        max_length: longest text in tokens; words beyond it stay.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    candidates: int
    max_length: int

    @cached_property
    def words(self) -> torch.Tensor:
        """(entries,), true for those that are whole words: letters alone, and one token by themselves."""
        said = [str(self.tokenizer.decode([entry])).strip() for entry in range(len(self.tokenizer))]
        letters = [entry for entry, word in enumerate(said) if word.isalpha()]
        again = self.tokenizer([f"a {said[entry]}" for entry in letters], add_special_tokens=False)["input_ids"]
        alone = self.tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
        whole = torch.zeros(int(self.model.config.vocab_size), dtype=torch.bool)
        special = set(self.tokenizer.all_special_ids)
        for entry, ids in zip(letters, again, strict=True):
            whole[entry] = ids == [*alone, entry] and entry not in special
        return whole

    def places(self, text: str) -> list[tuple[int, int, int]]:
        """A text's words of one token that may be replaced: (position among its tokens, first character, end)."""
        if int(self.words.sum()) < 2:
            return []
        read = self.tokenizer(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        tokens, words = read["input_ids"], read.word_ids()
        found = []
        for position, (start, end) in enumerate(read["offset_mapping"]):
            word = words[position]
            if word is None or words.count(word) > 1 or not self.words[tokens[position]]:
                continue
            start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokens hold the space before them
            if text[start:end].isalpha():
                found.append((position, start, end))
        return found

    def likely(self, asked: Sequence[tuple[str, int]]) -> list[list[str]]:
        """For each text and position, the likeliest words there but its own, the likeliest first."""
        rows = []
        for text, position in asked:
            ids = list(self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"])
            own, ids[position] = ids[position], int(self.tokenizer.mask_token_id)
            rows.append((ids, position, own))
        answers: list[list[str]] = [[]] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
        device, words = self.model.device, self.words.to(self.model.device)
        number = min(self.candidates, int(words.sum()) - 1)
        with inference_mode(self.model):
            for part in _parts(order, [len(ids) for ids, _, _ in rows]):
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


def _parts(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in this order, shortest first, in parts of so many positions."""
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
        rows: for each, the number of the row that it is made of.
        texts: each one's text, or its two.
    """

    rows: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]

    def to_json(self) -> str:
        """As text."""
        return json.dumps({"rows": self.rows, "texts": self.texts}, ensure_ascii=False)

    @classmethod
    def read(cls, file: Path, examples: Examples) -> "AugmentedTexts | None":
        """What is kept of these examples; None where nothing is, or the file was damaged, and they are made again."""
        with suppress(UsageError, KeyError, TypeError):
            tree = read_json(file)
            made = cls(tuple(tree["rows"]), tuple(map(tuple, tree["texts"])))
            if (
                all(isinstance(row, int) and 0 <= row < len(examples) for row in made.rows)
                and [len(texts) for texts in made.texts] == [len(examples.texts)] * len(made.rows)
                and all(isinstance(text, str) for texts in made.texts for text in texts)
            ):
                return made
        return None


def augment_texts(
    examples: Examples,
    checkpoint: Checkpoint,
    augment: AugmentSettings,
    max_length: int,
    accelerator: Accelerator,
    observer: Observer,
) -> AugmentedTexts:
    """New texts of examples, from the cache where they were made before.

    Args:
        examples: with at most so many new texts each as the recipe asks for.
        checkpoint: of the masked language model.
        augment: what is asked for.
        max_length: longest text in its tokens; words beyond it stay.
        accelerator: device and ranks.
        observer: who watches.
    """
    tokenizer = load_tokenizer(checkpoint)
    length = min(max_length, checkpoint_files.max_positions(checkpoint.config))
    file = cached_augmentation_path(examples, checkpoint, tokenizer, augment, length)
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    # Of several runs that need the same texts at the same time, one makes them and the others wait.
    with FileLock(f"{file}.lock") if accelerator.is_main_process else nullcontext():
        [there] = broadcast_object_list(
            [accelerator.is_main_process and AugmentedTexts.read(file, examples) is not None]
        )
        if there:
            observer.announce(f"augmented: new texts by {checkpoint.name} were made before: {file}")
        elif accelerator.is_main_process:
            observer.announce(
                f"augmented: {checkpoint.name} makes {augment.copies} new text{'s' * (augment.copies > 1)} of each of "
                f"{len(examples):,} rows, kept for the next run"
            )
            model = loading.load_language_model(checkpoint).to(accelerator.device)
            made = substitute_words(
                examples,
                Substitutes(model, tokenizer, augment.candidates, length),
                augment.rate_used,
                augment.copies,
                augment.seed,
            )
            write_text(file, made.to_json())
    accelerator.wait_for_everyone()
    found = AugmentedTexts.read(file, examples)
    assert found is not None, "it was read before, or has just been written"
    return found


def cached_augmentation_path(
    examples: Examples,
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    augment: AugmentSettings,
    max_length: int,
) -> Path:
    """Where new texts are kept, whether they were made or not: by a hash of all that decides them but the device."""
    content = {
        "version": KEY_VERSION,
        "texts": examples.texts,
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
    """New texts of examples; one that equals its row, without a word to replace, is left out.

    Each word of one token is replaced with a chance of ``rate``, at least one of a text that has any, by one of the
    likely words at its place in the text as it is, drawn evenly. Words of several tokens stay as they are, where the
    paper takes neighbours in GloVe. What is drawn is a function of (seed, row, copy, column).
    """
    columns = [[substitutes.places(text) for text in column] for column in examples.texts]
    chosen: dict[tuple[int, int, int], list[tuple[int, float]]] = {}
    asked: dict[tuple[int, int, int], None] = {}
    for row in range(len(examples)):
        for copy in range(copies):
            for column, places in enumerate(columns):
                here = places[row]
                if not here:
                    continue
                generator = np.random.default_rng([seed, row, copy, column])
                chances, which = generator.random((2, len(here)))
                drawn = [n for n in range(len(here)) if chances[n] < rate] or [int(chances.argmin())]
                chosen[row, copy, column] = [(n, float(which[n])) for n in drawn]
                asked |= dict.fromkeys((row, column, n) for n in drawn)
    questions = [(examples.texts[column][row], columns[column][row][n][0]) for row, column, n in asked]
    answers = dict(zip(asked, substitutes.likely(questions), strict=True))
    found = list[tuple[int, tuple[str, ...]]]()
    for row in range(len(examples)):
        whole = tuple(column[row] for column in examples.texts)
        for copy in range(copies):
            made = []
            for column, text in enumerate(whole):
                for n, share in reversed(chosen.get((row, copy, column), [])):  # from the end: places before it stay
                    _, start, end = columns[column][row][n]
                    words = answers[row, column, n]
                    word = words[int(share * len(words))]
                    text = text[:start] + (word.capitalize() if text[start].isupper() else word) + text[end:]
                made.append(text)
            if tuple(made) != whole:
                found.append((row, tuple(made)))
    return AugmentedTexts(tuple(row for row, _ in found), tuple(texts for _, texts in found))
