"""Tokens of a split are kept by everything that decides them, and read by the next run."""

from dataclasses import fields, replace

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from kdalign.data import packing
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import find_task
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation import token_cache
from kdalign.distillation.token_cache import keep_tokens
from kdalign.environment import cache_folder
from kdalign.evaluation.adapters import adapter_for
from support.family_setting import model, tokenizer
from support.tiny import save_model


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(token_cache, "LEAST_ROWS", 10)


def made(model, task, folder, family="masked"):
    """The task's adapter, its training rows, and the reader that tokenizes them."""
    config = AutoConfig.from_pretrained(model)
    adapter = adapter_for(find_task(task, str(folder)), family, 16, "model")
    return adapter, adapter.load_examples("train"), (AutoTokenizer.from_pretrained(model), config)


def keep(adapter, examples, reader, tokenize=None):
    return keep_tokens(
        adapter,
        examples,
        [reader],
        False,
        tokenize or (lambda rows: adapter.tokenize(rows, InputReader(*reader), scored=False)),
    )


def never(_rows):
    raise AssertionError("it is in the cache")


def same(one, other):
    for name in (*token_cache.FACTS, "labelled", "mixture", "taught_by", "corrupt"):
        assert getattr(one, name) == getattr(other, name), name
    assert dict(one.columns) == dict(other.columns)
    for name in ("labels", "groups"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and np.array_equal(ours, theirs))


def test_what_is_read_is_what_was_tokenized(teacher, data):
    adapter, examples, reader = made(teacher, "sst2", data)
    first = keep(adapter, examples, reader)
    again = keep(adapter, examples, reader, never)
    same(first, again)
    same(again, adapter.tokenize(examples, InputReader(*reader), scored=False))
    assert again.labels.dtype == np.int64


def test_other_texts_lengths_and_tokenizers_are_tokenized(teacher, data):
    adapter, examples, (tokenizer, config) = made(teacher, "sst2", data)
    keep(adapter, examples, (tokenizer, config))
    others = [
        (adapter, examples.take(range(len(examples) - 1)), (tokenizer, config)),
        (replace(adapter, max_length=5), examples, (tokenizer, config)),
        (adapter, examples, (AutoTokenizer.from_pretrained(teacher, model_input_names=["input_ids"]), config)),
    ]
    for other in others:
        same(keep(*other), other[0].tokenize(other[1], InputReader(*other[2]), scored=False))
    assert len(list((cache_folder() / "tokens").glob("*.safetensors"))) == 4


def test_rows_that_are_tokenized_in_parts_are_those_of_the_whole(teacher, data, monkeypatch):
    adapter, examples, reader = made(teacher, "sst2", data)
    adapter = replace(adapter, max_length=8)
    whole, sizes = adapter.tokenize(examples, InputReader(*reader), scored=False), []
    monkeypatch.setattr(token_cache, "PART", 13)

    def tokenize(rows):
        sizes.append(len(rows))
        return adapter.tokenize(rows, InputReader(*reader), scored=False)

    parts = keep(adapter, examples, reader, tokenize)
    assert sum(sizes) == len(examples)
    assert max(sizes) == 13
    assert whole.truncated
    same(parts, whole)
    assert parts.fingerprint() == whole.fingerprint()
    assert (parts.lengths.dtype, parts.lengths.tolist()) == (np.int32, whole.lengths.tolist())
    assert isinstance(parts.lengths, np.memmap)
    same(keep(adapter, examples, reader, never), whole)


def causal_adapter(task):
    return adapter_for(task, "causal", 16, "model"), (tokenizer("causal"), model("gpt2").config)


@pytest.mark.parametrize("part", [1, 13, 100, 255])
def test_documents_that_are_packed_in_parts_are_packed_as_a_whole(data, monkeypatch, part):
    adapter, reader = causal_adapter(find_task("lm:sentence", str(data)))
    examples = adapter.load_examples("train")
    whole = adapter.tokenize(examples, InputReader(*reader), scored=False)
    monkeypatch.setattr(token_cache, "PART", part)
    monkeypatch.setattr(packing, "_BOUNDS", 3)
    parts = keep(adapter, examples, reader)
    same(parts, whole)
    assert parts.words == whole.words > 0
    assert parts.lengths.tolist() == whole.lengths.tolist()
    assert {name: rows.values.dtype for name, rows in parts.token_rows.items()} == {
        name: rows.values.dtype for name, rows in whole.token_rows.items()
    }
    same(keep(adapter, examples, reader, never), whole)


def test_few_rows_are_tokenized_each_time(teacher, data):
    adapter, examples, reader = made(teacher, "sst2", data)
    keep(adapter, examples.take(range(9)), reader)
    assert not (cache_folder() / "tokens").exists()


def test_rows_that_change_at_each_use_are_not_kept(teacher, data):
    adapter, examples, reader = made(teacher, "masked-lm:sentence", data)
    assert keep(adapter, examples, reader).corrupt is not None
    assert not (cache_folder() / "tokens").exists()


def test_pairs_for_two_tokenizers_are_kept_with_their_spans(teacher, data, tmp_path):
    other = save_model(tmp_path / "other", "distilbert")
    adapter, examples, reader = made(teacher, "sst2", data)
    readers = [reader, (AutoTokenizer.from_pretrained(other), AutoConfig.from_pretrained(other))]
    tokenizers, configs = zip(*readers, strict=True)

    def tokenize(rows):
        return adapter.tokenize_dual(rows, tokenizers, configs)

    first = keep_tokens(adapter, examples, readers, False, tokenize)
    same(first, keep_tokens(adapter, examples, readers, False, never))
    assert first.covered is not None


def test_a_split_lacks_no_field_when_it_is_read():
    """A field of a split is kept, or known to be empty as it was tokenized."""
    empty = {"labelled", "mixture", "taught_by", "corrupt", "media", "transcripts", "remarks"}
    assert {field.name for field in fields(TokenizedSplit)} == {
        "columns",
        *token_cache.FACTS,
        *token_cache.ARRAYS,
        *empty,
    }
