"""Causal models on sources and targets: a run and its scores, from the command line."""

import json

import pandas as pd
import pytest

from support.family_setting import model, tokenizer
from support.tiny import sentences

REVERSED = {"en": sentences(24, 1)[0], "de": [" ".join(reversed(text.split())) for text in sentences(24, 1)[0]]}

SHORT = (
    "{% for m in messages %}{{ m.role[0] + '\n' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [False, True])
def test_a_causal_student_learns_answers_and_eval_gives_the_scores_of_its_record(kdalign, tmp_path, template):
    made, pairs = tokenizer("causal"), tmp_path / "pairs"
    pairs.mkdir()
    for split in ("train", "validation"):
        pd.DataFrame(REVERSED).to_parquet(pairs / f"{split}.parquet")
    model("llama").save_pretrained(tmp_path / "t")
    made.save_pretrained(tmp_path / "t")
    if template:
        (tmp_path / "t" / "chat_template.jinja").write_text(SHORT)
    data = ["--task", "translation:en-de", "--data", pairs, "--device", "cpu"]
    words = ["--teacher", "t", "--student", "layers=1", "--max-length", 60, "--max-steps", 2, "--batch-size", 8]
    status, _, err = kdalign("distill", *words, *data, "--out", "runs/a")
    assert status == 0, err
    assert "sample: " in err
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    recorded = {score["metric"]: score for score in record["scores"]["validation"]["student"]}
    assert recorded["word_ppl"]["n"] == sum(len(text.split()) for text in REVERSED["de"])
    prompt = "the prompt 'en: ...\\nde:'" + " as a user's message in the chat template" * template
    assert recorded["ppl"]["signature"].startswith(f"target given its source in {prompt}, sources cut so that both")
    assert record["scores"]["validation"]["agreement"]["n"] == recorded["ppl"]["n"]
    status, _, err = kdalign("eval", "runs/a", "t", *data, "--max-length", 60, "--new-tokens", 6, "--out", "e.json")
    assert status == 0, err
    ours, theirs, *_ = json.loads((tmp_path / "e.json").read_text())["results"]
    again = {score["metric"]: score["value"] for score in ours["scores"]}
    assert {"bleu", "chrf"} <= again.keys()
    assert again["ppl"] == pytest.approx(recorded["ppl"]["value"], rel=1e-5)
    (note,) = (note for note in ours["notes"] if " writes: " in note)
    assert note.endswith(f"{'all' if template else 'one line'} after {prompt}")
    assert [score["metric"] for score in theirs["scores"]] == ["ppl", "word_ppl", "bleu", "chrf"]
    status, out, err = kdalign("compare", "runs/a")
    assert (status, "agreement" in out) == (0, True), err
