"""From texts to tokens: token types that a tokenizer gives, and targets that are cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdalign.data import tokenization
from kdalign.data.packing import pack_documents
from kdalign.data.tasks import Examples
from kdalign.data.token_rows import TokenRows
from kdalign.data.tokenization import (
    tokenize_documents,
    tokenize_labelled,
    tokenize_pairs,
    with_token_types,
)
from kdalign.data.tokenized_split import IGNORED
from support.tiny import save_model

WORDS = ["<pad>", "</s>", "<unk>", "a", "b", "c", "d"]


def tokenizer(ends=True, **more):
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        template = {"single": "$A </s>", "pair": "$A </s> $B:1 </s>:1"}
        made.post_processor = processors.TemplateProcessing(**template, special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **more
    )


@pytest.mark.parametrize("ends", [True, False], ids=["the tokenizer ends texts", "it does not"])
def test_a_whole_target_ends_with_the_end_token_and_one_that_is_cut_does_not(ends):
    examples = Examples("train", (("a b", "a b c d"), ("c d", "d c b a")), None)
    found = tokenize_pairs(examples, tokenizer(ends), 0, 4)
    assert found.columns["targets"] == [[5, 6, 1], [6, 5, 4, 3]]
    assert found.columns["decoder_input_ids"] == [[0, 5, 6], [0, 6, 5, 4]]
    assert found.columns["input_ids"] == [[3, 4, 1], [3, 4, 5, 1]]
    assert found.truncated == 1


def test_token_types_are_given_unless_the_tokenizers_files_say_that_the_model_reads_none(tmp_path):
    examples = Examples("train", (("a b",), ("c",)), None)
    plain = tokenizer()
    assert tokenize_labelled(examples, plain, 8).columns["token_type_ids"] == [[0, 0, 0, 1, 1]]
    told = tokenizer(model_input_names=["input_ids", "attention_mask"])
    assert "token_type_ids" not in tokenize_labelled(examples, told, 8).columns
    with_token_types(plain).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b", "c")["token_type_ids"] == [0, 0, 0, 1, 1]
    with_token_types(told).save_pretrained(tmp_path)
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path)("a b", "c")


def test_a_head_for_several_labels_is_said_beside_its_scores(kdalign, data, tmp_path):
    names = {0: "negative", 1: "positive"}
    model = save_model(tmp_path / "model", "bert", id2label=names, problem_type="multi_label_classification")
    status, _, err = kdalign("eval", model, "--task", "sst2", "--data", data, "--out", tmp_path / "e.json")
    assert status == 0, err
    [result] = json.loads((tmp_path / "e.json").read_text())["results"]
    assert any("its head is for several labels of a text at once" in note for note in result["notes"])


def packed(contents, start, end, max_length):
    """Documents packed into rows, token by token: what ``pack_documents`` gives in arrays."""
    stream = []
    for number, content in enumerate(contents):
        ids, targets = [*start, *content], [*[IGNORED] * (len(start) - 1), *content, end]
        stream += [(*each, position, number) for position, each in enumerate(zip(ids, targets, strict=True))]
    rows = [stream[begin : begin + max_length] for begin in range(0, len(stream), max_length)]
    columns = {"input_ids": [], "targets": [], "position_ids": [], "document": []}
    for row in rows:
        first = row[0][2]
        columns["input_ids"].append([each[0] for each in row])
        columns["targets"].append([each[1] for each in row])
        columns["position_ids"].append([p - first if d == row[0][3] else p for _, _, p, d in row])
        columns["document"].append([each[3] for each in row])
    return columns


@given(
    st.lists(st.lists(st.integers(5, 9), max_size=9), max_size=6),
    st.lists(st.integers(1, 2), min_size=1, max_size=3),
    st.integers(1, 8),
)
def test_packed_documents_are_those_that_a_loop_over_tokens_packs(contents, start, max_length):
    found = pack_documents(TokenRows.of(contents), start, 3, max_length)
    assert {name: list(rows) for name, rows in found.items()} == packed(contents, start, 3, max_length)


def test_texts_are_tokenized_alike_in_chunks_and_at_once(monkeypatch):
    texts = tuple(" ".join("abcd"[(row + place) % 4] for place in range(1 + row % 6)) for row in range(25))
    examples = Examples("train", (texts,), None)
    at_once, documents = tokenize_labelled(examples, tokenizer(), 4), tokenize_documents(examples, bare(), "causal", 7)
    monkeypatch.setattr(tokenization, "CHUNK", 4)
    assert tokenize_labelled(examples, tokenizer(), 4) == at_once
    assert at_once.truncated == sum(len(text.split()) > 3 for text in texts)
    assert tokenize_documents(examples, bare(), "causal", 7) == documents


def bare():
    made = tokenizer(ends=False)
    made.add_special_tokens({"bos_token": "<unk>"})
    return made
