"""From texts to tokens: token types that a tokenizer gives, and targets that are cut."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdalign.data.tasks import Examples
from kdalign.data.tokenization import tokenize_labelled, tokenize_pairs, with_token_types
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
