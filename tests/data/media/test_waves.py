"""Frames are counted as the model makes them, and padding changes none."""

import numpy as np
import pytest
import torch

from kdalign.data.batches import collate
from kdalign.data.media.waves import INPUT_MASK, frames_of, samples_of
from kdalign.models.capture import CaptureSpec, forward
from kdalign.models.inputs import accepted_inputs, convolutions_of
from support.media import noise_wav
from support.speech_setting import KINDS, config, encoded, model, reader

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # in WavLM


def test_frames_are_those_that_the_model_counts():
    net, samples = model(), np.arange(400, 4000, 7)
    convolutions = convolutions_of(net.config)
    expected = net._get_feat_extract_output_lengths(torch.from_numpy(samples))
    assert frames_of(samples, convolutions).tolist() == expected.tolist()
    for frames in (1, 2, 50):
        least = samples_of(frames, convolutions)
        assert frames_of(np.array([least - 1, least]), convolutions).tolist() == [frames - 1, frames]
    assert samples_of(1, convolutions) == 400, "the receptive field of wav2vec 2.0: 25 ms at 16 kHz"


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_has_the_same_frames_alone_and_beside_a_longer_one(kind):
    net, split = model(kind), encoded(scored=True)
    with torch.no_grad():
        batch = collate(split, [0, 4])
        both = forward(net, batch.inputs, CaptureSpec(), None).logits
        alone = forward(net, collate(split, [0]).inputs, CaptureSpec(), None).logits
    frames = int(split.lengths[0])
    assert batch.real.sum(dim=1).tolist() == split.lengths[[0, 4]].tolist()
    assert alone.shape[1] == frames < both.shape[1] == int(split.lengths[4])
    torch.testing.assert_close(both[:1, :frames], alone, atol=1e-4, rtol=1e-4)


def test_a_sound_is_normalised_over_its_own_samples_and_resampled_to_its_frames():
    media = reader().media
    sounds = [media.decode(noise_wav(1, 0.3, rate), "x") for rate in (8000, 16_000, 11_025)]
    assert [len(sound) for sound in sounds] == [4800, 4800, round(int(0.3 * 11_025) / 11_025 * 16_000)]
    read = media.inputs([sounds[0], sounds[1][:2000]])
    values, mask = read["input_values"], read[INPUT_MASK]
    assert mask.sum(dim=1).tolist() == [4800, 2000]
    assert float(values[1, :2000].mean()) == pytest.approx(0, abs=1e-5)
    assert float(values[1, :2000].var()) == pytest.approx(1, abs=1e-2)
    assert not values[1, 2000:].any()


def test_a_sound_shorter_than_a_frame_has_one():
    media = reader().media
    assert media.positions_of(np.array([10, 400, 720])).tolist() == [1, 1, 2]
    assert media.inputs([np.ones(10, dtype=np.float32)])["input_values"].shape == (1, 400)


def test_a_model_with_a_group_norm_over_time_is_given_no_mask():
    from dataclasses import replace

    media = replace(reader().media, masks=False)
    assert set(media.inputs([np.ones(500, dtype=np.float32)])) == {"input_values"}
    mask = torch.ones(1, 500)
    assert "attention_mask" in accepted_inputs(model(), {"input_values": mask, INPUT_MASK: mask})
    assert config().feat_extract_norm == "layer", "a new model takes a mask"
