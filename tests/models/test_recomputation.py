"""Activation checkpointing: the same gradients from the same dropout, whatever is captured."""

import pytest
import torch
from accelerate import Accelerator
from transformers import MPNetConfig, Phi3Config, XLNetConfig

from kdalign.data.batches import collate
from kdalign.errors import UsageError
from kdalign.models.architecture import attention_modules, blocks
from kdalign.models.attention import keepers
from kdalign.models.recomputation import check_recomputation
from kdalign.models.student import with_dropout
from kdalign.objective.units import count_units
from kdalign.training.diagnostics import StepViewer, freeze_unreached, gradient_norms
from support.commands import command
from support.covering import each_once
from support.family_setting import KINDS, ONE_OF_EACH, Setting
from support.on_policy_setting import OnPolicySetting

STEP = 3


def trained(kind, bf16=False):
    """A student in training mode with dropout, whose features, maps, relations and tokens are all compared."""
    setting = Setting(kind, bf16=bf16)
    with_dropout(setting.learner.student, 0.2)
    setting.learner.train()
    return setting


def gradient(setting, recomputes, batch):
    setting.learner.recomputes = recomputes
    torch.manual_seed(STEP)
    return setting.gradient([batch], count_units([batch]))


@pytest.mark.parametrize(("kind", "bf16"), each_once(KINDS, (False, True)))
def test_gradients_are_bit_for_bit_those_without(kind, bf16):
    setting = trained(kind, bf16)
    batch = collate(setting.data, range(4))
    plain = gradient(setting, False, batch)
    recomputed = gradient(setting, True, batch)
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.equal(value, recomputed[name]), name
    assert not keepers


@ONE_OF_EACH
def test_each_layer_runs_once_more_in_the_backward(kind):
    setting = trained(kind)
    net, batch, calls = setting.learner.student, collate(setting.data, range(4)), []
    for block in dict.fromkeys(blocks(net).values()):
        block.register_forward_hook(lambda *_: calls.append("outside"))
    for attention in dict.fromkeys(attention_modules(net).values()):
        attention.register_forward_hook(lambda *_: calls.append("inside"))
    counts = {}
    for recomputes in (False, True):
        calls.clear()
        gradient(setting, recomputes, batch)
        counts[recomputes] = calls.count("outside"), calls.count("inside")
    assert counts[True][0] == counts[False][0], "hooks on a layer run once"
    assert counts[True][1] == 2 * counts[False][1]


@ONE_OF_EACH
def test_the_measurements_before_a_step_are_the_same(kind):
    setting = trained(kind)
    learner, batch, found = setting.learner, collate(setting.data, range(4)), []

    def teach(one):
        return setting.teacher(one, learner.wanted_of_teacher)

    viewer = StepViewer(learner, teach, Accelerator(cpu=True), 0)
    for recomputes in (False, True):
        learner.recomputes = recomputes
        learner.requires_grad_(True)
        freeze_unreached(learner, teach, setting.objective, setting.data, torch.device("cpu"))
        reached = [name for name, each in learner.named_parameters() if each.requires_grad]
        found.append((gradient_norms(viewer, learner.student, setting.objective, batch, STEP), reached))
    assert found[0] == found[1]
    assert len(found[0][0]) > 4
    assert len(found[0][1]) > 10


def test_a_training_with_steps_on_the_students_own_texts_ends_in_the_same_weights(tmp_path):
    found = []
    for recomputes in (False, True):
        setting = OnPolicySetting("gpt2")
        with_dropout(setting.learner.student, 0.1)
        setting.learner.recomputes = recomputes
        progress, _ = setting.train(tmp_path / str(recomputes))
        assert progress.sampled > 0
        found.append(list(setting.learner.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_run_that_computes_its_layers_again_ends_in_the_same_weights(kdalign, teacher, data, tmp_path):
    more = ("--set", "train.dropout=0.1", "--set", "train.optimizer_state=bf16", "--set")
    for recomputes in ("false", "true"):
        words = command(teacher, data, recomputes, *more, f"train.gradient_checkpointing={recomputes}")
        status, _, err = kdalign(*words[2:])
        assert status == 0, err
    plain, again = (tmp_path / name / "student/model.safetensors" for name in ("false", "true"))
    assert plain.read_bytes() == again.read_bytes()


def test_forwards_without_gradients_and_later_ones_are_plain():
    setting = trained("llama")
    batch = collate(setting.data, range(4))
    gradient(setting, True, batch)
    assert not any("forward" in vars(block) for block in blocks(setting.learner.student).values())
    with torch.no_grad():
        assert not setting.breakdown(batch, count_units([batch])).total.requires_grad


def test_a_type_for_which_neither_transformers_nor_kdalign_does_it_is_refused():
    check_recomputation(XLNetConfig())  # kdalign does
    check_recomputation(Phi3Config())  # Transformers does
    with pytest.raises(UsageError, match=r"does not do it for mpnet models.*a smaller train.micro_batch"):
        check_recomputation(MPNetConfig())
