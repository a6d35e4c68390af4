"""What a search chooses from: lists and ranges, of the command line and of a recipe file."""

import pytest

from kdalign.errors import UsageError
from kdalign.runs.ablation_spec import build_ablation
from kdalign.runs.search_space import Range, check_space, is_searched, read_space

FLAGS = {"teacher": "t", "data.task": "rte", "train.max_steps": 6}


def test_lists_and_ranges_are_read_from_a_file_and_the_command_line_wins(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "teacher: t\ndata: {task: rte}\nsearch:\n  train.lr: {low: 1e-5, high: 1e-3, log: true}\n"
        "  objective.temperature: [1, 4]\n  train.batch_size: {low: 8, high: 32}\n"
    )
    space = read_space(file, ["objective.temperature=1.5,2", "objective.beta=0.1..5", "train.warmup=0..1e-1"])
    assert space == {
        "train.lr": Range(1e-5, 1e-3, log=True),
        "objective.temperature": (1.5, 2),
        "train.batch_size": Range(8, 32),
        "objective.beta": Range(0.1, 5),
        "train.warmup": Range(0, 0.1),
    }
    assert [key for key, values in space.items() if isinstance(values, Range) and values.whole] == ["train.batch_size"]
    assert read_space(None, ["train.lr=1e-5..1e-3,log"])["train.lr"] == space["train.lr"]
    assert read_space(None, ["student=../a,../b"]) == {"student": ("../a", "../b")}
    check_space(build_ablation(file, {}, arms="joint"), space)


@pytest.mark.parametrize(
    ("searches", "said"),
    [
        (["train.lr"], r"--search takes KEY=VALUE,VALUE or KEY=LOW\.\.HIGH\[,log\], such as .*; given 'train\.lr'"),
        (["train.lr=1e-5..1e-3,lg"], r"or KEY=LOW\.\.HIGH\[,log\], such as .*; given 'train\.lr=1e-5\.\.1e-3,lg'"),
        (["train.lr=1e-5 .. 1e-3"], r"or KEY=LOW\.\.HIGH\[,log\], such as .*; given 'train\.lr=1e-5 \.\. 1e-3'"),
        (
            ["train.lr=a..b"],
            r"search of train\.lr: the ends of 'a\.\.b' are not numbers; --search takes KEY=VALUE,VALUE or",
        ),
        (["train.lr=1e-3"], r"search of train\.lr: one value leaves nothing to choose; --set train\.lr=0\.001"),
        (["train.lr=1e-3..1e-5"], r"search of train\.lr: a range goes from a number to a larger one; given 0\.001 to"),
        (["train.lr=0..1e-3,log"], "a range with log begins above 0"),
        (["train.lr=1e-3", "train.lr=1e-4"], r"--search train\.lr is given twice: put its values together"),
        (["train.lr=1e-3,0.001"], "a value is given twice"),
        (["train.seed=1,2"], r"--search train\.seed: every run of an ablation has its own"),
    ],
)
def test_what_is_no_space_is_refused(searches, said):
    with pytest.raises(UsageError, match=said):
        read_space(None, searches)


@pytest.mark.parametrize(
    "given", ["[1", "5", "{low: 1}", "{low: 1, high: 2, step: 1}", "{low: a, high: 2}", "[]", "[1]"]
)
def test_a_file_says_what_is_accepted(tmp_path, given):
    file = tmp_path / "a.yaml"
    file.write_text(f"teacher: t\nsearch:\n  train.lr: {given}\n")
    with pytest.raises(UsageError):
        read_space(file, ())


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("train.lrr=1,2", "arm 'soft': unknown recipe key 'train.lrr'"),
        ("train.warmup=0.1..1.5", r"arm 'soft': .*warmup"),
        ("train.batch_size=8..32.5", r"arm 'soft': .*batch_size"),
    ],
)
def test_keys_and_ends_that_no_run_could_have_are_refused_before_any_run(search, said):
    with pytest.raises(UsageError, match=said):
        check_space(build_ablation(None, FLAGS, arms="soft"), read_space(None, [search]))


def test_numbers_of_a_range_have_three_digits_and_stay_within_it():
    rates = Range(1.234e-5, 9.876e-4, log=True)
    assert rates.rounded(5.4321e-5) == 5.43e-5
    assert (rates.rounded(1.2341e-5), rates.rounded(9.8759e-4)) == (1.234e-5, 9.876e-4)
    assert Range(8, 32).rounded(17) == 17
    assert 5e-5 in rates
    assert 1 not in rates
    assert 8.5 not in Range(8, 32)


def test_a_searched_key_that_an_arm_is_defined_without_is_not_given_to_it():
    ablation = build_ablation(None, FLAGS, arms="labels,soft,align,joint")
    searched = {
        key: [arm for arm in ablation.arms if is_searched(ablation, arm, key)]
        for key in ("objective.alpha", "objective.relations", "objective.temperature", "train.lr")
    }
    assert searched == {
        "objective.alpha": ["soft", "joint"],
        "objective.relations": [],
        "objective.temperature": ["soft", "align", "joint"],
        "train.lr": ["labels", "soft", "align", "joint"],
    }


@pytest.mark.parametrize(
    ("sweep", "key"), [("train.lr=1e-3,1e-6", "train.lr"), ("objective.alpha=1,2", "objective.alpha")]
)
def test_a_key_by_which_an_arm_is_defined_is_not_searched(sweep, key):
    ablation = build_ablation(None, FLAGS, arms="soft", sweeps=[sweep])
    with pytest.raises(UsageError, match=rf"is defined by {key}=.*, which a search would replace"):
        check_space(ablation, {key: (0.5, 0.25)})
