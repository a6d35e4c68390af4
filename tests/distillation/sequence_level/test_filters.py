"""Filters of generated answers: expressions, measures by hand, the best of several, and duplicates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.distillation.sequence_level.filters import (
    NAMES,
    AnswerFilter,
    FilterCandidate,
    parse_filters,
    select_answers,
)
from kdalign.errors import UsageError


def candidate(text, row=0, draw=0, ended=True, **changes):
    given = {"prompt": f"prompt {row}", "source": "a b c d", "references": ("the cat sat",), **changes}
    return FilterCandidate(row, draw, text=text, ended=ended, **given)


def kept(*candidates, **settings):
    return [one.text for one in select_answers(candidates, **settings).kept]


def test_an_expression_is_a_name_a_sign_and_a_number():
    filters, ended = parse_filters(["rougeL>=30", " words < 6.5", "ratio<=2"])
    assert filters == (
        AnswerFilter("rougeL", ">=", 30),
        AnswerFilter("words", "<", 6.5),
        AnswerFilter("ratio", "<=", 2),
    )
    assert ended
    assert str(filters[1]) == "words<6.5"
    assert parse_filters(["any-end"]) == ((), False)
    assert parse_filters(["ended"]) == ((), True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rougel>=30"], r"unknown name in --keep: 'rougel'; did you mean 'rougeL'\? \(accepted: bleu, chrf, .*words"),
        (["langage=de"], r"unknown name in --keep: 'langage'; did you mean 'language'\? \(accepted: bleu.*any-end"),
        (["language"], r"--keep 'language': give language=CODE, such as language=de"),
        (["language>=de"], r"--keep 'language>=de': give language=CODE"),
        (
            ["language=deu"],
            r"--keep language=deu: 'deu' is not a language that py3langid knows \(accepted: its 140 ISO 639 codes",
        ),
        (["language=de", "language=DE"], r"--keep language=de is given twice"),
        (["words=6"], r"--keep 'words=6': give NAME>=NUMBER, or <=, > or <, such as words>=30"),
        (["words"], r"--keep 'words': give NAME>=NUMBER"),
        (["end"], r"unknown name in --keep: 'end'; did you mean 'ended'"),
        (["words>=many"], r"--keep 'words>=many': 'many' is not a number"),
        (["words>=inf"], r"'inf' is not a number"),
        (["words>=nan"], r"'nan' is not a number"),
        (["ended", "any-end"], r"exclude each other"),
        (["words>=3", "words>=3"], r"--keep words>=3 is given twice"),
    ],
)
def test_a_wrong_expression_gets_one_line_with_what_is_accepted(words, said):
    with pytest.raises(UsageError, match=said) as error:
        parse_filters(words)
    assert "\n" not in str(error.value)


def test_empty_answers_and_those_whose_tokens_ran_out_are_dropped_and_counted():
    answers = [candidate("a"), candidate(" \n"), candidate("b", ended=False), candidate("c", ended=None)]
    selection = select_answers(answers)
    assert [one.text for one in selection.kept] == ["a", "c"]
    assert selection.dropped == (("empty", 1), ("not ended", 1), ("duplicate", 0))
    assert selection.unknown_ends == 1
    assert kept(*answers, keep=["any-end"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        # The reference is "the cat sat", the source has four words.
        ("words<=2", ["the cat"]),
        ("words>2", ["the cat sat", "a dog, it ran far"]),
        ("characters<=7", ["the cat"]),
        ("ratio<=1", ["the cat", "the cat sat"]),
        ("ratio<1", ["the cat"]),
        ("source_ratio>1", ["a dog, it ran far"]),
        # ROUGE-L of "the cat": 2 * 1 * (2 / 3) / (5 / 3) = 80 %.
        ("rougeL>=80", ["the cat", "the cat sat"]),
        ("rougeL>80.001", ["the cat sat"]),
        ("exact_match>=100", ["the cat sat"]),
        # WER of "the cat": one of three words is missing.
        ("wer<=33.4", ["the cat", "the cat sat"]),
        ("wer<33.3", ["the cat sat"]),
    ],
)
def test_a_measure_by_hand(expression, left):
    assert kept(*map(candidate, ("the cat", "the cat sat", "a dog, it ran far")), keep=[expression]) == left


def test_the_bleu_of_a_short_text_is_of_the_n_grams_that_it_has():
    # Two of two words and one of one pair, with a brevity penalty of exp(1 - 3/2) = 0.6065.
    assert kept(candidate("the cat"), keep=["bleu>=60.6"]) == ["the cat"]
    assert kept(candidate("the cat"), candidate("x"), keep=["bleu>60.7"]) == []


def test_words_of_scripts_without_spaces_are_letters():
    answers = [candidate("我喜欢猫", references=("我爱猫",))]
    assert kept(*answers, keep=["words>=4", "ratio>1.3", "ratio<1.4"]) == ["我喜欢猫"]


def test_each_filter_counts_what_earlier_ones_left():
    answers = [candidate("the cat", row) for row in range(3)] + [candidate("no", 3), candidate("the cat sat", 4)]
    selection = select_answers(answers, ["rougeL>50", "words<3"])
    assert selection.dropped == (
        ("empty", 0), ("not ended", 0), ("not rougeL>50", 1), ("not words<3", 1), ("duplicate", 0),
    )  # fmt: skip


def test_the_best_of_each_row_is_kept_and_of_equal_ones_the_first():
    answers = [candidate(text, row, draw) for row in (0, 1) for draw, text in enumerate(("x", "the cat", "the sat"))]
    assert [(one.row, one.draw) for one in select_answers(answers, best_of="rougeL").kept] == [(0, 1), (1, 1)]
    assert [one.draw for one in select_answers(answers, best_of="wer").kept] == [1, 1]  # the lower, the better
    assert select_answers(answers, best_of="rougeL").dropped[2] == ("not the best by rougeL", 4)


def test_of_two_rows_with_one_prompt_the_answer_that_passes_is_kept_once():
    same = {"prompt": "p"}
    answers = [
        candidate("the cat sat", 0, references=("a dog",), **same),
        candidate("the cat sat", 1, **same),
        candidate("the cat sat", 2, **same),
    ]
    assert [one.row for one in select_answers(answers, ["rougeL>=50"]).kept] == [1]


ANSWERS = st.lists(
    st.builds(
        candidate,
        st.sampled_from(["", " ", "the cat", "the cat sat", "a dog", "sat the cat on"]),
        row=st.integers(0, 3),
        draw=st.integers(0, 2),
        ended=st.sampled_from([True, False, None]),
    ),
    max_size=12,
)
BOUNDS = st.builds(
    lambda name, sign, bound: f"{name}{sign}{bound}",
    st.sampled_from(NAMES),
    st.sampled_from([">=", "<=", ">", "<"]),
    st.integers(0, 100),
)


@given(ANSWERS, st.lists(BOUNDS, max_size=2, unique=True), st.sampled_from([None, "chrf", "wer"]))
def test_every_answer_is_kept_or_counted_once_and_selecting_again_changes_nothing(answers, keep, best):
    selection = select_answers(answers, keep, best)
    assert len(selection.kept) + sum(count for _, count in selection.dropped) == len(answers)
    assert all(count >= 0 for _, count in selection.dropped)
    assert len({(one.prompt, one.text) for one in selection.kept}) == len(selection.kept)
    assert all(one.text.strip() and one.ended is not False for one in selection.kept)
    assert select_answers(selection.kept, keep, best).kept == selection.kept


@given(ANSWERS, st.sampled_from(NAMES), st.integers(0, 100))
def test_a_bound_and_its_opposite_share_out_the_answers_that_have_a_measure(answers, name, bound):
    everything = select_answers(answers).kept
    sides = [select_answers(everything, [f"{name}{sign}{bound}"]).kept for sign in (">=", "<")]
    assert not set(sides[0]) & set(sides[1])
    assert set(sides[0]) | set(sides[1]) == set(everything)


def test_answers_in_another_language_are_dropped_and_those_without_a_letter():
    german, english = "Zwei Männer sind im Freien in der Nähe vieler Büsche.", "Two men are outside near many bushes."
    answers = [
        candidate(text, row) for row, text in enumerate((german, english, "12 + 3", "Ein Hund läuft im Schnee."))
    ]
    selected = select_answers(answers, keep=["language=de"], language="en")  # the metrics' language is another matter
    assert [one.row for one in selected.kept] == [0, 3]
    assert ("not language=de", 2) in selected.dropped
    assert kept(*answers, keep=["language==en"]) == [english]


def test_a_language_needs_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--keep language=de needs a package: pip install 'kdalign\[languages\]'"):
        parse_filters(["language=de"])


def spoken(answer, transcript, row):
    return candidate(answer, row, references=(transcript,))


def test_transcripts_are_kept_by_their_word_error_rate_after_whispers_normaliser():
    answers = [
        spoken("THE CAT, sat!", "the cat sat", 0),  # equal but for case and marks
        spoken("the cat", "the cat sat", 1),  # one of three words is missing
        spoken("a dog sat down", "The cat sat.", 2),  # two are others, and one is added: 3 of 3
        spoken("hello", "[noise]", 3),  # brackets are no words, so the rate is undefined
    ]
    selection = select_answers(answers, ["wer_normalized<=33.4"])
    assert [one.row for one in selection.kept] == [0, 1]
    assert ("not wer_normalized<=33.4", 2) in selection.dropped
    assert selection.measures["wer_normalized"] == {
        "by": selection.measures["wer_normalized"]["by"],
        "undefined": 1,
        "mean": pytest.approx(100 * (0 + 1 / 3 + 1) / 3),
        "median": pytest.approx(100 / 3),
        "ninetieth": pytest.approx(100 * (1 / 3 + 0.8 * 2 / 3)),  # a fifth below the greatest of three
        "corpus": pytest.approx(100 * (0 + 1 + 3 + 1) / 9),
        "corpus_kept": pytest.approx(100 * (0 + 1) / 6),
    }
    assert kept(*answers, keep=["wer_normalized<=100"]) == ["THE CAT, sat!", "the cat", "a dog sat down"]


def test_a_transcript_at_the_bound_is_kept():
    assert kept(spoken("a b c d", "a b c x", 0), keep=["wer_normalized<=25"]) == ["a b c d"]
    assert kept(spoken("a b c d", "a b c x", 0), keep=["wer_normalized<=24.999"]) == []
    words, wrong = " ".join(["word"] * 100), " ".join(["word"] * 93 + ["other"] * 7)
    assert 100 * (7 / 100) > 7
    assert kept(spoken(wrong, words, 0), keep=["wer_normalized<=7"]) == [wrong]
    assert kept(spoken(wrong, words, 0), keep=["wer_normalized>7"]) == []


def test_the_normaliser_is_that_of_the_language_and_named():
    numbers = [spoken("It's twenty five.", "it is 25", 0)]
    [english, basic] = [select_answers(numbers, ["wer_normalized<=999"], language=code) for code in ("en-GB", "")]
    assert english.measures["wer_normalized"]["corpus"] == 0
    assert english.measures["wer_normalized"]["by"].endswith("edits over words, whisper's english normaliser")
    assert basic.measures["wer_normalized"]["corpus"] == 100  # it s twenty five / it is 25: two others and one more
    assert basic.measures["wer_normalized"]["by"].endswith("whisper's basic normaliser, marks kept")
