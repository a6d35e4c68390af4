"""Greedy transcripts are the tokenizer's own reading of the likeliest labels, and their error rates are jiwer's."""

from dataclasses import replace

import jiwer
import pytest
import torch

from kdalign.data.batches import collate
from kdalign.evaluation.rescoring import RecordedPredictions
from kdalign.models.inputs import accepted_inputs
from kdalign.runs.prediction_table import read_predictions
from kdalign.runs.written_texts import WrittenTexts
from support.speech_setting import TEXTS, adapter, encoded, model, reader, tokenizer


def wide():
    """A model whose likeliest labels differ from frame to frame."""
    net = model()
    with torch.no_grad():
        net.lm_head.weight.mul_(40)
    return net


def test_transcripts_are_the_tokenizers_reading_of_the_likeliest_labels():
    net, split, own = wide(), encoded(scored=True), tokenizer()
    expected = []
    for row in range(len(split)):
        with torch.no_grad():
            logits = net(**accepted_inputs(net, collate(split, [row]).inputs)).logits
        frames = [label for label in logits.argmax(dim=-1)[0].tolist() if label != 1]  # <unk> writes nothing
        expected.append(" ".join(own.decode(frames).split()))
    assert adapter().predict(net, split).texts == expected
    assert len(set(expected)) > 1
    alone = replace(split, media=replace(split.media, reader=replace(reader().media, masks=False)))
    assert adapter().predict(net, alone).texts == expected, "row by row, where padding would change frames"


def test_error_rates_are_those_of_jiwer():
    split, guesses = encoded(scored=True), ["one", "too zero", "no on", "nine nine", "", "tone"]
    scores = {score.metric: score for score in adapter().score(WrittenTexts.of(guesses), encoded(scored=True))}
    assert [*scores] == ["wer", "cer", "wer_normalized", "cer_normalized"]
    assert scores["wer"].value == pytest.approx(100 * jiwer.wer(list(TEXTS), guesses))
    assert scores["cer"].value == pytest.approx(100 * jiwer.cer(list(TEXTS), guesses))
    assert not scores["wer"].higher_is_better
    assert "likeliest label of each frame" in scores["wer"].signature
    [plain] = adapter().score(WrittenTexts.of(guesses), split, ["cer"], interval=False)
    assert (plain.value, plain.low) == (scores["cer"].value, None)


def test_agreement_is_the_share_of_equal_transcripts():
    ours, theirs = WrittenTexts.of(["a", "b c", "", "d"]), WrittenTexts.of(["a", "b  c", "", "e"])
    assert adapter().agreement(ours, theirs).value == 75


def test_kept_transcripts_give_the_same_scores_again(tmp_path):
    split, guesses = encoded(scored=True), WrittenTexts.of(["öne", "too zero", "no on", "nine", "", "tone"])
    scores = [score.to_json() for score in adapter().score(guesses, split)]
    file = tmp_path / "validation.parquet"
    adapter().write_predictions(file, guesses, split, WrittenTexts.of(list(TEXTS)))
    table = read_predictions(file, len(TEXTS))
    assert adapter().read_teacher(file).texts == list(TEXTS)
    again = RecordedPredictions(table, {}).student(scores)
    assert [score.value for score in again] == [score["value"] for score in scores]
    recorded = adapter().agreement(guesses, WrittenTexts.of(list(TEXTS))).to_json()
    assert RecordedPredictions(table, {}).agreement(recorded).value == pytest.approx(100 / 3)
