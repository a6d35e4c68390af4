"""A teacher whose answers nobody reads runs as deep as the deepest layer that is read, and gives the same there."""

from dataclasses import replace

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.models.architecture import CROSS, Layer, attention_modules, blocks, layout_of
from kdalign.models.capture import CaptureSpec, Signal
from kdalign.objective.build import build_classification_objective, build_language_objective
from kdalign.objective.terms.registry import TERMS
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe.terms import TERM_FACTS
from kdalign.teachers.computed import ComputedTeacher
from support.classifier_setting import Setting as ClassifierSetting
from support.family_setting import EVERY, Setting, model
from support.terms import NONE

OF_LAYERS = ("hidden", "attention", "queries", "keys", "values", "embeddings")
ANSWERS = {Signal.LOGITS, Signal.TOKENS, Signal.FEATURES}


def runs(teacher, batch, wanted):
    """A teacher's activations, and the layers that ran for them."""
    ran, handles = [], []
    stacks = {stack.name for stack in layout_of(teacher.model.config).stacks}
    layers = blocks(teacher.model)
    for name in stacks:
        own = [block for layer, block in layers.items() if layer.stack == name]
        for block in dict.fromkeys(own):
            handles.append(block.register_forward_pre_hook(lambda *_, name=name: ran.append(name)))
    signals = teacher(batch, wanted)
    for handle in handles:
        handle.remove()
    return signals, {name: ran.count(name) for name in stacks}


def wants(kind):
    """What may be read of a teacher of four layers a stack, and how many layers of its last stack run for it."""
    net = Setting(kind).teacher.model
    *_, last = (stack.name for stack in layout_of(net.config).stacks)
    yield CaptureSpec(hidden=frozenset({Layer(last, 1)})), last, 2
    yield CaptureSpec(attention=frozenset({Layer(last, 0)}), relations=frozenset({Layer(last, 2)})), last, 3
    yield CaptureSpec(hidden=frozenset({Layer(last, 3)}), embeddings=frozenset({last})), last, 4
    yield CaptureSpec(embeddings=frozenset({last})), last, 1
    if Layer(CROSS, 0) in attention_modules(net):
        yield CaptureSpec(attention=frozenset({Layer(CROSS, 1)}), hidden=frozenset({Layer("encoder", 3)})), last, 2


@EVERY
def test_only_layers_up_to_the_deepest_run_and_give_bit_for_bit_what_a_full_forward_gives(kind):
    setting = Setting(kind)
    batch = collate(setting.data, range(4))
    for wanted, last, depth in wants(kind):
        full, all_layers = runs(setting.teacher, batch, wanted)
        found, ran = runs(setting.teacher, batch, replace(wanted, answers=False))
        assert set(all_layers.values()) == {4}
        assert ran == all_layers | {last: depth}, "an encoder runs in full before its decoder"
        for name in OF_LAYERS:
            expected, given = getattr(full, name), getattr(found, name)
            assert expected.keys() == given.keys()
            assert all(torch.equal(expected[key], given[key]) for key in expected), name
        assert full.tokens is not None
        assert found.tokens is None


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_decoder_that_is_not_read_does_not_run(kind):
    setting = Setting(kind)
    wanted = CaptureSpec(hidden=frozenset({Layer("encoder", 2)}), answers=False)
    signals, ran = runs(setting.teacher, collate(setting.data, range(4)), wanted)
    assert ran == {"encoder": 3, "decoder": 0}
    assert signals.hidden.keys() == wanted.hidden


def test_nothing_runs_for_nothing():
    setting = Setting("llama")
    signals, ran = runs(setting.teacher, collate(setting.data, range(4)), CaptureSpec(answers=False))
    assert ran == {"decoder": 0}
    assert not any(getattr(signals, name) for name in OF_LAYERS)


@pytest.mark.parametrize("kind", ["bert", "xlnet", "llama", "t5"])
def test_a_stage_that_compares_layers_alone_has_the_same_loss_with_a_shorter_forward(kind):
    setting = Setting(kind, Weights(hard=1, alpha=0, beta=1, gamma=1, delta=1, relations=1, embeddings=1))
    batch = collate(setting.data, range(4))
    units, wanted = count_units([batch]), setting.learner.wanted_of_teacher
    assert not wanted.answers
    short = setting.breakdown(batch, units)
    setting.learner.wanted_of_teacher = replace(wanted, answers=True)
    full = setting.breakdown(batch, units)
    assert torch.equal(short.total, full.total)
    assert all(torch.equal(short.parts[name], full.parts[name]) for name in full.parts)


def answers_wanted(objective):
    return objective.wanted((), of_teacher=True).answers


def test_answers_are_wanted_wherever_a_term_compares_them_or_is_not_known_here():
    plan = ClassifierSetting("bert", "bert", 32).plan

    def wanted(**weights):
        return answers_wanted(build_classification_objective(Weights(**{**NONE, **weights}), plan, False, 3))

    assert not wanted(hard=1, beta=1, delta=1)
    assert wanted(beta=1, alpha=0.1)
    for name in TERMS:
        assert wanted(terms={name: {"weight": 1}}) == (TERM_FACTS[name].compares == "answers")
    own = "kdalign.objective.terms.logits:LogitMSE"
    objective = build_classification_objective(Weights(**{**NONE, "beta": 1}), plan, False, 3)
    assert answers_wanted(replace(objective, terms={**objective.terms, own: objective.terms["cosine"]}))
    tokens = Setting("llama", Weights(**{**NONE, "hard": 1, "alpha": 0.5})).objective
    assert answers_wanted(tokens)
    assert objective.wanted(()).answers, "a student's forward gives its own"


def test_no_shipped_term_that_is_said_to_compare_layers_reads_answers():
    plan = ClassifierSetting("bert", "bert", 32).plan
    shares = {"beta": 1, "gamma": 1, "delta": 1, "embeddings": 1, "relations": 1}
    terms = {name: {"weight": 1} for name in TERMS}
    objective = build_classification_objective(Weights(**{**NONE, **shares, "terms": terms}), plan, False, 3)
    tokens = build_language_objective(Weights(**{**NONE, **shares, "hard": 1}), Setting("t5").learner.plan)
    seen = set()
    for name, (_, term) in [*objective.terms.items(), *tokens.terms.items()]:
        if TERM_FACTS[name.partition(" ")[0]].compares == "layers":
            assert not term.needs & ANSWERS, name
            seen.add(name.partition(" ")[0])
    assert seen == {name for name, facts in TERM_FACTS.items() if facts.compares == "layers"}


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox", "modernbert"])
def test_a_rounded_teacher_is_the_one_that_transformers_loads_at_that_precision(kind, tmp_path):
    net = model(kind)
    net.save_pretrained(tmp_path)
    expected = type(net).from_pretrained(tmp_path, dtype=torch.bfloat16)
    rounded = ComputedTeacher(net, None, torch.bfloat16, torch.device("cpu")).model
    for ours, theirs in ((rounded.named_parameters(), expected.named_parameters()),
                         (rounded.named_buffers(), expected.named_buffers())):  # fmt: skip
        ours, theirs = dict(ours), dict(theirs)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            # Gemma's scale of embeddings is rounded where it is read.
            torch.testing.assert_close(ours[name].to(tensor.dtype), tensor, rtol=0, atol=0, msg=name)
    frequencies = {name: buffer for name, buffer in rounded.named_buffers() if name.endswith("inv_freq")}
    assert {buffer.dtype for buffer in frequencies.values()} == {torch.float32}
