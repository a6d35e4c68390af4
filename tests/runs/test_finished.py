"""What finished runs left beside their scores, and the command that makes one again."""

import json
import shlex
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kdalign.data.tasks import find_task, load_examples
from kdalign.errors import UsageError
from kdalign.metrics.classification import METRICS, reliability_bins
from kdalign.recipe import Recipe, build_recipe
from kdalign.recipe.command import distill_command
from kdalign.recipe.flags import OPTION_OF
from kdalign.report.plots.comparisons import pareto_front
from kdalign.runs.curves import _events, _last_distance, read_curves
from kdalign.runs.disagreements import find_disagreements, read_answers
from kdalign.runs.finished import finished_runs
from kdalign.runs.folder import RunFolder, seal_of
from kdalign.runs.record import read_record
from support.records import run


def only(path):
    [found] = finished_runs([path])
    return found


def test_runs_are_found_once_and_named_with_their_parent_where_a_name_is_there_twice(tmp_path):
    for path in ("x/same", "y/same", "x/other"):
        run(tmp_path / path, "sst2", {"accuracy": 80.0})
    found = finished_runs([tmp_path, tmp_path / "x" / "same", tmp_path / "x" / "other" / "record.json"])
    assert [each.name for each in found] == ["other", "x/same", "y/same"]


def test_runs_that_differ_by_seed_alone_are_of_one_group(tmp_path):
    for name, changes in {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"beta": 0.5}}.items():
        run(tmp_path / name, "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, **changes)
    a, b, c = finished_runs([tmp_path])
    assert a.group == b.group != c.group


def test_shares_are_weights_times_terms_in_per_cent_of_the_loss(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, hard=0.5, alpha=1.0, beta=2.0)
    for step, parts in enumerate(({"hard": 2.0, "cosine encoder": 1.5}, {"hard": 1.0, "cosine encoder": 0.0}), 1):
        event = {"kind": "step", "step": step, "parts": parts, "loss": 4.0, "gradient_norm": step / 2}
        RunFolder(path).append_history(event)
        RunFolder(path).append_history({"kind": "evaluation", "step": step, "accuracy": 50.0})
    found = read_curves(only(path))
    assert found.weights == {"hard": 0.5, "cosine encoder": 2.0}
    assert found.units == {"hard": "nats", "cosine encoder": "1 − cosine"}
    assert found.shares["hard"].tolist() == [25, 100]
    assert found.shares["cosine encoder"].tolist() == [75, 0]
    assert found.gradient_norm.tolist() == [0.5, 1.0]


def test_a_term_that_a_stage_is_without_has_no_share_in_it(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, hard=1.0, beta=2.0)
    for step, parts in enumerate(({"cosine": 0.5}, {"hard": 3.0}), 1):
        event = {"kind": "step", "step": step, "parts": parts, "loss": 1.0, "gradient_norm": 1.0}
        RunFolder(path).append_history(event)
    shares = read_curves(only(path)).shares
    assert (shares["cosine"].tolist(), shares["hard"].tolist()) == ([100, 0], [0, 100])


def test_the_path_of_a_users_term_may_have_blanks(tmp_path):
    name = "my losses/own.py:Gap"
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}, terms={name: 0.5, "pkd": 10})
    parts = {f"{name} encoder": 1.0, "pkd encoder": 2.0}
    event = {"kind": "step", "step": 1, "parts": parts, "loss": 4.0, "gradient_norm": 1.0}
    RunFolder(path).append_history(event)
    found = read_curves(only(path))
    assert found.weights == {f"{name} encoder": 0.5, "pkd encoder": 10}
    assert found.units == {f"{name} encoder": "own unit", "pkd encoder": "squared distance"}


def test_a_run_without_history_has_no_curves_and_one_without_answers_none(tmp_path):
    found = only(run(tmp_path / "a", "sst2", {"accuracy": 80.0}))
    assert read_curves(found) is None
    assert read_answers(found) is None
    assert find_disagreements(found) is None


def answered(path, student, teacher, labels, teachers_logits=True):
    """Keep answers to two classes as a run does; logits are those of the positive class, the other's are 0."""
    student, teacher = np.array(student), np.array(teacher)
    table = {
        "prediction": (student > 0).astype(int),
        "label": labels,
        "teacher": (teacher > 0).astype(int),
        "logit/negative": 0.0 * student,
        "logit/positive": student,
    }
    if teachers_logits:
        table |= {"teacher_logit/negative": 0.0 * teacher, "teacher_logit/positive": teacher}
    file = RunFolder(path).predictions("validation")
    file.parent.mkdir()
    pd.DataFrame(table).to_parquet(file)
    record = read_record(path)
    reported = {"validation": record.data["reported"]["validation"] | {"n": len(labels)}}
    RunFolder(path).write_record(replace(record, data=record.data | {"reported": reported}))


def test_the_examples_on_which_they_differ_most_are_those_whose_probabilities_lie_farthest_apart(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    ln3 = float(np.log(3))  # a logit of ln 3 is a probability of 3/4
    answered(path, [ln3, -1.0, ln3, 0.1], [-ln3, -9.0, -0.1, 0.2], [0, 0, 1, 1])
    found = find_disagreements(only(path))
    assert (found.differ, found.n) == (2, 4)
    assert [each.row for each in found.examples] == [0, 2]
    first = found.examples[0]
    assert (first.student, first.teacher, first.label) == ("positive", "negative", "negative")
    assert (first.distance, first.confidence, first.teacher_confidence) == pytest.approx((0.5, 0.75, 0.75))
    assert first.texts == ()  # the run names no data folder


def test_without_the_teachers_logits_the_student_s_confidence_decides(tmp_path):
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    answered(path, [0.1, 3.0, -2.0], [-1.0, -1.0, 1.0], [0, 0, 1], teachers_logits=False)
    found = find_disagreements(only(path), most=2)
    assert [each.row for each in found.examples] == [1, 2]
    assert found.examples[0].teacher_confidence is None
    assert read_answers(only(path)).teacher_logits is None


def with_data(path, folder, fingerprint):
    """Let a run's record say that it was scored on this folder's validation split."""
    file = path / "record.json"
    tree = json.loads(file.read_text())
    tree["recipe"]["data"]["folder"] = str(folder)
    tree["data"]["reported"]["validation"] = {"n": 64, "fingerprint": fingerprint}
    file.write_text(json.dumps({**tree, "seal": seal_of(tree)}))


def test_texts_are_shown_only_if_the_data_is_still_the_very_same(tmp_path, data):
    examples = load_examples(find_task("sst2", str(data)), "validation")
    path = run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0})
    answered(path, [-1.0] * 63 + [1.0], [-1.0] * 64, examples.labels)
    with_data(path, data, examples.fingerprint())
    assert find_disagreements(only(path)).examples[0].texts == (examples.texts[0][63],)
    with_data(path, data, "0" * 16)
    assert find_disagreements(only(path)).examples[0].texts == ()
    with_data(path, tmp_path / "gone", examples.fingerprint())
    assert find_disagreements(only(path)).examples[0].texts == ()


def test_no_row_of_the_front_is_beaten_and_every_other_row_is():
    cost = np.array([3.0, 1.0, 2.0, 2.0, 4.0])
    quality = np.array([80.0, 70.0, 75.0, 78.0, 79.0])
    assert pareto_front(cost, quality) == [1, 3, 0]


def test_reliability_bins_have_their_examples_accuracy_and_confidence():
    logits = np.log([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9], [0.02, 0.98]])  # the bins up to 11/15, 14/15 and 15/15
    found = reliability_bins(logits, np.array([0, 1, 1, 0]))
    assert np.flatnonzero(found.counts).tolist() == [10, 13, 14]
    assert found.accuracy[[10, 13, 14]].tolist() == [0.5, 1.0, 0.0]
    assert found.confidence[[10, 13, 14]].tolist() == pytest.approx([0.7, 0.9, 0.98])
    by_hand = 100 * (2 * 0.2 + 0.1 + 0.98) / 4
    assert found.error == pytest.approx(by_hand)
    assert METRICS["ece"].compute(logits, np.array([0, 1, 1, 0])) == pytest.approx(by_hand)


RECIPES = (
    {"teacher": "./t", "data": {"task": "sst2"}},
    {
        "teacher": "./a teacher's",
        "student": "layers=3,width=192",
        "data": {"task": "cola,mrpc", "folder": "my data"},
        "objective": {"beta": 0.0, "delta": 0.25, "relations": 1.0},
        "align": {"map": "0:1 1:3", "weights": (0.5, 0.5)},
        "train": {"lr": 1e-5, "trackers": ("tensorboard",), "max_steps": 20, "seed": 3},
        "allow": ("memory", "disk"),
        "finetune_teacher": False,
        "finetune": {"epochs": 1.0},
        "out": "runs/one",
    },
    {
        "teacher": "none",
        "student": "new:gpt2,layers=2,width=64",
        "tokenizer": "train:400",
        "data": {"task": "lm", "max_length": 64},
        "train": {"batch_tokens": 2048, "batch_size": 7, "max_tokens": 10000, "dropout": 0.0},
    },
    {"teacher": "t", "data": {"task": "embedding"}, "align": {"map": "$(rm -r x)"}, "revision": "1e5"},
)


@pytest.mark.parametrize("tree", RECIPES)
def test_the_command_makes_the_same_recipe_again(tree, monkeypatch):
    from kdalign.cli import main

    recipe = Recipe.model_validate(tree)
    given = []
    monkeypatch.setattr("kdalign.cli.distill._distill", lambda wanted, *_: given.append(wanted))
    monkeypatch.setattr("kdalign.data.tasks.check_named", lambda *_: None)
    monkeypatch.setattr(sys, "argv", shlex.split(distill_command(recipe)))
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert given == [recipe]


def test_the_command_leaves_defaults_out_and_knows_only_keys_that_are_there():
    assert distill_command(build_recipe(None, {"teacher": "t", "data.task": "sst2", "train.lr": 0.001})) == (
        "kdalign distill --teacher t --student layers=half --task sst2 --lr 0.001"
    )
    assert set(OPTION_OF) <= set(Recipe.model_validate(RECIPES[0]).flat())


def test_of_a_long_history_every_so_many_th_step_is_taken_and_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("kdalign.runs.curves.MOST_EVENTS", 10)
    file = tmp_path / "history.jsonl"
    rows = [
        {"kind": "step", "step": n, "parts": {"hard": 1.0}, "loss": 1.0, "gradient_norm": 1.0} for n in range(1, 46)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "step", "st')
    events, every = _events(file, "step", ("parts", "weights"), ("loss", "gradient_norm"))
    assert every == 8
    assert [event["step"] for event in events] == [1, 9, 17, 25, 33, 41, 45]


@pytest.mark.parametrize(
    "row", ['{"kind": "step"}', '{"kind": "step", "step": 1, "parts": {"hard": "1"}, "loss": 1, "gradient_norm": 1}']
)
def test_a_history_of_another_shape_is_refused_with_its_line(tmp_path, row):
    (tmp_path / "history.jsonl").write_text(f'5\n{{"kind": "evaluation"}}\n{row}\n')
    with pytest.raises(UsageError, match="line 3: not an event"):
        _events(tmp_path / "history.jsonl", "step", ("parts", "weights"), ("loss", "gradient_norm"))


def test_a_history_says_how_far_apart_its_last_rows_are():
    thinned = [*range(1, 10_001), *range(10_010, 12_001, 10)]
    assert _last_distance(range(1, 10_001), 1) == 1
    assert _last_distance(range(1, 12_001), 1) == 1, "an older version wrote every row"
    assert _last_distance(thinned, 1) == 10
    assert _last_distance([*thinned, 12_003], 1) == 10, "with the row of an alarm"
    assert _last_distance(thinned[::2], 2) == 20
    assert _last_distance(range(7, 9_000, 7), 1) == 1, "of several tasks"
    assert _last_distance([5], 1) == 1
