"""Whisper's scores by Transformers and jiwer alone."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
from benchmarks.speech import reference  # noqa: E402  (it needs both)

END, START, NO_TIMESTAMPS = 256, 257, 258


@pytest.fixture
def checkpoint(tmp_path):
    """Save a tiny English Whisper whose text tokens are bytes, with random weights, for sounds of two seconds."""
    folder = tmp_path / "whisper"
    tokenizer = WhisperTokenizer(vocab={byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    assert tokenizer.convert_tokens_to_ids(special) == [END, START, NO_TIMESTAMPS]
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "decoder_start_token_id": START}
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 16, "vocab_size": 264}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(**ends, **sizes, **widths, max_source_positions=100, max_target_positions=32, init_std=0.5)
    )
    spoken = {"is_multilingual": False, "return_timestamps": False, "no_timestamps_token_id": NO_TIMESTAMPS}
    model.generation_config = GenerationConfig(**ends, **spoken, max_length=12, suppress_tokens=[END])
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def split(tmp_path):
    generator, rows = np.random.default_rng(0), []
    for text, seconds in (("One.", 0.4), ("Two words.", 1.0), ("Now three words.", 1.9)):
        file = io.BytesIO()
        soundfile.write(file, generator.uniform(-0.5, 0.5, (int(seconds * 8000), 2)), 8000, format="WAV")
        rows.append({"wav": file.getvalue(), "text": text})
    pd.DataFrame(rows).to_parquet(tmp_path / "split.parquet")
    return tmp_path / "split.parquet"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["reference", *map(str, arguments)])
    reference.main()
    return json.loads(arguments[2].read_text())


def test_a_sound_of_two_channels_becomes_one_at_the_rate_that_is_asked_for():
    wave = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000) / 2
    file = io.BytesIO()
    soundfile.write(file, np.stack([wave, np.zeros(8000)], axis=1), 8000, format="WAV")
    sound = reference.read_sound(file.getvalue(), 16_000)
    assert sound.shape == (16_000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) / 4
    assert sound[1000:-1000] == pytest.approx(expected[1000:-1000], abs=1e-3)


def test_edits_are_counted_over_the_corpus():
    rates = reference.error_rates(["a b  c", "d"], [" a x c", "d e"])
    assert rates["wer"] == {"rate": 2 / 4, "edits": 2, "units": 4}  # b for x, e added; white space in rows is one space
    assert rates["cer"]["units"] == len("a b  c") + len("d")
    assert rates["cer"]["edits"] == 2 + 2  # b for x and a space fewer; a space and e added


def test_british_spellings_are_made_american_by_the_table_of_the_folder_alone(tmp_path):
    assert reference.make_normaliser(str(tmp_path))("Mr. Brown's COLOUR, twenty-one") == "mister brown is colour 21"
    (tmp_path / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    assert reference.make_normaliser(str(tmp_path))("colour") == "color"


def test_texts_are_those_of_the_whole_model_at_any_batch_size(checkpoint, split, tmp_path, monkeypatch):
    found = run(monkeypatch, checkpoint, split, tmp_path / "one.json")
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    sounds = [reference.read_sound(encoded, 16_000) for encoded in pd.read_parquet(split).wav]
    features = extractor(sounds, sampling_rate=16_000, return_tensors="pt").input_features
    rows = model.generate(features)
    tokenizer = WhisperTokenizer.from_pretrained(checkpoint)
    expected = tokenizer.batch_decode(rows, skip_special_tokens=True)
    assert [row["text"] for row in found["texts"]] == expected
    assert len(set(expected)) > 1
    assert [row["tokens"] for row in found["texts"]] == (rows < END).sum(1).tolist()
    assert found["seconds_of_sound"] == pytest.approx(0.4 + 1.0 + 1.9)
    assert set(found["seconds"]) == {"features", "encoder", "decoder", "total"}
    assert run(monkeypatch, checkpoint, split, tmp_path / "two.json", "--batch-size", 2)["texts"] == found["texts"]
    some = run(monkeypatch, checkpoint, split, tmp_path / "some.json", "--rows", "1:")
    assert some["texts"] == found["texts"][1:]


def test_a_sound_that_the_model_cannot_hear_whole_ends_in_one_line(checkpoint, split, tmp_path, monkeypatch):
    table = pd.read_parquet(split)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(17_000), 8000, format="WAV")
    table.at[0, "wav"] = file.getvalue()
    table.to_parquet(split)
    with pytest.raises(SystemExit, match="has sounds of more than 2 seconds"):
        run(monkeypatch, checkpoint, split, tmp_path / "out.json")
