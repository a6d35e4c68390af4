"""The real-time factor: one fixed sound, transcribed whole in every turn, with equal work for every model."""

import json

import pytest
import torch

from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.loading import load_any
from kdalign.models.transcription_speed import LEAST_TURNS, MOST_TURNS, measure_transcription
from support import speech_setting
from support.media_setting import reader_of, saved


def count_calls(module, calls):
    module.register_forward_pre_hook(lambda *_, **__: calls.append(1), with_kwargs=True)
    return calls


@pytest.mark.parametrize("tokens", [3, 16])
def test_every_turn_encodes_the_sound_and_writes_the_same_number_of_tokens(tokens):
    whisper = load_any(find_checkpoint(str(saved("whisper"))))
    encoded, decoded = count_calls(whisper.model.encoder, []), count_calls(whisper.model.decoder, [])
    speed = measure_transcription(whisper, reader_of(saved("whisper")).media, tokens)
    assert (speed.seconds, speed.tokens) == (1.0, tokens)  # the model reads a second at once
    assert LEAST_TURNS <= speed.turns <= MOST_TURNS
    assert len(encoded) == speed.turns + 1  # and a warm-up
    assert len(decoded) == (speed.turns + 1) * tokens  # a forward for each token
    assert speed.real_time_factor > 0


def test_no_more_tokens_are_written_than_the_model_has_positions_for():
    whisper = load_any(find_checkpoint(str(saved("whisper"))))
    assert measure_transcription(whisper, reader_of(saved("whisper")).media, 400).tokens == 40 - 4


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"is_multilingual": True, "lang_to_id": {"<|de|>": 5}, "task_to_id": {"transcribe": 6}},
    ],
    ids=["several texts", "no English"],
)
def test_a_model_s_own_settings_of_writing_do_not_stop_the_measurement(settings):
    whisper = load_any(find_checkpoint(str(saved("whisper"))))
    for name, value in settings.items():
        setattr(whisper.generation_config, name, value)
    assert measure_transcription(whisper, reader_of(saved("whisper")).media, 8).real_time_factor > 0


def test_a_model_that_labels_frames_reads_thirty_seconds():
    read = []
    model = speech_setting.model()
    model.register_forward_pre_hook(lambda _, __, inputs: read.append(inputs), with_kwargs=True)
    speed = measure_transcription(model, speech_setting.reader().media, 128)
    assert (speed.seconds, speed.tokens) == (30.0, 0)
    assert {tuple(inputs["input_values"].shape) for inputs in read} == {(1, 30 * 16_000)}
    assert all(torch.equal(inputs["input_values"], read[0]["input_values"]) for inputs in read)


def test_profile_shows_it_for_models_of_speech_and_says_how(kdalign):
    asked = ("profile", saved("whisper"), "--seq-len", "8", "--batch-size", "1", "--device", "cpu")
    status, out, err = kdalign(*asked)
    said = " ".join(out.split())
    assert status == 0, err
    assert "transformers" not in err
    assert "real-time factor" in said
    assert "noise of 1 s alone, transcribed greedily, exactly 8 tokens; median of" in said
    [found] = json.loads(kdalign(*asked, "--dtype", "bf16", "--json")[1])
    assert (found["transcription"]["seconds"], found["transcription"]["tokens"]) == (1.0, 8)
    [found] = json.loads(kdalign(*asked, "--no-weights", "--json")[1])
    assert found["transcription"] is None
    assert "real-time" not in kdalign("profile", saved("vit"), "--batch-size", "1")[1]
