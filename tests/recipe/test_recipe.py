"""A recipe is one thing however it is given: what wins, what is refused, and that its dump is itself."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdalign.errors import UsageError
from kdalign.recipe import ARMS, ObjectiveWeights, Recipe, build_recipe, load_recipe, term_weights, validate_recipe
from support.tiny import one_line

NEEDED = {"teacher": "some/teacher", "data.task": "sst2"}


@pytest.fixture
def file(tmp_path):
    """Write a recipe file and return its path."""

    def write(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def line_of(error: pytest.ExceptionInfo[UsageError]) -> str:
    line = str(error.value)
    assert "\n" not in line, "an error is one line"
    return line


def test_the_file_of_an_ablation_is_named_as_such(file):
    with pytest.raises(UsageError) as error:
        build_recipe(file("teacher: a\ndata: {task: cola}\nseeds: 2\narms: {soft: , joint: }\n"), {"train.lr": 0.1})
    line = line_of(error)
    assert "recipe.yaml' is an ablation's file (it holds arms, seeds), which kdalign ablate reads, and" in line
    assert "a copy without arms, seeds and with the keys of one arm" in line


def test_a_flag_wins_over_the_file_and_set_wins_over_both(file):
    path = file("teacher: in-file\ntrain: {lr: 0.1, seed: 1, warmup: 0.5}\ndata: {task: cola}\n")
    flags = {"train.lr": 0.2, "train.seed": 2, "data.task": "sst2"}
    recipe = build_recipe(path, flags, ["train.lr=0.3"])
    assert (recipe.train.lr, recipe.train.seed, recipe.train.warmup) == (0.3, 2, 0.5)
    assert (recipe.teacher, recipe.data.task) == ("in-file", ("sst2",))


def test_a_flag_of_none_is_not_given(file):
    path = file("teacher: in-file\ntrain: {lr: 0.1}\ndata: {task: cola}\n")
    assert build_recipe(path, {"train.lr": None}).train.lr == 0.1


def test_the_last_of_two_assignments_wins():
    assert build_recipe(None, NEEDED, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_an_assignment_of_null_takes_a_value_of_the_file_away(file):
    path = file("teacher: t\ndata: {task: cola, limit: 10}\n")
    assert build_recipe(path, {}, ["data.limit=null"]).data.limit is None


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", " 1e-4"])
def test_every_way_to_write_a_ten_thousandth_is_the_number(text, file):
    assert build_recipe(None, NEEDED, [f"train.lr={text}"]).train.lr == 1e-4
    assert build_recipe(file(f"train:\n  lr: {text}\n"), NEEDED).train.lr == 1e-4


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("align.map=1:3", "align", "map", "1:3"),  # YAML 1.1 reads 63
        ("align.map=0:1 1:3", "align", "map", "0:1 1:3"),
        ("align.map='1:3'", "align", "map", "1:3"),
        ("init=5", None, "init", "5"),
        ("out=2024-01-05", None, "out", "2024-01-05"),
        ("out=2024-13-45", None, "out", "2024-13-45"),  # a date that does not exist
        ("out=1e5", None, "out", "1e5"),
        ("data.config=no", "data", "config", "no"),
    ],
)
def test_an_assignment_to_text_keeps_the_text(assignment, section, key, value):
    recipe = build_recipe(None, NEEDED, [assignment])
    assert getattr(getattr(recipe, section) if section else recipe, key) == value


def test_lists_can_be_assigned():
    recipe = build_recipe(None, NEEDED, ["align.weights=[1, 2, 1e-1]", "data.task=[rte, cola]"])
    assert recipe.align.weights == (1.0, 2.0, 0.1)
    assert recipe.data.task == ("rte", "cola")


def test_tasks_are_separated_by_commas():
    assert build_recipe(None, {**NEEDED, "data.task": "sst2, cola"}).data.task == ("sst2", "cola")


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [
        ("train.lrr=1", "train.lr"),
        ("train.bach_size=1", "train.batch_size"),
        ("objective.temprature=2", "objective.temperature"),
        ("techer=x", "teacher"),
        ("lr=1e-4", "train.lr"),
        ("objective.epochs=2", "train.epochs"),
        ("trian.lr=1", "train"),
        ("bach_size=1", "train.batch_size"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(assignment, nearest):
    with pytest.raises(UsageError, match="unknown recipe key") as error:
        build_recipe(None, NEEDED, [assignment])
    assert f"did you mean {nearest!r}" in line_of(error)


def test_an_unknown_key_in_the_file_is_refused_with_its_section(file):
    with pytest.raises(UsageError, match=r"unknown recipe key 'train\.epoch'; did you mean 'train\.epochs'"):
        load_recipe(file("teacher: t\ndata: {task: sst2}\ntrain: {epoch: 3}\n"))


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.lr=-1", r"^train\.lr=-1: must be greater than 0$"),
        ("train.lr=fast", r"train\.lr='fast'"),
        ("train.lr=nan", "finite"),
        ("train.epochs=inf", "finite"),
        ("train.clip=.inf", "finite"),
        ("train.batch_size=0", r"train\.batch_size=0"),
        ("train.batch_size=2.5", r"train\.batch_size=2\.5"),
        ("train.batch_tokens=127", r"^train\.batch_tokens=127 is less than one row, data\.max_length=128$"),
        ("train.warmup=1", r"train\.warmup=1"),
        ("train.scheduler=square", "'linear', 'cosine' or 'constant'"),
        ("train.seed=-1", r"train\.seed=-1"),
        ("train.holdout=0.5", r"train\.holdout"),
        ("data.max_length=7", r"data\.max_length=7"),
        ("data.limit=0", r"data\.limit=0"),
        ("objective.temperature=0", r"objective\.temperature=0"),
        ("objective.alpha=-0.1", r"objective\.alpha=-0\.1"),
        ("align.weights=[1, -1]", "must not be negative"),
        ("align.weights=[0, 0]", "one must be above 0"),
        ("align.weights=[.inf, 1]", "finite"),
        ("align.weights=[.nan, 1]", "finite"),
        ("data.task=", r"data\.task"),
        ("data.task='sst2,'", "name at least one task"),
        ("train=3", "'train' is a section"),
        ("train.lr.x=3", r"train\.lr"),
        ("train.lr", "--set takes section.key=value"),
    ],
)
def test_a_value_that_is_not_accepted_gives_one_line_that_names_it(assignment, said):
    with pytest.raises(UsageError, match=said) as error:
        build_recipe(None, NEEDED, [assignment])
    assert line_of(error)


@pytest.mark.parametrize(("missing", "flag"), [("teacher", "--teacher"), ("data.task", "--task")])
def test_what_is_missing_is_named_by_its_flag(missing, flag):
    with pytest.raises(UsageError, match=f"missing {flag}") as error:
        build_recipe(None, {key: value for key, value in NEEDED.items() if key != missing})
    assert line_of(error)


def test_all_weights_at_zero_leave_nothing_to_learn_from():
    zeros = [f"objective.{name}=0" for name in ("hard", "alpha", "beta", "gamma", "delta")]
    with pytest.raises(UsageError, match="nothing to learn from") as error:
        build_recipe(None, NEEDED, zeros)
    assert line_of(error)
    for one in range(5):
        assert build_recipe(None, NEEDED, [*zeros[:one], *zeros[one + 1 :]])


def test_only_hard_labels_need_no_teacher():
    zeros = [f"objective.{name}=0" for name in ("alpha", "beta", "gamma", "delta")]
    assert not build_recipe(None, NEEDED, zeros).objective.needs_teacher
    for one in range(4):
        assert build_recipe(None, NEEDED, [*zeros[:one], *zeros[one + 1 :]]).objective.needs_teacher


@pytest.mark.parametrize("tasks", ["sst2,sst2", "sst2, cola ,sst2"])
def test_a_task_named_twice_is_refused(tasks):
    with pytest.raises(UsageError, match="named twice"):
        build_recipe(None, {**NEEDED, "data.task": tasks})


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: 1\nteacher: [",
        "a: b: c\n  d\n - e",
        "teacher: 'open\nand open\n",
        "\tteacher: x",
        "when: 2024-13-45",
        "- one\n- two\n",
        "",
        "just words",
        "teacher: t\ntrain:\n",
        "teacher: t\ndata: {task: sst2}\ntrain: 3\n",
        "3: x\nteacher: t\n",
        'teacher: "a\\nb"\nout: [1]\ndata: {task: sst2}\n',
    ],
)
def test_a_file_that_is_no_recipe_gives_one_line(text, file):
    with pytest.raises(UsageError) as error:
        load_recipe(file(text))
    assert line_of(error)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml.*No such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match="cannot read recipe"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match=r"binary\.yaml"):
        load_recipe(tmp_path / "binary.yaml")


def test_a_recipe_cannot_be_changed_in_place():
    recipe = build_recipe(None, NEEDED)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.teacher = "other"
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.lr = 1.0


def test_a_copy_with_changes_leaves_the_original_and_is_validated():
    recipe = build_recipe(None, NEEDED)
    assert recipe.with_changes(out="there").out == "there"
    assert recipe.out is None
    with pytest.raises(ValidationError):
        recipe.with_changes(train={"lr": -1})


def test_the_dump_shows_every_key(file):
    dumped = yaml.safe_load(build_recipe(None, NEEDED).dump())
    assert set(dumped) == set(Recipe.model_fields)
    for name, field in Recipe.model_fields.items():
        if isinstance(dumped[name], dict):
            assert set(dumped[name]) == set(field.annotation.model_fields)


def test_every_value_by_its_dotted_key_can_be_assigned_back():
    recipe = build_recipe(None, NEEDED, ["align.weights=[1, 3]", "train.trackers=[tensorboard]"])
    flat = recipe.flat()
    assert flat["train.lr"] == recipe.train.lr
    assert flat["teacher"] == "some/teacher"
    assert build_recipe(None, flat) == recipe


words = st.text(
    st.characters(codec="utf-8", exclude_characters=",", exclude_categories=("Cc", "Cs", "Zl", "Zp")),
    min_size=1,
    max_size=12,
).filter(lambda text: text == text.strip() and text != "")
numbers = st.floats(1e-30, 1e30)


@given(
    teacher=words,
    tasks=st.lists(words, min_size=1, max_size=3, unique=True),
    out=st.none() | words,
    init=words | st.sampled_from(["1:3", "5", "1e5", "no", "null", "2024-01-05", "0x10", "~", "1_000"]),
    lr=numbers,
    temperature=st.floats(1e-4, 1e4),
    weights=st.none() | st.lists(numbers, min_size=1, max_size=4),
    seed=st.integers(0, 2**31 - 1),
    limit=st.none() | st.integers(1, 10**9),
)
def test_a_dump_loads_as_the_same_recipe(
    tmp_path_factory, teacher, tasks, out, init, lr, temperature, weights, seed, limit
):
    recipe = Recipe.model_validate(
        {
            "teacher": teacher,
            "out": out,
            "init": init,
            "data": {"task": tasks, "limit": limit},
            "align": {"weights": weights},
            "objective": {"temperature": temperature},
            "train": {"lr": lr, "seed": seed},
        }
    )
    file = tmp_path_factory.getbasetemp() / "dump.yaml"
    file.write_text(recipe.dump(), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_the_stages_of_a_recipe_align_first_and_answer_then():
    objective = ObjectiveWeights(hard=1, alpha=0.5, beta=2, align_first=0.25)
    (first, aligning), (then, answering) = objective.stages
    assert (first, then) == (0.0, 0.25)
    assert {key: weight for key, weight in aligning.weights.items() if weight} == {"beta": 2, "gamma": 1, "delta": 1}
    assert {key: weight for key, weight in answering.weights.items() if weight} == {"hard": 1, "alpha": 0.5}
    assert ObjectiveWeights().stages == ((0.0, ObjectiveWeights()),)


@pytest.mark.parametrize(
    "weights", [{"hard": 0, "alpha": 0}, {"beta": 0, "gamma": 0, "delta": 0}], ids=["no answers", "no layers"]
)
def test_a_stage_without_anything_to_learn_is_refused(weights):
    with pytest.raises(UsageError, match="align_first needs one of"):
        validate_recipe({"teacher": "t", "data": {"task": "sst2"}, "objective": {**weights, "align_first": 0.5}})


def test_every_shipped_arm_fits_every_kind_of_labelled_task():
    for arm, changes in ARMS.items():
        for task in ("sst2", "stsb", "lm"):
            recipe = validate_recipe({"teacher": "t", "data": {"task": task}, "objective": dict(changes)})
            assert recipe.objective.needs_teacher == (arm != "labels")


def test_terms_are_named_one_by_one_and_keep_their_options(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("objective: {terms: {info-nce: {weight: 1, queue: 8}, cka: 2}}\n")
    flags = {"teacher": "t", "data.task": "sst2", "objective.terms": term_weights(["own.py:Loss=0.5", "info-nce=3"])}
    terms = build_recipe(file, flags).objective.terms
    assert terms == {"info-nce": {"weight": 3, "queue": 8}, "cka": {"weight": 2}, "own.py:Loss": {"weight": 0.5}}
    assert build_recipe(file, flags, ["objective.terms.cka=4"]).objective.terms["cka"] == {"weight": 4}


@pytest.mark.parametrize("word", ["pkd", "pkd=", "=1", "pkd=much", "pkd=-1", "pkd=nan"])
def test_a_term_is_a_name_and_a_number(kdalign, word):
    for command in ("distill", "ablate"):
        status, _, errors = kdalign(command, "--term", word)
        assert (status, "--term takes NAME=WEIGHT" in one_line(errors)) == (2, True)
    with pytest.raises(UsageError, match="'pkd' is given twice"):
        term_weights(["pkd=1", "pkd=2"])


def test_a_term_named_by_its_weight_takes_an_option_by_its_key():
    recipe = build_recipe(None, {**NEEDED, "objective.terms": {"info-nce": 0.5}}, ["objective.terms.info-nce.queue=8"])
    assert recipe.objective.terms["info-nce"] == {"weight": 0.5, "queue": 8}


@pytest.mark.parametrize("preset", ["tinybert", "minilm", "minilmv2"])
def test_the_shipped_arms_go_with_presets_that_have_stages(preset):
    for name, changes in ARMS.items():
        tree = {"preset": preset, "objective": dict(changes), "teacher": "t", "data": {"task": "sst2"}}
        weights = validate_recipe(tree).objective
        if name == "labels":
            assert (weights.hard, weights.needs_teacher, len(weights.stages)) == (1, False, 1)


def test_every_public_name_of_the_package_is_loaded_on_first_use_and_is_no_module():
    import types

    import kdalign.recipe

    found = {name: getattr(kdalign.recipe, name) for name in kdalign.recipe.__all__}
    assert [name for name, value in found.items() if isinstance(value, types.ModuleType)] == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("optimizer_state", "8bit", "give fp32 or bf16"), ("device", "mps", "several ranks, which mps does not have")],
)
def test_what_ranks_that_share_a_model_cannot_do_is_refused(key, value, said):
    with pytest.raises(UsageError) as error:
        build_recipe(None, {**NEEDED, "train.sharding": "fsdp2", f"train.{key}": value})
    assert said in line_of(error)
