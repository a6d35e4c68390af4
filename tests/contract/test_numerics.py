"""The numerical contract: how a step is split, what padding does, what learns and what does not."""

import copy

import pytest
import torch

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import Batch, collate
from kdalign.data.epochs import micro_batches
from kdalign.models.architecture import describe
from kdalign.models.attention import ATTENTION
from kdalign.models.capture import Activations, CaptureSpec, capture
from kdalign.models.student import copy_layers
from kdalign.objective import losses
from kdalign.objective.build import build_classification_objective
from kdalign.objective.objective import Objective
from kdalign.objective.terms import HardLabels, SoftTargets, TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import TrainSettings
from kdalign.recipe.schedules import Place
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from kdalign.training.optimizer import learning_rate, make_optimizer
from support.classifier_setting import ALL, FAMILIES, PAIRS, Setting, examples, layer
from support.covering import each_once
from support.tiny import tiny_classifier


@FAMILIES
def test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient(theirs, ours, width):
    setting = Setting(theirs, ours, width)
    whole = setting.gradient(micro_batches(setting.data, range(8), 0, 1, None))
    ones = setting.gradient(micro_batches(setting.data, range(8), 0, 1, 1))
    ranks = [batch for rank in (0, 1) for batch in micro_batches(setting.data, range(8), rank, 2, 2)]
    assert [len(batch.counted) for batch in ranks] == [2, 2, 2, 2]
    torch.testing.assert_close(ones, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(setting.gradient(ranks), whole, atol=1e-5, rtol=1e-5)
    assert whole.abs().max() > 1e-3, "the comparison is of real gradients"


def test_a_rank_without_an_example_runs_a_stand_in_that_does_not_count():
    setting = Setting("bert", "bert", 32)
    shares = [micro_batches(setting.data, range(3), rank, 4, None) for rank in range(4)]
    assert [[bool(b.counted.all()) for b in share] for share in shares] == [[True], [True], [True], [False]]
    whole = setting.gradient(micro_batches(setting.data, range(3), 0, 1, None))
    torch.testing.assert_close(setting.gradient([b for s in shares for b in s]), whole, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_more_padding_changes_no_term_and_no_gradient(theirs, ours, width):
    setting = Setting(theirs, ours, width)
    narrow, wide = collate(setting.data, range(8)), collate(setting.data, range(8), width=30)
    assert wide.inputs["input_ids"].shape[1] == 30
    before = setting.breakdown(narrow, count_units([narrow])).parts
    after = setting.breakdown(wide, count_units([wide])).parts
    assert set(before) == {"hard", "soft", "cosine", "euclid", "attention"}
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(setting.gradient([wide]), setting.gradient([narrow]), atol=1e-5, rtol=1e-5)


def test_the_mask_counts_each_real_token_and_no_padding():
    data = examples()
    batch = collate(data, range(8), width=20)
    units = count_units([batch])
    tokens = float(sum(len(row) for row in data.columns["input_ids"]))
    assert units[Unit.TOKEN] == units[Unit.COMPARED] == tokens
    assert (units[Unit.EXAMPLE], units[Unit.TARGET], units[Unit.ANSWERED], units[Unit.GROUP]) == (8.0, 0.0, 0.0, 1.0)
    assert [row.sum().item() for row in batch.tokens] == [len(row) for row in data.columns["input_ids"]]


def test_what_lies_in_padding_never_enters_a_term():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    ours, theirs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    spoiled = torch.where(mask[..., None], ours, torch.full_like(ours, 1e6))
    maps = torch.rand(2, 2, 3, 3).softmax(-1)
    broken = torch.where(mask[:, None, :, None], maps, torch.full_like(maps, 1e6))
    for loss in (losses.cosine_distance, lambda features, mask: losses.scaled_euclid(features, mask, 1.0)):
        torch.testing.assert_close(
            loss(losses.PairDistances.of(spoiled, theirs), mask), loss(losses.PairDistances.of(ours, theirs), mask)
        )
    torch.testing.assert_close(
        losses.attention_distance(broken, maps.flip(0), mask), losses.attention_distance(maps, maps.flip(0), mask)
    )


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_student_equal_to_its_teacher_has_no_alignment_loss_and_no_gradient_from_it(kind):
    setting = Setting(kind, kind, 32, Weights(hard=0, alpha=1, beta=1, gamma=1, delta=1))
    twin = copy_layers(setting.teacher.model, {"encoder": range(4)}).eval()
    plan = propose(describe(twin.config), describe(twin.config)).with_statistics(
        {f"variance/encoder.{number}": 1.0 for number in range(4)}
    )
    objective = build_classification_objective(Weights(hard=0, alpha=1, beta=1, gamma=1, delta=1), plan, False)
    learner = Learner(twin, Projections((), 0), plan, [objective], (0, 1), False).eval()
    batch = collate(setting.data, range(8))
    taught = setting.teacher(batch, learner.wanted_of_teacher)
    breakdown = objective(TermInputs(learner(batch.inputs, taught), taught, batch), count_units([batch]))
    breakdown.total.backward()
    assert all(abs(float(part)) < 1e-5 for part in breakdown.parts.values()), breakdown.parts
    assert max(float(p.grad.abs().max()) for p in learner.parameters() if p.grad is not None) < 1e-4


def test_the_teacher_is_in_eval_mode_without_gradients_and_outside_the_student():
    setting = Setting("bert", "bert", 32)
    setting.learner.train()
    batch = collate(setting.data, range(8))
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    assert not setting.teacher.model.training
    assert not any(p.requires_grad for p in setting.teacher.model.parameters())
    for tensor in (taught.logits, *taught.hidden.values(), *taught.attention.values()):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    theirs = {id(p) for p in setting.teacher.model.parameters()}
    optimized = [p for group in make_optimizer(setting.learner, TrainSettings()).param_groups for p in group["params"]]
    assert theirs.isdisjoint(id(p) for p in optimized)
    assert len(optimized) == len({id(p) for p in optimized}) == len(list(setting.learner.parameters()))


def test_every_projection_is_optimised_once_moves_in_a_step_and_belongs_to_its_pair_alone():
    setting = Setting("bert", "distilbert", 24)
    weights = dict(setting.learner.projections.named_parameters())
    assert set(weights) == {"maps.encoder_0_to_encoder_1.weight", "maps.encoder_1_to_encoder_3.weight"}
    assert weights["maps.encoder_0_to_encoder_1.weight"].shape == (32, 24)
    optimizer = make_optimizer(setting.learner, TrainSettings())
    for weight in weights.values():
        assert sum(weight is p for group in optimizer.param_groups for p in group["params"]) == 1
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    setting.gradient([collate(setting.data, range(8))])
    optimizer.step()
    assert all(not torch.equal(before[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra"])
def test_captured_attention_changes_no_bit_of_the_forward_and_equals_the_eager_maps(kind):
    model = tiny_classifier(kind, 3).eval()
    batch = collate(examples(), range(8), width=14)
    inputs = {"input_ids": batch.inputs["input_ids"], "attention_mask": batch.inputs["attention_mask"]}
    with torch.no_grad():
        plain = model(**inputs).logits
        model.set_attn_implementation(ATTENTION)
        with capture(model, CaptureSpec(frozenset(map(layer, (0, 2))), frozenset(map(layer, (1, 2))))) as signals:
            captured = model(**inputs).logits
        model.set_attn_implementation("eager")
        reference = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert torch.equal(captured, plain)
    assert set(signals.hidden) == {layer(0), layer(2)}
    assert set(signals.attention) == {layer(1), layer(2)}
    real = batch.tokens
    for number in (1, 2):
        ours, theirs = signals.attention[layer(number)], reference.attentions[number]
        torch.testing.assert_close(ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real], atol=1e-5, rtol=1e-4)
        padded_keys = ours.masked_select(~real[:, None, None, :].expand_as(ours))
        assert float(padded_keys.abs().max()) == 0.0
    for number in (0, 2):  # BERT-likes: entry k + 1 is layer k's output, the last one too
        torch.testing.assert_close(
            signals.hidden[layer(number)][real], reference.hidden_states[number + 1][real], atol=1e-5, rtol=1e-4
        )


def test_maps_are_taken_before_dropout():
    model = tiny_classifier("bert", 2, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).train()
    model.set_attn_implementation(ATTENTION)
    batch = collate(examples(), range(8))
    with capture(model, CaptureSpec(attention=frozenset({layer(0)}))) as signals:
        model(**batch.inputs)
    sums = signals.attention[layer(0)].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_nothing_stays_hooked_after_a_recording():
    model = tiny_classifier("bert", 2)
    model.set_attn_implementation(ATTENTION)
    batch = collate(examples(), range(8))
    with capture(model, CaptureSpec(frozenset({layer(0)}), frozenset({layer(0)}))) as signals:
        pass
    model(**batch.inputs)
    assert signals.hidden == {}
    assert signals.attention == {}


TERMS = {"hard": "hard", "soft": "alpha", "cosine": "beta", "euclid": "gamma", "attention": "delta"}


@pytest.mark.parametrize(("models", "term"), each_once(PAIRS, TERMS))
def test_each_term_alone_falls_below_a_tenth_of_its_start_on_one_batch(models, term):
    alone = {weight: float(name == term) for name, weight in TERMS.items()}
    setting = Setting(*models, Weights(temperature=2, **alone))
    batch = collate(setting.data, range(8))
    units = count_units([batch])
    optimizer = torch.optim.AdamW(setting.learner.parameters(), lr=5e-3, weight_decay=0)
    start = float(setting.breakdown(batch, units).parts[term])
    value = start
    for _ in range(600):
        optimizer.zero_grad()
        breakdown = setting.breakdown(batch, units)
        breakdown.total.backward()
        optimizer.step()
        value = float(breakdown.parts[term])
        if value < start / 10:
            break
    assert start > 1e-3
    assert value < start / 10


def test_the_student_cut_from_a_teacher_is_its_layers_in_float32():
    teacher = tiny_classifier("bert", 4, seed=3).to(torch.float16)
    student = copy_layers(teacher, {"encoder": (1, 3)})
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    for ours, theirs in ((0, 1), (1, 3)):
        mine = dict(student.bert.encoder.layer[ours].named_parameters())
        for name, weight in teacher.bert.encoder.layer[theirs].named_parameters():
            assert torch.equal(mine[name], weight.float())
    assert torch.equal(student.classifier.weight, teacher.classifier.weight.float())
    assert torch.equal(
        student.bert.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight.float()
    )
    assert student.config.num_hidden_layers == 2


def test_the_teachers_variance_is_over_real_tokens_and_ignores_constant_features():
    setting = Setting("bert", "bert", 32)
    batch = collate(setting.data, range(8), width=25)
    plan = calibrate(setting.plan, setting.teacher, [batch], setting.device)
    hidden = setting.teacher(batch, CaptureSpec(hidden=frozenset({layer(1)}))).hidden[layer(1)][batch.tokens].double()
    assert plan.variance(layer(1)) == pytest.approx(float(hidden.var(dim=0, unbiased=False).mean()), rel=1e-6)


def test_a_term_of_weight_zero_is_not_computed_and_asks_for_no_signal():
    setting = Setting("bert", "bert", 32, Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0))
    assert set(setting.objective.terms) == {"hard"}
    assert setting.learner.wanted_of_teacher == CaptureSpec(answers=False)
    assert not setting.objective.needs_teacher


def test_the_total_is_the_weighted_sum_of_the_parts():
    setting = Setting("bert", "bert", 32)
    batch = collate(setting.data, range(8))
    breakdown = setting.breakdown(batch, count_units([batch]))
    expected = sum(weight * float(breakdown.parts[name]) for name, (weight, _) in setting.objective.terms.items())
    assert float(breakdown.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_layer_weights_scale_their_layers_share():
    setting = Setting("bert", "bert", 32)
    batch = collate(setting.data, range(8))
    shares = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 3.0)):
        plan = propose(setting.plan.teacher, setting.plan.student, options=PlanOptions(weights=weights))
        objective = build_classification_objective(ALL, plan.with_statistics(setting.plan.statistics), False)
        taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
        parts = objective(TermInputs(setting.learner(batch.inputs, taught), taught, batch), count_units([batch])).parts
        shares.append(parts["cosine"])
    torch.testing.assert_close(0.25 * shares[0] + 0.75 * shares[1], shares[2])


def test_a_copy_of_the_learner_has_the_same_state_as_itself():
    setting = Setting("bert", "distilbert", 24)
    twin = copy.deepcopy(setting.learner)
    assert {name.split(".")[0] for name in twin.state_dict()} == {"student", "projections"}


def test_an_objective_divides_by_the_units_it_is_told():
    setting = Setting("bert", "bert", 32)
    batch = collate(setting.data, range(8))
    once = setting.breakdown(batch, {Unit.EXAMPLE: 8.0, Unit.LABELLED: 8.0, Unit.COMPARED: 100.0}).parts
    half = setting.breakdown(batch, {Unit.EXAMPLE: 16.0, Unit.LABELLED: 16.0, Unit.COMPARED: 200.0}).parts
    for name in once:
        torch.testing.assert_close(half[name] * 2, once[name])
    assert isinstance(setting.objective, Objective)


def test_biases_and_norms_do_not_decay_and_matrices_do():
    setting = Setting("bert", "distilbert", 24)
    groups = make_optimizer(setting.learner, TrainSettings(weight_decay=0.05)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in setting.learner.named_parameters():
        assert decay[id(parameter)] == (0.05 if parameter.ndim >= 2 else 0.0), name


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_by_hand(scheduler, rates):
    # 6 steps, 2 of them warm-up (0.34 of 6, rounded), then 4 of decay.
    settings = TrainSettings(lr=1.0, scheduler=scheduler, warmup=0.34)
    assert [learning_rate(settings, Place(step, 6)) for step in range(6)] == pytest.approx(rates, abs=1e-6)


def test_soft_targets_of_a_score_are_the_teachers_answers():
    # (1 - 3)^2 + (2 - 2)^2 = 4, from the teacher's answers 3 and 2; the labels 0 and 0 do not enter.
    batch = collate(examples(2), range(2))
    batch = Batch(batch.inputs, torch.zeros(2), batch.counted, batch.real)
    view = TermInputs(Activations(torch.tensor([[1.0], [2.0]])), Activations(torch.tensor([[3.0], [2.0]])), batch)
    assert float(SoftTargets(2.0, regression=True)(view)) == pytest.approx(4.0)
    assert float(HardLabels(regression=True)(view)) == pytest.approx(5.0)


def test_a_teacher_whose_outputs_are_in_another_order_teaches_the_same():
    setting = Setting("bert", "bert", 32)
    turned = tiny_classifier("bert", 4, 32, seed=1)
    with torch.no_grad():
        turned.classifier.weight.copy_(turned.classifier.weight.flip(0).clone())
        turned.classifier.bias.copy_(turned.classifier.bias.flip(0).clone())
    other = ComputedTeacher(turned, (1, 0), torch.float32, setting.device)
    batch = collate(setting.data, range(8))
    first, second = setting.teacher(batch, CaptureSpec()).logits, other(batch, CaptureSpec()).logits
    torch.testing.assert_close(first, second)
