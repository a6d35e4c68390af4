"""Attention across head counts and families: mixed, averaged, or as relations between positions."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
)

from kdalign.alignment.plan import HeadMix, Plan
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import Batch, collate
from kdalign.errors import UsageError
from kdalign.models import attention
from kdalign.models.architecture import Architecture, Layer, Stack, attention_modules, describe
from kdalign.models.capture import CaptureSpec, enable_capture, forward
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import AttentionLayout
from kdalign.objective import losses
from kdalign.objective.build import build_classification_objective
from kdalign.objective.checks import check_attention
from kdalign.objective.terms import LayerPairs, TermInputs, relation_heads
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import TrainSettings
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from kdalign.training.optimizer import make_optimizer
from support.classifier_setting import examples
from support.covering import each_once
from support.tiny import one_line, save_model


def classifier(kind, layers, width, heads, seed):
    made = {"bert": BertConfig, "deberta": DebertaV2Config}[kind]
    own = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
    config = made(
        vocab_size=100,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        **(own if kind == "deberta" else {}),
    )
    torch.manual_seed(seed)
    implementation = "eager" if kind == "deberta" else "sdpa"
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=implementation)


class Pair:
    """A teacher and a student of other heads, trained on their attention alone."""

    def __init__(self, theirs, ours, terms, **how):
        self.teacher = ComputedTeacher(classifier(*theirs, seed=1), (0, 1), torch.float32, torch.device("cpu"))
        student = classifier(*ours, seed=2)
        self.plan = propose(describe(self.teacher.model.config), describe(student.config), options=PlanOptions(**how))
        self.objective = build_classification_objective(terms, self.plan, regression=False)
        mixes = self.plan.mixes if self.objective.compared_maps else ()
        self.learner = Learner(student, Projections((), 0, mixes), self.plan, [self.objective], (0, 1), False)
        self.data = examples()

    def parts(self, batch):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        return self.objective(TermInputs(self.learner(batch.inputs, taught), taught, batch), count_units([batch]))


MAPS = Weights(hard=0, alpha=0, beta=0, gamma=0, delta=1)
RELATIONS = Weights(hard=0, alpha=0, beta=0, gamma=0, delta=0, relations=1)
PAIRS = {
    "12 heads teach 8": (("bert", 4, 48, 12), ("bert", 2, 32, 8)),
    "6 heads teach 9": (("bert", 4, 36, 6), ("bert", 2, 36, 9)),
    "DeBERTa teaches BERT": (("deberta", 4, 32, 4), ("bert", 2, 32, 4)),
    "BERT teaches DeBERTa": (("bert", 4, 32, 4), ("deberta", 2, 48, 6)),
}
WAYS = {
    "mixed": (MAPS, {"heads": "auto"}, 0.5),
    "averaged": (MAPS, {"heads": "mean"}, 0.2),
    "values": (RELATIONS, {}, 0.2),
    "queries, keys, values": (RELATIONS, {"relations": "all"}, 0.3),
}


def test_keeping_a_map_changes_nothing_under_dropout_and_the_map_is_the_one_before_it():
    model = enable_capture(classifier("bert", 2, 32, 4, seed=1)).train()
    for module in attention_modules(model).values():
        module.dropout.p = 0.3
    batch = collate(examples(), range(8))
    first = Layer("encoder", 0)

    def seen(wanted):
        torch.manual_seed(5)
        model.zero_grad()
        signals = forward(model, accepted_inputs(model, batch.inputs), wanted, torch.tensor([0, 1]))
        signals.logits.square().sum().backward()
        return signals, [p.grad.clone() for p in model.parameters()]

    plain, kept = seen(CaptureSpec()), seen(CaptureSpec(attention=frozenset({first, Layer("encoder", 1)})))
    torch.testing.assert_close(kept[0].logits, plain[0].logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept[1], plain[1], atol=1e-5, rtol=1e-4)
    rows = kept[0].attention[first].sum(dim=-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "way"), each_once(PAIRS, WAYS))
def test_attention_of_other_heads_trains_and_falls(pair, way):
    weights, how, share = WAYS[way]
    setting = Pair(*PAIRS[pair], weights, **how)
    batch = collate(setting.data, range(8))
    optimizer = make_optimizer(setting.learner, TrainSettings(lr=1e-2, weight_decay=0))
    values = []
    for _ in range(150):
        found = setting.parts(batch)
        values.append(float(found.total.detach()))
        setting.learner.zero_grad()
        found.total.backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3
        optimizer.step()
    assert values[-1] < share * values[0]


@pytest.mark.parametrize("way", WAYS)
def test_more_padding_changes_no_attention_term(way):
    weights, how, _ = WAYS[way]
    setting = Pair(*PAIRS["12 heads teach 8"], weights, **how)
    batches = (collate(setting.data, range(8), width=width) for width in (None, 20))
    narrow, wide = (float(setting.parts(batch).total.detach()) for batch in batches)
    assert narrow == pytest.approx(wide, rel=1e-5)


def test_the_term_is_the_weighted_mean_over_layers_and_parts_of_their_divergences():
    weights = (1.0, 3.0)
    setting = Pair(*PAIRS["12 heads teach 8"], RELATIONS, relations="all", relation_heads=4, weights=weights)
    batch = collate(setting.data, range(8))
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    ours = setting.learner(batch.inputs, taught)
    seen = batch.inputs["attention_mask"].bool()[:, None, :].expand(-1, batch.real.size(1), -1)
    expected = 0.0
    for (student, teacher), share in zip(((0, 1), (1, 3)), (0.25, 0.75), strict=True):
        for part in ("queries", "keys", "values"):
            x, y = vars(ours)[part][Layer("encoder", student)], vars(taught)[part][Layer("encoder", teacher)]
            x, y = relation_heads(x, 4), relation_heads(y, 4)
            expected += share / 3 * float(losses.relation_divergence(x, y, seen, batch.tokens).detach())
    assert float(setting.parts(batch).total.detach()) == pytest.approx(expected / int(batch.tokens.sum()), rel=1e-5)


def test_a_position_is_related_to_those_it_may_see():
    real = torch.tensor([[True, True, True, False]])
    batch = Batch(
        {"attention_mask": real.long(), "decoder_attention_mask": torch.tensor([[1, 1, 0]])}, None, real[:, 0], real
    )
    assert LayerPairs(()).visible(batch)[0].tolist() == [[True, True, True, False]] * 4
    back = LayerPairs((), looks_back=True).visible(batch)[0]
    assert back.tolist() == [[i >= j and j < 3 for j in range(4)] for i in range(4)]
    target = LayerPairs((), reads_target=True, looks_back=True).visible(batch)[0]
    assert target.tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    within = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    packed = Batch({"attention_mask": within}, None, real[:, 0], real)
    assert torch.equal(LayerPairs((), looks_back=True).visible(packed), within[:, 0])


def test_mixed_heads_start_as_the_mean_stay_probabilities_and_are_trained():
    layers = Layer("encoder", 0), Layer("encoder", 1)
    projections = Projections((), 0, (HeadMix(*layers, 3, 5),))
    maps = torch.rand(2, 3, 4, 4).softmax(-1)
    mixed = projections.mixed(maps, *layers)
    torch.testing.assert_close(mixed, maps.mean(1, keepdim=True).expand(-1, 5, -1, -1))
    with torch.no_grad():
        projections.mixes["encoder_0_to_encoder_1"][2, 1] = math.log(2)
    mixed = projections.mixed(maps, *layers)
    torch.testing.assert_close(mixed[:, 2], (maps[:, 0] + 2 * maps[:, 1] + maps[:, 2]) / 4)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(2, 5, 4))
    same = projections.mixed(maps, layers[1], layers[0])  # no mix for this pair
    assert same is maps


def test_heads_are_put_side_by_side_and_split_again():
    x = torch.arange(2 * 2 * 3 * 4.0).view(2, 2, 3, 4)  # (batch, heads, time, head width)
    four = relation_heads(x, 4)
    assert four.shape == (2, 4, 3, 2)
    assert torch.equal(four[1, 0, 2], x[1, 0, 2, :2])
    assert torch.equal(four[1, 1, 2], x[1, 0, 2, 2:])
    assert torch.equal(four[1, 2, 2], x[1, 1, 2, :2])
    assert torch.equal(relation_heads(x, 2), x)


def shape(heads, width, kv_heads=None):
    stack = Stack("decoder", 4, width, heads, kv_heads or heads, width // heads, 64)
    return Architecture("llama", "causal", (stack,), 100, 1000, True)


def test_relation_heads_divide_every_width_also_of_grouped_keys():
    # Queries 64 wide and keys 32 (2 of 4 heads), against 48 and 48: common divisors of 16.
    assert propose(shape(4, 64, 2), shape(6, 48)).relation_heads == 4
    assert propose(shape(4, 64, 2), shape(6, 48), options=PlanOptions(relation_heads=16)).relation_heads == 16
    with pytest.raises(UsageError, match=r"divide the models' widths \(accepted: 1, 2, 4, 8, 16\)"):
        propose(shape(4, 64, 2), shape(6, 48), options=PlanOptions(relation_heads=5))
    assert propose(shape(12, 384), shape(12, 384)).relation_heads == 12


def test_attention_that_cannot_be_taken_is_refused():
    closed = replace(shape(4, 32), attention=AttentionLayout.CLOSED)
    for pair in ((closed, shape(4, 32)), (shape(4, 32), closed)):
        with pytest.raises(UsageError, match="attention of llama cannot be captured; give --delta 0"):
            check_attention(propose(*pair), True)


def test_heads_are_compared_each_where_they_agree_and_mixed_where_they_do_not():
    assert propose(shape(4, 32), shape(4, 64)).heads == "each"
    plan = propose(shape(4, 32), shape(8, 32))
    assert plan.heads == "mix"
    assert [(mix.student_heads, mix.teacher_heads) for mix in plan.mixes] == [(8, 4)] * 4
    assert propose(shape(4, 32), shape(8, 32), options=PlanOptions(heads="mean")).mixes == ()


@pytest.fixture(scope="module")
def eight_heads(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("eight"), "bert", layers=2, width=32, heads=8, seed=5)


def test_a_student_of_other_heads_learns_and_is_exported_without_its_mixes(
    kdalign, teacher, eight_heads, data, tmp_path
):
    words = ("distill", "--teacher", teacher, "--student", eight_heads, "--task", "sst2", "--data", data)
    status, _, err = kdalign(*words, "--max-steps", 2, "--set", "objective.relations=1", "--out", "run")
    assert status == 0, err
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert (plan.heads, len(plan.mixes), plan.relation_heads) == ("mix", 2, 4)
    from safetensors.torch import load_file

    assert {name for name in load_file(tmp_path / "run" / "projections.safetensors")} == {
        "mixes.encoder_0_to_encoder_1",
        "mixes.encoder_1_to_encoder_3",
    }
    assert not any("mix" in name for name in load_file(tmp_path / "run" / "student" / "model.safetensors"))
    status, _, err = kdalign(*words, "--set", "align.heads=each", "--out", "other")
    assert status == 2
    assert "accepted: align.heads=mix, align.heads=mean, --delta 0" in one_line(err)
    assert not (tmp_path / "other").exists()
    relations = ("--set", "align.heads=each", "--delta", 0, "--set", "objective.relations=1", "--dry-run")
    assert kdalign(*words, *relations, "--out", "other")[0] == 0  # no map is compared


@pytest.mark.parametrize(("keys", "dtype"), [(attention.LONG - 1, torch.float32), (attention.LONG, torch.bfloat16)])
def test_short_rows_are_attended_in_float32_while_training_in_bfloat16_and_long_ones_are_not(monkeypatch, keys, dtype):
    seen, own = [], attention.sdpa_attention_forward

    def watched(*args, **kwargs):
        found = own(*args, **kwargs)
        seen.append(found[0].dtype)
        return found

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.ATTENTION)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=torch.zeros(1, keys, dtype=torch.long))
    assert seen == [dtype]
    assert found.logits.dtype == torch.bfloat16
