"""Tokens of splits, kept in kdalign's cache: tokenized once for all arms, seeds, ranks and runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.tasks import Examples
from kdalign.data.token_rows import TokenRows
from kdalign.data.tokenization import fingerprint
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.evaluation.adapters import TaskAdapter
from kdalign.result_cache import find_result

LEAST_ROWS = 5_000
"""Rows from which on tokens are kept: fewer are tokenized as soon as read."""
FACTS = ("pad", "truncated", "words", "passed_over", "left_to_right", "covered", "bytes", "ends", "form", "readers")
"""Fields that are numbers or words."""
ARRAYS = ("labels", "groups")


def keep_tokens(
    adapter: TaskAdapter,
    examples: Examples,
    readers: Sequence[tuple[PreTrainedTokenizerBase | None, PretrainedConfig]],
    scored: bool,
    tokenize: Callable[[], TokenizedSplit],
) -> TokenizedSplit:
    """Return the tokens of a split from the cache, or tokenize and keep it.

    Rows that change each time that they are used (masks, orders) are tokenized every time.

    Args:
        adapter: the task's.
        examples: rows of one split.
        readers: tokenizers and their models' configurations; None for one that reads the first one's tokens.
        scored: tokenized for evaluation.
        tokenize: does it.
    """
    if len(examples) < LEAST_ROWS:
        return tokenize()
    content = {
        "texts": examples.fingerprint(),
        "adapter": repr(adapter),
        "readers": [(describe_tokenizer(tokenizer), config.to_json_string()) for tokenizer, config in readers],
        "scored": scored,
    }
    kept = find_result("tokens", content)
    known = kept.read()
    if known is not None:
        return _unpack(known)
    split = tokenize()
    if split.corrupt is None:
        kept.write(_pack(split))
    return split


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> object:
    """Everything that decides a tokenizer's output, as JSON."""
    if tokenizer is None:
        return None
    return [fingerprint(tokenizer), tokenizer.init_kwargs, tokenizer.special_tokens_map, tokenizer.chat_template]


def _pack(split: TokenizedSplit) -> dict[str, np.ndarray[Any, Any]]:
    assert (split.labelled, split.mixture, split.taught_by) == (None, None, None), "rows as they were tokenized"
    facts = json.dumps({name: getattr(split, name) for name in FACTS}).encode()
    arrays = {"facts": np.frombuffer(facts, dtype=np.uint8)}
    for name, rows in split.token_rows.items():
        arrays |= {f"values/{name}": rows.values, f"starts/{name}": rows.starts}
    kept = {name: getattr(split, name) for name in ARRAYS}
    return arrays | {name: values for name, values in kept.items() if values is not None}


def _unpack(arrays: Mapping[str, np.ndarray[Any, Any]]) -> TokenizedSplit:
    facts = json.loads(arrays["facts"].tobytes())
    for name in ("covered", "ends", "readers"):
        facts[name] = None if facts[name] is None else tuple(facts[name])
    names = [name.removeprefix("starts/") for name in arrays if name.startswith("starts/")]
    columns = {name: TokenRows(arrays[f"values/{name}"], arrays[f"starts/{name}"]) for name in names}
    labels, groups = (arrays.get(name) for name in ARRAYS)
    pad = facts.pop("pad")
    return replace(TokenizedSplit(columns, labels, pad), groups=groups, **facts)
