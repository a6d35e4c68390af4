"""Pictures show what they were given: the data of their axes, not their pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdalign.comparison.table import Cell, Column, ComparisonTable, Row
from kdalign.errors import UsageError
from kdalign.report.plots import (
    check_folder,
    draw_attention,
    draw_calibration,
    draw_differences,
    draw_gradients,
    draw_likeness,
    draw_quality,
    draw_samples,
    draw_shares,
    draw_terms,
    save_all,
)
from kdalign.report.plots.figure import MOST_PANELS, line_style, shortened
from kdalign.report.plots.runs import MOST_LOOKS, POINTS, smooth_steps
from kdalign.runs.curves import Curves
from kdalign.runs.disagreements import SplitAnswers


def training(name="a", group="a", steps=10, **terms):
    terms = {key: np.asarray(values, dtype=float) for key, values in (terms or {"hard": range(steps)}).items()}
    return Curves(
        name=name,
        task="sst2",
        group=group,
        steps=np.arange(1, steps + 1),
        terms=terms,
        weights=dict.fromkeys(terms, 0.5),
        units=dict.fromkeys(terms, "nats"),
        loss=0.5 * np.sum(list(terms.values()), axis=0),
        gradient_norm=np.arange(1, steps + 1) / 2,
        clip=1.0,
    )


def lines(axes):
    return [line.get_xydata().tolist() for line in axes.lines]


def test_few_steps_are_drawn_as_they_are_and_the_gradient_s_norm_last():
    picture = draw_terms([training(steps=3, hard=[3, 2, 1], soft=[1, 1, 2])])
    hard, soft, norm = picture.figure.axes
    assert (hard.get_title(loc="left"), soft.get_title(loc="left")) == ("hard", "soft")
    assert lines(hard)[-1] == [[1, 3], [2, 2], [3, 1]]
    assert lines(soft)[-1] == [[1, 1], [2, 1], [3, 2]]
    assert [[1, 0.5], [2, 1], [3, 1.5]] in lines(norm)
    assert hard.get_ylabel() == "nats"
    assert "every step is drawn" in picture.caption


def test_many_steps_become_means_of_equally_many_and_the_caption_says_so():
    size, steps, means = smooth_steps(np.arange(1, 2 * POINTS + 1), np.tile([1.0, 3.0], POINTS))
    assert size == 2
    assert steps[:2].tolist() == [1.5, 3.5]
    assert set(means) == {2.0}
    picture = draw_terms([training(steps=2 * POINTS)])
    assert "means of up to 2 steps; thin: every step" in picture.caption
    raw, smooth = picture.figure.axes[0].lines
    assert (len(raw.get_xdata()), len(smooth.get_xdata())) == (2 * POINTS, POINTS)


def test_a_term_of_some_steps_is_drawn_at_them():
    picture = draw_terms([training(steps=4, hard=[3, np.nan, 1, np.nan], soft=[1, 1, 2, 2])])
    assert lines(picture.figure.axes[0])[-1] == [[1, 3], [3, 1]]


def test_measures_of_own_texts_are_drawn_at_on_policy_steps_alone_and_alarms_are_counted():
    nan = np.nan
    samples = {"length": np.array([nan, 30, nan, 20]), "ended": np.array([nan, 0.5, nan, 1.0])}
    one = replace(training(steps=4, hard=[1, nan, 1, nan]), samples=samples, alarms={"short": 2})
    picture = draw_samples([one, replace(one, name="b", group="b", alarms={})])
    length, ended = picture.figure.axes
    assert lines(length) == [[[2, 30], [4, 20]]] * 2
    assert lines(ended)[0] == [[2, 50], [4, 100]]
    assert (length.get_ylabel(), ended.get_ylabel()) == ("tokens", "%")
    assert "Steps with an alarm: a: short in 2." in picture.caption
    assert "a ends at 20 tokens a text" in picture.alternative


def test_runs_of_one_recipe_share_a_colour_and_a_name():
    picture = draw_terms([training("arm-0", "x"), training("arm-1", "x"), training("other", "y")])
    colours = [line.get_color() for line in picture.figure.axes[0].lines if line.get_alpha() is None]
    assert colours[0] == colours[1] != colours[2]
    assert [text.get_text() for text in picture.figure.legends[0].texts] == ["arm (2 seeds)", "other"]


def test_gradients_are_a_line_a_term_and_a_panel_a_run_where_they_were_looked_at():
    one = replace(
        training("one", steps=3, hard=[1, 1, 1], soft=[1, 1, 1]),
        looks=np.array([0, 200]),
        pulls={"hard": np.array([2.0, 1.0]), "soft": np.array([0.0, 0.5])},
    )
    other = replace(one, name="other", pulls={"soft": np.array([np.nan, 3.0])})
    picture = draw_gradients([one, other])
    left, right = picture.figure.axes
    assert lines(left)[0] == [[0, 2], [200, 1]]
    assert lines(left)[1][1] == [200, 0.5]
    assert np.isnan(lines(left)[1][0][1]), "a term of weight 0 pulls at nothing"
    assert right.lines[0].get_color() == left.lines[1].get_color()
    assert [text.get_text() for text in picture.figure.legends[0].texts] == ["hard", "soft"]
    assert "one: hard 1, soft 0.5; other: soft 3" in picture.alternative


def test_shares_are_stacked_to_a_hundred_per_cent():
    picture = draw_shares([training(steps=2, hard=[1, 3], soft=[3, 1])])
    [axes] = picture.figure.axes
    first, second = (each.get_paths()[0].vertices[:, 1] for each in axes.collections)
    assert {*np.round(first, 6)} == {0, 25, 75}
    assert second.max() == pytest.approx(100)
    assert "hard 75 %, soft 25 %" in picture.alternative


def table():
    rows = {"cheap": (70.0, 1.0), "middling": (68.0, 2.0), "dear": (75.0, 3.0), "teacher t": (80.0, 5.0)}
    made = [
        Row(
            name,
            "teacher" if name.startswith("teacher") else "student",
            (0, 1) if name == "dear" else (0,),
            {
                "sst2/accuracy": Cell(quality, quality - 1, quality + 2),
                "latency": Cell(cost),
                "parameters": Cell(None if name == "cheap" else 10 * cost),
            },
        )
        for name, (quality, cost) in rows.items()
    ]
    made.append(Row("others", "reference", (), {"sst2/accuracy": Cell(99.0), "latency": Cell(0.1)}))
    columns = (
        Column("sst2/accuracy", "sst2 accuracy", "%", 1, task="sst2"),
        Column("parameters", "params", "M", 1, higher_is_better=False, cost=True),
        Column("latency", "latency", "ms", 1, higher_is_better=False, cost=True),
    )
    return ComparisonTable(columns, tuple(made))


def test_the_front_joins_the_models_that_none_beats_and_published_rows_are_not_drawn():
    comparison = table()
    picture = draw_quality(comparison, comparison.columns[0], 872)
    latency, parameters = picture.figure.axes
    assert (latency.get_xlabel(), latency.get_ylabel()) == ("latency (ms)", "sst2 accuracy (%)")
    assert [line.get_xydata().tolist() for line in latency.lines if line.get_gid() == "front"] == [
        [[1, 70], [3, 75], [5, 80]]
    ]
    points = {tuple(xy) for line in latency.lines for xy in line.get_xydata().tolist()}
    assert {(1, 70), (2, 68), (3, 75), (5, 80)} <= points
    assert not any(y == 99 for _, y in points)
    assert [line.get_xdata().tolist() for line in parameters.lines if line.get_gid() == "front"] == [[20, 30, 50]]
    assert "n = 872" in picture.caption
    assert "dear: mean of 2 seeds" in picture.caption
    bars = [segment.tolist() for each in latency.collections for segment in each.get_segments()]
    assert [[2, 67], [2, 70]] in bars


def test_a_score_that_is_better_lower_has_its_front_below():
    comparison = table()
    column = Column("sst2/accuracy", "ppl", "", 1, higher_is_better=False, task="sst2")
    picture = draw_quality(ComparisonTable((column, *comparison.columns[1:]), comparison.rows), column)
    front = next(line for line in picture.figure.axes[0].lines if line.get_gid() == "front")
    assert front.get_xydata().tolist() == [[1, 70], [2, 68]]


def test_without_two_models_of_known_cost_there_is_no_picture_of_costs():
    comparison = table()
    assert draw_quality(ComparisonTable(comparison.columns, comparison.rows[:1]), comparison.columns[0]) is None


def test_differences_stand_column_by_column_and_only_evidence_is_filled():
    columns = (
        Column("a/f1", "a f1", "%", 1, task="a", detail=True),
        Column("a", "a mean", "%", 1, task="a"),
        Column("b/ppl", "b ppl", "", 1, higher_is_better=False, task="b"),
        Column("macro", "macro", "%", 1),
        Column("latency", "latency", "ms", 1, higher_is_better=False, cost=True),
    )
    cells = {
        "a/f1": Cell(9.0),
        "a": Cell(2.0, 1.0, 3.0, verdict="↑"),
        "b/ppl": Cell(7.0, 6.0, 8.0),
        "macro": Cell(1.0, -1.0, 3.0, verdict="≈"),
    }
    rows = (Row("x", "student", (0, 1), {"latency": Cell(1.0)}), Row("x − y", "difference", (0, 1), cells))
    picture = draw_differences(ComparisonTable(columns, rows))
    [axes] = picture.figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["macro", "a mean"]
    points = {
        tuple(line.get_xydata()[0]): line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata()) == 1
    }
    assert set(points) == {(1.0, 0.0), (2.0, 1.0)}
    assert points[1.0, 0.0] == "white" != points[2.0, 1.0]
    assert "x − y: mean of 2 seeds" in picture.caption
    assert "x − y, a mean: 2.0 (1.0 to 3.0)" in picture.alternative
    assert draw_differences(ComparisonTable(columns, rows[:1])) is None


def test_differences_are_no_models_that_cost_something():
    comparison = table()
    difference = Row("a − b", "difference", (0, 1), {"sst2/accuracy": Cell(2.0), "latency": Cell(1.0)})
    picture = draw_quality(ComparisonTable(comparison.columns, (*comparison.rows, difference)), comparison.columns[0])
    assert "a − b" not in picture.caption + picture.alternative
    assert not any(y == 2 for line in picture.figure.axes[0].lines for _, y in line.get_xydata().tolist())


def test_calibration_shows_the_bins_of_student_and_teacher():
    logits = np.log([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9], [0.02, 0.98]])
    references = np.array([0, 1, 1, 0])
    answers = SplitAnswers(
        "a", "sst2", "validation", ("n", "p"), references, logits.argmax(1), logits.argmax(1), logits, logits[:, ::-1]
    )
    picture = draw_calibration([answers])
    [axes] = picture.figure.axes
    diagonal, teacher, student = lines(axes)
    assert diagonal == [[0, 0], [100, 100]]
    assert student == pytest.approx(np.array([[70, 50], [90, 100], [98, 0]]))
    assert teacher == pytest.approx(np.array([[70, 50], [90, 0], [98, 100]]))
    assert axes.get_legend().texts[1].get_text() == "student, ECE 37.0 %"
    assert "n = 4" in picture.caption


def test_likeness_before_and_after_is_drawn_on_one_scale_with_the_plan_s_pairs_framed():
    before, after = [[0.1, 0.2, -0.1], [0.3, 0.4, 0.5]], [[0.9, 0.2, 0.1], [0.1, 0.2, 0.8]]
    picture = draw_likeness({"encoder": before}, {"encoder": after}, {"encoder": [(0, 0), (1, 2)]}, ", 9 tokens")
    first, second, _ = picture.figure.axes
    assert first.images[0].get_array().tolist() == before
    assert second.images[0].get_array().tolist() == after
    assert first.images[0].get_clim() == second.images[0].get_clim() == (-0.1, 1)
    assert [(patch.get_x(), patch.get_y()) for patch in second.patches] == [(-0.5, -0.5), (1.5, 0.5)]
    assert "encoder 1 and 2: 0.50 to 0.80" in picture.alternative


@pytest.mark.parametrize("head", [None, 1])
def test_attention_is_the_mean_over_heads_or_one_head_with_tokens_at_its_sides(head):
    generator = np.random.default_rng(0)
    ours, theirs = (generator.dirichlet(np.ones(3), (heads, 3)) for heads in (2, 4))
    picture = draw_attention([("0", "1", ours, theirs)], ["[CLS]", "film", "[SEP]"], ["<s>", "film", "</s>"], head)
    left, right, _ = picture.figure.axes
    for axes, maps in ((left, ours), (right, theirs)):
        assert np.asarray(axes.images[0].get_array()) == pytest.approx(maps.mean(0) if head is None else maps[head])
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["<s>", "film", "</s>"]
    assert left.images[0].get_clim() == right.images[0].get_clim()


def test_pictures_are_whole_files_in_both_formats_whatever_a_run_is_called(tmp_path):
    name = '_<b>&"$x_{$'
    files = save_all([draw_terms([training(name)])], tmp_path / "made")
    assert [file.name for file in files] == ["terms-sst2.png", "terms-sst2.svg"]
    assert sorted((tmp_path / "made").iterdir()) == files
    svg = files[1].read_text()
    assert '_&lt;b&gt;&amp;"$x_{$' in svg
    assert "<b>" not in svg
    assert "Each term of the objective" in svg  # the caption
    assert files[0].read_bytes()[:4] == b"\x89PNG"


def test_a_picture_s_file_is_the_same_each_time(tmp_path):
    files = [save_all([draw_terms([training()])], tmp_path / word, (".png",))[0] for word in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_two_dozen_models_look_different_and_long_names_keep_both_ends():
    assert len({line_style(number) for number in range(24)}) == 24
    assert shortened("a-name-that-is-long-seed-1", 11) == "a-nam…eed-1"
    assert shortened("short", 5) == "short"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        check_folder(tmp_path / "file")
    check_folder(Path(tmp_path / "new" / "folder"))
    assert not (tmp_path / "new").exists()


def test_names_with_signs_of_formulas_and_halves_of_letters_are_drawn(tmp_path):
    name = "$x_$ \\frac{ \x1b[31m\udcff\u202e"
    drawn = draw_terms([training(name, name, hard=np.ones(10))])
    files = save_all([replace(drawn, title=name, caption=name), replace(drawn, title="b")], tmp_path)
    assert len(set(files)) == len(files) == 4, "pictures of one name do not write over each other"
    for file in files:
        if file.suffix == ".svg":
            text = file.read_text(encoding="utf-8")
            assert not any(sign in text for sign in ("\x1b", "\u202e"))


def test_of_hundreds_of_runs_the_first_are_drawn_and_the_caption_says_so():
    many = [training(f"r{n}", f"g{n}", hard=np.ones(10), soft=np.ones(10)) for n in range(40)]
    shares, terms = draw_shares(many), draw_terms(many)
    assert sum(axes.get_visible() for axes in shares.figure.axes) == MOST_PANELS
    assert shares.caption.endswith(f"Drawn are the first {MOST_PANELS} of 40 runs.")
    assert len(terms.figure.axes[0].lines) == MOST_LOOKS
    assert terms.caption.endswith(f"Drawn are the first {MOST_LOOKS} of 40 recipes.")
    assert "Drawn" not in draw_shares(many[:3]).caption
