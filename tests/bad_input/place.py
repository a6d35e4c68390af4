"""Good inputs of every kind, which cases damage: tiny models, data, runs, a cache, an ablation."""

import json
from pathlib import Path

import pandas as pd
import yaml

from support.served_setting import save_pair
from support.tiny import save_model, sentences
from tests.bad_input.run import in_child

SHORT = (
    "--max-steps",
    "2",
    "--batch-size",
    "4",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--no-profile",
    "--limit",
    "12",
)
WRITES = (
    *("generate", "--teacher", "@causal/teacher", "--task", "lm:text", "--data", "@causal/texts", "--limit", "8"),
    *("--new-tokens", "4", "--keep", "any-end", "--device", "cpu"),
)
BERT = ("--teacher", "@bert", "--student", "layers=2", "--task", "sst2", "--data", "@sst2")
TASK = {
    "name": "films",
    "columns": ["sentence"],
    "label": "label",
    "labels": ["negative", "positive"],
    "metrics": ["accuracy", "f1"],
    "data": "sst2",
    "evaluation": "validation",
    "prompt": "{sentence}\nGood?",
    "answers": ["no", "yes"],
}
PUBLISHED = {
    "source": "a paper",
    "note": "little is said",
    "columns": {"acc": "accuracy"},
    "rows": [{"model": "theirs", "scores": {"acc": 71.5, "f1": "70.1%"}, "task": "sst2"}],
}
MADE = "made"


def make_place(place: Path) -> None:
    """Make the good inputs, once."""
    if (place / MADE).exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    save_model(place / "bert", "bert", layers=4, id2label={0: "negative", 1: "positive"})
    save_pair(place / "causal")
    _write_data(place)
    (place / "task.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False))
    (place / "published.yaml").write_text(yaml.safe_dump(PUBLISHED, sort_keys=False))
    rows = [{"prediction": text, "reference": text[::-1]} for text in sentences(6, 5)[0]]
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (
        ("distill", *BERT, *SHORT, "--out", "run"),
        ("map-layers", "--teacher", "@bert", "--student", "layers=2", "--out", "plan.json"),
        ("cache", "build", *BERT, "--limit", "12", "--precision", "fp32", "--device", "cpu", "--out", "cache"),
        ("ablate", *BERT, *SHORT, "--arms", "labels,soft", "--seeds", "1", "--out", "ablation"),
        ("eval", "@bert", "--task", "sst2", "--data", "@sst2", "--limit", "8", "--out", "eval.json"),
        (*WRITES, "--out", "generated"),
        ("distill", *BERT, *SHORT, "--set", "train.checkpoint_every=1", "--out", "killed"),
    ):
        names = [str(place / word[1:]) if word.startswith("@") else word for word in words]
        found = in_child(names, place, place / ".cache", killed="killed" in words)
        if found.status != (9 if "killed" in words else 0):
            raise RuntimeError(f"{' '.join(words)}: {found.status}: {found.err}")
    (place / MADE).write_text("")


def _write_data(place: Path) -> None:
    for number, (split, rows) in enumerate({"train": 64, "validation": 16}.items()):
        texts, labels = sentences(rows, number)
        frames = {
            "sst2": {"sentence": texts, "label": labels},
            "plain": {"text": texts, "label": labels},
            "pairs": {"de": texts, "en": [text[::-1] for text in texts]},
        }
        for name, columns in frames.items():
            (place / name).mkdir(exist_ok=True)
            pd.DataFrame(columns).to_parquet(place / name / f"{split}.parquet")
