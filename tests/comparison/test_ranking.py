"""Best and second, and the rows that conditions leave."""

import pytest

from kdalign.comparison.compare import compare
from kdalign.comparison.ranking import Filter
from kdalign.errors import UsageError
from support.records import best, run


def second(table, key):
    return [row.name for row in table.rows if key in row.cells and row.cells[key].second]


def runs(tmp_path, task="sst2", **values):
    return [
        run(tmp_path / name, task, {"accuracy": value}, {"accuracy": 90.0}, alpha=number / 100)
        for number, (name, value) in enumerate(values.items())
    ]


def test_the_second_is_the_next_value_after_the_best_and_ties_share(tmp_path):
    table = compare(runs(tmp_path, a=80.0, b=85.0, c=85.0, d=80.0, e=70.0))
    assert best(table, "sst2/accuracy") == ["b", "c"]
    assert second(table, "sst2/accuracy") == ["a", "d"]
    assert second(table, "parameters") == best(table, "parameters") == []


def test_where_all_are_equal_none_is_second_and_one_row_alone_is_neither(tmp_path):
    table = compare(runs(tmp_path, a=80.0, b=80.0))
    assert (best(table, "sst2/accuracy"), second(table, "sst2/accuracy")) == (["a", "b"], [])
    alone = compare([tmp_path / "a"])
    assert (best(alone, "sst2/accuracy"), second(alone, "sst2/accuracy")) == ([], [])


def test_a_teacher_above_all_students_is_neither_best_nor_second(tmp_path):
    table = compare(runs(tmp_path, a=80.0, b=85.0))
    assert (best(table, "sst2/accuracy"), second(table, "sst2/accuracy")) == (["b"], ["a"])


def test_tenths_tell_the_best_from_the_second(tmp_path):
    table = compare(runs(tmp_path, a=80.1, b=80.4, c=79.6))
    assert (best(table, "sst2/accuracy"), second(table, "sst2/accuracy")) == (["b"], ["a"])


def test_intervals_overlap_only_where_each_begins_before_the_other_ends(tmp_path):
    for far, said in ((9.5, True), (12.0, False), (4.0, False)):
        paths = [
            run(tmp_path / f"{far}" / name, "lm", {"ppl": ppl}, hard=ppl / 100)
            for name, ppl in (("a", 8.0), ("b", far))
        ]
        assert any("overlap" in note for note in compare(paths).notes) == said, "8 and the other, each with 1 around it"


def test_of_perplexities_the_second_lowest_is_second(tmp_path):
    paths = [run(tmp_path / f"{value}", "lm", {"ppl": float(value)}, hard=value / 100) for value in (30, 10, 20)]
    assert (best(compare(paths), "lm/ppl"), second(compare(paths), "lm/ppl")) == (["10"], ["20"])


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["accuracy>=85"], ["teacher t", "b", "c"]),
        (["sst2/accuracy>85"], ["teacher t", "c"]),
        (["accuracy < 85"], ["a"]),
        (["accuracy<=85", "name~B"], ["b"]),
        (["retained>=95"], ["teacher t", "c"]),
        (["accuracy=85.04"], ["b"]),
        (["agreement>=0"], ["a", "b", "c"]),
        (["name~teacher"], ["teacher t"]),
        (["parameters<2"], ["a", "b", "c"]),
    ],
)
def test_conditions_leave_the_rows_that_meet_them_all(tmp_path, filters, left):
    table = compare(runs(tmp_path, a=80.0, b=85.0, c=86.0), filters=filters)
    assert [row.name for row in table.rows] == left
    assert f"filter {' and '.join(filters)}: {len(left)} of 4 rows; the best of these is marked" in table.notes


def test_best_is_the_best_of_what_is_shown_and_notes_are_of_it_alone(tmp_path):
    paths = runs(tmp_path, a=80.0, b=85.0, c=86.0)
    table = compare([*paths, *runs(tmp_path / "other", "mrpc", d=1.0)], filters=["accuracy<86"], sort="sst2/accuracy")
    assert [row.name for row in table.rows] == ["b", "a", "d"]
    assert best(table, "sst2/accuracy") == ["b"]
    alone = compare([*paths, tmp_path / "other" / "d"], filters=["name~b"])
    assert not any(column.task == "mrpc" for column in alone.columns)
    assert not any("mrpc" in note for note in alone.notes)


def test_a_metric_of_several_tasks_must_hold_in_each_that_a_row_has(tmp_path):
    paths = [*runs(tmp_path, a=80.0), *runs(tmp_path, "mrpc", d=70.0)]
    assert [row.name for row in compare(paths, filters=["accuracy<=75"]).rows] == ["d"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("retained", "accepted are conditions such as"),
        ("retained>=", "accepted are conditions such as"),
        (">=95", "accepted are conditions such as"),
        ("retained>=much", "'much' is not a number"),
        ("retained==95", "'=95' is not a number"),
        ("retained~95", "name~TEXT"),
        ("name>=3", "name~TEXT"),
        ("retaind>=95", "did you mean 'retained'"),
        ("accuracy>=99", r"leaves no row of 3 \(values from 80 to 90\)"),
        ("name~zz", r"leaves no row of 3 \(they are called teacher t, a, b\)"),
    ],
)
def test_a_condition_that_is_none_or_leaves_nothing_gets_one_line(tmp_path, given, said):
    with pytest.raises(UsageError, match=said):
        compare(runs(tmp_path, a=80.0, b=85.0), filters=[given])


def test_a_condition_is_read_with_its_longest_sign():
    assert (Filter.parse("a/b >= 1e-3").name, Filter.parse("a>=1").sign) == ("a/b", ">=")
    assert Filter.parse("name~a=b").text == "a=b"
    assert Filter.parse("steps-to/sst2/accuracy=85<=500").name == "steps-to/sst2/accuracy=85"
