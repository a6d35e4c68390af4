"""Layer weights that change, and layers one after the other: by hand, splits and ranks, stops, and refusals."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.plan import Plan
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, progressive_plans, propose
from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.errors import UsageError
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms.layer_weights import LAYER_WEIGHTS, Adaptive, Learned
from kdalign.objective.units import count_units
from kdalign.recipe import LAYER_WEIGHTS as WORDS
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import TrainSettings, build_recipe
from kdalign.training import loop
from kdalign.training.diagnostics import StepViewer
from kdalign.training.learner import Learner
from kdalign.training.step import Stepper
from kdalign.training.task_trainer import TaskTrainer
from support.classifier_setting import Setting
from support.commands import command, steps_of
from support.shapes import shape
from support.terms import weights_of
from support.tiny import one_line

NEEDED = {"teacher": "t", "data.task": "sst2"}


def test_a_ramp_is_in_proportion_to_a_student_layer_s_rank_from_the_bottom():
    assert propose(shape(6), shape(3), options=PlanOptions(weights="ramp")).maps[0].weights == pytest.approx(
        (1 / 6, 2 / 6, 3 / 6)
    )
    given = propose(shape(6), shape(3), "2:5 0:0 0:1", options=PlanOptions(weights="ramp")).maps[0]
    assert given.weights == pytest.approx((0.5, 0.25, 0.25))
    for word in ("uniform", "learned", "adaptive"):
        plan = propose(shape(6), shape(3), options=PlanOptions(weights=word))
        assert plan.maps[0].weights == (1 / 3,) * 3
        assert plan.weighting == ("static" if word == "uniform" else word)
        assert Plan.from_json(plan.to_json()) == plan


def test_adaptive_weights_are_in_proportion_to_the_running_mismatch():
    weights = Adaptive(2)
    assert weights.values.tolist() == [0.5, 0.5]
    # Two micro-batches of one step of four units: means 3 and 1.
    for distances in ([8.0, 3.0], [4.0, 1.0]):
        total = weights(torch.tensor(distances, requires_grad=True))
        assert float(total.detach()) == sum(distances) / 2
    weights.remember(4.0)
    torch.testing.assert_close(weights.values, torch.tensor([0.75, 0.25]))
    total = weights(torch.tensor([2.0, 2.0]))
    assert float(total) == pytest.approx(2.0)
    weights.remember(0.0)  # a look, of which nothing is kept
    torch.testing.assert_close(weights.values, torch.tensor([0.75, 0.25]))
    weights(torch.tensor([0.0, 2.0]))
    weights.remember(2.0)
    running = np.array([0.98 * 3, 0.98 * 1 + 0.02 * 1])
    torch.testing.assert_close(weights.values, torch.tensor(running / running.sum()).float())


def test_learned_weights_go_down_their_gradient_to_where_all_layers_are_equal_parts():
    weights = Learned(3)
    distances = torch.tensor([1.0, 2.0, 6.0])
    logs = torch.zeros(3, requires_grad=True)
    value = (torch.exp(-logs) * distances).sum().log() + logs.mean()
    (gradient,) = torch.autograd.grad(value, logs)
    weights(distances)
    weights.remember(1.0)
    torch.testing.assert_close(weights.logs, -0.1 * gradient)
    for _ in range(2000):
        weights(distances)
        weights.remember(1.0)
    parts = weights.values * distances
    torch.testing.assert_close(parts, parts.mean().expand(3), rtol=1e-3, atol=0)
    assert weights.values.min() > 0.05, "the easiest layer does not get all"


@pytest.mark.parametrize("word", LAYER_WEIGHTS)
def test_layers_without_any_distance_keep_equal_weights(word):
    weights = LAYER_WEIGHTS[word](2)
    weights(torch.zeros(2))
    weights.remember(1.0)
    assert weights.values.tolist() == [0.5, 0.5]


EVERY = Weights(
    hard=0.3, alpha=0.7, beta=1, gamma=1, delta=1, relations=1,
    terms={"nmse": 1, "pkd": 1, "attended-euclid": 1, "attention-kl": 1, "cka": 1, "info-nce": 1},
)  # fmt: skip


class Changing(Setting):
    def __init__(self, word, weights=EVERY):
        super().__init__("bert", "bert", 24)
        plan = propose(self.plan.teacher, self.plan.student, options=PlanOptions(weights=word))
        self.plan = calibrate(plan, self.teacher, [collate(self.data, range(8))], self.device)
        self.objective = build_classification_objective(weights, self.plan, regression=False)
        projections = Projections(self.plan.projections, 0)
        self.learner = Learner(self.learner.student, projections, self.plan, [self.objective], (0, 1), False)

    def train(self, steps, micro=None):
        optimizer = torch.optim.SGD(self.learner.parameters(), lr=1e-2)
        teach = lambda each: self.teacher(each, self.learner.wanted_of_teacher)  # noqa: E731
        for number in range(steps):
            share = micro_batches(self.data, range(8), 0, 1, micro)
            viewer = StepViewer(self.learner, teach, Accelerator(cpu=True), TrainSettings().seed)
            Stepper(viewer, optimizer, TrainSettings().clip).take(self.objective, share, number)
        return {name: each.values for name, each in self.objective.layer_weights.items()}


OF_LAYERS = (
    "cosine", "euclid", "attention", "relations", "nmse", "pkd", "attended-euclid", "attention-kl", "cka", "info-nce",
)  # fmt: skip


@pytest.mark.parametrize("word", LAYER_WEIGHTS)
def test_every_term_of_layers_takes_its_weights_as_they_are_now(word):
    setting = Changing(word)
    assert set(setting.objective.layer_weights) == set(OF_LAYERS)
    batch = collate(setting.data, range(8))
    alone = {}
    for number in range(2):
        for weights in setting.objective.layer_weights.values():
            state = torch.tensor([1.0, 0.0]) if number == 0 else torch.tensor([0.0, 1.0])
            weights.get_buffer("mismatch" if word == "adaptive" else "logs").copy_(
                state if word == "adaptive" else -30 * state
            )
        alone[number] = setting.breakdown(batch, count_units([batch])).parts
    setting.objective.remember(None)
    for weights in setting.objective.layer_weights.values():
        weights.get_buffer("mismatch" if word == "adaptive" else "logs").copy_(
            torch.tensor([3.0, 1.0] if word == "adaptive" else [0.0, np.log(3)])
        )
    mixed = setting.breakdown(batch, count_units([batch])).parts
    for name in OF_LAYERS:
        torch.testing.assert_close(mixed[name], 0.75 * alone[0][name] + 0.25 * alone[1][name])
        assert not torch.allclose(alone[0][name], alone[1][name], rtol=1e-3)


@pytest.mark.parametrize("word", LAYER_WEIGHTS)
def test_how_a_step_is_split_moves_no_layer_weights(word):
    weights = Weights(hard=0.3, alpha=0.7, beta=1, gamma=1, delta=1, terms={"pkd": 1})
    whole, ones = Changing(word, weights).train(4), Changing(word, weights).train(4, micro=3)
    assert list(whole) == ["cosine", "euclid", "attention", "pkd"]
    for name, values in whole.items():
        torch.testing.assert_close(ones[name], values, rtol=1e-4, atol=1e-6)
        assert abs(float(values[0]) - 0.5) > 1e-3
        assert float(values.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_a_stop_moves_no_layer_weights_and_the_history_has_them(kdalign, stopped, teacher, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changed = ("align.weights=adaptive", "train.checkpoint_every=3", "objective.schedule.alpha.to=0")
    more = [word for each in changed for word in ("--set", each)]
    words = lambda out: command(teacher, data, out, *more)[2:]  # noqa: E731
    assert kdalign(*words(whole))[0] == 0
    assert stopped(*words(parts))[0] == 9
    assert kdalign(*words(parts), "--resume")[0] == 0
    ours, theirs = weights_of(whole), weights_of(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one = steps_of(whole)
    assert [event["layers"] for event in one] == [event["layers"] for event in steps_of(parts)]
    assert one[0]["layers"] == {key: [0.5, 0.5] for key in ("cosine", "euclid", "attention")}
    assert one[-1]["layers"]["cosine"] != [0.5, 0.5]
    assert [event["weights"]["soft"] for event in one] == pytest.approx([0.7 * (7 - step) / 7 for step in range(8)])
    assert '"weighting": "adaptive"' in (whole / "plan.json").read_text()


def test_words_that_are_none_and_maps_with_weights_of_their_own_are_refused(kdalign, teacher, data):
    assert build_recipe(None, NEEDED, ["align.weights=null"]).align.weights == "uniform"
    with pytest.raises(UsageError, match=r"did you mean 'adaptive'\? \(accepted: uniform, ramp, learned, adaptive"):
        build_recipe(None, NEEDED, ["align.weights=adaptiv"])
    with pytest.raises(UsageError, match=r"numbers such as \[1, 2, 3\]"):
        build_recipe(None, NEEDED, ["align.weights=3"])
    for word in WORDS[1:]:
        for choice, said in (("cka", "has weights lambda_l of its own"), ("learned", "align.weights=uniform")):
            with pytest.raises(UsageError, match=said):
                propose(shape(4), shape(2), choice, options=PlanOptions(weights=word))
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run")
    status, _, errors = kdalign(*words, "--map", "cka", "--set", "align.weights=ramp")
    assert (status, "map 'cka' has weights lambda_l of its own" in one_line(errors)) == (2, True)


def test_a_plan_grows_from_the_bottom_in_equal_parts_whose_weights_sum_to_one():
    plan = propose(shape(6, 48), shape(3, 32), "2:5 1:3 0:1 0:0", options=PlanOptions(weights=(4, 2, 1, 1)))
    parts = progressive_plans(plan, 0.6)
    assert [begins for begins, _ in parts] == pytest.approx([0, 0.2, 0.4])
    first, second, last = (each.maps[0] for _, each in parts)
    assert (first.pairs, first.weights) == (((0, 1), (0, 0)), (0.5, 0.5))
    assert (second.pairs, second.weights) == (((1, 3), (0, 1), (0, 0)), (0.5, 0.25, 0.25))
    assert last == plan.maps[0]
    assert {shape.student.number for shape in parts[0][1].projections} == {0}
    assert progressive_plans(plan, 0.0) == ((0.0, plan),)
    with pytest.raises(UsageError, match=r"align\.grow begins with the lowest layers"):
        progressive_plans(propose(shape(6), shape(3), options=PlanOptions(weights=(0, 0, 1))), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("objective.align_first=0.5",)], ids=["beside answers", "align first"])
def test_layers_are_aligned_one_after_the_other_from_the_bottom(kdalign, teacher, data, tmp_path, monkeypatch, more):
    """By the layers whose gradient each part has: the upper layer's is 0 where only the lower is aligned."""
    monkeypatch.setattr(loop, "GRADIENT_STEPS", 1)
    out, sets = tmp_path / "grown", [word for each in ("align.grow=0.5", *more) for word in ("--set", each)]
    asked = []
    minimise = TaskTrainer.minimise
    monkeypatch.setattr(
        TaskTrainer, "minimise", lambda self, objective, plan: (
            asked.append([len(term.place.pairs) for _, term in objective.terms.values() if hasattr(term, "place")]),
            minimise(self, objective, plan),
        )
    )  # fmt: skip
    status, _, errors = kdalign(*command(teacher, data, out, *sets)[2:])
    assert status == 0, errors
    assert asked == [[1, 1, 1], [2, 2, 2], *([[]] if more else [])]
    events = steps_of(out)
    aligned = [event["parts"].get("cosine") for event in events]
    assert all(value is not None for value in aligned[: 4 if more else 8])
    assert all(value is None for value in aligned[4:]) == bool(more)


def test_growing_is_refused_beyond_the_steps_that_align_layers():
    for sets, said in (
        (["objective.align_first=0.3", "align.grow=0.5"], "more than the steps that align layers, align_first=0.3"),
        (["align.map=cka", "align.remap_every=5", "align.grow=0.5"], "leave objective.align_first and align.grow at 0"),
    ):
        with pytest.raises(UsageError, match=said):
            build_recipe(None, NEEDED, sets)
