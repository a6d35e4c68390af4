"""The numerical contract on Whisper: capture, targets, real positions of sounds, splitting a step, chunks, freezing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import WhisperConfig

from kdalign.alignment.calibration import calibrate
from kdalign.alignment.projections import Projections
from kdalign.alignment.propose import propose
from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.data.media.inputs import MediaInputs
from kdalign.data.media.readers import AudioReader
from kdalign.data.tokenization import MULTILINGUAL_ENTRIES, tokenize_speech
from kdalign.data.tokenized_split import IGNORED
from kdalign.errors import UsageError
from kdalign.evaluation.transcription import split_sound
from kdalign.models import student
from kdalign.models.architecture import CROSS, Layer, attention_modules, blocks, describe
from kdalign.models.capture import CaptureSpec, enable_capture, forward
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.inputs import accepted_inputs
from kdalign.models.loading import load_language_model
from kdalign.objective.build import build_language_objective
from kdalign.objective.terms import TermInputs, Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import TrainSettings
from kdalign.teachers.computed import ComputedTeacher
from kdalign.training.learner import Learner
from kdalign.training.optimizer import make_optimizer
from support.covering import each_once
from support.media import encode_wav
from support.media_setting import (
    ALL_SPEECH,
    END,
    NO_TIMESTAMPS,
    RATE,
    START,
    Setting,
    load,
    reader_of,
    rows_of,
    saved,
    sounds,
    spoken,
    spoken_examples,
)

STACKS = ("encoder", "decoder")


@pytest.fixture(scope="module")
def setting():
    return Setting("whisper")


@pytest.fixture(scope="module")
def data():
    return sounds(reader_of(saved("whisper")))


@pytest.fixture
def net():
    return load(saved("whisper"))


def close(one, other, atol=1e-5):
    assert one.keys() == other.keys()
    for name, value in one.items():
        largest = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(value, other[name], atol=atol * largest, rtol=1e-4, msg=name)


def test_what_is_captured_is_what_the_model_computes(net, data):
    batch = collate(data, range(3))
    layers = frozenset(blocks(net))
    with torch.no_grad():
        plain = net(**accepted_inputs(net, batch.inputs), output_hidden_states=True)
        signals = forward(enable_capture(net), batch.inputs, CaptureSpec(layers, embeddings=frozenset(STACKS)), None)
    assert torch.equal(signals.head.logits(signals.features), plain.logits)
    for stack in STACKS:
        states = plain[f"{stack}_hidden_states"]
        torch.testing.assert_close(signals.embeddings[stack], states[0])
        for number in range(3):  # the last entry carries the final norm
            torch.testing.assert_close(signals.hidden[Layer(stack, number)], states[number + 1])
        norm = net.get_submodule(f"model.{stack}.layer_norm")
        torch.testing.assert_close(norm(signals.hidden[Layer(stack, 3)]), states[4])


def test_captured_maps_are_probabilities_and_those_of_eager_attention(net, data):
    batch = collate(data, range(3))
    inputs, layers = accepted_inputs(net, batch.inputs), frozenset(attention_modules(net))
    with torch.no_grad():
        signals = forward(enable_capture(net), batch.inputs, CaptureSpec(attention=layers), None)
        net.set_attn_implementation("eager")
        eager = net(**inputs, output_attentions=True)
    assert signals.attention.keys() == layers
    assert {layer.stack for layer in layers} == {"encoder", "decoder", CROSS}
    for layer, maps in signals.attention.items():
        real = batch.real if layer.stack == "encoder" else batch.inputs["decoder_attention_mask"].bool()
        ours, theirs = (each.transpose(1, 2)[real] for each in (maps, eager[f"{layer.stack}_attentions"][layer.number]))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.sum(-1), torch.ones_like(ours.sum(-1)))


def test_the_decoder_reads_the_prompt_and_is_asked_for_the_transcript_and_its_end_worked_by_hand(data):
    tokenizer = reader_of(saved("whisper")).tokenizer
    said = sounds(reader_of(saved("whisper")), 2, texts=["low", " mid  "])
    batch = collate(said, range(2))
    low, mid = ([220, *(tokenizer.convert_tokens_to_ids(letter) for letter in word)] for word in ("low", "mid"))
    assert batch.inputs["decoder_input_ids"].tolist() == [[START, NO_TIMESTAMPS, *ids] for ids in (low, mid)]
    assert batch.targets.tolist() == [[IGNORED, *ids, END] for ids in (low, mid)]
    assert count_units([batch])[Unit.TARGET] == count_units([batch])[Unit.ANSWERED] == 10
    cut = collate(sounds(reader_of(saved("whisper")), 1, max_length=5, texts=["lower"]), [0])
    assert cut.targets.tolist() == [[IGNORED, *low]], "a transcript that is cut does not end"


def test_the_prompt_is_the_one_that_generation_begins_with(net, data):
    batch = collate(data, [0])
    features = batch.inputs["input_features"]
    with torch.no_grad():
        written = net.generate(features, max_new_tokens=3, do_sample=False, return_dict_in_generate=True).sequences[0]
    first = int((batch.targets[0] != IGNORED).nonzero()[0])
    assert len(written) == 5, "three tokens follow the prompt"
    assert batch.inputs["decoder_input_ids"][0, : first + 1].tolist() == written[:2].tolist()


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_multilingual_whisper_is_told_language_and_task_before_a_transcript(language):
    reader = reader_of(saved("whisper"))
    reader.tokenizer.add_tokens(["<|de|>"])
    entries = reader.tokenizer.get_vocab()
    config = WhisperConfig(vocab_size=MULTILINGUAL_ENTRIES, decoder_start_token_id=START)
    said = tokenize_speech(spoken_examples(1, ["low"]), replace(reader, config=config), 40, language)
    prompt = [START, *(entries[f"<|{name}|>"] for name in (language, "transcribe", "notimestamps"))]
    assert said.columns["decoder_input_ids"][0][:5] == [*prompt, 220]
    assert said.columns["targets"][0][:4] == [IGNORED] * 3 + [220]
    own = tokenize_speech(spoken_examples(1, ["low"]), reader, 40, language)
    assert own.columns["decoder_input_ids"][0][:3] == [START, NO_TIMESTAMPS, 220]


@pytest.mark.parametrize(("language", "why"), [("", "must be told"), ("fr", "does not know the language 'fr'")])
def test_a_multilingual_whisper_refuses_a_language_that_it_does_not_know(language, why):
    config = WhisperConfig(vocab_size=MULTILINGUAL_ENTRIES, decoder_start_token_id=START)
    with pytest.raises(UsageError, match=why):
        tokenize_speech(spoken_examples(1), replace(reader_of(saved("whisper")), config=config), 40, language)


def test_the_hard_part_is_the_loss_that_transformers_computes_of_the_same_labels():
    alone = Setting("whisper", Weights(hard=1, alpha=0, beta=0, gamma=0, delta=0))
    batch = collate(alone.data, range(8))
    net = alone.learner.student
    with torch.no_grad():
        expected = net(**accepted_inputs(net, batch.inputs), labels=batch.targets).loss
    found = alone.breakdown(batch, count_units([batch])).parts["hard"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_soft_targets_are_on_the_transcript_and_its_end_alone(setting):
    batch = collate(setting.data, range(8))
    nets = setting.teacher.model, setting.learner.student
    with torch.no_grad():
        theirs, ours = (net(**accepted_inputs(net, batch.inputs)).logits.double() / 1.5 for net in nets)
    each = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    counted = torch.zeros_like(batch.targets, dtype=torch.bool)
    for row, targets in enumerate(batch.targets.tolist()):
        counted[row, 1 : targets.index(END) + 1] = True  # position 0 predicts the rest of the prompt
    found = setting.breakdown(batch, count_units([batch])).parts["soft"]
    assert float(found) == pytest.approx(float(1.5**2 * each[counted].mean()), rel=1e-4)


def test_a_longer_transcript_beside_it_changes_no_part_and_no_gradient(setting):
    tight, wide = collate(setting.data, range(4)), collate(setting.data, range(4), width=36)
    assert wide.inputs["decoder_input_ids"].shape == (4, 36)
    assert wide.inputs["decoder_input_ids"][0, -1] == END, "padding is the end token itself"
    units = count_units([tight])
    assert count_units([wide]) == units
    close(setting.breakdown(tight, units).parts, setting.breakdown(wide, units).parts)
    close(setting.gradient([wide], units), setting.gradient([tight], units))


@pytest.mark.parametrize(
    ("samples", "positions", "cut"),
    [(1, 1, 0), (320, 1, 0), (321, 2, 0), (RATE - 1, 50, 0), (RATE, 50, 0), (RATE + 1, 50, 1), (3 * RATE, 50, 1)],
)
def test_positions_that_hold_sound_are_counted_and_no_others(samples, positions, cut):
    reader = reader_of(saved("whisper"))
    generator = np.random.default_rng(0)
    encoded = [encode_wav(generator.integers(-9000, 9000, samples), RATE)]
    media = MediaInputs.of(rows_of("audio", encoded), reader.media)
    assert int((media.lengths > 50).sum()) == cut
    read = media.read([0], (0, 0))
    assert read.real.tolist() == [[place < positions for place in range(50)]]
    assert read.inputs["input_features"].shape == (1, 8, 100)


def test_lengths_of_sounds_of_another_rate_are_those_of_what_the_model_reads():
    reader = reader_of(saved("whisper")).media
    encoded = rows_of("audio", [encode_wav(np.arange(4001) % 50, 8000), encode_wav(np.arange(44100) % 50, 44100)])
    assert reader.lengths(encoded).tolist() == [26, 50]  # 8,002 and 16,000 samples, 320 a position
    decoded = [reader.decode(encoded.read(row), "a") for row in range(2)]
    assert [len(sound) for sound in decoded] == [8002, 16000]


def test_features_of_the_encoder_are_compared_where_there_is_sound(setting):
    batch = collate(setting.data, range(4))
    taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
    learnt = setting.learner(batch.inputs, taught)
    parts = setting.objective(TermInputs(learnt, taught, batch), count_units([batch])).parts
    for stack in STACKS:
        if stack == "encoder":  # a word is a fifth of a second, which are ten positions
            words = [len(spoken(number)[1].split()) for number in range(4)]
            places = [(row, place) for row, many in enumerate(words) for place in range(10 * many)]
        else:
            places = torch.nonzero(batch.targets != IGNORED).tolist()
        distances = [
            1 - F.cosine_similarity(learnt.hidden[ours][row, place], taught.hidden[theirs][row, place], dim=0)
            for ours, theirs in ((Layer(stack, 0), Layer(stack, 1)), (Layer(stack, 1), Layer(stack, 3)))
            for row, place in places
        ]
        expected = float(torch.stack(distances).mean().detach())
        assert float(parts[f"cosine {stack}"]) == pytest.approx(expected, rel=1e-4)


def test_attention_to_the_encoder_is_compared_over_all_that_the_decoder_sees(setting):
    batch = collate(setting.data, range(4))
    with torch.no_grad():
        taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
        learnt = setting.learner(batch.inputs, taught)
        found = setting.breakdown(batch, count_units([batch])).parts["attention cross"]
    expected = 0.0
    for own, of in ((0, 1), (1, 3)):
        each = learnt.attention[Layer(CROSS, own)] - taught.attention[Layer(CROSS, of)]
        expected += float(each.square().sum(-1).mean(1)[batch.predicted].mean()) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient(setting):
    whole = micro_batches(setting.data, range(8), 0, 1, None)
    units = count_units(whole)
    expected = setting.gradient(whole, units)
    ones = micro_batches(setting.data, range(8), 0, 1, 1)
    ranks = [batch for rank in (0, 1) for batch in micro_batches(setting.data, range(8), rank, 2, 4)]
    assert (len(ones), len(ranks)) == (8, 2)
    for shares in (ones, ranks):
        close(setting.gradient(shares), expected)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3


def test_a_student_equal_to_its_teacher_has_no_loss_from_it_and_no_gradient(data):
    big, twin = load(saved("whisper")), load(saved("whisper"))
    device, batch = torch.device("cpu"), collate(data, range(4))
    teacher = ComputedTeacher(big, None, torch.float32, device)
    plan = calibrate(propose(describe(twin.config), describe(twin.config)), teacher, [batch], device)
    objective = build_language_objective(ALL_SPEECH.model_copy(update={"hard": 0.0}), plan)
    learner = Learner(twin, Projections((), 0), plan, [objective], None, False).eval()
    taught = teacher(batch, learner.wanted_of_teacher)
    breakdown = objective(TermInputs(learner(batch.inputs, taught), taught, batch), count_units([batch]))
    breakdown.total.backward()
    assert float(breakdown.total.detach()) == pytest.approx(0, abs=1e-5)
    assert max(float(p.grad.abs().max()) for p in twin.parameters() if p.grad is not None) < 1e-4


@pytest.mark.parametrize(("kind", "part"), each_once(["whisper"], ["hard", "alpha", "beta", "gamma"]))
def test_each_part_alone_falls_below_a_tenth_of_its_start_on_one_batch(kind, part):
    weights = {name: float(name == part) for name in ("hard", "alpha", "beta", "gamma", "delta")}
    alone = Setting(kind, Weights(**weights))
    batch = collate(alone.data, range(4))
    units = count_units([batch])
    optimizer = torch.optim.AdamW(alone.learner.parameters(), lr=1e-2, weight_decay=0)
    start = value = float(alone.breakdown(batch, units).total.detach())
    for _ in range(400):
        optimizer.zero_grad()
        total = alone.breakdown(batch, units).total
        total.backward()
        optimizer.step()
        value = float(total.detach())
        if value < start / 10:
            break
    assert start > 1e-3
    assert value < start / 10


def test_sinusoidal_positions_of_the_encoder_are_never_trained(data):
    loaded = load_language_model(find_checkpoint(str(saved("whisper"))))
    cut = student.copy_layers(loaded, {stack: (0, 2) for stack in STACKS})
    for net in (loaded, cut):
        objective = build_language_objective(Weights(hard=1, alpha=0, beta=0), None)
        learner = Learner(net, Projections((), 0), None, [objective], None, False)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        optimizer = make_optimizer(learner, TrainSettings(lr=0.1, weight_decay=0.1))
        batch = collate(data, range(4))
        objective(TermInputs(learner(batch.inputs), None, batch), count_units([batch])).total.backward()
        optimizer.step()
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert "model.encoder.embed_positions.weight" not in moved
        assert {"model.decoder.embed_positions.weight", "model.encoder.conv1.weight"} <= moved


def test_the_spectrum_is_computed_in_float32_whatever_the_training(data):
    plain = data.media.read([0, 1], (0, 0)).inputs["input_features"]
    with torch.autocast("cpu", torch.bfloat16):
        again = data.media.read([0, 1], (0, 0)).inputs["input_features"]
    assert plain.dtype == again.dtype == torch.float32
    assert torch.equal(plain, again)
    extractor = data.media.reader.extractor
    samples = [data.media.reader.decode(data.media.rows.read(row), "a") for row in range(2)]
    assert np.array_equal(plain, extractor(samples, sampling_rate=RATE, return_tensors="np")["input_features"])


def test_in_bfloat16_a_step_goes_where_it_goes_in_float32():
    exact, rounded = Setting("whisper"), Setting("whisper", bf16=True)
    batch = collate(exact.data, range(4))
    one, other = (each.gradient([batch]) for each in (exact, rounded))
    assert one.keys() == other.keys()
    flat = [torch.cat([gradient[name].flatten() for name in one]) for gradient in (one, other)]
    assert F.cosine_similarity(*flat, dim=0) > 0.95


@pytest.mark.parametrize("seconds", [1, 30])
def test_a_long_sound_is_read_in_chunks_that_lose_no_sample(seconds):
    from transformers import WhisperFeatureExtractor

    reader = AudioReader(WhisperFeatureExtractor(feature_size=8, chunk_length=seconds), 320, 50 * seconds)
    generator = np.random.default_rng(0)
    for samples in (5, seconds * RATE, seconds * RATE + 1, int(2.7 * seconds * RATE)):
        sound = generator.standard_normal(samples).astype(np.float32)
        chunks = split_sound(sound, reader)
        assert np.array_equal(np.concatenate(chunks), sound)
        assert all(0 < len(chunk) <= seconds * RATE for chunk in chunks)
        assert len(chunks) == 1 or all(len(chunk) >= seconds * RATE // 2 for chunk in chunks[:-1])
    assert len(split_sound(generator.standard_normal(seconds * RATE), reader)) == 1


def test_a_long_sound_is_cut_where_it_is_quietest():
    from transformers import WhisperFeatureExtractor

    reader = AudioReader(WhisperFeatureExtractor(), 320, 1500)
    sound = np.random.default_rng(0).standard_normal(40 * RATE).astype(np.float32)
    sound[27 * RATE : 27 * RATE + RATE // 2] *= 0.01  # from 27 to 27.5 seconds
    first, second = split_sound(sound, reader)
    assert 27.1 * RATE <= len(first) <= 27.4 * RATE
    assert len(first) + len(second) == len(sound)
