"""Causal models on sources and targets: a run and its scores, from the command line."""

import json
import re

import pandas as pd
import pytest

from support.dual_setting import byte_fallback
from support.family_setting import model, tokenizer
from support.tiny import sentences

REVERSED = {"en": sentences(24, 1)[0], "de": [" ".join(reversed(text.split())) for text in sentences(24, 1)[0]]}
REVERSED["de"][0] = "a line\nand another"

SHORT = (
    "{% for m in messages %}{{ m.role[0] + '\n' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a\n' }}{% endif %}"
)


@pytest.mark.slow
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
    words += ["--allow", "weak-teacher"]
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
    lines = "1 of 24 references have several lines; of an answer the first one counts"
    assert any(lines in note for note in ours["notes"]) is not template
    assert [score["metric"] for score in theirs["scores"]] == ["ppl", "word_ppl", "bleu", "chrf"]
    status, out, err = kdalign("compare", "runs/a")
    assert (status, "agreement" in out) == (0, True), err


@pytest.mark.slow
@pytest.mark.parametrize("task", ["chat", pytest.param("translation:en-de", marks=pytest.mark.slow)])
def test_a_student_with_tokens_and_a_template_of_its_own_learns_answers_from_its_teacher(kdalign, tmp_path, task):
    for split in ("train", "validation"):
        if task == "chat":
            talks = [
                [{"role": "user", "content": one[:20]}, {"role": "assistant", "content": other[:20]}]
                for one, other in zip(REVERSED["en"], REVERSED["de"], strict=True)
            ]
            rows = "\n".join(json.dumps({"messages": talk}) for talk in talks)
            (tmp_path / f"{split}.jsonl").write_text(rows)
        else:
            pd.DataFrame(REVERSED).to_parquet(tmp_path / f"{split}.parquet")
    model("llama").save_pretrained(tmp_path / "t")
    tokenizer("causal").save_pretrained(tmp_path / "t")
    byte_fallback().save_pretrained(tmp_path / "own")
    (tmp_path / "t" / "chat_template.jinja").write_text(SHORT)
    (tmp_path / "own" / "chat_template.jinja").write_text(SHORT.replace("<|endoftext|>", "</s>"))
    words = ["--teacher", "t", "--student", "new:gpt2,layers=1,width=32,heads=4,positions=64", "--tokenizer", "own"]
    more = ["--task", task, "--data", tmp_path, "--max-length", 60, "--max-steps", 2, "--batch-size", 8]
    more += ["--allow", "weak-teacher"]
    status, _, err = kdalign("distill", *words, *more, "--device", "cpu", "--out", "runs/a")
    assert status == 0, err
    plain = " ".join(err.split())
    assert "chat templates differ: an answer begins after" in plain
    assert "each model reads its own" in plain
    assert "100.00 % of" in plain
    assert "teacher's sample" in plain
    found = re.search(r"step 2/2 .* soft ([0-9.]+)", plain)
    assert found is not None
    assert 0 < float(found[1]) < 50
