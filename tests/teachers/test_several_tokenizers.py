"""Several teachers of which each reads its own tokens: what they say, which positions are compared, and split steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdalign.alignment.calibration import calibrate, measure_similarities
from kdalign.alignment.plan import Plan
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.dual_tokenization import tokenize_labelled_dual, tokenize_labelled_several
from kdalign.data.tasks import Examples
from kdalign.models.architecture import describe, join_teachers
from kdalign.models.capture import Activations, CaptureSpec
from kdalign.models.mixtures import Mixing
from kdalign.objective.build import build_classification_objective
from kdalign.objective.terms import EmbeddingSimilarity, TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.several import SeveralTeachers
from kdalign.training.learner import Learner
from support.dual_setting import HARD_TEXTS, byte_level, unigram, word_piece
from support.tiny import sentences, tiny_classifier

CPU = torch.device("cpu")
WEIGHTS = Weights(hard=0.3, alpha=0.7, beta=1, gamma=1, delta=1, embeddings=0.5, relations=0.5, temperature=2)
OF_MEANS = Weights(hard=0.3, alpha=0.7, beta=1, gamma=1, delta=1, temperature=2)
"""Of terms that a mean of layers has: neither queries nor embeddings."""
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def train(n=8):
    rows, labels = sentences(n, 3)
    rows[3] = HARD_TEXTS[0]
    return Examples("train", (tuple(rows),), np.array(labels))


def computed(tokenizer, layers=3, seed=1):
    model = tiny_classifier("bert", layers, 32, seed=seed, vocab_size=len(tokenizer), type_vocab_size=3, **STILL)
    return ComputedTeacher(model, (0, 1), torch.float32, CPU)


class Lesson:
    """A student of word pieces and teachers, each with its own tokenizer: None for the student's."""

    def __init__(self, readers, choice="auto", shares=None, length=64):
        ours = word_piece()
        self.teachers = [computed(reader or ours, 3, seed=1 + number) for number, reader in enumerate(readers)]
        if len(readers) > 1:
            self.teacher = SeveralTeachers(tuple(self.teachers), Mixing((1 / len(readers),) * len(readers)))
            self.data = tokenize_labelled_several(train(), ours, readers, length)
        else:
            self.teacher = self.teachers[0]
            self.data = tokenize_labelled_dual(train(), (ours, readers[0]), length)
        student = tiny_classifier("bert", 2, 32, seed=9, vocab_size=len(ours), type_vocab_size=3, **STILL)
        joined = join_teachers([describe(each.model.config) for each in self.teachers])
        plan = propose(joined, describe(student.config), choice)
        plan = Plan(**{**vars(plan), "shares": shares or (0.5, 0.5)}) if len(readers) > 1 else plan
        self.plan = calibrate(plan, self.teacher, [collate(self.data, range(8))], CPU)
        weights = WEIGHTS if choice == "auto" else OF_MEANS
        self.objective = build_classification_objective(weights, self.plan, regression=False)
        projections = Projections(self.plan.projections, 0, self.plan.mixes)
        self.learner = Learner(student, projections, self.plan, [self.objective], (0, 1), False)

    def parts(self, batch, units=None):
        taught = self.teacher(batch, self.learner.wanted_of_teacher)
        view = TermInputs(self.learner(batch.inputs, taught), taught, batch)
        return self.objective(view, units or count_units([batch]))

    def gradient(self, batches):
        self.learner.zero_grad()
        units = count_units(batches)
        for batch in batches:
            self.parts(batch, units).total.backward()
        return torch.cat([p.grad.flatten() for p in self.learner.student.parameters() if p.grad is not None])


def read(teacher, tokenizer, texts):
    """Logits of a plain forward on one text after another."""
    tokens = [tokenizer(text, return_tensors="pt", return_token_type_ids=True) for text in texts]
    with torch.no_grad():
        return torch.cat([teacher.model(**each).logits for each in tokens])


def test_the_answers_are_those_of_each_teacher_on_its_own_tokens():
    tokenizers = (word_piece(), byte_level(), unigram())
    lesson = Lesson((None, *tokenizers[1:]), shares=(1.0, 1.0, 1.0))
    lesson.teacher = SeveralTeachers(tuple(lesson.teachers), Mixing((0.5, 0.3, 0.2)))
    batch = collate(lesson.data, range(8))
    pairs = zip(lesson.teachers, tokenizers, strict=True)
    said = [read(teacher, tokenizer, train().texts[0]) for teacher, tokenizer in pairs]
    wanted = sum(share * F.softmax(each / 2, dim=1) for share, each in zip((0.5, 0.3, 0.2), said, strict=True))
    mixed = F.softmax(lesson.teacher(batch, lesson.learner.wanted_of_teacher).logits_at(2.0) / 2, dim=1)
    torch.testing.assert_close(mixed, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("choice", ["auto", "learned"])
def test_the_terms_of_a_teachers_layers_are_those_of_that_teacher_alone(choice):
    both = Lesson((None, byte_level()), choice, length=10)
    alone = Lesson((byte_level(),), choice, length=10)
    alone.teacher = alone.teachers[0] = both.teachers[1]
    alone.plan = calibrate(alone.plan, alone.teacher, [collate(alone.data, range(8))], CPU)
    alone.objective = build_classification_objective(WEIGHTS if choice == "auto" else OF_MEANS, alone.plan, False)
    alone.learner = Learner(both.learner.student, Projections((), 0), alone.plan, [alone.objective], (0, 1), False)
    ours, theirs = both.parts(collate(both.data, range(8))).parts, alone.parts(collate(alone.data, range(8))).parts
    names = [name for name in theirs if name not in ("hard", "soft")]
    assert {"cosine", "euclid", "attention", *({"embeddings", "relations"} if choice == "auto" else ())} <= set(names)
    for name in names:
        assert float(ours[f"{name} 2"]) == pytest.approx(float(theirs[name]), rel=1e-4), name


def test_positions_are_compared_that_every_teacher_has_a_counterpart_for():
    # Where a text is cut to so many tokens, its characters end at another place for each of them.
    one, other = (Lesson((None, each()), length=10) for each in (byte_level, unigram))
    both = Lesson((None, byte_level(), unigram()), shares=(1.0, 1.0, 1.0), length=10)
    masks = [collate(lesson.data, range(8)).compared for lesson in (one, other, both)]
    assert torch.equal(masks[0] & masks[1], masks[2])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[1], collate(both.data, range(8)).tokens)
    routed = collate(replace(both.data, taught_by=np.array([0, 1, 2, 1, 0, 2, 2, 1])), range(8))
    each = torch.stack([routed.tokens, masks[0], masks[1]])
    for row, teacher in enumerate(routed.taught_by.tolist()):
        assert torch.equal(routed.compared[row], each[teacher][row])


@pytest.mark.parametrize("choice", ["auto", "learned"])
@pytest.mark.parametrize("routed", [False, True], ids=["together", "each its rows"])
def test_a_step_split_in_two_has_the_same_gradient(routed, choice):
    lesson = Lesson((byte_level(), unigram()), choice)
    if routed:
        lesson.data = replace(lesson.data, taught_by=np.array([0, 1, 1, 0, 1, 0, 0, 1]))
    whole = lesson.gradient([collate(lesson.data, range(8))])
    parts = lesson.gradient([collate(lesson.data, range(3), width=40), collate(lesson.data, range(3, 8))])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_a_teacher_without_rows_in_a_micro_batch_changes_nothing():
    lesson = Lesson((byte_level(), unigram()), shares=(1.0, 1.0))
    lesson.data = replace(lesson.data, taught_by=np.zeros(8, dtype=int))
    alone = Lesson((byte_level(),))
    alone.learner.student.load_state_dict(lesson.learner.student.state_dict())
    batches = [[collate(each.data, range(8))] for each in (lesson, alone)]
    torch.testing.assert_close(lesson.gradient(batches[0]), alone.gradient(batches[1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("routed", [False, True], ids=["together", "each its rows"])
def test_layers_are_as_alike_as_each_teachers_alone(routed):
    both, alone = (Lesson(readers, length=10) for readers in ((None, byte_level()), (byte_level(),)))
    alone.teachers[0] = both.teachers[1]
    if routed:  # every teacher is measured on all rows
        both.data = replace(both.data, taught_by=np.array([0, 1, 1, 0, 1, 0, 0, 1]))
    found = [
        measure_similarities(
            each.plan,
            [teacher.model for teacher in each.teachers],
            both.learner.student,
            [collate(each.data, range(8))],
            word_piece().all_special_ids,
            CPU,
        )[0]
        for each in (both, alone)
    ]
    np.testing.assert_allclose(found[0]["2:encoder"], found[1]["encoder"], rtol=1e-5)


def test_embeddings_of_each_teacher_are_means_over_its_own_tokens():
    lesson = Lesson((byte_level(), unigram()))
    bodies = [
        ComputedTeacher(model.base_model, None, torch.float32, CPU)
        for model in (teacher.model for teacher in lesson.teachers)
    ]
    teacher = SeveralTeachers(tuple(bodies), Mixing((0.5, 0.5)))
    batch = collate(lesson.data, range(8))
    student = Activations(features=torch.randn(8, batch.real.size(1), 32))
    value = EmbeddingSimilarity()(TermInputs(student, teacher(batch, CaptureSpec()), batch))
    means = []
    for each, tokenizer in zip(lesson.teachers, (byte_level(), unigram()), strict=True):
        tokens = [tokenizer(text, return_tensors="pt", return_token_type_ids=True) for text in train().texts[0]]
        with torch.no_grad():
            rows = [each.model.base_model(**one).last_hidden_state.mean(dim=1) for one in tokens]
        means.append(F.normalize(torch.cat(rows), dim=1))
    wanted = sum(0.5 * mean @ mean.T for mean in means)
    ours = F.normalize((student.features * batch.real[..., None]).sum(1) / batch.real.sum(1, keepdim=True), dim=1)
    apart = ~torch.eye(8, dtype=torch.bool)
    by_hand = (ours @ ours.T - wanted)[apart].square().mean() / wanted[apart].var(correction=0).clamp_min(0.05**2)
    assert float(value) == pytest.approx(float(by_hand), rel=1e-3)


def test_equal_tokenizers_are_read_once_and_a_batch_goes_through_a_selection():
    reader = byte_level()
    encoded = tokenize_labelled_several(train(), word_piece(), (reader, None, reader), 64)
    assert encoded.readers == ("teacher 1 ", None, "teacher 1 ")
    assert len(encoded.covered) == 2
    batch = collate(encoded, range(8)).to(CPU)
    assert batch.readings[0] is not None
    assert batch.readings[1] is None
    some = batch.select(torch.tensor([5, 2]))
    for number, tokenizer in enumerate((reader, word_piece(), reader)):
        ids = some.read_by(number).teacher_inputs["input_ids"]
        for row, text in zip(ids, (train().texts[0][5], train().texts[0][2]), strict=True):
            asked = tokenizer(text)["input_ids"]
            assert row.tolist()[: len(asked)] == asked
