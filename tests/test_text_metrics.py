"""Metrics of texts: what sacreBLEU, rouge-score and jiwer print for the same files, and numbers worked by hand."""

import csv
import json
import re
import subprocess
import sys
from importlib import import_module
from itertools import zip_longest

import numpy as np
import pandas as pd
import pytest
from conftest import one_line, sentences

from kdalign.errors import UsageError
from kdalign.text_metrics import TEXT_METRICS, UnicodeWords, mean_of, score_texts, text_metric

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
        ((ours,), _) = score_texts([name], HYPOTHESES, REFERENCES)
        assert ours.value == pytest.approx(theirs["score"], abs=1e-9)
        assert ours.signature == f"sacreBLEU {theirs['signature']}"


def test_the_program_rouge_gives_the_same_numbers_line_by_line(files):
    run("rouge_score.rouge", "--target_filepattern", files / "ref.txt", "--prediction_filepattern", files / "hyp.txt",
        "--output_filename", files / "out.csv", "--use_stemmer=true", "--aggregate=false",
        "--rouge_types=rouge1,rouge2,rougeL,rougeLsum")  # fmt: skip
    rows = list(csv.DictReader((files / "out.csv").read_text().splitlines()))
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        ((score,), each) = score_texts([name], HYPOTHESES, REFERENCES)
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
    ((ours,), _) = score_texts([name], HYPOTHESES, SOME)
    assert ours.value == pytest.approx(expected, abs=1e-9)
    assert ours.signature == f"sacreBLEU {theirs.get_signature()}"
    assert "nrefs:var" in ours.signature


@pytest.mark.parametrize("name", SACREBLEU)
def test_each_rows_own_value_is_sacrebleus_of_that_sentence_with_its_references_alone(name):
    expected = [sacrebleu(name).sentence_score(text, known).score for text, known in zip(HYPOTHESES, SOME, strict=True)]
    _, each = score_texts([name], HYPOTHESES, SOME)
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
    ((score,), _) = score_texts(["bleu"], predictions, references)
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
    ((score,), _) = score_texts([name], HYPOTHESES, REFERENCES)
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
        "from kdalign.text_metrics import mean_of\n"
        "length = mean_of('length', lambda text, references: len(text.split()), 'words')\n"
    )
    ((score,), each) = score_texts([f"{place}:length"], ["a b", "c"], [["x"], ["y"]])
    assert (score.metric, score.value, score.unit) == ("length", 1.5, "words")
    assert each["length"].tolist() == [2, 1]
    place.write_text("length = 3\n")
    with pytest.raises(UsageError, match="is no TextMetric"):
        text_metric(f"{place}:length")
    assert mean_of("x", lambda text, references: 0.0).higher_is_better


# From a file alone


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
