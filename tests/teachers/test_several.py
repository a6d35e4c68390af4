"""Several teachers as one: mixtures of their answers, each one's own layers, and a teacher for each row."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.plan import Plan
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.tokenized_split import IGNORED
from kdalign.errors import UsageError
from kdalign.models.architecture import Layer, describe, join_teachers
from kdalign.models.capture import Activations, CaptureSpec, Signal
from kdalign.models.lm_head import LMHead
from kdalign.models.mixtures import ClassMixture, MixedTokens, Mixing, RoutedTokens, mixed_logits
from kdalign.models.token_targets import DenseTokens, top_tokens
from kdalign.objective.build import build_classification_objective
from kdalign.objective.losses.lm_head import TokenLoss, vocabulary_losses
from kdalign.objective.terms import EmbeddingDistance, EmbeddingSimilarity, TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.base import TermRequest
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.several import SeveralTeachers
from kdalign.training.learner import Learner
from support.classifier_setting import ALL, examples
from support.dual_setting import KINDS
from support.dual_setting import Setting as DualSetting
from support.family_setting import Setting, model
from support.tiny import tiny_classifier

CPU = torch.device("cpu")
EQUAL = Mixing((0.5, 0.5))
COMBINED = pytest.mark.parametrize(
    "mixing", [EQUAL, Mixing((0.25, 0.75)), Mixing((0.5, 0.5), confidence=True)], ids=["mean", "weights", "confidence"]
)


def computed(kind="bert", layers=4, width=32, seed=1):
    return ComputedTeacher(tiny_classifier(kind, layers, width, seed=seed), (0, 1), torch.float32, CPU)


class Lesson:
    """A student of 2 layers and one or several teachers, with everything that joins them."""

    def __init__(self, *teachers, mixing=EQUAL, width=24, weights=ALL, shares=None):
        several = len(teachers) > 1
        self.teacher = SeveralTeachers(teachers, mixing) if several else teachers[0]
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        student = tiny_classifier("bert", 2, width, seed=2, **still)
        self.data = examples()
        plan = propose(join_teachers([describe(each.model.config) for each in teachers]), describe(student.config))
        plan = Plan(**{**vars(plan), "shares": shares or mixing.shares}) if several else plan
        self.plan = calibrate(plan, self.teacher, [collate(self.data, range(8))], CPU)
        self.objective = build_classification_objective(weights, self.plan, regression=False)
        projections = Projections(self.plan.projections, 0, self.plan.mixes)
        self.learner = Learner(student, projections, self.plan, [self.objective], (0, 1), False)

    def divide(self, taught_by):
        """Let each row be taught by the teacher of this number."""
        self.data = replace(self.data, taught_by=np.array(taught_by))

    def parts(self, batch, units=None):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        return self.objective(
            TermInputs(self.learner(batch.inputs, taught), taught, batch), units or count_units([batch])
        )

    def gradient(self, batches):
        """Of the student alone: projections are each teacher's own."""
        self.learner.zero_grad()
        units = count_units(batches)
        for batch in batches:
            self.parts(batch, units).total.backward()
        return torch.cat([p.grad.flatten() for p in self.learner.student.parameters() if p.grad is not None])


def test_the_mixture_is_of_probabilities_and_not_of_logits():
    logits = [torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    mixed = mixed_logits(logits, torch.tensor([[0.5], [0.5]]), temperature=2.0)
    by_hand = (math.exp(2) / (1 + math.exp(2)) + 0.5) / 2  # the mean of the logits would give 1 / (1 + 1 / e) = 0.731
    assert F.softmax(mixed / 2, dim=1)[0, 0].item() == pytest.approx(by_hand, abs=1e-6)


def test_given_weights_are_those_of_the_mixture():
    logits = [torch.tensor([[math.log(9), 0.0]]), torch.tensor([[0.0, math.log(9)]])]
    weights = Mixing((0.75, 0.25)).weights(logits, None)
    assert F.softmax(mixed_logits(logits, weights, 1.0), dim=1)[0, 0].item() == pytest.approx(0.75 * 0.9 + 0.25 * 0.1)


def test_confidence_is_by_the_label_where_it_is_known_and_by_entropy_where_not():
    sure, coin = torch.tensor([[0.9, 0.1]] * 2).log(), torch.tensor([[0.5, 0.5]] * 2).log()
    weights = Mixing((1 / 3,) * 3, confidence=True).weights([sure, coin, coin], torch.tensor([1, -100]))
    # By the label, exp(cross-entropy) is 1 / p: 10, 2 and 2. Without one, exp(entropy): of (.9, .1), and of a coin.
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    expected = [(1 - 10 / 14) / 2, (1 - math.exp(entropy) / (math.exp(entropy) + 4)) / 2]
    assert weights[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert weights.sum(dim=0).tolist() == pytest.approx([1, 1])


@COMBINED
def test_two_equal_teachers_teach_as_one(mixing):
    alone, both = Lesson(computed(), width=32), Lesson(computed(), computed(), mixing=mixing, width=32)
    batches = [collate(alone.data, range(8))]
    torch.testing.assert_close(both.gradient(batches), alone.gradient(batches), atol=1e-6, rtol=1e-5)
    assert both.parts(batches[0]).total.item() == pytest.approx(alone.parts(batches[0]).total.item(), abs=1e-6)


@pytest.mark.parametrize("taught_by", [None, [0, 1, 1, 0, 0, 1, 0, 1]], ids=["mixed", "by row"])
def test_several_teachers_whose_answers_no_term_reads_give_their_layers_alone(taught_by):
    layers_alone = Weights(hard=1, alpha=0, beta=1, gamma=1, delta=1)
    lesson = Lesson(computed(), computed("distilbert", 3, 40, seed=5), weights=layers_alone)
    if taught_by is not None:
        lesson.divide(taught_by)
    batch, wanted = collate(lesson.data, range(8)), lesson.learner.wanted_of_teacher
    assert not wanted.answers
    found = lesson.parts(batch)
    assert not lesson.teacher(batch, wanted).logits.numel()
    lesson.learner.wanted_of_teacher = replace(wanted, answers=True)
    assert lesson.teacher(batch, lesson.learner.wanted_of_teacher).logits.numel()
    assert torch.equal(found.total, lesson.parts(batch).total)


def test_weights_of_one_and_zero_are_the_first_teacher_alone():
    alone = Lesson(computed())
    both = Lesson(computed(), computed("distilbert", 3, 40, seed=5), mixing=Mixing((1.0, 0.0)))
    batches = [collate(alone.data, range(8))]
    torch.testing.assert_close(both.gradient(batches), alone.gradient(batches), atol=1e-6, rtol=1e-5)
    assert both.objective.names == alone.objective.names


def test_each_teacher_has_its_own_pairs_projections_variances_and_terms():
    lesson = Lesson(computed(), computed("distilbert", 3, 40, seed=5))
    assert lesson.objective.names == (
        "hard",
        "soft",
        "cosine",
        "euclid",
        "attention",
        "cosine 2",
        "euclid 2",
        "attention 2",
    )
    assert lesson.objective.weights["cosine 2"] == ALL.beta / 2
    assert {(shape.teacher.stack, shape.teacher_width) for shape in lesson.plan.projections} == {
        ("encoder", 32), ("2:encoder", 40)
    }  # fmt: skip
    assert "variance/2:encoder.2" in lesson.plan.statistics
    assert Plan.from_json(lesson.plan.to_json()) == lesson.plan
    batch = collate(lesson.data, range(8))
    theirs = lesson.teacher.teachers[1](batch, CaptureSpec(hidden=frozenset([Layer("encoder", 2)])))
    said = lesson.teacher(batch, CaptureSpec(hidden=frozenset([Layer("2:encoder", 2)])))
    assert (said.hidden[Layer("2:encoder", 2)] == theirs.hidden[Layer("encoder", 2)]).all()


@COMBINED
@pytest.mark.parametrize("routed", [False, True], ids=["together", "each its rows"])
def test_a_step_split_in_two_has_the_same_gradient(mixing, routed):
    lesson = Lesson(computed(), computed("distilbert", 3, 40, seed=5), mixing=mixing)
    if routed:
        lesson.divide([0, 1, 1, 0, 1, 0, 0, 1])
    whole = lesson.gradient([collate(lesson.data, range(8))])
    parts = lesson.gradient([collate(lesson.data, range(3), width=20), collate(lesson.data, range(3, 8))])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


class Counting:
    """A teacher that counts the rows that it reads."""

    def __init__(self, teacher):
        self.teacher, self.model, self.read = teacher, teacher.model, []

    def __call__(self, batch, wanted):
        self.read += batch.rows.tolist()
        return self.teacher(batch, wanted)

    def refusal(self, request):
        return "has no maps" if Signal.ATTENTION in request.signals else None


def test_each_row_is_taught_by_its_own_teacher_and_read_by_no_other():
    first, second = Counting(computed()), Counting(computed(seed=7))
    lesson = Lesson(first, second, shares=(1.0, 1.0))
    first.read, second.read = [], []
    taught_by = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    lesson.divide(taught_by.tolist())
    batch = collate(lesson.data, range(8))
    parts = lesson.parts(batch).parts
    assert (first.read, second.read) == ([0, 3, 5, 6], [1, 2, 4, 7])
    said = lesson.teacher(batch, CaptureSpec())
    alone = [teacher.teacher(batch, CaptureSpec()).logits for teacher in (first, second)]
    torch.testing.assert_close(said.logits, torch.where((taught_by == 0)[:, None], *alone), atol=1e-6, rtol=1e-5)
    # The terms of both are each the sum over their own rows, divided by the units of all: together one mean.
    lesson.divide([0] * 8)
    all_first = lesson.parts(collate(lesson.data, range(8))).parts
    assert all_first["cosine 2"] == 0
    assert 0 < parts["cosine"] < all_first["cosine"]


def test_a_teacher_without_rows_in_a_micro_batch_changes_nothing():
    lesson = Lesson(computed(), computed("distilbert", 3, 40, seed=5), shares=(1.0, 1.0))
    lesson.divide([0] * 8)
    alone = Lesson(computed())
    batches = [collate(lesson.data, range(8))]
    torch.testing.assert_close(lesson.gradient(batches), alone.gradient(batches), atol=1e-6, rtol=1e-5)


def test_a_refusal_says_which_teacher_it_is():
    both = SeveralTeachers((computed(), Counting(computed())), EQUAL)
    request = TermRequest("attention", frozenset([Signal.ATTENTION]), CaptureSpec())
    assert both.refusal(request) == "has no maps (teacher 2)"


def tokens(entries=7, seed=0, n=6):
    generator = torch.Generator().manual_seed(seed)
    return DenseTokens(torch.randn(n, 5, generator=generator), LMHead(torch.randn(entries, 5, generator=generator)))


def test_a_language_models_mixture_is_the_logarithm_of_mixed_probabilities_block_by_block():
    student, first, second = (tokens(seed=seed) for seed in range(3))
    labels = torch.arange(6)
    loss = TokenLoss(hard=0.0, soft=1.0, temperature=2.0)
    mixed = MixedTokens((first, second), Mixing((0.25, 0.75)), labels)
    found = vocabulary_losses(loss, student, labels, mixed, rows=4)[2]
    both = 0.25 * F.softmax(first.block(slice(None), 1) / 2, dim=1) + 0.75 * F.softmax(
        second.block(slice(None), 1) / 2, dim=1
    )
    ours = F.log_softmax(student.block(slice(None), 1) / 2, dim=1)
    torch.testing.assert_close(found, 4 * (both * (both.log() - ours)).sum(), atol=1e-5, rtol=1e-5)


def test_padded_vocabularies_of_two_teachers_are_compared_over_the_entries_of_the_smaller():
    first, second = tokens(7), tokens(9, seed=1)
    mixed = MixedTokens((first, second), EQUAL, torch.zeros(6).long()).block(slice(0, 6), 1.0)
    cut = DenseTokens(second.features, LMHead(second.head.weight[:7]))
    same = MixedTokens((first, cut), EQUAL, torch.zeros(6).long()).block(slice(0, 6), 1.0)
    torch.testing.assert_close(mixed, same, atol=1e-5, rtol=1e-5)


def test_likeliest_entries_alone_have_no_mixture():
    top = top_tokens(tokens(), 3, (1.0,), 4)
    with pytest.raises(UsageError, match="have no exact mean"):
        MixedTokens((tokens(), top), EQUAL, torch.zeros(6).long()).block(slice(0, 6), 1.0)


def test_positions_of_each_row_have_the_logits_of_its_own_teacher():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(4, 3, 5, generator=generator)  # 4 rows of 3 positions
    heads = [LMHead(torch.randn(7, 5, generator=generator)) for _ in range(3)]
    owner = torch.tensor([1, 0, 1, 0])  # the third teacher has no row
    parts = tuple(
        DenseTokens(features[owner == number] if number < 2 else features[:1], heads[number]) for number in range(3)
    )
    positions = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 0, 0]]).bool()
    selected = RoutedTokens(parts, owner[:, None].expand(4, 3)).select(positions).prepared(None, None)
    found = torch.cat([selected.block(slice(0, 4), 1.0), selected.block(slice(4, 7), 1.0)])
    rows = positions.nonzero()[:, 0]
    expected = [heads[owner[row]].logits(each) for row, each in zip(rows, features[positions], strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_rows_of_encoder_decoders_are_divided_at_the_positions_of_their_targets():
    setting = Setting("t5")
    other = ComputedTeacher(model("t5", 3, seed=9), None, torch.float32, CPU)
    columns = {
        name: column if name == "input_ids" else [ids[:10] for ids in column]
        for name, column in setting.data.columns.items()
    }
    batch = collate(replace(setting.data, columns=columns, taught_by=np.array([0, 1] * 4)), range(3))
    assert batch.real.shape != batch.targets.shape
    tokens = SeveralTeachers((setting.teacher, other), EQUAL)(batch, CaptureSpec()).tokens.select(batch.predicted)
    every = slice(0, int(batch.predicted.sum()))
    alone = [
        each(batch, CaptureSpec()).tokens.select(batch.predicted).block(every, 1.0) for each in (setting.teacher, other)
    ]
    second = (batch.taught_by[:, None].expand_as(batch.targets)[batch.predicted] == 1)[:, None]
    torch.testing.assert_close(tokens.block(every, 1.0), torch.where(second, *alone[::-1]), atol=1e-5, rtol=1e-5)


def test_confidence_of_teachers_with_another_tokenizer_reads_none_of_the_students_entries():
    setting = DualSetting("causal")
    kind, entries = KINDS["causal"][1], setting.tokenizers[1]
    other = ComputedTeacher(setting._model(kind, 3, entries), None, torch.float32, CPU)
    both = SeveralTeachers((setting.teacher, other), Mixing((0.5, 0.5), confidence=True))
    batch = collate(setting.data, range(4))
    every = slice(0, int(batch.answered.sum()))
    found, renumbered = (
        both(each, CaptureSpec()).tokens.select(batch.answered).block(every, 1.0)
        for each in (batch, replace(batch, targets=torch.where(batch.predicted, batch.targets.flip(0), IGNORED)))
    )
    torch.testing.assert_close(found, renumbered)


def test_standardised_logits_are_mixed_after_they_are_standardised():
    logits = tuple(torch.tensor([[3.0, 1.0, 2.0]]) * scale for scale in (1.0, 10.0))
    mixture = ClassMixture(logits, EQUAL, None)
    found = mixture.logits_at(1.0, lambda each: (each - each.mean()) / each.std())
    torch.testing.assert_close(F.softmax(found, dim=1), F.softmax(torch.tensor([[1.0, -1.0, 0.0]]), dim=1))


def embedded(said, student):
    """Inputs of the terms on embeddings: texts of one token each, so that a text's vector is its token's."""
    batch = replace(collate(examples(4), range(4), width=1), real=torch.ones(4, 1).bool())
    kept = Activations(embeddings_of=said) if isinstance(said, tuple) else Activations(features=said)
    return TermInputs(Activations(features=student), kept, batch)


def test_embeddings_are_compared_with_the_mean_of_the_teachers_cosines_whatever_their_widths():
    generator = torch.Generator().manual_seed(0)
    student, first, second = (torch.randn(4, 1, width, generator=generator) for width in (6, 6, 9))
    alone, both = embedded(first, student), embedded(((0.5, first), (0.5, first)), student)
    for term in (EmbeddingSimilarity(), EmbeddingDistance()):
        torch.testing.assert_close(term(both), term(alone), atol=1e-6, rtol=1e-5)
    cosines = [F.normalize(each[:, 0], dim=1) @ F.normalize(each[:, 0], dim=1).T for each in (student, first, second)]
    apart = ~torch.eye(4).bool()
    ours, theirs = cosines[0][apart], (0.25 * cosines[1] + 0.75 * cosines[2])[apart]
    by_hand = (ours - theirs).square().sum() / (theirs - theirs.mean()).square().sum()
    found = EmbeddingSimilarity()(embedded(((0.25, first), (0.75, second)), student))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)


def test_a_schedule_moves_the_weights_of_all_teachers_by_their_shares():
    scheduled = Weights(hard=0.3, alpha=0.7, beta=1, gamma=0, delta=0, schedule={"beta": {"to": 3.0}})
    lesson = Lesson(computed(), computed(seed=5), mixing=Mixing((0.75, 0.25)), weights=scheduled)
    middle = lesson.objective.at(0.5).weights
    assert (middle["cosine"], middle["cosine 2"]) == pytest.approx((0.75 * 2, 0.25 * 2))
