"""Teachers are scored once for the same weights and tokens; every later run reads their answers."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from kdalign.data.corruption import MaskTokens
from kdalign.devices import make_accelerator
from kdalign.distillation.load import load_teachers
from kdalign.distillation.prepare import prepare
from kdalign.distillation.teacher_answers import hash_weights, keep_samples, predict_untrained, score_teachers
from kdalign.distillation.tokenize import open_run
from kdalign.environment import cache_folder
from kdalign.evaluation.samples import Prompt, complete
from kdalign.observer import NullObserver
from kdalign.recipe import build_recipe
from support.family_setting import model, tokenizer
from support.tiny import save_model


def score(teachers, data, **more):
    names = [str(each) for each in teachers]
    given = {"teacher": names if len(names) > 1 else names[0], "student": "layers=1", "data.task": "sst2",
             "data.folder": str(data), "train.device": "cpu", "train.max_steps": 1,
             "out": str(data / "run")}  # fmt: skip
    accelerator = make_accelerator("cpu")
    opened = open_run(prepare(build_recipe(None, {**given, **more})), accelerator)
    loaded = load_teachers(opened.run, opened.recipe, accelerator, False, NullObserver())
    return opened, loaded, score_teachers(opened, loaded, accelerator.device)


@pytest.fixture
def other(tmp_path):
    """A teacher with other weights of the same shapes."""
    return save_model(tmp_path / "other", "bert", seed=9)


def arrays(answers):
    found = [answers.watched, *answers.reported.values(), *(one for each in answers.each for one in each.values())]
    return [(each.logits, each.values) for each in found]


def test_what_is_read_equals_what_was_computed(teacher, data):
    _, _, first = score([teacher], data)
    opened, [loaded], again = score([teacher], data)
    assert (first.read, again.read) == (0, 2)
    predict = partial(opened.run.adapter.predict, loaded.model)
    expected = predict(opened.texts.reported["validation"]).logits
    assert np.array_equal(again.reported["validation"].logits, expected)
    for (logits, values), (known, kept) in zip(arrays(first), arrays(again), strict=True):
        assert np.array_equal(logits, known)
        assert np.array_equal(values, kept)


def test_other_weights_and_other_tokens_are_computed(teacher, other, data):
    score([teacher], data)
    assert score([other], data)[2].read == 0
    assert score([teacher], data, **{"data.max_length": 8})[2].read == 0
    assert score([teacher], data, **{"data.limit": 100})[2].read == 1  # the reported split has fewer rows anyway


def test_several_teachers_are_kept_as_one_and_each(teacher, other, data):
    _, _, first = score([teacher, other], data)
    _, _, again = score([teacher, other], data)
    assert (first.read, again.read) == (0, 2)
    assert len(again.each) == 2
    for pair in zip(arrays(first), arrays(again), strict=True):
        assert np.array_equal(pair[0][0], pair[1][0])
    assert score([teacher, other], data, **{"teachers.weights": [0.9, 0.1]})[2].read == 0


def test_a_kept_answer_of_another_number_of_threads_is_not_mistaken_for_ones_own(teacher, data):
    score([teacher], data)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert score([teacher], data)[2].read == 0
    finally:
        torch.set_num_threads(threads)


def test_tokens_are_hashed_by_row_and_column(teacher, data):
    opened, _, _ = score([teacher], data)
    split = opened.texts.watched
    moved = split.take([1, 0, *range(2, len(split))])
    assert split.fingerprint() == split.take(range(len(split))).fingerprint()
    assert split.fingerprint() != moved.fingerprint()
    masks = [replace(split, corrupt=MaskTokens(token, 40, np.array([0, 1]))) for token in (3, 4)]
    assert len({split.fingerprint(), *(each.fingerprint() for each in masks)}) == 3
    assert len(list((cache_folder() / "predictions").glob("*.safetensors"))) == 2


def test_students_that_start_alike_are_asked_once(teacher, other, data):
    opened, [loaded], _ = score([teacher], data)
    adapter, watched = opened.run.adapter, opened.texts.watched
    expected = adapter.predict(loaded.model, watched).logits
    first, read = predict_untrained(adapter, loaded.model, hash_weights(loaded.model), watched)
    kept = set((cache_folder() / "predictions").glob("*.safetensors"))
    alike = copy.deepcopy(loaded.model)
    again, known = predict_untrained(adapter, alike, hash_weights(alike), watched)
    assert (read, known) == (False, True)
    assert np.array_equal(first.logits, expected)
    assert np.array_equal(again.logits, expected)
    assert set((cache_folder() / "predictions").glob("*.safetensors")) == kept
    with torch.no_grad():
        next(loaded.model.parameters()).add_(0.01)
    changed, _ = predict_untrained(adapter, loaded.model, hash_weights(loaded.model), watched)
    assert np.array_equal(changed.logits, adapter.predict(loaded.model, watched).logits)
    assert not np.array_equal(changed.logits, expected)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_samples_are_written_once_and_again_if_anything_that_decides_them_changes(kind):
    net, pieces = model(kind), tokenizer("causal" if kind == "llama" else "seq2seq")
    prompts = [Prompt(text, tuple(pieces(text)["input_ids"])) for text in ("a great film", "dull")]

    def ask(prompts=prompts, weights="w"):
        texts, known = keep_samples(net, weights, pieces, prompts)
        assert texts == complete(net, pieces, prompts)
        return known

    assert [ask(), ask()] == [False, True]
    assert not ask(prompts[:1])
    assert not ask(prompts[::-1])
    assert not ask(weights="v")
    net.generation_config.eos_token_id = [pieces.eos_token_id, 7]
    assert [ask(), ask()] == [False, True]
    net.generation_config.repetition_penalty = 1.5
    assert not ask()
    net.to(torch.bfloat16)
    assert not ask()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert not ask()
    finally:
        torch.set_num_threads(threads)
    assert keep_samples(net, "w", pieces, []) == ([], False)


def test_weights_are_hashed_by_name_shape_and_value():
    def hashed(**values):
        module = torch.nn.Module()
        for name, value in values.items():
            module.register_buffer(name, torch.tensor(value))
        return hash_weights(module)

    one = hashed(a=[1.0, 2.0])
    assert one == hashed(a=[1.0, 2.0])
    others = [hashed(b=[1.0, 2.0]), hashed(a=[[1.0, 2.0]]), hashed(a=[1.0, 2.5]), hashed(a=[1, 2]), hashed(a=[], c=3.0)]
    assert len({one, *others}) == 6
