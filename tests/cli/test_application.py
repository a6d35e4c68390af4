"""Whatever the words of a command line are, they are taken as they are meant or refused in one line."""

import json

import pytest

from support.tiny import one_line

EVERY = ("ablate", "card", "compare", "demo", "distill", "eval", "inspect", "map-layers", "profile")


def options(command, kind):
    import typer.main

    from kdalign.cli import app

    found = typer.main.get_command(app).commands[command].params
    return [max(one.opts, key=len) for one in found if one.param_type_name == "option" and kind(one)]


@pytest.mark.parametrize("command", EVERY)
def test_an_empty_value_is_not_taken_for_an_option_that_was_left_out(kdalign, command, tmp_path):
    for option in options(command, lambda one: not one.is_flag):
        for empty in ("", "  "):
            status, out, err = kdalign(command, option, empty)
            assert (status, out) == (2, ""), option
            assert f"{option} is empty" in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["card", "compare", "eval", "inspect", "profile"])
def test_an_empty_argument_is_refused(kdalign, command):
    status, _, err = kdalign(command, "")
    assert (status, "is empty" in one_line(err)) == (2, True)


@pytest.mark.parametrize("command", EVERY)
def test_a_name_that_no_file_can_have_is_refused_by_every_option_that_takes_one(kdalign, command, tmp_path):
    found = options(command, lambda one: one.metavar in ("FILE", "DIR"))
    for option in [*found, *(["--teacher"] if command in ("ablate", "distill", "map-layers") else [])]:
        for word, said in (("x" * 300, "too long"), ("a/" * 3000, "too long"), ("~/x", "expanded by the shell only")):
            status, _, err = kdalign(command, option, word)
            assert (status, said in one_line(err)) == (2, True), (option, err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["compare"], ["eval"], ["card"], ["inspect"], ["profile"], ["eval", "m", "--task"]], ids=" ".join
)
def test_a_model_or_task_with_such_a_name_is_refused_too(kdalign, words):
    status, _, err = kdalign(*words, "x" * 300)
    assert (status, "too long" in one_line(err)) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "m", "--task", ","], "--task ',' names no task"),
        (["eval", "m", "--task", "sst2", "--metrics", " , "], "names no metric"),
        (["compare", "r", "--metrics", ","], "names no column"),
        (["profile", "m", "--seq-len", "²"], "--seq-len '²'"),
        (["profile", "m", "--seq-len", "9" * 5000], "accepted are lengths up to"),
        (["ablate", "--teacher", "t", "--task", "sst2", "--seeds", "²"], "seeds '²'"),
        (["ablate", "--teacher", "t", "--task", "sst2", "--seeds", "9" * 5000], "seeds"),
        (["ablate", "--teacher", "t", "--task", "sst2", "--sweep", "train.lr=1,2", "--sweep", "train.lr=3"], "twice"),
        (["ablate", "--teacher", "t", "--task", "sst2", "--sweep", "train.lr=1,1"], "a value is given twice"),
        (["distill", "--teacher", "t", "--task", "sst2", "--max-steps", "9" * 20], "train.max_steps=99999"),
        (["distill", "--teacher", "t", "--task", "sst2", "--lr", "1e300"], "train.lr=1e+300"),
        (["distill", "--teacher", "t", "--task", "sst2", "--temperature", "1e-300"], "objective.temperature=1e-300"),
        (["distill", "--teacher", "t", "--task", "sst2", "--weight-decay", "1e30"], "train.weight_decay=1e+30"),
        (["distill", "--teacher", "t", "--task", "sst2", "--set", "train.max_steps=true"], "neither a number"),
        (["distill", "--teacher", "t", "--task", "sst2", "--set", "train=1"], "section"),
        (["distill", "--teacher", "t", "--task", "sst2", "--set", "align.weights.0=1"], "accepted are uniform"),
        (["distill", "--teacher", "t", "--task", "sst2", "--base-url", "u"], "--base-url is for a teacher"),
        (["distill", "--teacher", "t", "--task", "lm", "--top-logprobs", "5"], "--top-logprobs is for a teacher"),
        (["map-layers", "--teacher", "t", "--data", "d"], "give --task, too"),
        (["profile", "m", "--batch-size", "1000001"], "--batch-size"),
        (["distill", "--recipe", "/dev/zero"], "not a regular file"),
        (["distill", "--recipe", "/"], "is a folder"),
        (["ablate", "--recipe", "/dev/null"], "not a regular file"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_two(kdalign, words, said, tmp_path):
    status, out, err = kdalign(*words)
    assert (status, out) == (2, "")
    line = one_line(err)
    assert said in line
    assert len(line) <= 500
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_in_the_place_of_a_recipe_is_not_waited_for(kdalign, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for words in (
        ["distill", "--recipe", "pipe"],
        ["ablate", "--recipe", "pipe"],
        ["recipe", "dump", "--recipe", "pipe"],
    ):
        status, _, err = kdalign(*words)
        assert (status, "pipe" in one_line(err)) == (2, True)


def test_a_run_that_is_its_own_teacher_is_not_removed(kdalign, teacher, data, tmp_path):
    import shutil

    (tmp_path / "runs").mkdir()
    shutil.copytree(teacher, tmp_path / "runs/a/student")
    (tmp_path / "runs/a/kept").mkdir()
    (tmp_path / "runs/a/recipe.yaml").write_text(f"teacher: {teacher}\ndata: {{task: sst2}}\n")
    before = sorted(tmp_path.rglob("*"))
    words = ["--student", "layers=2", "--task", "sst2", "--data", data, "--overwrite", "--out", "runs/a", "--dry-run"]
    for place in ("runs/a", "runs/a/student"):
        status, _, err = kdalign("distill", "--teacher", place, *words)
        assert (status, "which --overwrite would remove" in one_line(err)) == (2, True)
    status, _, err = kdalign("distill", "--teacher", teacher, "--cache", "runs/a/kept", *words)
    assert (status, "cache.folder 'runs/a/kept' is in 'runs/a', which --ov" in one_line(err)) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora", "99999"], "--lora 99999 is more than the student's width 32"),
        (["--set", "student_revision=main"], "student_revision is for a student on the hub; 'layers=2' is cut out"),
        (["--revision", "main"], "--revision is for hub models"),
    ],
)
def test_what_only_the_models_can_tell_is_refused_by_a_dry_run(kdalign, teacher, data, more, said, tmp_path):
    words = ["distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run"]
    status, _, err = kdalign(*words, *more)
    assert (status, said in one_line(err)) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_models_of_another_family_is_refused_before_the_run(kdalign, teacher, data, tmp_path):
    kdalign("map-layers", "--teacher", teacher, "--student", "layers=2", "--out", "plan.json")
    tree = json.loads((tmp_path / "plan.json").read_text())
    words = ["distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run"]
    for change, said in (
        ({"family": "evil"}, "family of the plan's teacher"),
        ({"family": "causal"}, "a causal model as the teacher"),
        ({"tied": 1}, "teacher.tied"),
        ({"color": "red"}, "teacher.color"),
    ):
        (tmp_path / "plan.json").write_text(json.dumps(tree | {"teacher": tree["teacher"] | change}))
        status, _, err = kdalign(*words, "--plan", "plan.json")
        assert (status, said in one_line(err)) == (2, True), err


@pytest.mark.parametrize(
    "more",
    [
        *(
            ["--split", "test"],
            ["--shots", "2"],
            ["--beams", "4"],
            ["--base-url", "http://x/v1"],
            ["--max-length", "9"],
        ),
        *(["--new-tokens", "9"], ["--pseudo", "x"], ["--concurrency", "9"], ["--no-baselines"]),
    ],
)
def test_an_option_that_does_not_apply_to_a_file_of_predictions_is_refused(kdalign, more):
    status, _, err = kdalign("eval", "--predictions", "p.jsonl", *more)
    assert (status, f"{more[0]} does not apply to a file of predictions" in one_line(err)) == (2, True)


def test_scores_do_not_replace_a_file_that_holds_none(kdalign, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prediction": "a b", "reference": "a b"}\n')
    (tmp_path / "config.json").write_text("{}")
    words = ["eval", "--predictions", "p.jsonl", "--metrics", "exact_match", "--out"]
    status, _, err = kdalign(*words, "config.json")
    assert (status, "would replace what is not an evaluation" in one_line(err)) == (2, True)
    assert (tmp_path / "config.json").read_text() == "{}"
    assert kdalign(*words, "e.json")[0] == 0
    assert kdalign(*words, "e.json")[0] == 0


def test_flags_of_servers_are_refused_where_none_is_named(kdalign, teacher, data):
    for more in (["--base-url", "http://127.0.0.1:9/v1"], ["--chat"], ["--max-requests", "3"], ["--max-tokens", "3"]):
        status, _, err = kdalign("eval", teacher, "--task", "sst2", "--data", data, *more)
        assert (status, f"{more[0]} is for served models" in one_line(err)) == (2, True)


@pytest.mark.parametrize(
    "more", [["--beams", "9" * 30], ["--seed", "9" * 30], ["--limit", "9" * 30], ["--new-tokens", "9" * 30]]
)
def test_a_number_in_eval_that_cannot_be_meant_is_refused(kdalign, teacher, data, more):
    status, _, err = kdalign("eval", teacher, "--task", "sst2", "--data", data, *more)
    assert (status, "more than can be meant" in one_line(err)) == (2, True)
