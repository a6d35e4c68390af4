"""A student is cut out of its teacher, built from scratch, or a checkpoint, and that is decided once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.errors import UsageError
from kdalign.models.architecture import describe
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.student_source import (
    CheckpointStudent,
    CutStudent,
    ScratchStudent,
    StudentInputs,
    StudentOptions,
    find_student,
)
from kdalign.models.tokenizer import pair_tokenizers
from support.tiny import sentences, tiny_classifier


@pytest.fixture(scope="module")
def found(teacher):
    return find_checkpoint(str(teacher))


def test_the_words_of_a_student_say_where_it_comes_from(found, teacher):
    cut = find_student(StudentOptions("layers=2"), found)
    assert isinstance(cut, CutStudent)
    assert cut.copied == {"encoder": (1, 3)}
    assert str(cut) == f"layers 1 3 of {teacher}"
    new = find_student(StudentOptions("new:bert,layers=2,width=32,heads=4,positions=64"), found)
    assert isinstance(new, ScratchStudent)
    assert (new.family, new.positions, str(new)) == ("masked", 64, new.name)
    own = find_student(StudentOptions(str(teacher)), None)
    assert isinstance(own, CheckpointStudent)
    assert (own.checkpoint, own.positions, own.copied) == (found, 160, None)
    assert [student.untrained for student in (cut, new, own)] == [False, True, False]


def test_a_cut_student_of_random_weights_is_untrained(found):
    at_random = find_student(StudentOptions("layers=2", init="random"), found)
    assert (at_random.untrained, at_random.copied, str(at_random)) == (True, None, "layers=2 at random")
    narrowed = find_student(StudentOptions("layers=2,width=16", narrow_by="random"), found)
    assert (narrowed.untrained, narrowed.copied) == (True, {"encoder": (1, 3)})
    principal = find_student(StudentOptions("layers=2,width=16"), found)
    assert (principal.untrained, str(principal).endswith(", narrowed by pca")) == (False, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"student": "layers=2", "revision": "main"}, "student_revision is for a student on the hub"),
        ({"student": "new:bert", "revision": "main"}, "'new:bert' is built from scratch"),
        ({"student": "new:bert", "init": "random"}, "--init random is for a student cut out"),
        ({"student": "./own", "init_from": "pretrained"}, "init_from=pretrained is for a student that copies"),
        ({"student": "layers=2", "init": "random", "init_from": "pretrained"}, "init_from=pretrained"),
        ({"student": "layers=2", "narrow_by": "svd"}, "narrow_by=svd is for a student narrower"),
        ({"student": "./own", "tokenizer": "train:300"}, "a checkpoint brings its own"),
    ],
)
def test_an_option_for_another_kind_of_student_is_refused(found, options, said):
    with pytest.raises(UsageError, match=said):
        find_student(StudentOptions(**options), found)


def test_without_a_teacher_nothing_is_cut_and_a_new_student_needs_a_tokenizer():
    with pytest.raises(UsageError, match=r"'layers=2' is cut out of a teacher; without one"):
        find_student(StudentOptions("layers=2"), None)
    with pytest.raises(UsageError, match="'new:bert' needs --tokenizer"):
        find_student(StudentOptions("new:bert"), None).tokenizers()


@pytest.mark.parametrize("name", ["layers=2", "new:bert,layers=2,width=32,heads=4"])
def test_a_tokenizer_that_is_to_be_trained_counts_with_the_entries_asked_for(found, name):
    student = find_student(StudentOptions(name, tokenizer="train:290"), found)
    tokenizers = student.tokenizers()
    assert (tokenizers.student, tokenizers.size, tokenizers.differ) == (None, 290, True)
    assert describe(student.config(tokenizers)).vocabulary == 290
    trained = train_tokenizer(sentences(40, 0)[0], 290, student.family, student.positions)
    assert describe(student.config(tokenizers.with_student(trained))).vocabulary == len(trained)


def test_a_vocabulary_smaller_than_its_teachers_padding_id_can_be_trained(tmp_path):
    tokenizer = train_tokenizer(sentences(40, 0)[0], 300, "causal", 64)
    tokenizer.add_special_tokens({"pad_token": "<last>"})
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    student = find_student(StudentOptions("layers=1", tokenizer="train:265"), find_checkpoint(str(tmp_path)))
    assert tokenizer.pad_token_id >= 265
    assert describe(student.config(student.tokenizers())).vocabulary == 265


def test_a_teacher_that_is_not_in_memory_is_loaded_to_be_cut(found):
    from transformers import AutoModelForSequenceClassification

    student = find_student(StudentOptions("layers=2"), found)
    loaded = []

    def load(checkpoint):
        loaded.append(checkpoint)
        return AutoModelForSequenceClassification.from_pretrained(checkpoint.path)

    model = student.build(StudentInputs(load, student.tokenizers(), (), 0, None, lambda config: config))
    assert loaded == [found]
    theirs = load(found).bert.encoder.layer[3].attention.self.query.weight
    assert torch.equal(model.bert.encoder.layer[1].attention.self.query.weight, theirs)


@pytest.mark.parametrize("init_from", ["pretrained", "fine-tuned"])
def test_a_cut_student_copies_the_teacher_before_fine_tuning_only_if_that_is_asked_for(found, init_from):
    before, tuned = tiny_classifier("bert", seed=1, vocab_size=63), tiny_classifier("bert", seed=2, vocab_size=63)
    student = find_student(StudentOptions("layers=2", init_from=init_from), found)
    inputs = StudentInputs(
        lambda _: before, student.tokenizers(), [], seed=0, teacher=tuned, with_head=lambda config: config
    )
    copied = before if init_from == "pretrained" else tuned
    built = student.build(inputs).bert.encoder.layer[0].output.dense.weight
    assert torch.equal(built, copied.bert.encoder.layer[1].output.dense.weight)


def test_an_encoder_decoder_from_scratch_starts_targets_with_its_teachers_token():
    teacher = SimpleNamespace(config=T5Config(decoder_start_token_id=3))
    student = find_student(StudentOptions("new:t5,layers=1,width=16,heads=2"), None)
    tokenizer = train_tokenizer(sentences(40, 0)[0], 300, "seq2seq", 32)
    alone = student.config(pair_tokenizers(tokenizer, None)).decoder_start_token_id
    taught = replace(student, teacher=teacher).config(pair_tokenizers(tokenizer, tokenizer)).decoder_start_token_id
    assert (alone == 3, taught) == (False, 3)
