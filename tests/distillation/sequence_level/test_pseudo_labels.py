"""`kdalign generate` of transcripts: kept by their word error rate, and read and written in parts."""

import json

import jiwer
import pandas as pd
import pytest
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from support.media_setting import save_speech_data, saved
from support.tiny import one_line

ENGLISH = EnglishTextNormalizer({})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the tiny Whisper writes, by the names of sounds."""
    root = tmp_path_factory.mktemp("written")
    save_speech_data(root / "data", rows=6)
    return root


def command(data, *more, out="out"):
    return (
        *("generate", "--teacher", saved("whisper"), "--task", "speech-recognition", "--data", data, "--out", out),
        *("--new-tokens", "8", "--keep", "any-end", "--language", "en", *more),
    )


def run(kdalign, *words):
    status, out, err = kdalign(*words)
    assert status == 0, err
    return " ".join(out.split()), " ".join(err.split())


@pytest.fixture
def labelled(kdalign, written, tmp_path):
    """Sounds whose transcripts are the teacher's own with more and more words after them, and one without a word."""
    run(kdalign, *command(written / "data", out="own"))
    own = pd.read_parquet(tmp_path / "own" / "train.parquet")["text"].tolist()
    for number, text in enumerate(own):
        said = f"{text}{' word' * number}" if number < 5 else "[silence]"
        (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
        name = sorted((written / "data" / "train").glob("*.wav"))[number].stem
        sound = (written / "data" / "train" / f"{name}.wav").read_bytes()
        (tmp_path / "data" / "train" / f"{name}.wav").write_bytes(sound)
        (tmp_path / "data" / "train" / f"{name}.txt").write_text(said)
    return own


def rates(own):
    """Word error rates by jiwer of what the normaliser of Transformers leaves; None without a word."""
    found = []
    for number, text in enumerate(own[:5]):
        right, guess = (" ".join(ENGLISH(each).split()) for each in (f"{text}{' word' * number}", text))
        found.append(100 * jiwer.wer(right, guess) if right else None)
    return [*found, None]


def test_transcripts_above_the_greatest_word_error_rate_are_dropped_and_counted(kdalign, labelled, tmp_path):
    known = rates(labelled)
    defined = sorted(rate for rate in known if rate is not None)
    bound = defined[len(defined) // 2]
    assert defined[0] <= bound < defined[-1]
    out, err = run(kdalign, *command("data", "--max-wer", repr(bound)))
    kept = [text for text, rate in zip(labelled, known, strict=True) if rate is not None and rate <= bound]
    train = pd.read_parquet(tmp_path / "out" / "train.parquet")
    assert train["text"].tolist() == kept
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    [dropped] = [count for reason, count in record["answers"]["dropped"].items() if "wer_normalized" in reason]
    assert (record["rows"]["kept"], dropped) == (len(kept), 6 - len(kept))
    measured = record["selection"]["measures"]["wer_normalized"]
    assert measured["mean"] == pytest.approx(sum(defined) / len(defined))
    assert measured["undefined"] == 6 - len(defined)
    assert "whisper's english normaliser" in measured["by"]
    assert f"wer_normalized of all answers: mean {measured['mean']:.2f}" in out
    assert "basic normaliser" not in err


def test_another_bound_is_refused_and_selects_again_without_the_teacher_when_asked(
    kdalign, labelled, tmp_path, monkeypatch
):
    run(kdalign, *command("data", "--max-wer", "1000"))
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    status, _, err = kdalign(*command("data", "--max-wer", "10"))
    assert (status, "holds data of another command (keep is" in one_line(err)) == (2, True), err
    assert {file: file.read_bytes() for file in before} == before
    monkeypatch.setattr("kdalign.models.loading.load_language_model", None)
    run(kdalign, *command("data", "--max-wer", "10", "--overwrite"))
    known = rates(labelled)
    kept = [text for text, rate in zip(labelled, known, strict=True) if rate is not None and rate <= 10]
    assert pd.read_parquet(tmp_path / "out" / "train.parquet")["text"].tolist() == kept
    assert "is complete already" in run(kdalign, *command("data", "--max-wer", "10"))[1]


def test_the_same_bound_by_either_option_is_one_filter(kdalign, labelled, tmp_path):
    run(kdalign, *command("data", "--max-wer", "50"))
    run(kdalign, *command("data", "--keep", "wer_normalized<=50", out="other"))
    one, other = (json.loads((tmp_path / out / "generation.json").read_text()) for out in ("out", "other"))
    assert one["files"] == other["files"]
    assert one["fingerprint"] == other["fingerprint"]
    status, _, err = kdalign(*command("data", "--max-wer", "50", "--keep", "wer_normalized<=50", out="third"))
    assert (status, "--keep wer_normalized<=50 is given twice" in one_line(err)) == (2, True)


def test_a_row_without_a_transcript_has_no_error_rate_and_is_refused(kdalign, labelled, tmp_path):
    first = sorted((tmp_path / "data" / "train").glob("*.txt"))[0]
    first.write_text(" ")
    for dry in ((), ("--dry-run",)):
        status, _, err = kdalign(*command("data", "--max-wer", "20", *dry))
        assert status == 2
        assert "row 0 has no text, with which wer_normalized compares its answer" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_without_a_language_the_basic_normaliser_counts_and_is_said(kdalign, labelled):
    words = [word for word in command("data", "--max-wer", "1000", "--dry-run") if word not in ("--language", "en")]
    assert (
        "wer_normalized is counted by Whisper's basic normaliser, since no language is named" in run(kdalign, *words)[0]
    )


@pytest.mark.parametrize(
    ("bound", "line"),
    [
        ("-1", "--max-wer -1.0: must be greater than or equal to 0"),
        ("nan", "--max-wer nan: must be"),
        ("inf", "--max-wer inf: must be"),
    ],
)
def test_a_bound_that_is_no_rate_is_refused(kdalign, written, tmp_path, bound, line):
    status, _, err = kdalign(*command(written / "data", "--max-wer", bound))
    assert (status, line in err) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_texts_have_no_transcripts_to_bound_by_their_error_rate(kdalign, tmp_path):
    (tmp_path / "pairs").mkdir()
    pd.DataFrame({"en": ["a b", "c d"], "de": ["e f", "g h"]}).to_parquet(tmp_path / "pairs" / "train.parquet")
    asked = ("--task", "translation:en-de", "--data", "pairs", "--max-wer", "20")
    for dry in ((), ("--dry-run",)):
        status, _, err = kdalign("generate", "--teacher", saved("whisper"), *asked, "--out", "out", *dry)
        assert (status, "task 'translation:en-de' has texts (accepted for it: --keep 'wer<=20')" in err) == (2, True)
    assert not (tmp_path / "out").exists()
