"""Error rates of a published Whisper are those of Transformers and jiwer alone."""

import json

import pandas as pd
import pytest

from support.media import encode_wav
from support.tiny import SHARED

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
from benchmarks.speech import reference

WHISPER = SHARED.parent / "models" / "whisper-tiny.en"


def at_its_rate(encoded):
    """A sound at 16,000 Hz: two qualities of resampling differ by a word in twenty short ones."""
    samples = reference.read_sound(encoded, 16_000)
    return encode_wav((samples.clip(-1, 1) * 32_767).round(), 16_000)


@pytest.mark.slow
@pytest.mark.skipif(not WHISPER.is_dir(), reason="whisper-tiny.en is not beside this checkout (../models)")
@pytest.mark.parametrize(("name", "rows"), [("ljspeech32", None), ("fsdd", 20)])
def test_error_rates_of_a_published_model_are_those_without_kdalign(shared, kdalign, tmp_path, name, rows):
    source = shared / "data" / name / "test.parquet"
    if not source.is_file():
        pytest.skip(f"{name} is not beside this checkout (../shared)")
    split = tmp_path / "data" / "test.parquet"
    split.parent.mkdir()
    table = pd.read_parquet(source).head(rows or 10**6)
    table["wav"] = [at_its_rate(encoded) for encoded in table["wav"]]
    table.to_parquet(split)
    expected = reference.score(reference.parse([str(WHISPER), str(split), str(tmp_path / "out.json")]))
    metrics = ("wer", "cer", "wer_normalized", "cer_normalized")
    status, _, err = kdalign(
        *("eval", WHISPER, "--task", "speech-recognition:wav-text", "--data", split.parent, "--split", "test"),
        *("--metrics", ",".join(metrics), "--language", "en", "--device", "cpu", "--out", "scores.json"),
    )
    assert status == 0, err
    [model] = [
        each for each in json.loads((tmp_path / "scores.json").read_text())["results"] if each["kind"] == "model"
    ]
    found = {score["metric"]: score["value"] for score in model["scores"]}
    written = pd.read_parquet(tmp_path / model["texts"])
    assert written["prediction"].tolist() == [row["text"].strip() for row in expected["texts"]]
    for metric in metrics:
        rates = expected["normalised" if metric.endswith("normalized") else "raw"]
        assert found[metric] == pytest.approx(100 * rates[metric[:3]]["rate"], abs=1e-9), metric
