"""Short runs whose training split is a stream."""

import json

from support.tiny import sentences


def write_rows(folder, n, kind="jsonl", seed=0):
    """Write ``n`` rows of train and 64 of validation, SST-2's columns and the words turned round; return the folder."""
    folder.mkdir(exist_ok=True)
    for split, count, ending in (("train", n, kind), ("validation", 64, "jsonl")):
        texts, labels = sentences(count, seed + (split == "validation"))
        turned = [" ".join(reversed(text.split())) for text in texts]
        rows = [
            dict(zip(("sentence", "label", "turned"), row, strict=True))
            for row in zip(texts, labels, turned, strict=True)
        ]
        file = folder / f"{split}.{ending}"
        if ending == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            import pandas as pd

            table = pd.DataFrame(rows)
            table.to_parquet(file, row_group_size=50) if ending == "parquet" else table.to_csv(file, index=False)
    return folder


def stream(model, folder, out, *more, rows=100, task="sst2"):
    """Words of a run of a student of two layers."""
    return [
        *("distill", "--teacher", str(model), "--student", "layers=2", "--task", task, "--data", str(folder)),
        *("--max-steps", "24", "--batch-size", "16", "--precision", "fp32", "--device", "cpu", "--no-profile"),
        *("--set", "train.eval_every=1000", "--set", "train.samples=0"),
        *("--set", "data.streaming=true", "--set", f"data.stream_rows={rows}", "--out", str(out), *more),
    ]  # fmt: skip
