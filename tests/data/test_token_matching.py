"""Two tokenizers: which positions, entries and embeddings stand for the same text, and what is learnt from that."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kdalign.data.batches import collate
from kdalign.data.dual_tokenization import tokenize_documents_dual, tokenize_labelled_dual
from kdalign.data.epochs import micro_batches
from kdalign.data.tasks import Examples
from kdalign.data.token_matching import align_tokens, common_segments, dual_windows, shared_vocabulary, source_pieces
from kdalign.data.tokenization import tokenize_labelled
from kdalign.data.tokenized_split import IGNORED, TEACHER
from kdalign.models.student import transfer_vocabulary
from kdalign.objective import losses
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from support.covering import one_of_each
from support.dual_setting import (
    ALL,
    CPU,
    EVERY,
    HARD_TEXTS,
    KINDS,
    PAIRS,
    Setting,
    byte_fallback,
    byte_level,
    everything,
    examples,
    fast,
    texts,
    unigram,
    word_piece,
)
from support.tiny import WORDS, sentences, tiny_classifier


def spans(*lengths, start=0):
    ends = start + np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1)


def tensor(rows):
    return torch.from_numpy(np.asarray(rows))[None]


def test_a_token_is_compared_with_the_mean_of_those_that_share_its_characters():
    # don|'t|you against don|'|tyou
    matching = align_tokens(tensor(spans(3, 2, 3)), tensor(spans(3, 1, 4)), left_to_right=False)
    expected = torch.tensor([[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])
    torch.testing.assert_close(matching.shares[0], expected)
    assert matching.answers.tolist() == [[0, -1, -1]]
    torch.testing.assert_close(matching.spread[0], torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0.25, 0.75]]))


def test_a_model_that_goes_left_to_right_is_compared_where_both_have_read_the_same():
    # ab|cd|e against a|bcd|e: after ab the teacher has read a or abcd
    matching = align_tokens(tensor(spans(2, 2, 1)), tensor(spans(1, 3, 1)), left_to_right=True)
    assert matching.answers.tolist() == [[-1, 1, 2]]
    assert matching.compared.tolist() == [[False, True, True]]


def test_of_the_bytes_of_a_character_only_the_last_has_read_it():
    ours = tensor([[0, 1], [0, 1], [0, 1], [1, 2]])
    matching = align_tokens(ours, tensor(spans(1, 1)), left_to_right=True)
    assert matching.answers.tolist() == [[-1, -1, 0, 1]]
    seen_whole = align_tokens(ours, tensor(spans(1, 1)), left_to_right=False)
    assert seen_whole.shares[0, :, 0].tolist() == [1, 1, 1, 0]
    assert seen_whole.spread[0, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_padding_and_tokens_without_text_are_compared_with_nothing():
    ours, theirs = tensor([[0, 2], [0, 0], [0, 0]]), tensor([[0, 2], [2, 2], [0, 0]])
    for left_to_right in (False, True):
        matching = align_tokens(ours, theirs, left_to_right)
        assert matching.compared.tolist() == [[True, False, False]]
        assert matching.answers.tolist() == [[0, -1, -1]]


PARTS = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def cut_to(lengths, total):
    """These lengths, repeated until the text is full."""
    whole = []
    while sum(whole) < total:
        whole += lengths
    ends = [end for end in np.cumsum(whole) if end < total] + [total]
    return np.diff([0, *ends])


@given(PARTS, PARTS, st.integers(1, 40))
def test_where_positions_match_left_to_right_both_have_read_the_same_and_no_attention_goes_ahead(one, other, total):
    ours, theirs = spans(*cut_to(one, total)), spans(*cut_to(other, total))
    matching = align_tokens(tensor(ours), tensor(theirs), left_to_right=True)
    maps = torch.ones(1, 1, len(theirs), len(theirs)).tril().softmax(dim=-1)
    maps = maps.tril() / maps.tril().sum(dim=-1, keepdim=True)
    moved = matching.align_maps(maps, matching)[0, 0]
    for position, theirs_too in enumerate(matching.answers[0].tolist()):
        assert (theirs_too >= 0) == bool((theirs[:, 1] == ours[position, 1]).any())
        if theirs_too >= 0:
            assert ours[position, 1] == theirs[theirs_too, 1]
            assert float(moved[position].sum()) == pytest.approx(1, abs=1e-5)
            assert float(moved[position, position + 1 :].sum()) == 0


def test_attention_that_is_nearly_all_on_keys_that_the_student_lacks_keeps_its_proportions():
    spans_of = {"ours": [[0, 1], [1, 2]], "theirs": [[0, 0], [0, 1], [1, 2]]}
    matching = align_tokens(*(tensor(np.array(each)) for each in spans_of.values()), left_to_right=True)
    maps = torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [1 - 4e-9, 1e-9, 3e-9]]]])
    torch.testing.assert_close(matching.align_maps(maps, matching)[0, 0], torch.tensor([[1.0, 0], [0.25, 0.75]]))


@given(PARTS, PARTS, st.integers(1, 40))
def test_where_models_see_all_every_character_counts_once(one, other, total):
    ours, theirs = spans(*cut_to(one, total)), spans(*cut_to(other, total))
    matching = align_tokens(tensor(ours), tensor(theirs), left_to_right=False)
    torch.testing.assert_close(matching.shares.sum(dim=-1), torch.ones(1, len(ours)))
    torch.testing.assert_close(matching.spread.sum(dim=-1), torch.ones(1, len(theirs)))
    starts = torch.tensor(theirs.mean(axis=1), dtype=torch.float32)[None, :, None]
    # A straight line over the text stays within the token's neighbours.
    assert bool(((matching.align_features(starts)[0, :, 0] - torch.tensor(ours.mean(axis=1))).abs() <= 4).all())


@given(PARTS, PARTS, st.integers(1, 60), st.tuples(st.integers(4, 9), st.integers(4, 9)))
def test_windows_hold_the_same_text_in_both_and_fit(one, other, total, room):
    ours, theirs = spans(*cut_to(one, total)), spans(*cut_to(other, total))
    last = 0
    for a, b in dual_windows(ours, theirs, room):
        assert a.stop - a.start <= room[0]
        assert b.stop - b.start <= room[1]
        assert ours[a.start, 0] == theirs[b.start, 0] >= last
        last = ours[a.stop - 1, 1]
        if a.stop < len(ours):
            assert last == theirs[b.stop - 1, 1] or a.stop - a.start == room[0] or b.stop - b.start == room[1]
    if len(ours) <= room[0] and len(theirs) <= room[1]:
        assert list(dual_windows(ours, theirs, room)) == [(slice(0, len(ours)), slice(0, len(theirs)))]


@given(PARTS, PARTS, st.integers(1, 40))
def test_segments_are_the_smallest_stretches_that_whole_tokens_of_both_fill(one, other, total):
    ours, theirs = spans(*cut_to(one, total)), spans(*cut_to(other, total))
    boundaries = sorted({*ours[:, 1]} & {*theirs[:, 1]})
    found = common_segments(ours, theirs)
    for side, tokens in zip(found, (ours, theirs), strict=True):
        assert side.tolist() == np.searchsorted(boundaries, tokens[:, 1]).tolist()


@pytest.mark.parametrize("pair", PAIRS)
def test_nearly_all_characters_of_hard_texts_lie_in_tokens_of_both(pair):
    tokenizers = tuple(make() for make in PAIRS[pair])
    for both in (tokenizers, tokenizers[::-1]):
        covered, characters = tokenize_labelled_dual(examples(texts(20)), both, 256).covered
        assert characters == sum(not c.isspace() for text in texts(20) for c in text)
        assert covered >= 0.99 * characters


def test_special_tokens_meet_by_their_place_and_the_one_for_the_whole_text_by_its_role():
    both = byte_level(), word_piece()
    batch = collate(tokenize_labelled_dual(examples(["a film"], ["it was good"]), both, 64), [0])
    ours, theirs = (
        t.convert_ids_to_tokens(ids[0])
        for t, ids in zip(both, (batch.inputs["input_ids"], batch.other_inputs["input_ids"]), strict=True)
    )
    met = {(ours[a], theirs[b]) for a, b in torch.nonzero(batch.matching.shares[0]).tolist()}
    assert ("<s>", "[CLS]") in met
    assert ("</s>", "[SEP]") in met
    assert not any(a.startswith("<") != b.startswith("[") for a, b in met)
    turned = collate(tokenize_labelled_dual(examples(["a film"]), (unigram(), word_piece()), 64), [0])
    last = int(turned.real.sum()) - 1
    assert turned.matching.answers[0, last] == 0, "<cls> stands last, [CLS] first"
    assert turned.matching.answers[0, last - 1] == int(turned.other_inputs["attention_mask"].sum()) - 1


def test_the_second_text_of_a_pair_is_not_matched_with_the_first():
    batch = collate(
        tokenize_labelled_dual(examples(["good film"], ["good film"]), (byte_level(), word_piece()), 64), [0]
    )
    types = batch.other_inputs["token_type_ids"][0]
    first_separator = (batch.inputs["input_ids"][0] == 2).nonzero()[0, 0]
    checked = 0
    for ours, theirs in torch.nonzero(batch.matching.shares[0]).tolist():
        if theirs not in (0, len(types) - 1) and batch.inputs["input_ids"][0, ours] > 3:
            assert (ours > first_separator) == bool(types[theirs])
            checked += 1
    assert checked


def test_entries_of_two_vocabularies_meet_by_what_they_stand_for():
    ours, theirs = byte_level(), word_piece()
    shared = shared_vocabulary(ours, theirs)
    pairs = {
        (ours.convert_ids_to_tokens(a), theirs.convert_ids_to_tokens(b))
        for a, b in zip(shared.student.tolist(), shared.teacher.tolist(), strict=True)
    }
    assert {("Ġfilm", "film"), ("s", "##s"), ("<s>", "[CLS]"), ("</s>", "[SEP]"), ("<mask>", "[MASK]")} <= pairs
    assert len({*shared.student.tolist()}) == len({*shared.teacher.tolist()}) == len(shared)
    assert {(",", ","), ("?", "?"), ("'", "'")} <= pairs, "WordPiece splits around punctuation, whatever stands before"
    for one, other in pairs:
        if one[-1].isalnum() and one.isascii():
            assert one.replace("Ġ", "") == other.removeprefix("##")
            assert one.startswith("Ġ") != other.startswith("##")


def test_a_character_meets_the_byte_that_stands_for_it_only_where_it_has_no_entry_of_its_own():
    llama, gpt = byte_fallback(), byte_level()
    shared = shared_vocabulary(gpt, llama)
    met = dict(zip(gpt.convert_ids_to_tokens(shared.student), llama.convert_ids_to_tokens(shared.teacher), strict=True))
    assert met["s"] == "s"
    assert met["Ã"] == "<0xC3>"
    assert met["Ġfilm"] == "▁film"


def test_one_tokenizer_twice_shares_everything_and_spells_itself():
    tokenizer = byte_level()
    shared = shared_vocabulary(tokenizer, tokenizer)
    assert shared.student.tolist() == shared.teacher.tolist()
    assert len(shared) == len(tokenizer) - 1, "all but the padding"
    assert [ids for number, ids in enumerate(source_pieces(tokenizer, tokenizer)) if number != 1] == [
        [number] for number in range(len(tokenizer)) if number != 1
    ]


def test_a_model_with_another_vocabulary_starts_from_the_pieces_of_its_entries():
    theirs, ours = word_piece(10), byte_level()
    big = tiny_classifier("bert", vocab_size=len(theirs))
    small = transfer_vocabulary(big, ours, theirs)
    assert small.config.vocab_size == len(ours)
    assert small.config.pad_token_id == ours.pad_token_id
    old, new = big.get_input_embeddings().weight, small.get_input_embeddings().weight
    vocabulary = theirs.get_vocab()
    same = next(token for token in ours.get_vocab() if len(token) > 2 and f"##{token}" in vocabulary)
    torch.testing.assert_close(new[ours.convert_tokens_to_ids(same)], old[vocabulary[f"##{same}"]])
    words = [token[1:] for token in ours.get_vocab() if token.startswith("Ġ") and token[1:] in WORDS]
    word = next(word for word in words if word and word not in vocabulary)
    pieces = theirs(word, add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    torch.testing.assert_close(new[ours.convert_tokens_to_ids(f"Ġ{word}")], old[pieces].mean(dim=0))
    rest = [name for name in big.state_dict() if "word_embeddings" not in name]
    assert all(torch.equal(big.state_dict()[name], small.state_dict()[name]) for name in rest)


@pytest.mark.parametrize("head", ["classes", "masked", "causal", "seq2seq"])
def test_a_vocabulary_of_the_same_size_is_not_taken_by_number(head):
    theirs = byte_level()
    words = sorted(theirs.get_vocab(), key=theirs.get_vocab().get)
    turned = json.loads(theirs.backend_tokenizer.to_str())
    numbers = {word: number for number, word in enumerate([*words[:4], *words[:3:-1]])}
    turned["model"]["vocab"] = numbers
    ours = fast(Tokenizer.from_str(json.dumps(turned)), **{r: t for r, t in theirs.special_tokens_map.items()})
    if head == "classes":
        big = tiny_classifier("bert", vocab_size=len(theirs)).eval()
    else:
        big = Setting._model({"masked": "bert", "causal": "gpt2", "seq2seq": "bart"}[head], 2, theirs)
    if head == "seq2seq":
        big.final_logits_bias.normal_()
    small = transfer_vocabulary(big, ours, theirs).eval()
    text = "a good film, isn't it?"
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for tokenizer in (theirs, ours)]
    more = [{"decoder_input_ids": each[:, :5]} if head == "seq2seq" else {} for each in ids]
    one, other = (model(each, **rest).logits for model, each, rest in zip((big, small), ids, more, strict=True))
    if head != "classes":
        other = other[..., [numbers[word] for word in words]]
    torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


# -- losses over two vocabularies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", losses.DIVERGENCES)
def test_with_every_entry_shared_the_divergence_is_the_plain_one(kind):
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    plain = losses.divergence(student, teacher, kind, 1.7)
    torch.testing.assert_close(losses.divergence_of_shared(student, teacher, everything(7), kind, 1.7), plain)
    assert float(losses.universal_logit_distance(student, teacher, everything(7), 1.7)) == 0


def test_what_is_not_shared_counts_as_one_entry_and_by_its_sorted_probabilities():
    student = torch.tensor([[0.5, 0.3, 0.2]]).log()
    teacher = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    shared = torch.tensor([0]), torch.tensor([1])  # the rest: 0.3, 0.2 against 0.25, 0.15, 0.1
    by_hand = 0.5 * np.log(0.5 / 0.5) + 0.5 * np.log(0.5 / 0.5)
    assert float(losses.divergence_of_shared(student, teacher, shared, "forward", 1.0)) == pytest.approx(
        by_hand, abs=1e-6
    )
    distance = abs(0.25 - 0.3) + abs(0.15 - 0.2) + 0.1
    assert float(losses.universal_logit_distance(student, teacher, shared, 1.0)) == pytest.approx(distance, abs=1e-6)
    other = torch.tensor([[0.2, 0.5, 0.3]]).log()
    by_hand = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    assert float(losses.divergence_of_shared(other, teacher, shared, "forward", 1.0)) == pytest.approx(
        by_hand, abs=1e-6
    )


def test_the_losses_over_two_vocabularies_have_the_gradients_of_their_formulas():
    student = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 9, dtype=torch.float64)
    shared = torch.tensor([0, 2, 5]), torch.tensor([8, 1, 3])
    for kind in set(losses.DIVERGENCES) - {"adaptive"}:  # whose shares have no gradient: test_losses_of_answers.py
        assert torch.autograd.gradcheck(
            lambda s, kind=kind: losses.divergence_of_shared(s, teacher, shared, kind, 2.0), student
        )
    assert torch.autograd.gradcheck(lambda s: losses.universal_logit_distance(s, teacher, shared, 2.0), student)


def test_of_a_vocabulary_that_holds_the_other_whole_only_what_is_shared_is_compared():
    student, teacher = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[5.0, 0.0, 0.0, 3.0]])
    for one, other in ((student, teacher), (teacher, student)):
        for kind in losses.DIVERGENCES:
            found = losses.divergence_of_shared(one, other, (torch.arange(3), torch.arange(3)), kind, 1.0)
            assert float(found) == pytest.approx(0, abs=1e-6)


def test_a_vocabulary_that_holds_the_other_whole_gives_a_finite_divergence():
    student = torch.randn(2, 3, requires_grad=True)
    loss = losses.divergence_of_shared(student, torch.randn(2, 5), (torch.arange(3), torch.arange(3)), "forward", 1.0)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(student.grad.isfinite().all())


# -- the numerical contract across tokenizers ---------------------------------------------------------------------


@EVERY
def test_across_tokenizers_a_step_may_be_split_and_padded_at_will(kind):
    setting = Setting(kind)
    rows = range(len(setting.data))
    whole = setting.gradient(micro_batches(setting.data, rows, 0, 1, None))
    ones = setting.gradient(micro_batches(setting.data, rows, 0, 1, 1))
    ranks = [batch for rank in (0, 1) for batch in micro_batches(setting.data, rows, rank, 2, 2)]
    wide = setting.gradient([collate(setting.data, rows, width=60)])
    largest = float(whole.abs().max())
    assert largest > 1e-3
    for other in (ones, setting.gradient(ranks), wide):
        torch.testing.assert_close(other, whole, atol=1e-5 * max(1, largest), rtol=1e-4)


@EVERY
def test_across_tokenizers_every_term_is_there_and_finite(kind):
    setting = Setting(kind)
    batch = collate(setting.data, range(len(setting.data)))
    parts = setting.breakdown(batch, count_units([batch])).parts
    names = {"hard", "soft", "cosine", "euclid", "attention", "embeddings", "relations"}
    assert {name.partition(" ")[0] for name in parts} == names
    assert all(0 < float(part) < 100 for part in parts.values()), parts


@pytest.mark.parametrize("kind", ["classes", "masked"])
def test_positions_that_the_teacher_lacks_enter_no_term(kind):
    setting = Setting(kind)
    batch = collate(setting.data, range(len(setting.data)))
    lonely = batch.tokens & ~batch.compared
    half = batch.tokens & (torch.arange(batch.tokens.size(1)) % 2 == 0)
    matching = replace(batch.matching, shares=torch.where(half[..., None], 0, batch.matching.shares))
    fewer = replace(batch, matching=matching)
    units = count_units([fewer])
    assert units[Unit.COMPARED] == int((batch.compared & ~half).sum())
    assert units[Unit.TOKEN] == int(batch.tokens.sum())
    assert int(lonely.sum()) < int(batch.compared.sum())
    signals = setting.teacher(fewer, setting.learner.wanted_of_teacher)
    ours = setting.learner(fewer.inputs, signals)
    before = setting.objective(TermInputs(ours, signals, fewer), units).parts
    for hidden in ours.hidden.values():
        hidden[half] = 1e4
    for pair in ours.projected:
        ours.projected[pair] = ours.hidden[pair[0]]
    after = setting.objective(TermInputs(ours, signals, fewer), units).parts
    assert float(after["cosine"]) == float(before["cosine"])
    assert float(after["euclid"]) == float(before["euclid"])


@pytest.mark.parametrize(("choice", "term"), [("learned", "beta"), ("auto", "beta"), ("auto", "relations")])
def test_no_gradient_reaches_positions_that_the_teacher_lacks(choice, term):
    weights = Weights(**{**dict.fromkeys(ALL.weights, 0.0), term: 1.0})
    setting = Setting("classes", weights, choice)
    batch = collate(setting.data, range(len(setting.data)))
    lacking = batch.tokens & (torch.arange(batch.tokens.size(1)) % 3 == 1)
    shares = torch.where(lacking[..., None], 0, batch.matching.shares)
    batch = replace(batch, matching=replace(batch.matching, shares=shares))
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    signals = setting.learner(batch.inputs, taught)
    kept = signals.hidden if term == "beta" else signals.values
    last = max(kept)
    (slope,) = torch.autograd.grad(
        setting.objective(TermInputs(signals, taught, batch), count_units([batch])).total, kept[last]
    )
    slope = slope if term == "beta" else slope.transpose(1, 2).flatten(2)
    assert float(slope[lacking].abs().max()) == 0
    assert float(slope[batch.compared].abs().max()) > 0


def test_the_end_of_a_document_is_asked_for_once_and_not_where_it_goes_on():
    tokenizers = byte_level(), byte_fallback()
    document = " ".join(sentences(20, 5)[0])
    data = tokenize_documents_dual(examples([document]), tokenizers, "causal", 24)
    lasts = [row[-1] for row in data.columns["targets"]]
    assert len(lasts) > 2
    assert lasts == [IGNORED] * (len(lasts) - 1) + [tokenizers[0].eos_token_id]


def test_soft_targets_are_a_mean_over_the_tokens_that_the_teacher_is_asked_for():
    weights = Weights(hard=0, alpha=1, beta=0, gamma=0, delta=0, temperature=1)
    setting = Setting("causal", weights)
    batch = collate(setting.data, range(len(setting.data)))
    units = count_units([batch])
    assert 0 < units[Unit.ANSWERED] < units[Unit.TARGET]
    breakdown = setting.breakdown(batch, units)
    total = float(breakdown.total.detach())
    assert total == pytest.approx(float(breakdown.parts["soft"]), rel=1e-5)
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    signals = setting.learner(batch.inputs, taught)
    shared = shared_vocabulary(*setting.tokenizers)
    entries = shared.student, shared.teacher
    by_hand = 0.0
    for row, position in torch.nonzero(batch.answered).tolist():
        ours = signals.head.logits(signals.features[row, position])[None]
        theirs = taught.head.logits(taught.features[row, int(batch.matching.answers[row, position])])[None]
        by_hand += float(losses.divergence_of_shared(ours, theirs, entries, "forward", 1.0).detach())
        by_hand += float(losses.universal_logit_distance(ours, theirs, entries, 1.0).detach())
    assert total == pytest.approx(by_hand / units[Unit.ANSWERED], rel=1e-4)


def test_the_same_tokenizer_gives_bit_for_bit_the_plain_loss():
    setting = Setting("classes")
    tokenizer = setting.tokenizers[0]
    rows, labels = sentences(8, 3)
    split = Examples("train", (tuple(rows),), np.array(labels))
    plain, both = tokenize_labelled(split, tokenizer, 64), tokenize_labelled_dual(split, (tokenizer, tokenizer), 64)
    big = tiny_classifier("bert", 4, 32, seed=4, vocab_size=len(tokenizer))
    setting.teacher = ComputedTeacher(big, (0, 1), torch.float32, CPU)
    for rows in (range(8), range(3)):
        one, other = collate(plain, rows), collate(both, rows)
        assert other.matching is not None
        first, second = (setting.breakdown(batch, count_units([batch])) for batch in (one, other))
        assert float(first.total.detach()) == float(second.total.detach())
        assert {n: float(v) for n, v in first.parts.items()} == {n: float(v) for n, v in second.parts.items()}


TERMS = ["alpha", "beta", "gamma", "delta", "embeddings", "relations"]
QUICK = [*product(["classes"], TERMS[:4]), ("causal", "beta")]


@pytest.mark.parametrize("pair", one_of_each(product(KINDS, TERMS), QUICK), ids="-".join)
def test_across_tokenizers_each_term_alone_falls_below_a_tenth_on_one_batch(pair):
    kind, term = pair
    weights = Weights(**{**dict.fromkeys(ALL.weights, 0.0), term: 1.0}, temperature=1.0)
    setting = Setting(kind, weights)
    batch = collate(setting.data, range(len(setting.data)))
    units = count_units([batch])
    setting.learner.train()
    for module in setting.learner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first = float(setting.breakdown(batch, units).total.detach())
    optimizer = torch.optim.Adam(setting.learner.parameters(), lr=3e-3)
    last = first
    for _ in range(800):
        optimizer.zero_grad()
        loss = setting.breakdown(batch, units).total
        loss.backward()
        optimizer.step()
        last = min(last, float(loss.detach()))
        if last < first / 10:
            break
    assert last < first / 10, f"{term}: {first} to {last}"


def test_masking_hides_the_same_text_from_both_and_asks_for_all_of_it():
    setting = Setting("masked")
    for row in range(len(setting.data)):
        before = {name: column[row] for name, column in setting.data.columns.items()}
        after = setting.data.corrupt(before, np.random.default_rng(row))
        characters = []
        for side, asked in (("", np.array(after["targets"]) != IGNORED), (TEACHER, None)):
            if asked is None:
                asked = np.array(after[TEACHER + "input_ids"]) != np.array(before[TEACHER + "input_ids"])
            places = zip(before[side + "start"], before[side + "end"], asked, strict=True)
            characters.append({c for start, end, one in places if one for c in range(start, end)})
        asked_for, hidden_from_teacher = characters
        assert asked_for
        assert hidden_from_teacher <= asked_for
        changed = np.array(after["input_ids"]) != np.array(before["input_ids"])
        assert (np.array(after["targets"])[changed] != IGNORED).all()
        targets = np.array(after["targets"])
        assert (targets == np.array(before["input_ids"]))[targets != IGNORED].all()


def test_what_is_masked_for_the_student_is_masked_for_its_teacher():
    setting = Setting("masked")
    ours, theirs = setting.tokenizers
    seen = 0
    for row in range(len(setting.data)):
        before = {name: column[row] for name, column in setting.data.columns.items()}
        after = setting.data.corrupt(before, np.random.default_rng(row))
        batch = [np.array(after[side + "input_ids"]) for side in ("", TEACHER)]
        hidden = [
            {
                c
                for start, end, token in zip(before[side + "start"], before[side + "end"], tokens, strict=True)
                if token == tokenizer.mask_token_id
                for c in range(start, end)
            }
            for side, tokens, tokenizer in zip(("", TEACHER), batch, (ours, theirs), strict=True)
        ]
        assert {c for c in hidden[0] ^ hidden[1] if c >= 0} <= set(np.flatnonzero([t.isspace() for t in HARD_TEXTS[0]]))
        seen += len(hidden[0])
    assert seen > 20


def test_a_causal_teacher_is_asked_where_it_has_read_the_same_text():
    setting = Setting("causal")
    batch = collate(setting.data, range(len(setting.data)))
    ours, theirs = setting.tokenizers
    asked = 0
    for row, position in torch.nonzero(batch.answered).tolist():
        other = int(batch.matching.answers[row, position])
        first = ours.decode(batch.inputs["input_ids"][row, 1 : position + 1]).strip()
        second = theirs.decode(batch.other_inputs["input_ids"][row, 1 : other + 1]).strip()
        assert first == second
        asked += 1
    assert asked > 40
