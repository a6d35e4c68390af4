"""Tokens of splits, kept in kdalign's cache: tokenized once for all arms, seeds, ranks and runs."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.packing import PackedDraft
from kdalign.data.tasks import Examples
from kdalign.data.token_rows import TokenRows, append_rows
from kdalign.data.tokenization import fingerprint
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.environment import library_versions
from kdalign.errors import Unwritten
from kdalign.evaluation.adapters import TaskAdapter
from kdalign.result_cache import Draft, find_result

LEAST_ROWS = 5_000
"""Rows from which on tokens are kept: fewer are tokenized as soon as read."""
PART = 100_000
"""Most rows whose tokens are in memory while very many are tokenized."""
FACTS = ("pad", "truncated", "words", "passed_over", "left_to_right", "covered", "bytes", "ends", "form", "readers")
"""Fields that are numbers or words."""
ARRAYS = ("labels", "groups")
_PLACES = ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "backend")
"""Settings of a tokenizer that say where it is."""


def keep_tokens(
    adapter: TaskAdapter,
    examples: Examples,
    readers: Sequence[tuple[PreTrainedTokenizerBase | None, PretrainedConfig]],
    scored: bool,
    tokenize: Callable[[Examples], TokenizedSplit],
) -> TokenizedSplit:
    """Return the tokens of a split from the cache, or tokenize and keep it.

    Rows that change each time that they are used (masks, orders) are tokenized every time. Very many rows to train on
    are tokenized in parts, whose tokens are written as they come, if the adapter allows it.

    Args:
        adapter: the task's.
        examples: rows of one split.
        readers: tokenizers and their models' configurations; None for one that reads the first one's tokens.
        scored: tokenized for evaluation.
        tokenize: tokenizes rows of the split.
    """
    slow = any(tokenizer is not None and not tokenizer.is_fast for tokenizer, _ in readers)  # not known by one file
    if len(examples) < LEAST_ROWS or slow or examples.media is not None:
        return tokenize(examples)
    content = {
        "texts": [examples.fingerprint(), len(examples), len(examples.texts)],
        "adapter": repr(adapter).replace(repr(adapter.task.source), "where the texts are from"),
        "readers": [(describe_tokenizer(tokenizer), _decoder_start(config)) for tokenizer, config in readers],
        "scored": scored,
        "libraries": library_versions(),
    }
    kept = find_result("tokens", content)
    known = None
    if adapter.in_parts and not scored and len(readers) == 1 and len(examples) > PART:
        with suppress(Unwritten):
            known = kept.keep_in_parts(partial(_write_in_parts, adapter, examples, tokenize))
    else:
        known = kept.read()
    if known is not None:
        return _unpack(known)
    split = tokenize(examples)
    if split.corrupt is None:
        kept.write(_pack(split))
    return split


def _write_in_parts(
    adapter: TaskAdapter, examples: Examples, tokenize: Callable[[Examples], TokenizedSplit], draft: Draft
) -> None:
    """Tokenize a split in parts, and write the tokens of each before the next."""
    facts, counts = dict[str, Any](), Counter[str]()
    packed = PackedDraft(draft, adapter.max_length) if adapter.in_parts == "packed" else None
    for start in range(0, len(examples), PART):
        rows = examples.take(range(start, min(start + PART, len(examples))))
        part = tokenize(rows)
        assert part.corrupt is None, "rows that change each time are not tokenized in parts"
        if packed is not None:
            packed.append(part, len(rows))
        else:
            for name, column in part.token_rows.items():
                append_rows(draft, name, column)
        if part.labels is not None:
            draft.append("labels", part.labels)
        facts = _facts(part)
        counts.update({name: facts[name] for name in ("truncated", "words", "bytes", "passed_over")})
    if packed is not None:
        packed.finish()
    draft.append("facts", _encode(facts | counts))


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> object:
    """Everything that decides a tokenizer's output, as JSON."""
    if tokenizer is None:
        return None
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _PLACES}
    return [fingerprint(tokenizer), settings, tokenizer.special_tokens_map, tokenizer.chat_template]


def _decoder_start(config: PretrainedConfig) -> int | None:
    """All that a tokenization reads of a configuration."""
    start: int | None = getattr(config, "decoder_start_token_id", None)
    return start


def _pack(split: TokenizedSplit) -> dict[str, np.ndarray[Any, Any]]:
    assert (split.labelled, split.mixture, split.taught_by) == (None, None, None), "rows as they were tokenized"
    arrays = {"facts": _encode(_facts(split))}
    for name, rows in split.token_rows.items():
        arrays |= {f"values/{name}": rows.values, f"starts/{name}": rows.starts}
    kept = {name: getattr(split, name) for name in ARRAYS}
    return arrays | {name: values for name, values in kept.items() if values is not None}


def _facts(split: TokenizedSplit) -> dict[str, Any]:
    return {name: getattr(split, name) for name in FACTS}


def _encode(facts: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)


def _unpack(arrays: Mapping[str, np.ndarray[Any, Any]]) -> TokenizedSplit:
    facts = json.loads(arrays["facts"].tobytes())
    for name in ("covered", "ends", "readers"):
        facts[name] = None if facts[name] is None else tuple(facts[name])
    names = [name.removeprefix("starts/") for name in arrays if name.startswith("starts/")]
    columns = {
        name: TokenRows(arrays[f"values/{name}"], arrays[f"starts/{name}"], arrays.get(f"sizes/{name}"))
        for name in names
    }
    labels, groups = (arrays.get(name) for name in ARRAYS)
    pad = facts.pop("pad")
    return replace(TokenizedSplit(columns, labels, pad), groups=groups, **facts)
