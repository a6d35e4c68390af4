"""`kdalign eval --suite`: tasks and rows of a file become one table, and what was scored is not scored again."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from support.family_setting import model, tokenizer
from support.tiny import one_line, sentences

SUITE = {
    "tasks": {
        "reviews": {"task": "lm", "data": "texts", "max_length": 32, "metrics": "word_ppl,cer", "limit": 8},
        "german": {
            **{"task": "translation:en-de", "data": "pairs", "max_length": 64},
            **{"metrics": ["bleu"], "new_tokens": 8, "limit": 6},
        },
    },
    "rows": {"GPT-like": "./llama", "BERT-like": {"reviews": "./bert"}},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, family in (("bert", "masked"), ("llama", "causal")):
        model(kind).save_pretrained(tmp_path / kind)
        tokenizer(family).save_pretrained(tmp_path / kind)
    for number, split in enumerate(("train", "validation")):
        text = sentences(16, number)[0]
        for folder, columns in (("texts", {"text": text}), ("pairs", {"en": text, "de": text[::-1]})):
            (tmp_path / folder).mkdir(exist_ok=True)
            pd.DataFrame(columns).to_parquet(tmp_path / folder / f"{split}.parquet")
    write(tmp_path, SUITE)
    return tmp_path


def write(folder, tree):
    (folder / "table.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def by_row(out):
    return {
        (result["row"], result["task"], score["metric"]): score["value"]
        for result in json.loads(out)
        for score in result["scores"]
    }


def test_a_suite_has_the_scores_of_an_evaluation_of_each_task(kdalign, place):
    status, out, err = kdalign("eval", "--suite", "table.yaml", "--json")
    assert status == 0, err
    found = by_row(out)
    words = ("--task", "lm", "--data", "texts", "--max-length", 32, "--metrics", "word_ppl,cer", "--limit", 8)
    alone = json.loads(kdalign("eval", "./llama", "./bert", *words, "--json", "--out", "alone.json")[1])
    expected = {
        (row, "reviews", score["metric"]): score["value"]
        for row, result in zip(("GPT-like", "BERT-like", "copy", "unigram"), alone, strict=True)
        for score in result["scores"]
    }
    assert {key: value for key, value in found.items() if key[1] == "reviews"} == expected
    words = ("--task", "translation:en-de", "--data", "pairs", "--max-length", 64, "--metrics", "bleu", "--limit", 6)
    (first, *_) = json.loads(kdalign("eval", "./llama", *words, "--new-tokens", 8, "--json", "--out", "b.json")[1])
    assert found["GPT-like", "german", "bleu"] == first["scores"][0]["value"]
    assert ("BERT-like", "german", "bleu") not in found


def test_a_suite_s_table_has_a_row_for_each_row_and_the_published_ones_below(kdalign, place):
    reference = {
        **{"source": "a paper", "columns": {"ppl": "reviews/word_ppl"}},
        **{"rows": [{"model": "GPT-3", "scores": {"ppl": 7.85, "bleu": 37.8}}]},
    }
    (place / "paper.yaml").write_text(yaml.safe_dump(reference))
    words = ("--reference", "paper.yaml", "--format", "csv", "--out", "out/table.json")
    status, out, err = kdalign("eval", "--suite", "table.yaml", *words)
    assert status == 0, err
    table = pd.read_csv(pd.io.common.StringIO(out), comment="#", dtype=str)
    assert list(table["model"]) == ["GPT-like", "BERT-like", "copy", "unigram", "GPT-3"]
    bleu = next(column for column in table.columns if column == "german/bleu")
    assert list(table[bleu].isna()) == [False, True, False, False, False]
    assert table[bleu].iloc[-1] == "37.8"
    assert kdalign("compare", "out/table.json", "--reference", "paper.yaml", "--format", "csv")[1] == out
    _, out, _ = kdalign("compare", "out/table.json", "--format", "markdown")
    assert out.count("GPT-like: ./llama\n") == 1
    assert "german: GPT-like writes: greedy, at most 8 new tokens" in out
    assert "in german bleu of BERT-like: not evaluated on german" in out


def test_after_a_stop_only_models_whose_weights_changed_are_scored_again(kdalign, place):
    assert kdalign("eval", "--suite", "table.yaml")[0] == 0
    assert "scored before" not in kdalign("eval", "--suite", "table.yaml")[2]  # it was finished
    first = by_row(json.dumps(json.loads((place / "runs/eval/table.json").read_text())["results"]))
    (place / "runs/eval/table.json").unlink()
    status, out, err = kdalign("eval", "--suite", "table.yaml", "--json")
    assert (status, by_row(out)) == (0, first)
    assert ("reviews: scored before" in err, "german: scored before" in err, "scoring " in err) == (True, True, False)
    net = model("bert", seed=5)
    net.save_pretrained(place / "bert")
    (place / "runs/eval/table.json").unlink()
    status, out, err = kdalign("eval", "--suite", "table.yaml", "--json")
    again = by_row(out)
    assert ("reviews: scored before" in err, "german: scored before" in err) == (False, True)
    assert [key for key in first if again[key] != first[key]] == [
        ("BERT-like", "reviews", "word_ppl"),
        ("BERT-like", "reviews", "cer"),
    ]


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CHANGES = {
    "a configuration": lambda place: change_json(place / "llama/config.json", rms_norm_eps=0.5),
    "a tokenizer": lambda place: change_json(place / "llama/tokenizer_config.json", eos_token="a"),
    "a prompt": lambda place: (place / "mine.yaml").write_text((place / "mine.yaml").read_text().replace("In", "To")),
    "the texts of a baseline": lambda place: shutil.copy(
        place / "pairs/validation.parquet", place / "pairs/train.parquet"
    ),
    "kept answers": lambda place: next((place / "runs/eval/table/german").glob("llama*")).unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_after_a_stop_whatever_decides_a_score_is_noticed(kdalign, place, what):
    (place / "mine.yaml").write_text('kind: translation\ncolumns: [en, de]\nprompt: "In German: {en}"\n')
    task = {"task": "mine.yaml", "data": "pairs", "max_length": 64, "metrics": "chrf", "new_tokens": 8, "limit": 4}
    write(place, {"tasks": {"german": task}, "rows": {"llama": "./llama"}})

    def is_known():
        status, _, err = kdalign("eval", "--suite", "table.yaml")
        assert status == 0, err
        (place / "runs/eval/table.json").unlink()
        return "german: scored before" in err

    assert [is_known(), is_known()] == [False, True]
    CHANGES[what](place)
    assert [is_known(), is_known()] == [False, True]


def test_a_row_called_like_a_baseline_is_a_row_of_its_own(kdalign, place):
    write(place, {**SUITE, "rows": {"unigram": "./llama"}})
    status, out, err = kdalign("eval", "--suite", "table.yaml", "--format", "csv")
    assert status == 0, err
    rows = pd.read_csv(pd.io.common.StringIO(out), comment="#")
    results = json.loads((place / "runs/eval/table.json").read_text())["results"]
    bleu = {
        one["kind"]: one["scores"][0]["value"] for one in results if one["row"] == "unigram" and one["task"] == "german"
    }
    assert list(rows["model"]) == ["unigram", "copy", "unigram"]
    assert list(rows["german/bleu"])[::2] == pytest.approx([bleu["model"], bleu["baseline"]])


def test_rows_of_one_name_in_two_suites_are_not_merged(kdalign, place):
    for name, folder in (("one", "./llama"), ("two", "./bert")):
        write(place, {"tasks": {"reviews": SUITE["tasks"]["reviews"]}, "rows": {"ours": folder}, "baselines": False})
        assert kdalign("eval", "--suite", "table.yaml", "--out", f"{name}.json")[0] == 0
    _, out, _ = kdalign("compare", "one.json", "two.json", "--format", "csv")
    table = pd.read_csv(pd.io.common.StringIO(out), comment="#")
    expected = [
        json.loads((place / f"{name}.json").read_text())["results"][0]["scores"][1]["value"] for name in ("one", "two")
    ]
    assert list(table["reviews/cer"]) == pytest.approx(expected)


def test_models_that_differ_by_task_have_no_one_size(kdalign, place):
    rows = {"ours": {"reviews": "./bert", "german": "./llama"}}
    write(place, {**SUITE, "rows": rows, "baselines": False})
    _, out, _ = kdalign("eval", "--suite", "table.yaml", "--format", "markdown")
    assert "ours: ./bert on reviews" in out
    assert "ours, size: no value, several models: 0.0 M parameters on reviews" in out
    assert "unigram" not in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": {}}, "unknown key in suite 'table.yaml': 'task'; did you mean 'tasks'?"),
        ({"tasks": {}}, "needs 'tasks', names with settings"),
        ({"tasks": {"a/b": {"task": "lm"}}}, "'a/b' is no name"),
        ({"tasks": {"reviews": {"data": "texts"}}}, "task 'reviews' needs 'task', such as lm or a task file"),
        ({"tasks": {"reviews": {"task": "lm", "metric": "cer"}}}, "'metric'; did you mean 'metrics'?"),
        ({"tasks": {"reviews": {"task": "lm", "limit": 0}}}, "'limit' takes a whole number of at least 1; given 0"),
        ({"tasks": {"reviews": {"task": "lm", "limit": True}}}, "'limit' takes a whole number of at least 1"),
        ({"tasks": {"reviews": {"task": "lm", "metrics": "cerr"}}}, "task 'reviews': unknown metric 'cerr'"),
        ({"tasks": {"reviews": {"task": "lm", "data": "gone"}}}, "no data folder 'gone'"),
        ({"rows": {"ours": {"revews": "./bert"}}}, "'revews'; did you mean 'reviews'?"),
        ({"rows": {"ours": 5}}, "row 'ours' takes a model, or tasks with a model each; given 5"),
        ({"rows": {"a": "./llama", "b": "./llama"}}, "rows 'a' and 'b' have one model for task 'reviews': './llama'"),
        ({"rows": {"ours": {"reviews": "./bert"}}}, "no row has a model for task 'german'"),
        ({"rows": {"ours": "./gone"}}, "task 'reviews': model './gone' does not exist"),
        (
            {"tasks": dict.fromkeys(["de en", "de-en"], SUITE["tasks"]["german"])},
            "'de en' and 'de-en' would share a file",
        ),
        ({"baselines": "no"}, "'baselines' takes true or false; given 'no'"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_and_nothing_is_written(kdalign, place, change, said):
    write(place, {**SUITE, **change})
    status, _, err = kdalign("eval", "--suite", "table.yaml")
    assert (status, said in one_line(err)) == (2, True), err
    assert not (place / "runs").exists()


def test_options_that_a_suite_gives_itself_are_refused(kdalign, place):
    status, _, err = kdalign("eval", "--suite", "table.yaml", "--task", "lm")
    assert (status, "--task does not apply to a suite" in one_line(err)) == (2, True)
    status, _, err = kdalign("eval", "./bert", "--suite", "table.yaml")
    assert (status, "does not apply to a suite" in one_line(err)) == (2, True)
    status, _, err = kdalign("eval", "--suite", "tabel.yaml")
    assert (status, "tabel.yaml" in one_line(err)) == (2, True)
