"""Masked tokens that a student fills in beside: the sum by hand, what is asked for, and steps as they were."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdalign.alignment.projections import Projections
from kdalign.data.batches import collate
from kdalign.data.corruption import MaskedCopy, MaskTokens, TokenCutoff
from kdalign.data.epochs import micro_batches
from kdalign.data.tokenized_split import CUT, IGNORED, MASKED
from kdalign.distillation.build import masked_lm_term
from kdalign.distillation.pipeline import distill, prepare_all
from kdalign.errors import Interrupted
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.observer import NullObserver
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import build_recipe
from kdalign.runs.curves import read_curves
from kdalign.runs.finished import finished_runs
from kdalign.training.learner import Learner
from support.classifier_setting import ALL, Setting, examples
from support.tiny import one_line

SPECIAL = np.array([0, 1, 2, 3, 4])
MASKING = MaskTokens(4, 90, SPECIAL)
PAD = {CUT: 0, MASKED + "input_ids": 0, MASKED + "targets": IGNORED}


def masked(n=8, before=None):
    data = examples(n)
    return replace(data, corrupt=MaskedCopy(MASKING, before), pad={**data.pad, **PAD})


class Filling(Setting):
    """A setting whose student fills in masked tokens beside, and does nothing else where ``weights`` are 0."""

    def __init__(self, ours="bert", weights=ALL):
        super().__init__("bert", ours, 32)
        self.term = masked_lm_term(self.learner.student, 0, None)
        self.objective = build_classification_objective(weights, self.plan, regression=False).with_masked_lm(
            0.5, self.term
        )
        projections = Projections(self.plan.projections, 0)
        student = self.learner.student
        self.learner = Learner(student, projections, self.plan, [self.objective], (0, 1), False)


@pytest.mark.parametrize("ours", ["bert", "distilbert"])
def test_the_sum_over_masked_tokens_is_a_loop_in_float64(ours):
    setting, batch = Filling(ours), collate(masked(), range(8))
    setting.learner.double()
    torch.nn.init.normal_(setting.term.bias)
    view = TermInputs(
        setting.learner(batch.inputs, setting.teacher(batch, setting.learner.wanted_of_teacher)), None, batch
    )
    term, body, total = setting.term, setting.learner.student.base_model, 0.0
    known = {"input_ids": batch.inputs[MASKED + "input_ids"], "attention_mask": batch.inputs["attention_mask"]}
    known |= {"token_type_ids": batch.inputs["token_type_ids"]} if ours == "bert" else {}
    hidden, words = body(**known).last_hidden_state, body.get_input_embeddings().weight
    asked = 0
    for row, targets in enumerate(batch.inputs[MASKED + "targets"].tolist()):
        for place, target in enumerate(targets):
            if target == IGNORED:
                continue
            inner = term.dense.weight @ hidden[row, place] + term.dense.bias
            inner = torch.tensor([0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in inner.tolist()]).double()
            inner = (inner - inner.mean()) / (inner.var(unbiased=False) + 1e-12).sqrt()
            logits = words @ (inner * term.norm.weight + term.norm.bias) + term.bias
            total += float(logits.detach().exp().sum().log() - logits.detach()[target])
            asked += 1
    assert count_units([batch])[Unit.MASKED] == asked > 0
    assert term(view).item() == pytest.approx(total, rel=1e-5)


def test_so_many_tokens_are_asked_for_as_in_bert_and_none_that_is_cut_off_or_special():
    row = {"input_ids": [2, *range(10, 50), 3]}
    found = MaskedCopy(MASKING, None)(row, np.random.default_rng(0))
    asked = [n for n, target in enumerate(found[MASKED + "targets"]) if target != IGNORED]
    assert len(asked) == 6, "15 % of 40"
    assert [found[MASKED + "targets"][n] for n in asked] == [row["input_ids"][n] for n in asked]
    assert found["input_ids"] == row["input_ids"], "what all other terms read stays"
    for seed in range(20):
        found = MaskedCopy(MASKING, TokenCutoff(SPECIAL, 0.5, 1.0))(row, np.random.default_rng(seed))
        cut, targets = np.array(found[CUT]), np.array(found[MASKED + "targets"])
        assert cut.sum() == 20
        assert (targets[cut == 1] == IGNORED).all()


def test_it_changes_no_other_term_and_a_row_s_mask_is_of_seed_epoch_and_row_alone():
    setting, plain = Filling(), Setting("bert", "bert", 32)
    batch, same = collate(masked(), range(8), draw=(1, 2)), collate(examples(), range(8))
    parts, before = (s.breakdown(b, count_units([b])).parts for s, b in ((setting, batch), (plain, same)))
    assert set(parts) == {*before, "masked-lm"}
    for name in before:
        torch.testing.assert_close(parts[name], before[name])
    alone = collate(masked(), [3], draw=(1, 2), width=12)
    assert torch.equal(alone.inputs[MASKED + "targets"][0, :10], batch.inputs[MASKED + "targets"][3, :10])


def test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient_and_padding_none():
    setting, data = Filling(), masked()
    whole = setting.gradient(micro_batches(data, range(8), 0, 1, None, (0, 1)))
    assert setting.term.dense.weight.grad.abs().max() > 1e-4
    for ranks, size in ((1, 1), (2, 2), (3, None)):  # of three ranks, one runs a stand-in that counts nothing
        parts = [batch for rank in range(ranks) for batch in micro_batches(data, range(8), rank, ranks, size, (0, 1))]
        torch.testing.assert_close(setting.gradient(parts), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        setting.gradient([collate(data, range(8), width=30, draw=(0, 1))]), whole, atol=1e-5, rtol=1e-5
    )


@pytest.mark.slow
def test_trained_alone_it_falls_below_a_tenth():
    setting, batch = Filling(weights=Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0)), collate(masked(), range(8))
    objective = replace(setting.objective, terms={"masked-lm": setting.objective.terms["masked-lm"]})
    assert not objective.needs_teacher
    setting.objective = objective
    optimizer = torch.optim.AdamW(setting.learner.parameters(), lr=3e-3)
    values = []
    for _ in range(150):
        optimizer.zero_grad()
        found = objective(TermInputs(setting.learner(batch.inputs), None, batch), count_units([batch]))
        found.total.backward()
        optimizer.step()
        values.append(found.parts["masked-lm"].item())
    assert values[-1] < values[0] / 10


class StopAfter(NullObserver):
    """Someone who presses Ctrl-C after a step."""

    def __init__(self, step=None):
        self.step = step

    def stepped(self, report):
        if report.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_the_same_and_the_head_is_not_exported(teacher, data, tmp_path):
    def recipe(name):
        flags = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
        sets = ["objective.masked_lm=0.3", "data.augment.by=cutoff", "train.max_steps=6", "train.batch_size=8"]
        sets += ["data.limit=60", "train.precision=fp32", "train.device=cpu", "objective.align_first=0.5"]
        return build_recipe(None, {**flags, "out": str(tmp_path / name)}, sets)

    distill(recipe("whole"))
    with pytest.raises(Interrupted):
        distill(recipe("stopped"), StopAfter(2))
    distill(recipe("stopped"), resume=True)
    for name in ("student/model.safetensors", "history.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    weights = load_file(tmp_path / "whole" / "student" / "model.safetensors")
    assert not any("terms" in name or "dense.weight" == name for name in weights)
    events = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    steps = [set(event["parts"]) for event in events if event["kind"] == "step"]
    assert steps == [{"cosine", "euclid", "attention", "masked-lm"}] * 3 + [{"hard", "soft"}] * 3
    [drawn] = [read_curves(each) for each in finished_runs([tmp_path / "whole"])]
    assert (drawn.weights["masked-lm"], drawn.units["masked-lm"]) == (0.3, "nats")


def test_text_without_labels_is_learnt_from_without_a_teacher_where_masked_tokens_are_filled_in(
    teacher, data, tmp_path
):
    flags = {"teacher": "none", "student": str(teacher), "data.task": "sst2", "data.folder": str(data)}
    flags |= {"data.limit": 40, "data.unlabelled": "rest", "out": str(tmp_path / "run")}
    [run] = prepare_all(build_recipe(None, flags, ["objective.masked_lm=1"]))
    assert len(run.splits.unlabelled.examples) > 100


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--task", "masked-lm"), "is for tasks of classes or scores, and task 'masked-lm' predicts tokens anyway"),
        (
            ("--hard", "0", "--alpha", "0", "--beta", "0", "--gamma", "0", "--delta", "0"),
            "masked_lm teaches no classes",
        ),
    ],
)
def test_where_it_says_nothing_it_is_refused_in_one_line(more, said, teacher, data, kdalign):
    words = ("--teacher", teacher, "--task", "sst2", "--data", data, "--set", "objective.masked_lm=1")
    status, _, err = kdalign("distill", *words, *more)
    assert status == 2
    assert said in one_line(err)
