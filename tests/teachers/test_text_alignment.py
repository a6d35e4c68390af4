"""Positions of two tokenizers by the texts of their tokens, worked out by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.teachers.text_alignment import EntryTexts, token_starts
from support.tiny import sentences

NONE = frozenset()


@pytest.mark.parametrize(
    ("tokens", "text", "special", "starts"),
    [
        (["On", "ce", " up"], "Once up", NONE, [0, 2, 4]),
        (["<s>", "On", "ce"], "Once", NONE, [None, 0, 2]),  # written before what was sent
        ([" On", "ce"], "Once", NONE, [0, 3 - 1]),  # with the space that a tokenizer adds
        (["", "On", "ce"], "<s>Once", frozenset({"<s>"}), [0, 3, 5]),  # special tokens are not written out
        (["a", "", "b"], "a</s>b", frozenset({"</s>"}), [0, 1, 5]),
        (["x", "\ufffd", "\ufffd", "y"], "xéy", NONE, [0, None, None, 2]),  # halves of a letter
        (["x", "", "", "y"], "xéy", NONE, [0, None, None, 2]),
    ],
)
def test_tokens_start_where_their_text_stands(tokens, text, special, starts):
    assert list(token_starts(tokens, text, special)) == starts


def test_a_byte_level_prompt_ends_its_tokens_within_the_text_and_halves_of_letters_nowhere():
    tokenizer = train_tokenizer(sentences(200, 7)[0], 300, "causal", 128)
    texts = EntryTexts(tokenizer)
    ids = [tokenizer.bos_token_id, *tokenizer("the é", add_special_tokens=False)["input_ids"]]
    prompt = texts.prompt(ids)
    start = tokenizer.bos_token
    assert (prompt.text, prompt.unbegun, prompt.begins) == (f"{start}the é", "the é", True)
    assert "".join(prompt.pieces).startswith(f"{start}the")
    ends = texts.ends(prompt, begun=False)
    assert (ends[0], ends[-1], ends.count(None)) == (0, 5, 1)
    assert texts.ends(prompt, begun=True)[0] == len(start)
    middle = texts.prompt(ids[1:])
    assert (middle.text, middle.unbegun, middle.begins) == ("the é", "the é", False)


def test_every_text_of_an_entry_stands_for_one_entry():
    tokenizer = train_tokenizer(sentences(200, 7)[0], 300, "causal", 128)
    numbers = EntryTexts(tokenizer).numbers
    assert len(set(numbers.values())) == len(numbers)
    for number in tokenizer(" the film was", add_special_tokens=False)["input_ids"]:
        assert numbers[tokenizer.decode([number])] == number
    assert numbers[tokenizer.eos_token] == tokenizer.eos_token_id


def sentencepiece():
    """A tokenizer that writes spaces as ▁, adds one before a text, and falls back to bytes."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁b", "a", "b", "▁ab", "<0x61>", "<0xC3>", "<0xA9>"]
    tokenizer = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [("▁", "a"), ("▁", "b"), ("▁a", "b")], byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_sentencepieces_first_space_is_not_sent_and_a_byte_does_not_stand_for_a_letter():
    texts = EntryTexts(sentencepiece())
    prompt = texts.prompt([1, 8, 4, 7, 2])  # <s> ▁ab ▁a b </s>
    assert (prompt.text, prompt.unbegun) == ("<s>ab ab</s>", "ab ab</s>")
    assert texts.ends(prompt, begun=False) == [0, 2, 4, 5, 9]
    assert texts.ends(prompt, begun=True) == [3, 5, 7, 8, 12]
    assert (texts.numbers["a"], texts.numbers[" a"], texts.numbers["</s>"]) == (6, 4, 2)
    assert 9 not in texts.numbers.values()


def test_the_vocabulary_of_a_real_sentencepiece_model_is_spelled_back(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    texts = EntryTexts(tokenizer)
    ids = tokenizer("Once upon a time, naïve.")["input_ids"]
    prompt = texts.prompt([tokenizer.bos_token_id, *[i for i in ids if i != tokenizer.bos_token_id]])
    assert prompt.unbegun == "Once upon a time, naïve."
    assert texts.ends(prompt, begun=False)[-1] == len(prompt.unbegun)
