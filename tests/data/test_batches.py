"""Tokenized splits and their batches: padding, masks, labels and targets of rows, each in its place."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kdalign.data.batches import collate
from kdalign.data.tasks import Examples
from kdalign.data.tokenization import tokenize_labelled
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from support.numbered_rows import numbered, numbers
from support.tiny import make_tokenizer


def test_padding_is_on_the_right_and_the_mask_is_exact():
    data = numbered([2, 4, 1], pad=9)
    batch = collate(data, [0, 1, 2])
    assert batch.inputs["input_ids"].tolist() == [[100, 7, 9, 9], [101, 7, 7, 7], [102, 9, 9, 9]]
    assert batch.inputs["token_type_ids"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.tokens.tolist() == batch.inputs["attention_mask"].bool().tolist()
    assert batch.labels.tolist() == [0, 1, 2]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 30))
def test_the_mask_counts_each_rows_tokens_at_any_width(lengths, width):
    batch = collate(numbered(lengths), range(len(lengths)), width=width)
    assert batch.inputs["attention_mask"].sum(1).tolist() == lengths
    assert batch.inputs["input_ids"].shape == (len(lengths), max(width, *lengths))
    steps = batch.inputs["attention_mask"].diff(dim=1)
    assert (steps <= 0).all(), "no real token after padding"


def test_rows_come_in_the_order_asked_for():
    assert numbers(collate(numbered([3] * 5), [4, 0, 2])) == [4, 0, 2]


def test_class_labels_are_integers_and_scores_are_floats():
    data = numbered([2, 2])
    assert collate(data, [0, 1]).labels.dtype == torch.int64
    scores = TokenizedSplit(data.columns, np.array([0.5, 4.75]), data.pad, 0)
    assert collate(scores, [1, 0]).labels.tolist() == [4.75, 0.5]
    assert collate(scores, [0]).labels.dtype == torch.float32
    assert collate(TokenizedSplit(data.columns, None, data.pad, 0), [0]).labels is None


def test_taking_rows_takes_their_labels_too():
    taken = numbered([1, 2, 3]).take([2, 0])
    assert len(taken) == 2
    assert taken.lengths.tolist() == [3, 1]
    assert taken.labels.tolist() == [2, 0]
    assert numbers(collate(taken, [0, 1])) == [2, 0]


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_tokenizer(folder, request.param)
    return AutoTokenizer.from_pretrained(folder)


def words_of(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


def examples(*columns) -> Examples:
    return Examples("train", tuple(tuple(column) for column in columns), np.zeros(len(columns[0]), dtype=np.int64))


def test_what_is_longer_than_the_limit_is_cut_and_counted(tokenizer):
    texts = ["the film", "the film was very good and funny but slow", "it was not bad but dull"]
    encoded = tokenize_labelled(examples(texts), tokenizer, 8)
    assert encoded.truncated == 1, "eight tokens fit eight: [CLS], six words, [SEP]"
    assert encoded.lengths.tolist() == [4, 8, 8]
    expected = ["[CLS]", "the", "film", "was", "very", "good", "and", "[SEP]"]
    assert words_of(tokenizer, encoded.columns["input_ids"][1]) == expected
    assert words_of(tokenizer, encoded.columns["input_ids"][0]) == ["[CLS]", "the", "film", "[SEP]"]


def test_of_a_pair_the_longer_text_is_cut(tokenizer):
    encoded = tokenize_labelled(examples(["the film was very good and funny"], ["it is"]), tokenizer, 9)
    expected = ["[CLS]", "the", "film", "was", "very", "[SEP]", "it", "is", "[SEP]"]
    assert words_of(tokenizer, encoded.columns["input_ids"][0]) == expected
    assert encoded.columns["token_type_ids"] == [[0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert encoded.truncated == 1


def test_token_types_are_kept_whatever_the_tokenizers_own_model_knows(tokenizer):
    encoded = tokenize_labelled(examples(["good", "the film"], ["bad", "a very slow plot"]), tokenizer, 32)
    assert encoded.columns["token_type_ids"] == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1]]
    batch = collate(encoded, [0, 1])
    assert batch.inputs["token_type_ids"].tolist()[0] == [0, 0, 0, 1, 1, 0, 0, 0, 0]


def test_a_batch_is_what_the_tokenizer_itself_would_pad(tokenizer):
    texts = ["the film", "it was not very good", ""]
    batch = collate(tokenize_labelled(examples(texts), tokenizer, 32), range(3))
    reference = tokenizer(texts, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch.inputs[name], reference[name])


def test_a_split_without_labels_has_none_after_encoding(tokenizer):
    encoded = tokenize_labelled(Examples("test", (("good",),), None), tokenizer, 16)
    assert encoded.labels is None
    assert len(encoded) == 1


def test_positions_at_which_a_server_says_nothing_are_not_answered():
    columns = {"input_ids": [[1, 2, 3], [4]], "targets": [[2, 3, 4], [5]], "returned": [[1, 0, 1], [1]]}
    encoded = TokenizedSplit(columns, None, {"input_ids": 0, "targets": IGNORED, "returned": 0})
    batch = collate(encoded, [0, 1]).to(torch.device("cpu"))
    assert batch.predicted.tolist() == [[True, True, True], [True, False, False]]
    assert batch.answered.tolist() == [[True, False, True], [True, False, False]]
    assert batch.partly_answered
    assert "returned" not in batch.inputs
