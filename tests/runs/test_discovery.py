"""What a table finds in folders: finished runs, evaluations where they are named, and a note on what is neither."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdalign.comparison.compare import compare
from kdalign.comparison.rows import _range
from kdalign.errors import UsageError
from kdalign.runs.discovery import discover
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import RECORD, read_record
from support.records import best, cell, evaluation, run, scores
from support.tiny import make_tokenizer


def names(table):
    return [row.name for row in table.rows]


def unfinished(path):
    RunFolder(path).begin("teacher: t\n", {}, keep=False)
    return path


@pytest.fixture
def runs(tmp_path):
    """A folder with two finished runs, an unfinished one, evaluations, and what is foreign."""
    folder = tmp_path / "runs"
    for number, name in enumerate("ab"):
        run(folder / name, "sst2", {"accuracy": 80.0 + number}, hard=1 + number)
    unfinished(folder / "c")
    (folder / "eval" / "m").mkdir(parents=True)
    evaluation(folder / "eval" / "x.json", scores(ppl=8.0))
    evaluation(folder / "eval" / "y.json", scores(ppl=9.0))
    (folder / "data" / "deep" / "deeper").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "notes.txt").write_text("x")
    return folder


def test_of_a_folder_of_runs_the_finished_ones_are_taken_and_the_rest_is_said(runs):
    table = compare([runs])
    assert names(table) == ["a", "b"]
    assert [note for note in table.notes if note.startswith("skipped")] == [
        "skipped: c (unfinished)",
        "skipped: data (no run)",
        "skipped: eval (evaluations, which are read if the folder itself is named)",
    ]


def test_a_run_that_is_named_itself_must_be_finished(runs, tmp_path):
    with pytest.raises(UsageError, match=r"'.*c' is not finished"):
        compare([runs / "c"])
    with pytest.raises(UsageError, match="no run at"):
        compare([runs / "data"])
    unfinished(tmp_path / "other" / "d")
    with pytest.raises(UsageError, match=r"no finished run at '.*other'; not finished: d"):
        compare([tmp_path / "other"])


def test_a_folder_of_evaluations_is_taken_where_it_is_named(runs):
    (runs / "eval" / "z.json").write_text("{}")
    table = compare([runs / "eval"])
    assert names(table) == ["x (validation)", "y (validation)"]
    assert table.notes[-1] == "skipped: z.json (no evaluation)"
    both = compare([runs, runs / "eval", runs / "eval" / "x.json", runs / "a"])
    assert names(both) == ["a", "b", "x (validation)", "y (validation)"], "each once"


def test_a_record_that_cannot_be_read_is_passed_over_in_a_folder_and_an_error_alone(runs):
    tree = json.loads((runs / "b" / RECORD).read_text())
    (runs / "b" / RECORD).write_text(json.dumps({**tree, "schema": 99}))
    table = compare([runs])
    assert names(table) == ["a"]
    assert any("record schema 99" in note for note in table.notes)
    with pytest.raises(UsageError, match="schema 99"):
        compare([runs / "b"])
    del tree["seal"]
    (runs / "b" / RECORD).write_text(json.dumps({**tree, "recipe": {**tree["recipe"], "surprise": 1}}))
    assert names(compare([runs])) == ["a"]


def test_one_recipe_over_tasks_is_passed_over_until_all_are_finished(tmp_path):
    group = unfinished(tmp_path / "runs" / "both")
    run(group / "sst2", "sst2", {"accuracy": 80.0})
    run(tmp_path / "runs" / "one", "sst2", {"accuracy": 81.0})
    unfinished(group / "mrpc")
    table = compare([tmp_path / "runs"])
    assert names(table) == ["one"]
    assert "skipped: both (unfinished)" in table.notes
    with pytest.raises(UsageError, match=r"mrpc.* is not finished"):
        compare([group])


def test_runs_below_folders_without_runs_are_found(tmp_path):
    run(tmp_path / "deep" / "deeper" / "a", "sst2", {"accuracy": 80.0})
    assert names(compare([tmp_path])) == ["a"]
    assert discover([tmp_path]).passed_over == {}


def retold(path, **changes):
    """Change a record's data, or its files."""
    record = read_record(path)
    RunFolder(path).write_record(replace(record, data={**record.data, **changes}))
    return path


def language_runs(tmp_path, tokenizers, metrics=("ppl", "word_ppl")):
    paths = []
    for number, tokenizer in enumerate(tokenizers):
        values = dict.fromkeys(metrics, 8.0 + number)
        path = run(tmp_path / f"r{number}", "lm", values, hard=1.0 + number)
        paths.append(retold(path, **({"tokenizer": tokenizer} if tokenizer else {})))
    return paths


def test_perplexities_a_token_do_not_rank_across_tokenizers(tmp_path):
    table = compare(language_runs(tmp_path, ["x", "y"]))
    assert best(table, "lm/ppl") == []
    assert best(table, "lm/word_ppl") == ["r0"]
    assert "lm/ppl: per token, and the rows' tokenizers differ: do not rank them; compare word_ppl" in table.notes
    assert not any(
        "tokenizers differ" in note for note in compare(language_runs(tmp_path, ["x", "y"]), ["word_ppl"]).notes
    )


def test_perplexities_a_token_rank_where_the_tokenizer_is_one(tmp_path):
    assert best(compare(language_runs(tmp_path, ["x", "x"])), "lm/ppl") == ["r0"]
    assert best(compare(language_runs(tmp_path, ["", ""])), "lm/ppl") == ["r0"], "older records do not say"


def test_older_records_tell_tokenizers_apart_by_their_files(tmp_path):
    paths = language_runs(tmp_path, ["x", ""])
    for path, text in zip(paths, "ab", strict=True):
        (path / "student").mkdir()
        (path / "student" / "tokenizer.json").write_text(text)
        RunFolder(path).write_record(read_record(path))
    assert best(compare(paths), "lm/ppl") == []
    (paths[1] / "student" / "tokenizer.json").write_text("a")
    RunFolder(paths[1]).write_record(read_record(paths[1]))
    assert best(compare(paths), "lm/ppl") == ["r0"]


def test_a_tokenizer_is_known_by_its_tokens_and_not_by_how_far_it_cuts(tmp_path):
    from transformers import AutoTokenizer

    from kdalign.data.tokenization import fingerprint

    make_tokenizer(tmp_path, "bert")
    tokenizer, other = (AutoTokenizer.from_pretrained(tmp_path) for _ in range(2))
    before = fingerprint(tokenizer)
    tokenizer(["a good film", "bad"], truncation=True, max_length=3, padding="max_length")
    assert fingerprint(tokenizer) == before == fingerprint(other)
    other.add_tokens(["splendid"])
    assert fingerprint(other) != before


def watched(path, *events):
    folder = RunFolder(path)
    for step, values in events:
        folder.append_history({"kind": "step", "step": step, "loss": 1.0})
        folder.append_history({"kind": "evaluation", "step": step, **values})
    return path


@pytest.fixture
def watched_runs(tmp_path):
    """Two seeds and another recipe, with what was seen of them while they trained."""
    group = [run(tmp_path / f"a-{seed}", "sst2", {"accuracy": 90.0}, {"accuracy": 91.0}, seed=seed) for seed in (0, 1)]
    watched(group[0], (0, {"accuracy": 50.0}), (10, {"accuracy": 85.0}), (20, {"accuracy": 80.0}))
    watched(group[1], (0, {"accuracy": 50.0}), (20, {"accuracy": 86.0}))
    other = run(tmp_path / "b", "sst2", {"accuracy": 80.0}, {"accuracy": 91.0}, alpha=0.5)
    return [*group, watched(other, (0, {"accuracy": 50.0}), (20, {"accuracy": 84.9}))]


def test_steps_to_a_score_are_the_first_evaluation_that_reached_it(watched_runs):
    key = "steps-to/sst2/accuracy=85"
    table = compare(watched_runs, steps_to=["accuracy=85"])
    assert cell(table, "a", key).value == 15, "the mean of 10 and 20"
    missed = cell(table, "b", key)
    assert (missed.value, missed.reason) == (None, "never reached, 84.9 at best")
    [column] = [column for column in table.columns if column.key == key]
    assert (column.title, column.cost, column.training) == ("steps to accuracy 85", True, True)
    assert key not in {column.key for column in compare(watched_runs).columns}
    few = compare(watched_runs, metrics=["accuracy"], steps_to=["accuracy=85"])
    assert [column.key for column in few.columns] == ["sst2/accuracy", key], "asked for, so shown"
    assert cell(compare(watched_runs, steps_to=["sst2/accuracy=50"]), "b", "steps-to/sst2/accuracy=50").value == 0


def test_a_share_is_of_what_the_run_itself_reached_last(watched_runs, tmp_path):
    key = "steps-to/sst2/accuracy=95%"
    table = compare(watched_runs, steps_to=["accuracy=95%"])
    assert cell(table, "a", key).value == 15, "76 is passed at step 10, 81.7 at step 20"
    assert cell(table, "b", key).value == 20
    [column] = [column for column in table.columns if column.key == key]
    assert column.title == "steps to 95% of last accuracy"
    falls = run(tmp_path / "falls", "sst2", {"accuracy": 80.0})
    watched(falls, (0, {"accuracy": 70.0}), (5, {"accuracy": 77.0}), (10, {"accuracy": 86.0}), (20, {"accuracy": 80.0}))
    assert cell(compare([falls], steps_to=["accuracy=95%"]), "falls", key).value == 5, "95 % of 80, not of 86"


def test_a_perplexity_is_reached_from_above(tmp_path):
    path = run(tmp_path / "a", "lm", {"ppl": 8.0})
    watched(path, (0, {"ppl": 90.0}), (5, {"ppl": 20.0}), (9, {"ppl": 9.0}))
    assert cell(compare([path], steps_to=["ppl=10"]), "a", "steps-to/lm/ppl=10").value == 9
    assert cell(compare([path], steps_to=["ppl=45%"]), "a", "steps-to/lm/ppl=45%").value == 5, "20 is 9 / 0.45"
    assert cell(compare([path], steps_to=["ppl=46%"]), "a", "steps-to/lm/ppl=46%").value == 9


def test_histories_are_read_only_where_they_are_asked_for(watched_runs, monkeypatch):
    def read(_):
        raise AssertionError("it was read")

    monkeypatch.setattr(RunFolder, "watched", property(read))
    compare(watched_runs)
    with pytest.raises(AssertionError, match="it was read"):
        compare(watched_runs, steps_to=["accuracy=85"])


def test_a_run_without_a_history_has_a_dash_and_the_reason(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 90.0})
    found = cell(compare([path], steps_to=["accuracy=85"]), "a", "steps-to/sst2/accuracy=85")
    assert (found.value, found.reason) == (None, "its history holds no such score")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("acuracy=85", "unknown metric in --steps-to 'acuracy'; did you mean 'sst2/accuracy'"),
        ("accuracy", "'accuracy' is not a number"),
        ("accuracy=high", "'high' is not a number"),
        ("accuracy=nan", "'nan' is not a number"),
        ("accuracy=inf", "'inf' is not a number"),
    ],
)
def test_a_score_to_be_reached_is_a_metric_and_a_number(watched_runs, given, said):
    with pytest.raises(UsageError, match=said):
        compare(watched_runs, steps_to=[given])


def test_flops_are_a_token_s_and_left_out_where_no_record_has_them(tmp_path):
    paths = [
        run(tmp_path / name, "sst2", {"accuracy": 90.0}, {"accuracy": 91.0}, alpha=a)
        for name, a in (("x", 0), ("y", 1))
    ]
    assert "flops" not in {column.key for column in compare(paths).columns}
    record = read_record(paths[0])
    student = replace(record.student, flops=64_000_000, tokens=64)
    RunFolder(paths[0]).write_record(replace(record, student=student))
    table = compare(paths)
    assert cell(table, "x", "flops").value == 1.0
    assert "flops" not in table.rows[2].cells
    assert any(note.startswith("FLOPs/token: of a forward pass over 64 tokens") for note in table.notes)


def test_a_record_from_before_flops_is_read(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 90.0})
    tree = json.loads((path / RECORD).read_text())
    del tree["student"]["flops"], tree["student"]["tokens"]
    (path / RECORD).write_text(json.dumps(tree))
    assert read_record(path).student.flops_per_token is None


@pytest.mark.slow
def test_each_of_two_hundred_runs_is_read_once(tmp_path):
    for number in range(200):
        values = {"accuracy": 80.0 + number / 20, "f1": 70.0}
        run(tmp_path / f"arm{number // 4}-{number % 4}", "sst2", values, seed=number % 4, hard=1 + number // 4)
    code = (
        "import sys; sys.argv = ['kdalign', 'compare', sys.argv[1]]\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "from kdalign.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "print(sum(name.endswith('record.json') for name in opened), file=sys.stderr)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.count("(4 seeds)") >= 50
    assert int(done.stderr.splitlines()[-1]) == 200


def test_rows_of_one_name_are_called_after_the_folders_that_tell_them_apart(tmp_path):
    for place, accuracy in (("one/x", 80.0), ("two/x", 82.0)):
        run(tmp_path / place / "joint", "sst2", {"accuracy": accuracy}, hard=accuracy)
        run(tmp_path / place / f"only-{place[:3]}", "sst2", {"accuracy": accuracy}, hard=1 + accuracy)
    assert names(compare([tmp_path])) == ["one/x joint", "only-one", "two/x joint", "only-two"]


def test_seeds_of_one_recipe_keep_one_name_where_another_row_has_it(tmp_path):
    for place, beta in (("a", 1.0), ("b", 2.0)):
        for seed in (0, 1):
            run(tmp_path / place / f"joint-seed{seed}", "sst2", {"accuracy": 80.0 + seed}, seed=seed, hard=beta)
    table = compare([tmp_path])
    assert names(table) == ["a joint", "b joint"]
    assert [row.seeds for row in table.rows] == [(0, 1), (0, 1)]


def test_rows_that_were_trained_for_longer_than_others_are_said(tmp_path):
    for name, steps in (("short", 4), ("long", 11)):
        run(tmp_path / name, "sst2", {"accuracy": 80.0}, hard=steps)
        folder = RunFolder(tmp_path / name)
        record = read_record(folder.path)
        folder.write_record(replace(record, training=record.training | {"steps": steps}))
    said = "budgets differ on sst2, in steps: long 11, short 4; longer training alone can make a row better"
    assert said in compare([tmp_path]).notes
    assert not [note for note in compare([tmp_path / "long"]).notes if "budgets" in note]


def test_an_interval_over_few_seeds_ends_where_the_metric_does(tmp_path):
    for seed, accuracy in enumerate((97.0, 63.0)):
        run(tmp_path / f"r-seed{seed}", "sst2", {"accuracy": accuracy}, seed=seed)
    found = cell(compare([tmp_path]), "r", "sst2/accuracy")
    assert (found.value, found.low, found.high) == (80.0, 0.0, 100.0)
    ends = {"cola/matthews": (-100.0, 100.0), "retained": (0.0, math.inf), "lm/ppl": (0.0, math.inf)}
    assert {key: _range(key, [50.0], [], []) for key in ends} == ends
    assert _range("cola/own", [-3.0, 5.0], [], []) == (-math.inf, math.inf), "a value below 0 ends no interval at 0"


def test_a_folder_of_runs_that_cannot_be_read_says_why(tmp_path):
    run(tmp_path / "runs" / "old", "sst2", {"accuracy": 80.0})
    file = tmp_path / "runs" / "old" / RECORD
    file.write_text(file.read_text().replace('"schema"', '"schame"'))
    with pytest.raises(UsageError, match=r"no run at '.*' can be read; old: "):
        compare([tmp_path / "runs"])
