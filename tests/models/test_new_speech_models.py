"""New CTC models have the sizes that were asked for, and what is captured of them is what they compute."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCTC, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from kdalign.data.batches import collate
from kdalign.distillation.speech_checks import check_frames
from kdalign.errors import UsageError
from kdalign.models.architecture import attention_modules, blocks, describe
from kdalign.models.capture import CaptureSpec, enable_capture, forward
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.from_scratch import parse_scratch_spec
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.inputs import accepted_inputs, any_inputs, convolutions_of
from kdalign.models.layouts import AttentionLayout
from kdalign.models.media_reader import load_media_reader
from kdalign.models.student import with_dropout
from kdalign.models.tokenizer import TokenizerPair
from support import speech_setting
from support.speech_setting import KINDS, encoded, model

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # in WavLM

EVERY = pytest.mark.parametrize("kind", KINDS)


@EVERY
def test_a_new_model_has_the_sizes_of_its_description(kind):
    net = model(kind)
    described, [stack] = describe(net.config), describe(net.config).stacks
    assert (stack.name, stack.layers, stack.width, stack.heads, stack.feed_forward) == ("encoder", 2, 32, 2, 64)
    assert described.family == "ctc"
    assert described.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert head_of(net.config) is HeadKind.CTC
    strides = [stride for _, stride in convolutions_of(net.config)]
    assert torch.tensor(strides).prod() == 320, "20 ms of 16 kHz, as a position of Whisper's encoder"
    assert net(**any_inputs(net.config, 2, 7, net.device)).logits.shape[:2] == (2, 7)


@EVERY
def test_what_is_captured_is_what_the_model_computes(kind):
    net = model(kind)
    inputs = collate(encoded(), [0, 1, 2]).inputs
    layers = frozenset(blocks(net))
    closed = describe(net.config).attention is AttentionLayout.CLOSED
    assert closed == (kind == "wavlm")
    maps = frozenset() if closed else frozenset(attention_modules(net))
    with torch.no_grad():
        plain = net(**accepted_inputs(net, inputs), output_hidden_states=True)
        signals = forward(enable_capture(net), inputs, CaptureSpec(layers, maps, frozenset({"encoder"})), None)
    assert torch.equal(signals.logits, plain.logits)
    assert signals.blank == 0
    first, *others = plain.hidden_states
    assert torch.equal(signals.embeddings["encoder"], first)
    for layer in sorted(layers)[:-1]:  # the last is followed by a norm there
        assert torch.equal(signals.hidden[layer], others[layer.number])
    for probabilities in signals.attention.values():
        real = inputs["attention_mask"].bool()
        padding = probabilities.masked_select(~real[:, None, None, :])
        assert float(padding.abs().max()) == 0
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones_like(probabilities[..., 0]))


@EVERY
def test_it_is_a_stock_checkpoint(kind, tmp_path):
    net = model(kind)
    net.save_pretrained(tmp_path)
    again = AutoModelForCTC.from_pretrained(tmp_path).eval()
    inputs = any_inputs(net.config, 1, 5, net.device)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, net(**inputs).logits)


def test_no_layer_is_skipped_and_no_frame_masked_at_random_in_training():
    net = with_dropout(model(), 0.0).train()
    assert (net.config.layerdrop, net.config.apply_spec_augment) == (0.0, False)
    inputs = any_inputs(net.config, 1, 30, net.device)
    with torch.no_grad():
        assert torch.equal(net(**inputs).logits, net(**inputs).logits)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("layer=3", "unknown setting of new:wav2vec2 'layer'; did you mean 'layers'"),
        ("width=40", "width=40 and heads=1 .*a multiple of 16"),
        ("width=48,heads=5", "width=48 and heads=5 .accepted: heads that divide the width"),
        ("conv=0", "conv=0 .accepted: conv=N, a whole number from 1"),
        ("dropout=1", "dropout=1 .accepted: dropout=P, 0 <= P < 1"),
        ("conv=8,conv=8", "gives conv twice"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(spec, line):
    with pytest.raises(UsageError, match=line):
        parse_scratch_spec(f"new:wav2vec2,{spec}")


def saved(folder, extractor, **changes):
    net = model()
    for name, value in changes.items():
        setattr(net.config, name, value)
    net.config.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return Checkpoint(str(folder), str(folder), net.config, None, "")


def test_the_reader_of_a_checkpoint_is_its_own_and_fits(tmp_path):
    own = Wav2Vec2FeatureExtractor(do_normalize=False)
    media = load_media_reader(saved(tmp_path / "a", own))
    assert (media.stride, media.masks, media.extractor.do_normalize) == (320, True, False)
    assert not load_media_reader(saved(tmp_path / "b", own, feat_extract_norm="group")).masks
    with pytest.raises(UsageError, match=r"is a WhisperFeatureExtractor .accepted for a wav2vec2 model: Wav2Vec2"):
        load_media_reader(saved(tmp_path / "c", WhisperFeatureExtractor()))
    with pytest.raises(UsageError, match="wav2vec2 model with add_adapter is not supported"):
        load_media_reader(saved(tmp_path / "d", own, add_adapter=True))


def test_frames_of_other_lengths_are_not_compared():
    ours = speech_setting.reader().media
    pair = TokenizerPair(None, None, 9, False, ours, replace(ours, stride=160))
    with pytest.raises(UsageError, match="student's frames have 320 samples at 16,000 Hz, the teacher's 160"):
        check_frames(pair)
    check_frames(replace(pair, teacher_media=ours))
