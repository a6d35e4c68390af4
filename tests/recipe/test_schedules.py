"""Schedules: values by hand, a weight that rises from 0, temperature, stages, and what is refused."""

from pathlib import Path

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.errors import UsageError
from kdalign.models.capture import Activations
from kdalign.objective import losses
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import KEYS_OF_TERMS, TERM_KEYS, build_recipe
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe.schedules import Place, Schedule
from kdalign.runs.ablation_spec import build_ablation
from kdalign.runs.curves import read_curves
from kdalign.runs.finished import finished_runs
from support.classifier_setting import Setting, examples
from support.commands import command, steps_of
from support.terms import NONE
from support.tiny import one_line

NEEDED = {"teacher": "t", "data.task": "sst2"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Schedule(4, 0), [4, 4 - 4 / 3, 4 - 8 / 3, 0]),
        (Schedule(0, 1, "cosine"), [0, 0.25, 0.75, 1]),
        (Schedule(1, 3, "steps", jumps=2), [1, 1, 2, 3]),
        (Schedule(1, 3, "steps", jumps=3), [1, 1 + 2 / 3, 1 + 4 / 3, 3]),
        (Schedule(1, 3, "constant", begins=0.5), [1, 1, 3, 3]),
        (Schedule(0, 6, begins=1 / 3, ends=2 / 3), [0, 0, 6, 6]),
    ],
    ids=lambda each: each.shape if isinstance(each, Schedule) else None,
)
def test_each_shape_by_hand_over_four_steps(change, expected):
    assert [change.at(Place(step, 4).progress) for step in range(4)] == pytest.approx(expected)
    assert Place(0, 1).progress == 0


def test_a_schedule_is_said_with_both_ends_and_its_part_of_the_steps():
    assert [str(change) for change in (
        Schedule(4, 0), Schedule(0, 1, "cosine", ends=0.125), Schedule(1, 3, "steps", begins=0.5),
        Schedule(1, 3, "constant", begins=0.07),
    )] == [
        "4 to 0, linearly over all steps", "0 to 1, along a cosine over the first 12.5 % of the steps",
        "1 to 3, in 4 jumps from 50 % to 100 % of the steps", "1, from 7 % of the steps on 3",
    ]  # fmt: skip


def test_a_weight_that_rises_from_0_is_built_and_multiplied_and_needs_the_teacher():
    weights = Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0, schedule={"beta": {"to": 2}, "hard": {"to": 0}})
    assert weights.needs_teacher
    assert not Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0).needs_teacher
    setting = Setting("bert", "bert", 24, weights)
    batch = collate(setting.data, range(8))
    units = count_units([batch])
    whole = setting.breakdown(batch, units).parts
    for place, hard, beta in ((0, 1, 0), (0.25, 0.75, 0.5), (1, 0, 2)):
        found = setting.objective.at(place)
        assert found.weights == pytest.approx({"hard": hard, "cosine": beta})
        taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
        view = TermInputs(setting.learner(batch.inputs, taught), taught, batch)
        expected = hard * whole["hard"] + beta * whole["cosine"]
        torch.testing.assert_close(found(view, units).total.detach(), expected)
        factors = {"cosine": 3.0}
        assert found.scaled(factors).weights == pytest.approx({"hard": hard, "cosine": 3 * beta})


def test_terms_of_answers_are_given_the_step_s_temperature_but_for_those_with_one_of_their_own():
    logits = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    batch = collate(examples(), range(8))
    view = TermInputs(*(Activations(logits=each) for each in logits), batch)
    terms = {"dkd": 1, "dist": {"weight": 1, "temperature": 4}}
    weights = Weights(**{**NONE, "alpha": 1}, temperature=5, terms=terms, schedule={"temperature": {"to": 1}})
    objective = build_classification_objective(weights, None, False, classes=3)
    for place, temperature in ((0, 5.0), (0.5, 3.0), (1, 1.0)):
        now = objective.at(place)
        assert now.temperature == temperature
        parts = now(view, count_units([batch])).parts
        expected = {
            "soft": losses.soft_target_kl(*logits, batch.counted, temperature) / 8,
            "dkd": losses.decoupled_kl(*logits, batch.labels, batch.counted, temperature, 8.0) / 8,
            "dist": losses.correlation_distance(*logits, 4.0),
        }
        for name, value in expected.items():
            torch.testing.assert_close(parts[name], value)
    assert build_classification_objective(Weights(), None, False).temperature is None


def test_stages_take_the_schedules_of_their_own_terms_over_shares_of_the_whole_run():
    schedule = {"beta": {"to": 0, "until": 0.4}, "hard": {"to": 0}, "temperature": {"to": 1}, "pkd": {"to": 3}}
    weights = Weights(align_first=0.5, terms={"pkd": 0}, schedule=schedule)
    (_, aligning), (_, answering) = weights.stages
    assert set(aligning.moving) == {"beta", "pkd"}
    assert set(answering.moving) == {"hard", "temperature"}
    assert (aligning.built.further, answering.built.further) == ({"pkd": 3}, {})


@pytest.mark.slow
def test_a_scheduled_run_is_recorded_goes_on_as_it_would_and_is_drawn_by_its_weights(kdalign, teacher, data, tmp_path):
    more = ["--hard", "1", "--alpha", "1", "--beta", "0", "--gamma", "0", "--delta", "0"]
    for change in ("beta={to: 1, until: 0.5}", "temperature={to: 1, shape: steps, steps: 2}", "alpha={to: 0}"):
        more += ["--set", f"objective.schedule.{change}"]
    status, _, errors = kdalign(*command(teacher, data, tmp_path / "a", *more)[2:])
    assert status == 0, errors
    assert "of the loss at the end" not in errors
    events = steps_of(tmp_path / "a")
    places = [step / 7 for step in range(8)]
    assert [event["weights"]["cosine"] for event in events] == pytest.approx([min(1, 2 * place) for place in places])
    assert [event["weights"]["soft"] for event in events] == pytest.approx([1 - place for place in places])
    assert {event["weights"]["hard"] for event in events} == {1.0}
    assert [event["temperature"] for event in events] == [2, 2, 2, 2, 1.5, 1.5, 1.5, 1]
    for event in events:
        assert event["loss"] == pytest.approx(sum(event["weights"][k] * v for k, v in event["parts"].items()), rel=1e-5)
    [trained] = [read_curves(each) for each in finished_runs([tmp_path / "a"])]
    assert trained.weights["cosine"].tolist() == [event["weights"]["cosine"] for event in events]
    assert trained.looks.tolist() == [0]
    assert set(trained.pulls) == {"hard", "soft", "cosine"}
    assert trained.pulls["cosine"].tolist() == [0.0], "its weight is 0 there"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("alpa={to: 0}", r"schedule of 'alpa': no such weight; did you mean 'alpha'\? \(accepted: temperature, hard, "),
        ("alpha=0", "takes its final value, such as"),
        ("alpha={from: 0.5}", "takes its final value, such as"),
        ("alpha={to: -1}", "to=-1 must be a number from 0 to 1,000,000"),
        ("temperature={to: 0}", "to=0 must be a number from 0.0001 to 10,000"),
        ("alpha={to: 0, shape: line}", r"no shape 'line'; did you mean 'linear'\? \(accepted: linear, cosine, steps"),
        ("alpha={to: 0, untl: 1}", "has no 'untl'; did you mean 'until'"),
        ("alpha={to: 0, from: 0.5, until: 0.5}", "until=0.5 must be after from=0.5"),
        ("alpha={to: 0, until: 2}", "until=2 must be a share of the steps"),
        ("alpha={to: 0, steps: 3}", "steps is for shape steps, not linear"),
        ("alpha={to: 0, shape: steps, steps: 1.5}", "must be a number of jumps"),
        ("alpha={to: 0, shape: constant, until: 0.5}", "and no until"),
    ],
)
def test_schedules_that_are_none_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        build_recipe(None, NEEDED, [f"objective.schedule.{change}"])


def test_a_temperature_that_softens_nothing_is_refused():
    change = ["objective.schedule.temperature={to: 1}", "objective.alpha=0"]
    with pytest.raises(UsageError, match="schedule of temperature: it softens alpha, dkd and dist, and none"):
        build_recipe(None, NEEDED, change)
    build_recipe(None, NEEDED, [*change, "objective.terms.dkd=1"])
    build_recipe(None, NEEDED, [*change, "objective.schedule.alpha={to: 1}"])


def test_schedules_outside_of_their_stage_are_refused():
    for change, said in (
        ("beta={to: 0, from: 0.5}", "layers are aligned in the first 0.5 of the steps"),
        ("hard={to: 0, until: 0.5}", "answers count after the first 0.5 of the steps"),
    ):
        with pytest.raises(UsageError, match=said):
            build_recipe(None, NEEDED, ["objective.align_first=0.5", f"objective.schedule.{change}"])


def test_what_a_schedule_will_compare_is_checked_before_a_run(kdalign, teacher, data):
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run")
    change = ("--set", "objective.schedule.embeddings.to=1")
    narrow = ("--student", "layers=2,width=16,heads=2")
    status, _, errors = kdalign(*words, *narrow, *change)
    assert (status, "embeddings are 32 wide and the student's 16" in one_line(errors)) == (2, True)
    with pytest.raises(UsageError, match="there is no teacher"):
        build_recipe(None, {**NEEDED, "teacher": "none"}, ["objective.schedule.beta.to=1"])


def test_shipped_arms_but_joint_have_no_schedule():
    ablation = build_ablation(None, NEEDED, ["objective.schedule.beta.to=0"], seeds="1")
    found = {trial.arm: set(trial.recipe.objective.schedule) for trial in ablation.trials(Path("runs"))}
    assert found == {"labels": set(), "soft": set(), "align": set(), "joint": {"beta"}}


def test_masked_tokens_are_scheduled_by_their_key_and_belong_to_the_first_part():
    rising = Weights(schedule={"masked_lm": {"to": 0.1}})
    assert (rising.masked_lm, rising.built.masked_lm) == (0, 0.1)
    staged = Weights(align_first=0.5, masked_lm=0.2, schedule={"masked_lm": {"to": 0, "until": 0.4}})
    (_, first), (_, second) = staged.stages
    assert (set(first.schedule), second.schedule, second.masked_lm) == ({"masked_lm"}, {}, 0)
    assert KEYS_OF_TERMS["masked-lm"] == "masked_lm"
    assert set(KEYS_OF_TERMS.values()) == set(TERM_KEYS)
