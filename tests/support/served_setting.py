"""A tiny causal teacher that has learnt the tests' sentences, a student of its tokenizer, and texts to train on."""

import json
from pathlib import Path

import pandas as pd
import torch

from kdalign.data.tokenizer_training import train_tokenizer
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from support.tiny import sentences


def save_pair(folder: Path) -> Path:
    """Save ``teacher``, ``student`` and ``texts`` into a folder."""
    tokenizer = train_tokenizer(sentences(200, 7)[0], 300, "causal", 128)
    for name, layers, seed, steps in (("teacher", 2, 0, 60), ("student", 1, 1, 0)):
        spec = f"new:llama,layers={layers},width=32,heads=4,feed_forward=64,positions=128,kv_heads=2"
        model = build_from_scratch(scratch_config(parse_scratch_spec(spec), tokenizer), seed)
        _teach(model, tokenizer, steps)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "texts").mkdir()
    for number, (split, rows) in enumerate({"train": 24, "validation": 8}.items()):
        pd.DataFrame({"text": sentences(rows, 40 + number)[0]}).to_parquet(folder / "texts" / f"{split}.parquet")
    return folder


def save_other_student(folder: Path) -> Path:
    """Save a student whose tokenizer has fewer entries, learnt from other sentences."""
    tokenizer = train_tokenizer(sentences(40, 3)[0], 280, "causal", 128)
    spec = parse_scratch_spec("new:llama,layers=1,width=32,heads=4,feed_forward=64,positions=128,kv_heads=2")
    build_from_scratch(scratch_config(spec, tokenizer), 1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model, tokenizer, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    batch = tokenizer(sentences(64, 9)[0], add_special_tokens=False)["input_ids"]
    longest = max(map(len, batch)) + 2
    rows = torch.tensor([[start, *ids, end] + [end] * (longest - len(ids) - 2) for ids in batch])
    for _ in range(steps):
        loss = model(rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def losses(run: Path) -> list[float]:
    """The loss of each step of a run."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]
