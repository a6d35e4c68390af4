"""Edits and common subsequences: what sacreBLEU and rouge-score compute by tables of all pairs of words."""

import tracemalloc

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer, lcs_ind
from sacrebleu.metrics.ter import TER

from kdalign.metrics.edit_distance import MOST_CANDIDATES, CommonSubsequence, _targets, shift_words, translation_edits
from kdalign.metrics.text import score_texts
from kdalign.metrics.words import UnicodeWords
from support.covering import first_only


def texts(seed, most=40):
    """Two texts of few words, the second often the first with words changed and moved."""
    generator = np.random.default_rng(seed)
    kinds = int(generator.choice([2, 4, 12, 80]))
    first = generator.integers(0, kinds, generator.integers(0, most)).tolist()
    second = list(first) if seed % 3 else generator.integers(0, kinds, generator.integers(0, most)).tolist()
    for _ in range(int(generator.integers(0, 5))):
        if len(second) > 2:
            place, size = int(generator.integers(0, len(second))), int(generator.integers(1, 7))
            moved = second[place : place + size]
            del second[place : place + size]
            target = int(generator.integers(0, len(second) + 1))
            second[target:target] = moved
            second[int(generator.integers(0, len(second)))] = int(generator.integers(0, kinds))
    return [f"w{word}" for word in first], [f"w{word}" for word in second]


def sacrebleus_edits(words, right):
    return TER().sentence_score(" ".join(words), [" ".join(right)]).num_edits


@pytest.mark.parametrize("seed", first_only(range(60), 12))
def test_translation_edits_are_sacrebleus(seed):
    right, words = texts(seed)
    assert translation_edits(words, right) == sacrebleus_edits(words, right)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 120), (120, 3), (1, 90), (35, 60), (0, 4), (4, 0), (0, 0)])
def test_translation_edits_of_texts_of_different_lengths_are_sacrebleus(ours, theirs):
    generator = np.random.default_rng(ours)
    words = [f"w{word}" for word in generator.integers(0, 30, ours)]
    right = [f"w{word}" for word in generator.integers(0, 30, theirs)]
    assert translation_edits(words, right) == sacrebleus_edits(words, right)


def test_a_text_with_more_shifts_to_try_than_are_tried_is_scored_as_by_sacrebleu(monkeypatch):
    words = "a b c d e".split() * 8
    right = np.random.default_rng(0).permutation(words).tolist()
    tried = []
    monkeypatch.setattr(
        "kdalign.metrics.edit_distance._targets", lambda *given: tried.append(given) or _targets(*given)
    )
    assert translation_edits(words, right) == sacrebleus_edits(words, right)
    assert len(tried) > MOST_CANDIDATES / 3
    assert MOST_CANDIDATES == 1000


def test_a_shift_costs_one_edit():
    assert translation_edits("c d a b".split(), "a b c d".split()) == 1
    assert translation_edits("a b c".split(), "a x c d".split()) == 2
    assert shift_words(list("abcdef"), 0, 2, 4) == list("cdabef")
    assert shift_words(list("abcdef"), 3, 2, 1) == list("adebcf")


def moved(words, distance):
    """A text of so many words that stand so many places further on in the reference."""
    block, rest = [f"a{word}" for word in range(words)], [f"b{word}" for word in range(distance)]
    return block + rest, rest + block


@pytest.mark.parametrize(("words", "distance", "edits"), [(10, 30, 1), (11, 30, 2), (1, 50, 1), (1, 51, 2)])
def test_ten_words_are_shifted_at_once_and_by_fifty_places(words, distance, edits):
    text, right = moved(words, distance)
    assert translation_edits(text, right) == sacrebleus_edits(text, right) == edits


@pytest.mark.parametrize("beside", first_only([25, 24, 26, 23, 27]))
def test_words_further_apart_than_the_band_of_edits_is_wide_are_not_found_to_be_equal(beside):
    alike = [f"a{word}" for word in range(60)]
    text, right = ["x"] * beside + alike, alike + ["y"] * beside
    assert translation_edits(text, right) == sacrebleus_edits(text, right)


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_common_subsequence_is_rouge_scores_the_same_words_of_it(seed):
    right, words = texts(seed, 60)
    places = CommonSubsequence(words).places(right)
    assert places == lcs_ind(right, words)
    assert CommonSubsequence(words).length(right) == len(places)


@pytest.mark.parametrize("language", ["en", ""])
@pytest.mark.parametrize("name", ["rougeL", "rougeLsum", "rouge1", "rouge2"])
def test_rouge_is_rouge_scores_for_texts_of_several_lines_and_references(name, language):
    generator = np.random.default_rng(4)
    theirs = RougeScorer([name], use_stemmer=True) if language else RougeScorer([name], tokenizer=UnicodeWords())
    words = np.array(["Walking", "walks", "a", "dog", "\n", "\n\n", "the", "cat's", "Größe", "-", "runs"])
    said = [" ".join(generator.choice(words, generator.integers(0, 25))) for _ in range(60)]
    right = [
        [" ".join(generator.choice(words, generator.integers(0, 25))) for _ in range(generator.integers(1, 4))]
        for _ in said
    ]
    expected = [100 * theirs.score_multi(known, text)[name].fmeasure for text, known in zip(said, right, strict=True)]
    (score,), each = score_texts([name], said, right, language)
    assert each[name] == pytest.approx(expected, abs=1e-9)
    assert score.value == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("name", ["ter", "rougeL", "rougeLsum"])
def test_a_text_of_many_words_needs_no_table_of_all_pairs(name):
    generator = np.random.default_rng(0)
    words = [f"w{word}" for word in range(2000)]
    changed = [word if generator.random() < 0.9 else "x" for word in words]
    # A table of 4 million pairs takes more than the memory that is allowed here.
    tracemalloc.start()
    try:
        ((score,), _) = score_texts([name], [" ".join(changed)], [[" ".join(words)]], "en")
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
    share = 100 * sum(word == "x" for word in changed) / 2000
    assert score.value == pytest.approx(share if name == "ter" else 100 - share)
