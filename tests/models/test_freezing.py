"""Parts of the student that are not trained, over families; and what is refused before weights load."""

import pytest
import torch

from kdalign.errors import UsageError
from kdalign.models.architecture import blocks, embedding_weights, meta_model
from kdalign.models.heads import HeadKind
from kdalign.models.student import freeze
from kdalign.recipe import build_recipe
from support.commands import command
from support.family_setting import Setting
from support.terms import weights_of
from support.tiny import one_line

NEEDED = {"teacher": "t", "data.task": "sst2"}


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2", "llama", "t5", "xlnet"])
def test_embeddings_and_layers_of_a_family_are_frozen_and_nothing_else(kind):
    model = Setting(kind).learner.student.requires_grad_(True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {names[id(each)] for each in embedding_weights(model) if id(each) in names}
    expected |= {
        names[id(each)] for layer, block in blocks(model).items() if layer.number == 0 for each in block.parameters()
    }
    assert frozen(freeze(model, ("embeddings", "layers=0"))) == expected


def test_layers_of_one_stack_and_the_head(kdalign):
    model = Setting("t5").learner.student.requires_grad_(True)
    freeze(model, ("layers=decoder:0-1",))
    assert frozen(model)
    assert all(name.startswith("decoder.block") for name in frozen(model))
    classifier = meta_model(Setting("bert").learner.student.config, head=HeadKind.CLASSIFIER)
    assert frozen(freeze(classifier, ("head",))) == {"classifier.weight", "classifier.bias"}


def test_a_frozen_part_is_as_it_was_and_the_rest_is_trained(kdalign, teacher, data, tmp_path):
    out = tmp_path / "a"
    words = command(teacher, data, out, "--set", "train.freeze=embeddings,layers=0")
    status, _, errors = kdalign(*words[2:])
    assert status == 0, errors
    from safetensors.torch import load_file

    before, after = load_file(teacher / "model.safetensors"), weights_of(out)
    origin = {"bert.encoder.layer.0.": "bert.encoder.layer.1.", "bert.encoder.layer.1.": "bert.encoder.layer.3."}
    for name, value in after.items():
        start = next((name.replace(ours, theirs) for ours, theirs in origin.items() if name.startswith(ours)), name)
        still = "embeddings" in name or ".layer.0." in name
        assert torch.equal(value, before[start]) == still, name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("layers=2", "the student's encoder has layers 0 to 1"),
        ("layers=1-0", "the student's encoder has layers 0 to 1"),
        ("layers=decoder:0", "unknown stack 'decoder'"),
        ("embeding", "no part 'embeding'; did you mean 'embeddings'? (accepted: embeddings, head, encoder, layers=N"),
        ("", "no part ''"),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_weights_load(kdalign, teacher, data, given, said):
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run")
    status, _, errors = kdalign(*words, "--set", f"train.freeze='{given}'")
    assert (status, said in one_line(errors)) == (2, True), errors


def test_an_objective_that_reaches_nothing_that_is_trained_is_refused_before_a_step(kdalign, teacher, data, tmp_path):
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--hard", "0",
             "--alpha", "0", "--beta", "1", "--gamma", "0", "--delta", "0", "--max-steps", "2", "--out", tmp_path / "a",
             "--set", "train.freeze='embeddings, layers=0-1'")  # fmt: skip
    status, _, errors = kdalign(*words)
    assert (status, "the objective reaches no trainable part of the student" in errors) == (1, True), errors
    events = (tmp_path / "a" / "history.jsonl").read_text()
    assert '"kind": "step"' not in events


def test_a_student_with_nothing_left_or_with_adapters_is_refused():
    model = Setting("gpt2").learner.student
    every = ("embeddings", f"layers=0-{len(blocks(model)) - 1}")
    with pytest.raises(UsageError, match="no weights beside its body"):  # its head is that of the embeddings
        freeze(model, ("head",))
    for parameter in model.base_model.ln_f.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UsageError, match="leaves nothing to train"):
        freeze(model, every)
    with pytest.raises(UsageError, match=r"train\.freeze or --lora, not both"):
        build_recipe(None, NEEDED, ["train.freeze=head", "train.lora=2"])


def test_layers_that_are_one_are_frozen_together():
    model = Setting("albert").learner.student.requires_grad_(True)
    with pytest.raises(UsageError, match="all layers of this student are one"):
        freeze(model, ("layers=0",))
    assert frozen(freeze(model, (f"layers=0-{len(blocks(model)) - 1}",)))
