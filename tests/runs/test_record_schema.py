"""A record of any shape is either read or refused in one line that names the part that is wrong."""

import copy
import json

import pytest

from kdalign.errors import UsageError
from kdalign.runs.discovery import read_evaluation
from kdalign.runs.folder import seal_of
from kdalign.runs.record import read_record
from kdalign.runs.record_schema import check_for_card, check_record, check_results
from support.records import run
from support.tiny import one_line


@pytest.fixture
def tree(tmp_path):
    return json.loads((run(tmp_path / "a", "sst2", {"accuracy": 80.0}, {"accuracy": 90.0}) / "record.json").read_text())


def put(tree, path, value):
    *places, last = path.split("/")
    for place in places:
        tree = tree[int(place) if isinstance(tree, list) else place]
    if isinstance(tree, list):
        tree[int(last)] = value
    else:
        tree[last] = value


WRONG = [
    ("scores", None),
    ("scores", []),
    ("scores", {}),
    ("scores", "accuracy"),
    ("scores/validation", None),
    ("scores/validation", []),
    ("scores/validation/student", None),
    ("scores/validation/student", []),
    ("scores/validation/student", [1]),
    ("scores/validation/student/0/value", "80.0"),
    ("scores/validation/student/0/value", True),
    ("scores/validation/student/0/n", 10.5),
    ("scores/validation/student/0/n", -1),
    ("scores/validation/student/0/unit", None),
    ("scores/validation/student/0/higher_is_better", "yes"),
    ("scores/validation/student/0/metric", ["accuracy"]),
    ("scores/validation/student/0/metric", "acuracy"),
    ("scores/validation/teacher", None),
    ("scores/validation/agreement", 90.0),
    ("scores/validation/calibration", {"other": {}}),
    ("student", None),
    ("student", "s"),
    ("student/parameters", 0),
    ("student/parameters", "1000"),
    ("student/parameters", 10**30),
    ("student/tokens", 0),
    ("student/megabytes", "4"),
    ("student/latency_ms", -1),
    ("student/source", 3),
    ("teacher", []),
    ("data", None),
    ("data", []),
    ("data/reported", None),
    ("data/reported", {}),
    ("data/reported/validation/n", "10"),
    ("data/reported/validation/fingerprint", None),
    ("data/train", 3),
    ("task", ["sst2"]),
    ("task", ""),
    ("metrics", "accuracy"),
    ("metrics", []),
    ("metrics", [1]),
    ("metrics", ["no-such-metric"]),
    ("recipe", None),
    ("recipe", {}),
    ("recipe/train/seed", "0"),
    ("recipe/train", None),
    ("training", None),
    ("training/steps", "5"),
    ("training/seconds", "x"),
    ("environment", []),
    ("environment/libraries", ["torch"]),
    ("seconds", "x"),
    ("seconds", -1.0),
    ("files", ["record.json"]),
    ("files", {"../../x": "0" * 64}),
    ("files", {"/etc/passwd": "0" * 64}),
    ("files", {"a\\..\\..\\x": "0" * 64}),
    ("files", {"recipe.yaml": "0"}),
    ("samples", {"prompt": "x"}),
    ("version", 1),
    ("created", None),
    ("schema", 2),
    ("schema", [1]),
    ("seal", 5),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_part_of_another_kind_is_refused_in_one_line(tmp_path, tree, path, value):
    put(tree, path, value)
    tree.pop("seal") if path != "seal" else None
    file = tmp_path / "a" / "record.json"
    file.write_text(json.dumps({"seal": seal_of(tree), **tree}))
    with pytest.raises(UsageError) as error:
        read_record(tmp_path / "a")
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 500
    assert str(file) in line


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_numbers_that_json_or_floats_do_not_have_are_refused(tmp_path, tree, value):
    file = tmp_path / "a" / "record.json"
    file.write_text(file.read_text().replace('"value": 80.0', f'"value": {value}'))
    with pytest.raises(UsageError, match="is not JSON"):
        read_record(tmp_path / "a")


@pytest.mark.parametrize("split", ["../../x", "a/b", "..", "a\\b", "a\0b", "n" * 300])
def test_a_splits_name_is_no_path(tree, split):
    for section in (tree["scores"], tree["data"]["reported"]):
        section[split] = section.pop("validation")
    with pytest.raises(UsageError, match="is not a name of a split"):
        check_record(tree, "x")


def test_what_an_older_record_lacks_and_a_newer_one_adds_is_no_fault(tree):
    check_record(tree, "x")
    for model in ("student", "teacher"):
        for name in ("flops", "tokens"):
            tree[model].pop(name)
    for name in ("samples", "files", "seal"):
        tree.pop(name, None)
    tree["scores"]["validation"]["student"][0] |= {"value": None, "low": None, "high": None, "reason": "constant"}
    tree["training"]["something_new"] = {"x": [1]}
    check_record(tree, "x")
    with pytest.raises(UsageError, match=r"lacks what a card says: data\.source: field required"):
        check_for_card(tree, "the record")


@pytest.mark.parametrize("command", [("compare",), ("card",), ("eval",), ("inspect",), ("compare", "--verify")])
def test_every_command_that_reads_a_record_refuses_it_in_one_line(kdalign, tmp_path, tree, command):
    tree["scores"]["validation"]["student"] = None
    (tmp_path / "a" / "record.json").write_text(json.dumps(tree))
    status, out, err = kdalign(command[0], tmp_path / "a", *command[1:])
    assert (status, out) == (2, "")
    assert "scores.validation.student: input should be a valid list, given None" in one_line(err)


def test_an_evaluation_of_another_shape_is_refused(tmp_path, tree):
    score = tree["scores"]["validation"]["student"][0]
    good = {"model": "m", "task": "sst2", "split": "test", "source": "d", "n": 3, "scores": [score], "absent": []}
    check_results([good], "x")
    for key, value in {
        "model": None, "n": "3", "scores": None, "absent": {}, "split": "../x", "task": 3, "parameters": "1",
    }.items():  # fmt: skip
        file = tmp_path / "e.json"
        file.write_text(json.dumps({"kind": "evaluation", "results": [copy.deepcopy(good) | {key: value}]}))
        with pytest.raises(UsageError, match=rf"results\.0.*{key}"):
            read_evaluation(file)
