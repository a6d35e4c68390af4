"""Further terms: padding, splitting and ranks, learning, what is remembered, and what is refused."""

import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.errors import UsageError
from kdalign.models.architecture import describe
from kdalign.models.capture import Activations
from kdalign.objective import losses, terms
from kdalign.objective.build import (
    build_classification_objective,
    build_embedding_objective,
    build_language_objective,
    build_pair_objective,
)
from kdalign.objective.terms import MaskedTokens, TermInputs, Unit
from kdalign.objective.terms.registry import TERMS
from kdalign.objective.terms.relational import Queue
from kdalign.objective.units import count_groups, count_units
from kdalign.recipe import ANSWER_TERMS, TERM_FACTS, TrainSettings, build_recipe
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.registry import allow_code
from kdalign.runs.ablation_spec import build_ablation, read_ablation, write_ablation
from kdalign.training.diagnostics import StepViewer
from kdalign.training.step import Stepper
from support.classifier_setting import Setting, examples
from support.covering import each_once, first_only
from support.terms import NONE, weights_of
from support.tiny import one_line, tiny_classifier

OPTIONS = {"crd": {"weight": 1, "queue": 16, "negatives": 4}, "info-nce": {"weight": 1, "queue": 16}}
GROUPS = ("dist", "cka", "rkd-distance", "rkd-angle", "similarity-preserving", "info-nce", "crd")
NEEDS_THREE_CLASSES = ("dkd", "dist")
OF_TWO_CLASSES = [name for name in TERMS if name not in NEEDS_THREE_CLASSES]


def alone(name):
    return Weights(**NONE, temperature=2, terms={name: OPTIONS.get(name, 1)})


def setting_of(name, theirs="bert", ours="bert", width=32):
    return Setting(theirs, ours, width, alone(name))


@pytest.mark.parametrize(("name", "width"), each_once(OF_TWO_CLASSES, [24, 32]))
def test_more_padding_changes_no_further_term_and_no_gradient(name, width):
    setting = setting_of(name, width=width)
    narrow, wide = collate(setting.data, range(8)), collate(setting.data, range(8), width=30)
    torch.manual_seed(0)
    before = setting.gradient([narrow])
    torch.manual_seed(0)
    torch.testing.assert_close(setting.gradient([wide]), before, atol=1e-5, rtol=1e-4)
    assert before.abs().max() > 1e-5


@pytest.mark.parametrize("name", [name for name in OF_TWO_CLASSES if name not in GROUPS])
def test_a_step_split_into_micro_batches_has_the_same_gradient(name):
    setting = setting_of(name)
    whole = setting.gradient(micro_batches(setting.data, range(8), 0, 1, None))
    torch.testing.assert_close(
        setting.gradient(micro_batches(setting.data, range(8), 0, 1, 3)), whole, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_a_micro_batch_and_too_small_a_one_is_none(name):
    if name == "dist":
        term = build_classification_objective(alone(name), None, False, classes=3).terms[name][1]
        assert term.unit is Unit.GROUP
        return
    setting = setting_of(name)
    unit = setting.objective.terms[name][1].unit
    few = micro_batches(setting.data, range(4), 0, 1, 2)
    assert unit is (Unit.TOKEN_GROUP if name == "cka" else Unit.GROUP)
    assert count_units(few)[unit] == (2 if name == "cka" else 0)
    if name != "cka":
        assert float(setting.gradient(few).abs().max()) == 0
    # Another rank's texts are of the same group: three of them together are one.
    assert count_groups([[4, 30], [2, 20]])[Unit.GROUP] == 1


HARD_TO_FIT = {"info-nce": 0.5, "crd": 0.5}
"""What a contrastive loss falls to is no 0: other rows stay where they are."""


@pytest.mark.parametrize("name", first_only(OF_TWO_CLASSES, 4))
def test_each_further_term_alone_falls_below_a_tenth_of_its_start_on_one_batch(name):
    setting = setting_of(name)
    batch = collate(setting.data, range(8))
    units = count_units([batch])
    optimizer = torch.optim.AdamW(setting.learner.parameters(), lr=5e-3, weight_decay=0)
    torch.manual_seed(0)
    start = value = float(setting.breakdown(batch, units).parts[name])
    share = HARD_TO_FIT.get(name, 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        breakdown = setting.breakdown(batch, units)
        breakdown.total.backward()
        optimizer.step()
        value = float(breakdown.parts[name])
        if value < share * start:
            break
    assert start > 1e-3
    assert value < share * start


def test_terms_of_three_classes_give_the_losses_of_their_logits():
    logits = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    batch = collate(examples(), range(8))
    signals = [Activations(logits=each) for each in logits]
    view = TermInputs(*signals, batch)
    objective = build_classification_objective(
        Weights(**NONE, temperature=3, terms={"dkd": {"other": 2}, "dist": {"temperature": 4}, "logit-mse": 0.5}),
        None, False, classes=3,
    )  # fmt: skip
    parts = objective(view, count_units([batch])).parts
    every = torch.ones(8, dtype=torch.bool)
    expected = {
        "dkd": losses.decoupled_kl(*logits, batch.labels, every, 3.0, 2.0) / 8,
        "dist": losses.correlation_distance(*logits, 4.0),
        "logit-mse": losses.logit_squared_error(*logits, every) / 8,
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)


@pytest.mark.parametrize("kind", losses.DIVERGENCES)
def test_classes_are_compared_by_the_divergence_that_is_asked_for(kind):
    logits = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    batch = collate(examples(), range(8))
    batch.counted[5] = False
    view = TermInputs(*(Activations(logits=each) for each in logits), batch)
    for standardise in (False, True):
        weights = Weights(**{**NONE, "alpha": 1}, temperature=2, divergence=kind, standardise=standardise)
        found = build_classification_objective(weights, None, False, classes=3)(view, count_units([batch])).parts[
            "soft"
        ]
        ours, theirs = (losses.standardise_logits(each) if standardise else each for each in logits)
        expected = losses.divergence(ours[batch.counted], theirs[batch.counted], kind, 2.0) / 7
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("weights", "classes", "said"),
    [
        ({"terms": {"dkd": 1}}, 2, "term 'dkd' needs 3 classes or more: of two, there is one other than the label"),
        ({"terms": {"dist": 1}}, 2, "term 'dist' needs 3 classes or more: .*correlation is 1 or -1"),
        ({"terms": {"dkd": 1}}, 1, "term 'dkd' compares the logits of classes, and this task has none"),
        ({"alpha": 1, "standardise": True}, 2, "standardise needs three classes or more: .*only the order is left"),
        ({"terms": {"pkt": 1}}, 2, "unknown term 'pkt'; did you mean 'pkd'"),
        ({"terms": {"dkd": {"othr": 1}}}, 3, "unknown option of term 'dkd': 'othr'; did you mean 'other'"),
        ({"terms": {"info-nce": {"queue": True}}}, 2, "queue=True is not a number"),
        ({"terms": {"info-nce": {"temperature": 1e-300}}}, 2, "greater than or equal to 0.0001"),
        (
            {"terms": {"info-nce": {"over": "words"}}},
            3,
            "term 'info-nce': over='words': Input should be 'texts' or 'tokens'",
        ),
        (
            {"terms": {"dkd": {"temperature": 0}}},
            3,
            "term 'dkd': temperature=0: Input should be greater than or equal to 0.0001",
        ),
        ({"terms": {"cka": 1}}, 3, "term 'cka' compares layers with a teacher's, and there is none"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(weights, classes, said):
    plan = None
    if "over" in str(weights):
        model = describe(tiny_classifier("bert", 2).config)
        plan = propose(model, model)
    with pytest.raises(UsageError, match=said):
        build_classification_objective(Weights(**{**NONE, **weights}), plan, classes == 1, classes)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ("pkd", "terms takes names"),
        ({"pkd": -1}, "not negative"),
        ({"pkd": True}, "not negative"),
        ({"pkd": "x"}, "weight"),
    ],
)
def test_weights_of_terms_are_numbers_that_are_not_negative(terms, said):
    with pytest.raises(UsageError, match=said):
        build_recipe(None, {"teacher": "t", "data.task": "sst2", "objective.terms": terms})


def test_a_recipe_names_terms_by_weight_or_with_options_and_is_read_back(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("teacher: t\ndata: {task: sst2}\nobjective: {terms: {pkd: 1e-2, info-nce: {queue: 64}}}\n")
    recipe = build_recipe(file, {}, ["objective.terms.cka=0.5"])
    assert recipe.objective.terms == {
        "pkd": {"weight": 0.01},
        "info-nce": {"weight": 1.0, "queue": 64},
        "cka": {"weight": 0.5},
    }
    (tmp_path / "again.yaml").write_text(recipe.dump())
    assert build_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.objective.weights["cka"] == 0.5


def test_arms_without_layers_have_no_further_terms_and_stages_divide_them(tmp_path):
    base = {"teacher": "t", "data.task": "mnli", "objective.terms": {"pkd": 2, "dkd": 1}}
    ablation = build_ablation(None, base, arms="labels,soft,align,joint")
    write_ablation(ablation, tmp_path)
    assert read_ablation(tmp_path) == ablation
    arms = {one.arm: one.recipe.objective for one in ablation.trials(tmp_path)}
    assert {name: sorted(each.terms) for name, each in arms.items()} == {
        "labels": [], "soft": [], "align": ["dkd", "pkd"], "joint": ["dkd", "pkd"],
    }  # fmt: skip
    (_, first), (_, second) = arms["align"].stages
    assert (list(first.terms), list(second.terms)) == (["pkd"], ["dkd"])
    assert set(ANSWER_TERMS) < set(TERMS)


def test_a_queue_keeps_the_last_rows_first_in_first_out():
    queue = Queue(4, [2, 1])
    queue.put([torch.ones(3, 2), torch.ones(3, 1)], torch.tensor([7, 8, 9]))
    assert queue.numbers.tolist() == [7, 8, 9, -1]
    queue.put([torch.full((2, 2), 2.0), torch.full((2, 1), 3.0)], torch.tensor([10, 11]))
    assert queue.numbers.tolist() == [11, 8, 9, 10]
    assert queue.rows(0)[:, 0].tolist() == [2, 1, 1, 2]
    assert queue.rows(1)[:, 0].tolist() == [3, 1, 1, 3]
    queue.put([torch.arange(6.0)[:, None].expand(6, 2), torch.arange(6.0)[:, None]], torch.arange(6))
    assert sorted(queue.numbers.tolist()) == [2, 3, 4, 5]


def test_the_queue_holds_the_teachers_rows_of_earlier_steps_and_an_inputs_own_is_no_wrong_answer():
    setting = setting_of("info-nce")
    [term] = setting.objective.modules.values()
    first, second = collate(setting.data, range(4)), collate(setting.data, range(3, 8))
    setting.breakdown(first, count_units([first]))
    assert term.queue.numbers.max() == -1
    setting.objective.remember(count_units([first]))
    assert sorted(term.queue.numbers.tolist()[:4]) == [0, 1, 2, 3]
    assert term.queue.numbers[4] == -1
    found = float(setting.breakdown(second, count_units([second])).parts["info-nce"])
    setting.objective.remember(None)
    assert sorted(term.queue.numbers.tolist()[:4]) == [0, 1, 2, 3]
    assert term.queue.numbers[4] == -1

    def pooled(kept, batch):
        return torch.stack([row[real].mean(0) for row, real in zip(kept, batch.real, strict=True)])

    total = 0.0
    taught = [setting.teacher(each, setting.learner.wanted_of_teacher) for each in (first, second)]
    student = setting.learner(second.inputs, taught[1])
    for ours, theirs, weight in setting.plan.pairs:
        queued, keys = (pooled(t.hidden[theirs], b) for t, b in zip(taught, (first, second), strict=True))
        rows = pooled(student.projected[ours, theirs].detach(), second)
        for i in range(5):
            others = torch.cat([keys, queued[[0, 1, 2]] if i == 0 else queued])  # row 3 is in both
            cosines = torch.nn.functional.cosine_similarity(rows[i][None], others) / 0.07
            total -= weight * float(cosines.log_softmax(0)[i]) / 5
    assert found == pytest.approx(total, rel=1e-4)


def test_positives_by_dropout_are_the_students_rows_by_a_second_forward():
    weights = Weights(**NONE, terms={"info-nce": {"weight": 1, "temperature": 0.5, "positives": "dropout"}})
    setting = Setting("bert", "bert", 24, weights)
    batch = collate(setting.data, range(6))
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    for module in setting.learner.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    torch.manual_seed(0)
    signals = setting.learner(batch.inputs, taught)
    value = setting.objective(TermInputs(signals, taught, batch), count_units([batch])).parts["info-nce"]

    def rows(features):
        kept = features.detach().double()
        return torch.stack([row[real].mean(0) for row, real in zip(kept, batch.real, strict=True)])

    total = 0.0
    for ours, theirs, share in setting.plan.pairs:
        student, again = rows(signals.projected[ours, theirs]), rows(signals.again[ours, theirs])
        assert (student - again).abs().max() > 1e-3, "dropout differs"
        for keys in (rows(signals.targets[ours, theirs]), again):
            cosines = torch.nn.functional.cosine_similarity(student[:, None], keys[None], dim=-1) / 0.5
            total -= share * float(cosines.log_softmax(1).diagonal().mean()) / 2
    assert float(value) == pytest.approx(total, rel=1e-5)


def test_micro_batches_of_a_step_do_not_see_one_another_and_enter_the_queue_together():
    setting = setting_of("info-nce")
    [term] = setting.objective.modules.values()
    share = micro_batches(setting.data, [7, 0, 5, 2, 6, 1, 4, 3], 0, 1, 4)
    held = []
    learner, optimizer = setting.learner, torch.optim.AdamW(setting.learner.parameters())
    learner.register_forward_pre_hook(lambda *_: held.append(int((term.queue.numbers >= 0).sum())))

    def teach(batch):
        return setting.teacher(batch, learner.wanted_of_teacher)

    viewer = StepViewer(learner, teach, Accelerator(cpu=True), 0)
    Stepper(viewer, optimizer, TrainSettings().clip).take(setting.objective, share, 0)
    assert held == [0, 0]
    assert sorted(term.queue.numbers.tolist()[:8]) == list(range(8))


def test_own_terms_are_loaded_from_a_file_with_their_options(tmp_path):
    (tmp_path / "own.py").write_text(
        "from kdalign.plugins import Signal, Unit\n"
        "class Gap:\n"
        "    needs, unit = frozenset({Signal.LOGITS}), Unit.EXAMPLE\n"
        "    def __init__(self, setting, power=2):\n"
        "        self.power = power\n"
        "    def __call__(self, view):\n"
        "        return ((view.student.logits - view.teacher.logits).abs() ** self.power).sum()\n"
    )
    name = f"{tmp_path}/own.py:Gap"
    with allow_code():
        setting = Setting("bert", "bert", 32, Weights(**NONE, terms={name: {"weight": 3, "power": 1}}))
    batch = collate(setting.data, range(8))
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    gap = (setting.learner(batch.inputs, taught).logits - taught.logits).abs().sum() / 8
    found = setting.breakdown(batch, count_units([batch]))
    torch.testing.assert_close(found.parts[name], gap.detach())
    torch.testing.assert_close(found.total, 3 * gap)


def test_the_example_of_an_own_loss_trains_and_is_what_it_says(kdalign, teacher, data, tmp_path, monkeypatch):
    root = Path(__file__).parents[3]
    words = ["distill", "--teacher", teacher, "--task", "sst2", "--data", data, "--out", tmp_path / "gap"]
    monkeypatch.chdir(root)
    words += ["--recipe", "examples/own_loss/recipe.yaml", "--max-steps", "3"]
    status, _, errors = kdalign(*words, "--allow", "code")
    assert status == 0, errors
    assert "runs code: examples/own_loss/gap.py" in errors
    name = "examples/own_loss/gap.py:ConfidenceGap"
    assert all(0 < parts[name] < 1 for parts in terms_of(tmp_path / "gap"))
    batch = collate(examples(), range(2))
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    view = TermInputs(*(Activations(logits=each) for each in logits), batch)
    with allow_code():
        objective = build_classification_objective(
            Weights(**NONE, terms={name: {"weight": 2, "power": 1}}), None, False, classes=2
        )
    assert float(objective(view, count_units([batch])).total) == pytest.approx(2 * (0.25 + 0) / 2)
    with pytest.raises(UsageError, match="a score has no confidence"), allow_code():
        build_classification_objective(Weights(**NONE, terms={name: 1}), None, True, classes=1)


def command(teacher, data, out, *more):
    return [
        "-m", "kdalign", "distill", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2",
        "--data", str(data), "--max-steps", "6", "--batch-size", "16", "--precision", "fp32", "--device", "cpu",
        "--hard", "0", "--alpha", "0",
        "--beta", "0", "--gamma", "0", "--delta", "0", "--set", "train.dropout=0", "--set", "objective.terms.cka=1",
        "--set", "objective.terms.rkd-angle=1", "--set", "objective.terms.similarity-preserving=10",
        "--set", "objective.terms.info-nce.queue=40", "--set", "objective.terms.info-nce.weight=0.1",
        "--out", str(out), *more,
    ]  # fmt: skip


def run(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def terms_of(out, what="parts"):
    events = [json.loads(line) for line in (Path(out) / "history.jsonl").read_text().splitlines()]
    return [event[what] for event in events if event["kind"] == "step"]


@pytest.mark.slow
def test_two_ranks_make_the_groups_the_balance_and_the_layer_weights_of_one_process(teacher, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    more = ("--set", "objective.balance=size", "--set", "align.weights=adaptive")
    done = run(command(teacher, data, one, *more))
    assert done.returncode == 0, done.stderr
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0", "--standalone"]  # fmt: skip
    done = run([*torchrun, *command(teacher, data, two, *more)])
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(terms_of(one, "weights"), terms_of(two, "weights"), strict=True):
        assert theirs == pytest.approx(ours, rel=2e-4)
    for ours, theirs in zip(terms_of(one, "layers"), terms_of(two, "layers"), strict=True):
        assert set(ours) == {"cka", "rkd-angle", "similarity-preserving", "info-nce"}
        assert all(theirs[name] == pytest.approx(ours[name], abs=2e-4) for name in ours)
    for ours, theirs in zip(terms_of(one), terms_of(two), strict=True):
        for name in ours:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-4), name
    ours, theirs = weights_of(one), weights_of(two)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_queue_survives_a_stop_bit_for_bit(teacher, data, tmp_path, kdalign, stopped):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert kdalign(*command(teacher, data, whole)[2:])[0] == 0
    words = [*command(teacher, data, parts)[2:], "--set", "train.checkpoint_every=2"]
    assert stopped(*words)[0] == 9
    assert not (parts / "record.json").exists()
    assert kdalign(*words, "--resume")[0] == 0
    ours, theirs = weights_of(whole), weights_of(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [name for name in ours if "queue" in name]
    assert terms_of(whole) == terms_of(parts)


def test_a_term_of_the_command_line_is_in_card_and_record_and_refusals_write_nothing(kdalign, teacher, data, tmp_path):
    words = ["distill", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2", "--data", str(data)]
    words += ["--max-steps", "2", "--batch-size", "16", "--out", str(tmp_path / "a")]
    assert kdalign(*words, "--set", "objective.terms.pkd=10")[0] == 0
    assert "10 × pkd" in (tmp_path / "a/student/README.md").read_text()
    assert "pkd" in json.loads((tmp_path / "a/record.json").read_text())["training"]["terms"]
    for given, said in (
        ("objective.terms.dkd=1", "term 'dkd' needs 3 classes or more"),
        ("objective.terms.pk=1", "unknown term 'pk'; did you mean 'pkd'"),
        ("objective.terms.info-nce.positives=dropout", "positives=dropout needs two forwards that differ"),
    ):
        code, _, errors = kdalign(*words[:-1], str(tmp_path / "b"), "--set", "train.dropout=0", "--set", given)
        assert (code, said in one_line(errors)) == (2, True)
        assert not (tmp_path / "b").exists()
    code, _, errors = kdalign(*words[:-1], str(tmp_path / "b"), "--map", "learned", "--set", "objective.terms.cka=1")
    assert (code, "map 'learned'" in one_line(errors)) == (2, True)


def test_every_term_has_its_facts_and_every_fact_its_term():
    weights = Weights(relations=1, embeddings=1, masked_lm=1, terms={name: OPTIONS.get(name, 1) for name in TERMS})
    plan = propose(*(describe(tiny_classifier("bert", layers, 32, seed=0).config) for layers in (4, 2)))
    language = Weights(terms={})
    objectives = [
        build_classification_objective(weights, plan, False, classes=3).with_masked_lm(1, MaskedTokens(8, (9, 8), 0)),
        build_language_objective(language, plan),
        build_embedding_objective(language, plan),
        build_pair_objective(language, plan),
    ]
    assert {name.partition(" ")[0] for objective in objectives for name in objective.names} == set(TERM_FACTS)
    built = {type(term) for objective in objectives for _, term in objective.terms.values()}
    modules = (terms.features, terms.logits, terms.pairs, terms.relational)
    classes = {found for module in modules for _, found in inspect.getmembers(module, inspect.isclass)}
    assert built | {terms.LMHeadLoss} == {each for each in classes if _takes_a_view(each)}
    assert list(TERMS) == [name for name, facts in TERM_FACTS.items() if not facts.key]


def _takes_a_view(found):
    call = found.forward if issubclass(found, torch.nn.Module) else found.__call__
    return "view" in inspect.signature(call).parameters


def test_shipped_terms_are_named_in_the_methods():
    page = (Path(__file__).parents[3] / "docs/reference/losses.md").read_text(encoding="utf-8")
    assert [name for name, facts in TERM_FACTS.items() if f"`{facts.key or name}`" not in page] == []
    assert np.all([name in page for name in losses.DIVERGENCES])
