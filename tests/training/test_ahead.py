"""The next step's batches, prepared in a thread: the same steps, the same errors, and no thread left."""

import threading

import pytest

from kdalign.files import sha256
from kdalign.training import task_trainer
from kdalign.training.ahead import Ahead
from support.commands import command, steps_of


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("kdalign-next-step")]


def test_values_are_those_of_their_numbers_in_any_order_and_the_next_is_begun():
    begun = []

    def compute(number):
        begun.append((number, threading.current_thread().name))
        return number * number

    ahead = Ahead(compute)
    assert [ahead.take(number) for number in (0, 1, 2, 7, 8, 3)] == [0, 1, 4, 49, 64, 9]
    ahead.close()
    assert [number for number, _ in begun] == [0, 1, 2, 3, 7, 8, 9, 3, 4]
    assert all(name.startswith("kdalign-next-step") for _, name in begun)
    assert threads() == []


def test_an_error_is_raised_when_its_value_is_taken_and_not_before():
    def compute(number):
        if number == 2:
            raise KeyError("of row 7")
        return number

    ahead = Ahead(compute)
    assert [ahead.take(0), ahead.take(1)] == [0, 1]
    with pytest.raises(KeyError, match="of row 7"):
        ahead.take(2)
    assert ahead.take(3) == 3
    ahead.close()
    ahead = Ahead(compute)
    assert ahead.take(1) == 1
    ahead.close()  # whose next value failed
    assert threads() == []


def test_a_run_that_prepares_ahead_takes_the_same_steps_and_resumes(
    kdalign, stopped, data, teacher, tmp_path, monkeypatch
):
    words = command(teacher, data, "run", "--no-profile", "--set", "train.checkpoint_every=3")[2:]
    assert kdalign(*words)[0] == 0
    plain = sha256(tmp_path / "run" / "student" / "model.safetensors")
    monkeypatch.setattr(task_trainer, "prepares_ahead", lambda device: True)
    assert kdalign(*[word.replace("run", "ahead") for word in words])[0] == 0
    assert threads() == []
    assert sha256(tmp_path / "ahead" / "student" / "model.safetensors") == plain
    assert [step["loss"] for step in steps_of(tmp_path / "ahead")] == [
        step["loss"] for step in steps_of(tmp_path / "run")
    ]
    assert stopped(*[word.replace("run", "killed") for word in words])[0] == 9
    assert threads() == []
    code, _, err = kdalign("distill", "--out", "killed", "--resume")
    assert code == 0, err
    assert sha256(tmp_path / "killed" / "student" / "model.safetensors") == plain
