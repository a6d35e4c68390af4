"""The plan: which layer learns from which, by hand for every fixed map, and what a plan refuses."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdalign.alignment.plan import LayerMap, Plan, ProjectionShape, read_plan
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.errors import UsageError
from kdalign.models.architecture import Architecture, Layer
from kdalign.models.layer_selection import STRATEGIES, choose_layers
from support.shapes import pairs_of, shape


def layer(number: int) -> Layer:
    return Layer("encoder", number)


@pytest.mark.parametrize(
    ("choice", "student", "teacher", "layers"),
    [
        ("uniform", 3, 6, (1, 3, 5)),
        ("first", 3, 6, (0, 1, 2)),
        ("last", 3, 6, (3, 4, 5)),
        ("skip", 3, 6, (0, 2, 4)),
        ("spread", 3, 6, (0, 3, 5)),
        ("uniform", 4, 12, (2, 5, 8, 11)),
        ("first", 4, 12, (0, 1, 2, 3)),
        ("last", 4, 12, (8, 9, 10, 11)),
        ("skip", 4, 12, (0, 3, 6, 9)),
        ("spread", 4, 12, (0, 4, 7, 11)),  # 0, 11/3, 22/3, 11
        ("uniform", 1, 6, (5,)),
        ("first", 1, 6, (0,)),
        ("last", 1, 6, (5,)),
        ("skip", 1, 6, (0,)),
        ("spread", 1, 6, (5,)),
        ("uniform", 4, 6, (1, 2, 4, 5)),  # 1.5, 3, 4.5, 6 round to 2, 3, 5, 6: a half goes up
        ("spread", 3, 4, (0, 2, 3)),  # 1.5 rounds to 2
        ("skip", 4, 6, (0, 1, 3, 4)),
        ("uniform", 6, 12, (1, 3, 5, 7, 9, 11)),
        ("1 3 5", 3, 6, (1, 3, 5)),
        ("5, 0,5", 3, 6, (5, 0, 5)),
    ],
)
def test_a_choice_of_layers_by_hand(choice, student, teacher, layers):
    assert choose_layers(choice, student, teacher) == layers


depths = st.integers(1, 60).flatmap(lambda teacher: st.tuples(st.integers(1, teacher), st.just(teacher)))


@given(depths, st.sampled_from(sorted(STRATEGIES)))
def test_a_fixed_map_rises_and_stays_inside_the_teacher(depth, choice):
    student, teacher = depth
    layers = choose_layers(choice, student, teacher)
    assert len(layers) == student
    assert all(0 <= layer < teacher for layer in layers)
    assert all(lower < upper for lower, upper in pairwise(layers))


@given(depths)
def test_uniform_last_and_spread_end_on_the_last_layer(depth):
    student, teacher = depth
    for choice in ("uniform", "last", "spread"):
        assert choose_layers(choice, student, teacher)[-1] == teacher - 1


@given(depths)
def test_first_skip_and_spread_begin_on_the_first_layer(depth):
    student, teacher = depth
    for choice in ("first", "skip", "spread"):
        if choice != "spread" or student > 1:
            assert choose_layers(choice, student, teacher)[0] == 0


@given(st.integers(1, 40), st.sampled_from(sorted(STRATEGIES)))
def test_every_fixed_map_of_equal_depths_is_layer_by_layer(layers, choice):
    assert choose_layers(choice, layers, layers) == tuple(range(layers))


@pytest.mark.parametrize("choice", [*sorted(STRATEGIES), "0 1 2 3 4 5 6"])
def test_a_student_deeper_than_its_teacher_is_refused(choice):
    with pytest.raises(UsageError, match="7 layers has more than its teacher's 6"):
        choose_layers(choice, 7, 6)
    with pytest.raises(UsageError, match="7 layers has more than its teacher's 6"):
        propose(shape(6), shape(7), choice)


def test_a_student_deeper_than_its_teacher_has_by_default_the_layers_of_the_same_depth():
    plan = propose(shape(3), shape(6))
    assert plan.maps[0].pairs == ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("unifrom", "did you mean 'uniform'.*accepted: uniform, first, last, skip, spread"),
        ("1 3", "2 are named for a student of 3 layers"),
        ("1 3 6", "layers 0 to 5, not 6"),
        ("-1 3 5", "unknown choice of layers"),
        ("1;3;5", "unknown choice of layers"),
        ("", "unknown choice of layers"),
    ],
)
def test_a_choice_that_is_none_says_what_is_accepted(choice, said):
    with pytest.raises(UsageError, match=said):
        choose_layers(choice, 3, 6)


@pytest.mark.parametrize("text", ["0:1 1:3 2:5", "0:1,1:3,2:5", " 0:1, 1:3  2:5 "])
def test_pairs_are_written_student_colon_teacher(text):
    assert pairs_of(propose(shape(6), shape(3), text)) == [(0, 1), (1, 3), (2, 5)]


def test_pairs_may_leave_layers_out_and_repeat_them():
    assert pairs_of(propose(shape(6), shape(3), "2:5 2:4 0:5")) == [(2, 5), (2, 4), (0, 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:6", r"teacher layer 6; its encoder has layers 0 to 5"),
        ("3:0", r"student layer 3; its encoder has layers 0 to 2"),
        ("0:1 0:1", "none twice"),
        ("0:1 1", "pairs are written STUDENT:TEACHER"),
        ("0:-1", "pairs are written STUDENT:TEACHER"),
        ("0:a", "pairs are written STUDENT:TEACHER"),
        (":", "pairs are written STUDENT:TEACHER"),
        ("0:1:2", "pairs are written STUDENT:TEACHER"),
    ],
)
def test_pairs_that_are_none_or_out_of_range_are_refused(text, said):
    with pytest.raises(UsageError, match=said):
        propose(shape(6), shape(3), text)


def test_auto_takes_the_layers_that_the_student_was_cut_from():
    plan = propose(shape(6), shape(3), "auto", cut_from={"encoder": (0, 2, 4)})
    assert pairs_of(plan) == [(0, 0), (1, 2), (2, 4)]
    assert "cut from" in plan.chosen


def test_auto_without_a_cut_is_uniform():
    plan = propose(shape(6), shape(3))
    assert pairs_of(plan) == [(0, 1), (1, 3), (2, 5)]
    assert plan.chosen == "uniform"


def test_a_named_map_wins_over_the_cut():
    assert pairs_of(propose(shape(6), shape(3), "last", cut_from={"encoder": (0, 2, 4)})) == [(0, 3), (1, 4), (2, 5)]


def test_weights_are_equal_when_left_out_and_scaled_to_one_when_given():
    equal = propose(shape(6), shape(3)).maps[0].weights
    assert equal == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert propose(shape(6), shape(3), options=PlanOptions(weights=(1, 2, 5))).maps[0].weights == pytest.approx(
        (0.125, 0.25, 0.625)
    )
    assert [weight for _, _, weight in propose(shape(6), shape(3), options=PlanOptions(weights=(0, 0, 4))).pairs] == [
        0,
        0,
        1,
    ]


@given(st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3).filter(lambda given: sum(given) > 1e-6))
def test_weights_of_any_scale_sum_to_one(weights):
    scaled = propose(shape(6), shape(3), options=PlanOptions(weights=weights)).maps[0].weights
    assert sum(scaled) == pytest.approx(1)
    assert all(a * sum(weights) == pytest.approx(b, abs=1e-9) for a, b in zip(scaled, weights, strict=True))


@pytest.mark.parametrize(
    "weights", [(1, 2), (0, 0, 0), (2, -1, 1), (-1, -1, -1), (float("inf"), 1, 1), (float("nan"), 1, 1)]
)
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UsageError, match="weights lambda_l"):
        propose(shape(6), shape(3), options=PlanOptions(weights=weights))


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0), (1.0,)])
def test_a_map_whose_weights_do_not_sum_to_one_cannot_be_made(weights):
    with pytest.raises(UsageError, match="weights lambda_l"):
        LayerMap("encoder", "encoder", ((0, 0), (1, 1)), weights)


def test_equal_widths_need_no_projection():
    assert propose(shape(6, 32), shape(3, 32)).projections == ()


def test_unequal_widths_get_one_projection_a_pair():
    plan = propose(shape(6, 48), shape(3, 32))
    assert plan.projections == (
        ProjectionShape(layer(0), layer(1), 32, 48),
        ProjectionShape(layer(1), layer(3), 32, 48),
        ProjectionShape(layer(2), layer(5), 32, 48),
    )
    assert [projection.parameters for projection in plan.projections] == [1536] * 3


def test_a_layer_learning_from_two_has_a_projection_for_each():
    plan = propose(shape(6, 48), shape(3, 32), "0:1 0:2")
    assert [(shape.student.number, shape.teacher.number) for shape in plan.projections] == [(0, 1), (0, 2)]


def test_a_plan_survives_json_and_a_file(tmp_path):
    plan = propose(shape(6, 48), shape(3, 32, heads=2, model_type="distilbert"), options=PlanOptions(weights=(1, 2, 4)))
    plan = plan.with_statistics(
        {"variance/encoder.1": 0.1 + 0.2, "variance/encoder.3": 1e-6, "variance/encoder.5": 3.0}
    )
    assert Plan.from_json(plan.to_json()) == plan
    (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    read = read_plan(tmp_path / "plan.json")
    assert read == plan
    assert read.variance(layer(1)) == 0.1 + 0.2
    read.fits(plan.teacher, plan.student)


def test_a_plan_is_calibrated_once_every_mapped_teacher_layer_has_its_variance():
    plan = propose(shape(6), shape(3))
    assert not plan.calibrated
    assert not plan.with_statistics({"variance/encoder.1": 1.0, "variance/encoder.3": 1.0}).calibrated
    assert plan.with_statistics({f"variance/encoder.{number}": 1.0 for number in (1, 3, 5)}).calibrated


@pytest.mark.parametrize(
    ("teacher", "student", "said"),
    [
        (shape(12), shape(3), r"for the teacher bert \(encoder 6 x 32, 4 heads\), but the teacher is .*12 x 32"),
        (shape(6), shape(2), "student.*3 x 32.*2 x 32"),
        (shape(6, heads=2), shape(3), "teacher.*4 heads.*2 heads"),
        (shape(6), shape(3, width=64), "student.*3 x 32.*3 x 64"),
        (shape(6), shape(3, model_type="distilbert"), "student bert.*student is distilbert"),
    ],
)
def test_a_plan_for_other_models_is_refused(teacher, student, said):
    with pytest.raises(UsageError, match=said):
        propose(shape(6), shape(3)).fits(teacher, student)


def test_a_plan_fits_another_head_and_vocabulary():
    plan = propose(shape(6), shape(3))
    other = Architecture("bert", "masked", shape(6).stacks, 30_000, 5_000_000, False)
    plan.fits(other, shape(3))


GOOD = propose(shape(6, 48), shape(3, 32)).to_json()


def broken(change) -> str:
    tree = json.loads(GOOD)
    change(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "[]",
        "{}",
        "null",
        '"text"',
        *(GOOD[:length] for length in range(1, len(GOOD) - 2, 97)),
        broken(lambda tree: tree.pop("teacher")),
        broken(lambda tree: tree.update(maps=3)),
        broken(lambda tree: tree["maps"][0].update(pairs=[[0, 6], [1, 3], [2, 5]])),
        broken(lambda tree: tree["maps"][0].update(pairs=[[3, 1], [1, 3], [2, 5]])),
        broken(lambda tree: tree["maps"][0].update(pairs=[[-1, 1], [1, 3], [2, 5]])),
        broken(lambda tree: tree["maps"][0].update(pairs=[[0, 1], [1, 3]])),
        broken(lambda tree: tree["maps"][0].update(weights=[1, 1, 1])),
        broken(lambda tree: tree["maps"][0].update(student_stack="decoder")),
        broken(lambda tree: tree.update(projections=[])),
        broken(lambda tree: tree["projections"][0].update(student_width=16)),
        broken(lambda tree: tree["projections"].append(tree["projections"][0])),
        broken(lambda tree: tree["student"]["stacks"][0].update(width=48)),
        broken(lambda tree: tree.update(statistics={"variance/encoder.1": "large"})),
    ],
)
def test_a_file_that_is_no_plan_gives_one_line_that_names_it(text, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(str(file))) as error:
        read_plan(file)
    assert "\n" not in str(error.value)


def test_a_plan_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.json", "nowhere.json", "."):
        with pytest.raises(UsageError, match=r"^plan .*(not UTF-16|No such file|is a folder)"):
            read_plan(tmp_path / name)


def nodes(tree, at=()):
    """Every place in a tree of JSON."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in nodes(value, (*at, key)))]


def changed(tree, place, change):
    """A copy of a tree in which one value is another, or gone."""
    if not place:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(place) == 1 and change is None:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(tree[place[0]], place[1:], change)
    return copy


def within(given, taken):
    """Whether all that was given was taken as it is; what was left out may have a default."""
    if isinstance(given, dict):
        return all(key in taken and within(value, taken[key]) for key, value in given.items())
    if isinstance(given, list):
        return len(given) == len(taken) and all(map(within, given, taken))
    return given == taken


NASTY = (None, True, "", "x", "1", -1, 0, 1.5, 2.0, 1e300, 10**30, [], {}, [[]], {"a": 1}, "a\x1b[31m", "\ud800")


@pytest.mark.slow
def test_a_plan_of_which_one_value_is_another_is_a_plan_or_one_line():
    plan = propose(shape(6, 64), shape(3), "uniform", options=PlanOptions(weights=[1, 2, 3]))
    plan = replace(plan, similarities={"encoder": ((0.5,) * 6,) * 3}, statistics={"variance/encoder.1": 1.0})
    tree = json.loads(plan.to_json())
    kept, refused = 0, []
    for place in nodes(tree):
        changes = [lambda _, value=value: value for value in NASTY] + [None] * bool(place)
        for change in changes:
            text = json.dumps(changed(tree, place, change))
            try:
                found = Plan.from_json(text)
            except UsageError as error:
                refused.append(str(error))
            else:
                kept += 1
                back, given = json.loads(found.to_json()), json.loads(text)
                assert within(given, back), place
    assert all(len(line.splitlines()) == 1 for line in refused)
    assert kept > 100
    assert len(refused) > 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"maps": NaN}', "NaN is not a JSON number"),
        ('{"teacher": 1, "teacher": 2}', "given twice"),
        ("", "not JSON"),
        ("[]", "not a plan"),
    ],
)
def test_what_is_no_plan_is_one_line(text, said):
    with pytest.raises(UsageError, match=said):
        Plan.from_json(text)


def test_a_plan_of_a_billion_layers_is_refused_before_anything_is_made_of_it():
    tree = json.loads(propose(shape(6), shape(3)).to_json())
    for key in ("layers", "width", "heads"):
        tree["teacher"]["stacks"][0][key] = 10**9
        with pytest.raises(UsageError, match="whole number from 1 to 1,000,000"):
            Plan.from_json(json.dumps(tree))
