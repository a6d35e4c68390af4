"""The learned map: each student layer attends to all teacher layers and is compared with the mean that it makes."""

import json

import pytest
import torch
from torch.nn import functional as F

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.plan import Plan, mixture_layer
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.models import student
from kdalign.models.architecture import Layer, describe, layout_of
from kdalign.objective.build import build_language_objective
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.training.diagnostics import layer_attention
from kdalign.training.learner import Learner
from support.covering import first_only
from support.family_setting import EVERY, Setting, model
from support.tiny import one_line, save_model

ALONE = Weights(hard=0, alpha=0, beta=1, gamma=0.5, delta=0.5)


def attended(kind, weights=ALONE):
    setting = Setting(kind, weights)
    small, big = setting.learner.student, setting.teacher.model
    plan = propose(describe(big.config), describe(small.config), "learned")
    batch = collate(setting.data, range(len(setting.data)))
    plan = calibrate(plan, setting.teacher, [batch], torch.device("cpu"))
    setting.objective = build_language_objective(weights, plan)
    setting.learner = Learner(small, Projections((), 0), plan, [setting.objective], None, False).eval()
    setting.plan = plan
    return setting, batch


def test_the_plan_pairs_every_layer_with_all_and_survives_json():
    big, small = model("bert"), model("bert", layers=2)
    plan = propose(describe(big.config), describe(small.config), "learned")
    assert plan.maps[0].pairs == tuple((ours, theirs) for ours in range(2) for theirs in range(4))
    assert [pair for *pair, _ in plan.pairs] == [
        [Layer("encoder", number), mixture_layer(Layer("encoder", number), "encoder")] for number in range(2)
    ]
    assert sum(weight for *_, weight in plan.pairs) == pytest.approx(1)
    assert Plan.from_json(plan.to_json()) == plan


@EVERY
def test_each_text_is_compared_with_a_mean_of_the_teachers_layers(kind):
    setting, batch = attended(kind)
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    signals = setting.learner(batch.inputs, taught)
    for ours, mean, _ in setting.plan.pairs:
        shares = signals.shares[mean]
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(len(shares)))
        layers = [layer for layer in setting.plan.teaching if layer.stack == ours.stack]
        by_hand = sum(shares[:, n, None, None] * taught.hidden[layer] for n, layer in enumerate(layers))
        torch.testing.assert_close(signals.targets[ours, mean], by_hand, atol=1e-5, rtol=1e-5)
    for target in signals.maps.values():
        sums = target.sum(dim=-1)[torch.isfinite(target.sum(dim=-1))]
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=1e-4)


def test_attention_to_layers_by_hand():
    setting, batch = attended("bert")
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    signals = setting.learner(batch.inputs, taught)
    first, layer = Layer("encoder", 0), setting.plan.teaching
    row = int(batch.real.sum(dim=1).argmin())
    length = int(batch.real[row].sum())
    means = [F.layer_norm(taught.hidden[each][row, :length].mean(dim=0), (32,)) for each in layer]
    asking = F.layer_norm(signals.hidden[first][row, :length].mean(dim=0), (32,))
    by_hand = torch.stack([asking @ each / 32**0.5 for each in means]).softmax(dim=0)
    torch.testing.assert_close(signals.shares[mixture_layer(first, "encoder")][row], by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", first_only(["bert", "gpt2", "t5"]))
def test_the_learned_map_alone_falls_below_a_tenth_on_one_batch(kind):
    setting, batch = attended(kind)
    units = count_units([batch])
    optimizer = torch.optim.Adam(setting.learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(500):
        optimizer.zero_grad()
        taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
        loss = setting.objective(TermInputs(setting.learner(batch.inputs, taught), taught, batch), units).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if losses[-1] < losses[0] / 10:
            break
    assert losses[-1] < losses[0] / 10


def test_a_copy_of_the_teacher_attends_most_to_its_own_layers():
    big = model("bert")
    twin = student.copy_layers(big, {stack.name: range(4) for stack in layout_of(big.config).stacks})
    setting, batch = attended("bert")
    plan = propose(describe(big.config), describe(twin.config), "learned")
    plan = calibrate(plan, setting.teacher, [batch], torch.device("cpu"))
    objective = build_language_objective(ALONE, plan)
    learner = Learner(twin, Projections((), 0), plan, [objective], None, False)
    found = layer_attention(plan, learner, setting.teacher, [batch], torch.device("cpu"))["encoder"]
    assert [max(range(4), key=row.__getitem__) for row in found] == [0, 1, 2, 3]
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in found)


@pytest.mark.slow
def test_a_run_with_a_learned_map_reports_the_attention_and_projects_where_widths_differ(
    kdalign, teacher, data, tmp_path, tmp_path_factory
):
    narrow = save_model(tmp_path_factory.mktemp("narrow"), "bert", layers=2, width=24, heads=4)
    for ours, name in (("layers=2", "cut"), (narrow, "narrow")):
        status, _, err = kdalign("distill", "--teacher", teacher, "--student", ours, "--task", "sst2", "--data", data,
                                 "--map", "learned", "--max-steps", "3", "--device", "cpu",
                                 "--out", f"runs/{name}")  # fmt: skip
        assert status == 0, err
        assert "attention of encoder layers to the teacher's: 0:" in err
        record = json.loads((tmp_path / f"runs/{name}/record.json").read_text())
        rows = record["training"]["layer_attention"]["encoder"]
        assert [len(row) for row in rows] == [4, 4]
        assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in rows)
    assert (tmp_path / "runs/narrow/projections.safetensors").is_file()
    status, _, err = kdalign("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data,
                             "--map", "learned", "--set", "objective.relations=1", "--out", "runs/no")  # fmt: skip
    assert status == 2
    assert "relations" in one_line(err)


def test_the_learned_map_is_shown_without_weights_being_loaded(kdalign, teacher):
    status, out, err = kdalign("map-layers", "--teacher", teacher, "--student", "layers=2", "--map", "learned")
    assert status == 0, err
    assert "attends to all teacher layers" in " ".join(out.split())
