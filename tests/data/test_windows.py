"""Likelihood as it is reported: each token once, with the context that is stated; against plain loops in float64."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kdalign.data.tasks import Examples
from kdalign.data.tokenization import special_token_note, start_token
from kdalign.data.tokenized_split import IGNORED
from kdalign.data.windows import (
    FEW,
    count_words_and_bytes,
    tokenize_causal_windows,
    tokenize_permuted_windows,
    tokenize_pseudo_windows,
    windows,
)
from kdalign.evaluation import likelihood
from support.family_setting import model, tokenizer
from support.tiny import make_tokenizer, sentences

TEXTS = [*sentences(6, 11)[0], " ".join(sentences(12, 12)[0])]
"""Six short texts and one of some windows."""
CAUSAL = ["gpt2", "gpt_neox", "opt", "llama", "gemma2"]
MASKED = ["bert", "albert", "modernbert", "deberta-v2"]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_every_position_is_asked_for_once_with_the_context_that_is_promised(inputs, length, stride):
    stride = min(stride, length)
    found = list(windows(inputs, length, stride))
    assert [position for _, end, asked in found for position in range(asked, end)] == list(range(inputs))
    for begin, end, asked in found:
        assert end - begin == min(length, end)  # as long as it can be
        assert asked - begin >= min(length - stride, asked)


def test_windows_by_hand():
    assert list(windows(10, 4, 4)) == [(0, 4, 0), (4, 8, 4), (6, 10, 8)]  # the last reaches back
    assert list(windows(8, 4, 2)) == [(0, 4, 0), (2, 6, 4), (4, 8, 6)]
    assert list(windows(3, 4, 2)) == [(0, 3, 0)]


def naive_causal(kind, text, length, stride):
    """One window after another, one at a time, all logits in float64: (nll, tokens)."""
    net, reads = model(kind).double(), tokenizer("causal")
    whole = [*start_token(reads), *reads(text, add_special_tokens=False)["input_ids"]]
    total, count, end = 0.0, 0, 0
    while end < len(whole) - 1:
        asked, end = end, min(end + (stride if end else length), len(whole) - 1)
        begin = max(0, end - length)
        with torch.no_grad():
            log = net(torch.tensor([whole[begin:end]])).logits[0].log_softmax(-1)
        for position in range(asked, end):
            total -= float(log[position - begin, whole[position + 1]])
            count += 1
    return total, count


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_likelihood_is_that_of_a_naive_loop_in_float64(kind):
    for stride in (16, 7):
        encoded = tokenize_causal_windows(TEXTS, tokenizer("causal"), 16, stride)
        answers = likelihood.predict_tokens(model(kind).double(), encoded)
        expected = [naive_causal(kind, text, 16, stride) for text in TEXTS]
        assert answers.nll.sum() == pytest.approx(sum(nll for nll, _ in expected), rel=1e-9)
        assert answers.tokens.sum() == sum(count for _, count in expected)


def test_transformers_documented_loop_at_a_stride_gives_the_same_perplexity():
    # https://huggingface.co/docs/transformers/perplexity: labels that the window before has scored are -100.
    net, reads, length, stride = model("llama").double(), tokenizer("causal"), 17, 8
    ids = reads(TEXTS[-1], add_special_tokens=False)["input_ids"]
    ids = ids[: length - 1 + stride * ((len(ids) - length + 1) // stride)]  # so that its last window is whole, too
    text = reads.decode(ids)
    assert reads(text, add_special_tokens=False)["input_ids"] == ids
    whole = torch.tensor([[*start_token(reads), *ids]])
    nll, count, before = 0.0, 0, 0
    for begin in range(0, whole.size(1), stride):
        end = min(begin + length, whole.size(1))
        part, labels = whole[:, begin:end], whole[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = net(part, labels=labels).loss
        tokens = int((labels[:, 1:] != -100).sum())
        nll, count, before = nll + float(loss) * tokens, count + tokens, end
        if end == whole.size(1):
            break
    answers = likelihood.predict_tokens(net, tokenize_causal_windows([text], reads, length - 1, stride))
    assert answers.tokens.sum() == count
    assert math.exp(answers.nll.sum() / answers.tokens.sum()) == pytest.approx(math.exp(nll / count), rel=1e-6)


def naive_pseudo(kind, text, within):
    net, reads = model(kind).double(), tokenizer("masked")
    found = reads(text)
    ids, words = found["input_ids"], found.word_ids(0)
    total = 0.0
    for position, word in enumerate(words):
        if word is None:
            continue
        shown = list(ids)
        for later in range(position, len(ids)):
            if later == position or (within and words[later] == word):
                shown[later] = reads.mask_token_id
        with torch.no_grad():
            log = net(torch.tensor([shown])).logits[0, position].log_softmax(-1)
        total -= float(log[ids[position]])
    return total, sum(word is not None for word in words)


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("within", [True, False])
def test_a_pseudo_likelihood_is_that_of_a_naive_loop_in_float64(kind, within):
    texts = ["unlikely words: zqxj", *TEXTS[:4]]  # the first is spelled by pieces
    encoded = tokenize_pseudo_windows(texts, tokenizer("masked"), 60, within)
    answers = likelihood.predict_tokens(model(kind).double(), encoded)
    expected = [naive_pseudo(kind, text, within) for text in texts]
    assert answers.nll.sum() == pytest.approx(sum(nll for nll, _ in expected), rel=1e-8)
    assert answers.tokens.sum() == sum(count for _, count in expected)


def test_what_follows_in_a_word_is_masked_with_it_and_what_precedes_is_seen():
    reads = tokenizer("masked")
    encoded = tokenize_pseudo_windows(["zqxj film"], reads, 60)
    word = [number for number, name in enumerate(reads("zqxj film").word_ids(0)) if name == 0]
    rows = [encoded.corrupt({name: column[row] for name, column in encoded.columns.items()}, None) for row in range(3)]
    for row, position in zip(rows, word, strict=False):
        masked = [place for place, token in enumerate(row["input_ids"]) if token == reads.mask_token_id]
        assert masked == [place for place in word if place >= position]
        assert [place for place, target in enumerate(row["targets"]) if target != IGNORED] == [position]


def test_a_long_text_is_masked_in_parts_of_which_each_token_counts_once():
    reads = tokenizer("masked")
    encoded = tokenize_pseudo_windows([TEXTS[-1]], reads, 16)
    assert len(encoded) == len(reads(TEXTS[-1], add_special_tokens=False)["input_ids"])
    assert encoded.lengths.max() == 16
    assert len(set(encoded.groups.tolist())) == math.ceil(len(encoded) / 14)  # an interval resamples parts


@pytest.mark.slow
def test_a_permutation_likelihood_is_that_of_one_token_after_another():
    net, reads = model("xlnet"), tokenizer("permutation")  # whose code computes positions in float32
    for length, stride in ((64, None), (16, 5), (16, None)):
        encoded = tokenize_permuted_windows(TEXTS, reads, length, stride)
        answers = likelihood.predict_tokens(net, encoded)
        total = count = 0
        for text in TEXTS:
            content = reads(text, add_special_tokens=False)["input_ids"]
            room = length - 2
            step = min(stride or length, room - 1)
            for begin, end, asked in windows(len(content) - 1, room - 1, step):
                for position in range(asked + 1, end + 1):
                    seen = content[begin:position]
                    # Alone: the tokens before, and one that nobody sees, whose place is predicted.
                    ids = torch.tensor([[*seen, 0]])
                    hidden = torch.ones(
                        1,
                        len(seen) + 1,
                        len(seen) + 1,
                    ).triu()
                    place = torch.zeros(1, 1, len(seen) + 1)
                    place[0, 0, -1] = 1
                    with torch.no_grad():
                        log = net(ids, perm_mask=hidden, target_mapping=place).logits[0, 0].log_softmax(-1)
                    total -= float(log[content[position]])
                    count += 1
        assert answers.nll.sum() == pytest.approx(total, rel=1e-5)
        assert (
            answers.tokens.sum() == count == sum(len(reads(t, add_special_tokens=False).input_ids) - 1 for t in TEXTS)
        )


def test_a_token_does_not_see_itself_when_a_permutation_model_predicts_it():
    net, reads = model("xlnet"), tokenizer("permutation")
    one, other = (tokenize_permuted_windows([text], reads, 64) for text in ("the film was great", "the film was awful"))
    ours, theirs = (net(**batch_of(each)).logits[0] for each in (one, other))
    ids = one.columns["input_ids"][0]
    different = next(i for i, (a, b) in enumerate(zip(ids, other.columns["input_ids"][0], strict=True)) if a != b)
    # The first one, whose mask is empty, sees everything: it is not asked for.
    assert not torch.allclose(ours[0], theirs[0])
    torch.testing.assert_close(ours[1 : different + 1], theirs[1 : different + 1])


def batch_of(encoded):
    from kdalign.data.batches import collate

    return collate(encoded, [0]).inputs


def test_words_and_bytes_are_of_what_is_asked_for():
    reads = tokenizer("causal")
    encoded = tokenize_causal_windows(["great  café\n", "x"], reads, 16)
    assert (encoded.words, encoded.bytes) == (3, len("great  café\nx".encode()))
    # A permutation model is given the first token: with it go its bytes, and its word if it is a whole one.
    reads = tokenizer("permutation")
    for text in ("the film", "zqxj film", "film", "👍 go"):
        places = reads(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        first = places[1][0] if len(places) > 1 else len(text)
        whole = text[first : first + 1].strip() == ""
        encoded = tokenize_permuted_windows([text], reads, 16)
        assert encoded.bytes == len(text.encode()) - len(text[:first].encode())
        assert encoded.words == len(text.split()) - whole


def test_a_given_beginning_takes_its_whole_words_along_whether_or_not_its_blank_is_with_it():
    assert count_words_and_bytes(["the film"], ["the"]) == (1, 5)
    assert count_words_and_bytes(["the film"], ["the "]) == (1, 4)
    assert count_words_and_bytes(["the film"], ["th"]) == (2, 6)


def test_many_texts_are_resampled_as_wholes_and_few_by_their_rows():
    reads = tokenizer("causal")
    few = tokenize_causal_windows(TEXTS, reads, 8)
    assert few.groups is None
    many = tokenize_causal_windows(TEXTS * FEW, reads, 8)
    assert len(many) > len(set(many.groups.tolist())) == len(TEXTS * FEW)
    assert np.array_equal(many.take([3, 1]).groups, many.groups[[3, 1]])


def test_words_that_are_read_as_special_tokens_are_counted(tmp_path):
    make_tokenizer(tmp_path, "bert")
    reads = AutoTokenizer.from_pretrained(tmp_path)
    texts = ("a film [SEP] good", "a good film", "[MASK] a [SEP]")
    said = special_token_note(Examples("validation", (texts, texts), None), reads)
    assert said.startswith("validation: 2 of 3 texts have words that the tokenizer reads as special tokens")
    assert said.endswith("('[SEP]', '[MASK]')")
    assert special_token_note(Examples("validation", (texts[1:2],), None), reads) == ""
    reads.split_special_tokens = True  # what the texts spell out stays text
    assert special_token_note(Examples("validation", (texts,), None), reads) == ""


def test_an_evaluation_says_what_stands_for_a_start_token_and_which_texts_hold_special_tokens(kdalign, tmp_path):
    folder = tmp_path / "gpt2"
    model("gpt2").save_pretrained(folder)
    make_tokenizer(folder, "bert")
    config = folder / "tokenizer_config.json"
    tree = json.loads(config.read_text())
    config.write_text(json.dumps(tree | {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]"}))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    (tmp_path / "validation.txt").write_text("a good film\na [SEP] film\n")
    words = ["eval", folder, "--task", "lm", "--data", ".", "--max-length", "16", "--metrics", "ppl", "--json"]
    status, out, _ = kdalign(*words)
    assert status == 0
    assert json.loads(out)[0]["notes"] == [
        f"{folder}: validation: 1 of 2 texts have words that the tokenizer reads as special tokens, not as they are "
        "spelled ('[SEP]')",
        f"{folder}: no start token: a text's first one is predicted from its end token '[SEP]'",
    ]
