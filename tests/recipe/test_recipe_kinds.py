"""Whatever a key of a recipe is given, there is a recipe or one line."""

import datetime
import math
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from kdalign.comparison.published import read_published
from kdalign.data.tasks import find_task
from kdalign.errors import UsageError, printable
from kdalign.recipe import Recipe, build_recipe, validate_recipe
from kdalign.runs.ablation_spec import build_ablation

NASTY: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "empty": "",
    "blank": " \t",
    "long": "x" * 10_000,
    "null character": "a\0b",
    "half a surrogate": "a\udc80b",
    "control": "a\x1b[31m\nb",
    "words": "some words",
    "minus": -1,
    "zero": 0,
    "half": 0.5,
    "huge": 1e300,
    "tiny": 5e-324,
    "nan": math.nan,
    "infinity": math.inf,
    "forty digits": 10**39,
    "digits": "1" * 5000,
    "number as text": "3",
    "float as text": "1e-4",
    "list": [],
    "names": {},
    "nested": [[["x"]]],
    "named": {"a": {"b": 1}},
    "by number": {1: {2: 3}},
    "nulls": [None],
    "truths": [True],
    "many": [1] * 1000,
    "bytes": b"\xff",
    "a day": datetime.date(2024, 1, 5),
    "a set": {"x"},
}


def keys(section: type[BaseModel] = Recipe, before: str = "") -> list[str]:
    """Every key of a recipe, sections too."""
    found = []
    for name, field in section.model_fields.items():
        found.append(before + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation, f"{before}{name}.")
    return found


def given(key: str, value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {"teacher": "t", "data": {"task": "sst2"}}
    at = tree
    *sections, last = key.split(".")
    for section in sections:
        at = at.setdefault(section, {})
    at[last] = value
    return tree


def outcome(make: Any) -> Any:
    """What is made, or None where it is refused in one line of moderate length."""
    try:
        return make()
    except UsageError as error:
        line = printable(str(error))  # as it is shown
        assert len(line.splitlines()) == 1, line
        assert "Traceback" not in line
        return None


@pytest.mark.parametrize("key", keys())
def test_every_key_takes_a_value_or_refuses_it_in_one_line(key):
    for value in NASTY.values():
        made = outcome(lambda value=value: validate_recipe(given(key, value)))
        if made is not None:
            assert validate_recipe(made.model_dump(mode="json")) == made
        tree = given(key, value)
        outcome(lambda tree=tree: build_recipe(None, tree))


@pytest.mark.parametrize("key", ["objective.terms.pkd", "objective.terms.pkd.weight", "objective.schedule.alpha",
                                 "objective.schedule.alpha.to", "objective.schedule.temperature.until",
                                 "multi_task.tasks.sst2", "multi_task.tasks.sst2.objective.beta"])  # fmt: skip
def test_every_key_below_a_mapping_does_so_too(key):
    for value in NASTY.values():
        outcome(lambda value=value: validate_recipe(given(key, value)))


TEXTS = [
    *(
        "",
        " ",
        "[",
        "[1,",
        "{a: ",
        "&a [*a]",
        "*b",
        "!!python/object:os.x {}",
        "2024-13-45",
        "!!binary aGk=",
        "2024-01-05",
    ),
    *("[" * 3000, "{a: " * 3000, "0x" + "f" * 5000, "1" * 5000, "'", '"', "%", "@x", "a: b: c", "{1: 2}", "!!set {a}"),
    *("{a: 1, a: 2}", "? x", "- 1", "\t", "null", "~", "yes", ".nan", "1_000", "1:30", "- - - -", "{a: !!binary aGk=}"),
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_every_assignment_gives_a_recipe_or_one_line(text):
    for key in (
        "train.lr",
        "train.seed",
        "out",
        "data.task",
        "align.map",
        "align.weights",
        "objective.terms",
        "train",
        "allow",
    ):
        outcome(lambda key=key: build_recipe(None, {"teacher": "t", "data.task": "sst2"}, [f"{key}={text}"]))


def numbers(section: type[BaseModel] = Recipe, before: str = "") -> list[tuple[str, bool]]:
    """Keys that hold a number, and whether it is a whole one."""
    found = []
    for name, field in section.model_fields.items():
        kinds = {field.annotation, *get_args(field.annotation)}
        kinds |= {inner for kind in kinds for inner in get_args(kind)}
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += numbers(field.annotation, f"{before}{name}.")
        elif {int, float} & kinds:
            found.append((before + name, int in kinds))
    return found


@pytest.mark.parametrize(("key", "whole"), numbers())
def test_a_number_is_finite_bounded_and_no_truth_and_a_whole_one_is_whole(key, whole):
    refused = [True, math.nan, math.inf, 1e300, 10**39, "x", *([0.5, "0.5x"] if whole else [])]
    for value in refused:
        with pytest.raises(UsageError, match=key.replace(".", r"\.")):
            validate_recipe(given(key, value))


def test_there_are_dozens_of_numbers():
    assert len(numbers()) > 40


@pytest.mark.parametrize(
    "key", ["objective.beta", "objective.gamma", "objective.masked_lm", "objective.hard", "objective.alpha"]
)
def test_a_weight_beyond_which_losses_are_infinite_is_refused_before_the_run(key):
    with pytest.raises(UsageError, match=r"less than or equal to 1000000"):
        validate_recipe(given(key, 1e30))
    with pytest.raises(UsageError, match="pkd"):
        validate_recipe(given("objective.terms.pkd", 1e30))


@pytest.mark.parametrize("value", [1e-300, 0, 1e-5, 1e5])
def test_a_temperature_is_between_a_ten_thousandth_and_ten_thousand(value):
    with pytest.raises(UsageError, match=r"objective\.temperature"):
        validate_recipe(given("objective.temperature", value))


@pytest.mark.parametrize(
    ("key", "value"), [("finetune_teacher", 1), ("finetune_teacher", "yes"), ("align.shared", 0.0)]
)
def test_what_is_true_or_false_is_no_number_and_no_word(key, value):
    with pytest.raises(UsageError, match="must be true or false"):
        validate_recipe(given(key, value))


@pytest.mark.parametrize("key", ["teacher", "out", "data.folder", "data.config", "revision", "align.plan"])
def test_an_empty_text_is_not_taken_for_what_is_not_given(key):
    for text in ("", " "):
        with pytest.raises(UsageError, match="is empty"):
            validate_recipe(given(key, text))


@pytest.mark.parametrize("key", ["teacher", "student", "out", "data.folder", "data.task", "align.plan", "tokenizer"])
def test_a_name_that_no_file_can_have_is_refused(key):
    for text, said in (
        ("x" * 300, "too long"),
        ("a/" * 3000, "too long"),
        ("a\0b", "character"),
        ("a\ud800", "character"),
    ):
        with pytest.raises(UsageError, match=said):
            build_recipe(None, given(key, text))
    long = f"{'x' * 200}/{'y' * 200}"
    assert build_recipe(None, given("teacher", long)).teacher == long


def test_an_assignment_without_a_key_or_a_value_is_refused():
    for words, said in (
        (["=1"], "takes section.key=value"),
        (["out="], "out= has no value"),
        (["train.lr= "], "no value"),
    ):
        with pytest.raises(UsageError, match=said):
            build_recipe(None, {"teacher": "t", "data.task": "sst2"}, words)


ABLATION = {
    "teacher": "t",
    "data": {"task": "sst2"},
    "arms": {"labels": None, "b": {"from": "soft", "objective.alpha": 1}},
    "seeds": [0, 1],
    "sweep": {"train.lr": [1e-4]},
}


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[place[0]] = changed(tree[place[0]], place[1:], value)
    return copy


@pytest.mark.parametrize("place", places(ABLATION), ids=str)
def test_an_ablation_is_made_or_refused_in_one_line_whatever_stands_at_one_place(place, tmp_path):
    import yaml

    for number, value in enumerate(
        [*NASTY.values(), {1: {}}, {"x": {"from": 3}}, {"x": {"from": "nope"}}, {None: None}]
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.dump(changed(ABLATION, place, value)), encoding="utf-8")
        outcome(lambda file=file: build_ablation(file, {}))


@pytest.mark.parametrize("arms", ["{1: {}}", "{true: {objective.beta: 0}}", "{null: {}}", "{2024-01-05: {}}"])
def test_an_arm_is_named_by_text(arms, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"teacher: t\ndata: {{task: sst2}}\narms: {arms}\n")
    with pytest.raises(UsageError, match="an arm's name is text"):
        build_ablation(file, {})


CLASSES = {"name": "mine", "columns": ["a", "b"], "label": "l", "labels": ["x", "y"], "metrics": ["accuracy"],
           "data": ".", "train": "train", "evaluation": ["dev"], "test": ["test"],
           "prompt": "{a} {b}?", "answers": ["no", "yes"]}  # fmt: skip
PAIRS = {"kind": "translation", "columns": ["en", "de"], "references": ["de"], "language": "de", "prompt": "{en}:",
         "metrics": ["bleu"], "dataset": "x", "config": "y"}  # fmt: skip
PUBLISHED = {"source": "a paper", "note": "none", "task": "sst2", "columns": {"ppl": "word_ppl"},
             "rows": [{"model": "m", "scores": {"ppl": "9.10", "cer": "10.2%"}, "note": "its own"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "read"),
    [
        (CLASSES, lambda file: find_task(str(file))),
        pytest.param(PAIRS, lambda file: find_task(str(file)), marks=pytest.mark.slow),
        (PUBLISHED, read_published),
    ],
    ids=["classes", "pairs", "published"],
)
def test_a_file_of_which_one_value_is_another_is_taken_or_refused_in_one_line(tree, read, tmp_path):
    import yaml

    taken = 0
    for number, place in enumerate(places(tree)):
        for value in NASTY.values():
            file = tmp_path / f"{number}.yaml"
            file.write_text(yaml.dump(changed(tree, place, value)), encoding="utf-8")
            taken += outcome(lambda file=file: read(file)) is not None
    assert taken > 20
    file.write_text(yaml.dump(tree))
    assert read(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a/b"}, "part of a file's name"),
        ({"name": "a\0b"}, "part of a file's name"),
        ({"name": "x" * 300}, "part of a file's name"),
        ({"name": ".."}, "part of a file's name"),
        ({"name": "a\nb"}, "part of a file's name"),
        ({"train": "../train"}, "part of a file's name"),
        ({"evaluation": ["dev", "dev"]}, "names one thing twice"),
        ({"columns": ["a", "a"]}, "names one thing twice"),
        ({"columns": ["l", "b"], "prompt": None, "answers": None}, "text and label at once"),
        ({"dataset": "x"}, "not both"),
        ({"config": "x"}, "is of a 'dataset'"),
        ({"labels": ["x", ""]}, "takes a name or a list of names"),
        ({"columns": {"a": "b"}}, "takes a name or a list of names"),
    ],
)
def test_a_task_file_of_classes_names_what_can_be(change, said, tmp_path):
    import yaml

    tree = {key: value for key, value in (CLASSES | change).items() if value is not None}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UsageError, match=said):
        find_task(str(tmp_path / "t.yaml"))


@pytest.mark.parametrize(
    "prompt", ["{en:>999999999}", "{en!r}", "{en.__class__}", "{0}", "{}", "{de}", "{", "{en:{en}}"]
)
def test_a_prompt_of_a_task_file_has_a_place_for_the_source_and_no_other(prompt, tmp_path):
    import yaml

    (tmp_path / "t.yaml").write_text(yaml.safe_dump(PAIRS | {"prompt": prompt}))
    with pytest.raises(UsageError, match="prompt"):
        find_task(str(tmp_path / "t.yaml"))


def test_a_task_files_metrics_of_texts_are_known_and_groups_stand_for_theirs(tmp_path):
    import yaml

    (tmp_path / "t.yaml").write_text(yaml.safe_dump(PAIRS | {"metrics": ["blue"]}))
    with pytest.raises(UsageError, match="did you mean 'bleu'"):
        find_task(str(tmp_path / "t.yaml"))
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(PAIRS | {"metrics": ["rouge", "cer"]}))
    assert find_task(str(tmp_path / "t.yaml")).metrics == ("rougeL", "cer")


def test_what_several_keys_of_a_section_say_is_said_without_the_whole_section():
    with pytest.raises(UsageError, match=r"^give train\.max_steps or train\.max_tokens, not both$"):
        validate_recipe({"teacher": "t", "data": {"task": "sst2"}, "train": {"max_steps": 5, "max_tokens": 5}})
    with pytest.raises(UsageError, match=r"^train\.trackers='tensorboard': must be a list, such as \[a, b\]$"):
        validate_recipe(given("train.trackers", "tensorboard"))
    with pytest.raises(UsageError, match="their sum finite"):
        validate_recipe(given("align.weights", [1e308, 1e308]))
