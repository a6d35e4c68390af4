"""Measure time and memory before the first step, by the number of training rows.

    python benchmarks/growth.py --teacher DIR --data DIR/sst2 [--rows 10000 100000 1000000 3000000]

Rows are pairs of the data's sentences, drawn by a seed. Each number of rows runs twice in a process of its own: the
second reads the texts and tokens that the first has kept. CPU seconds and peak resident memory are of the whole
process; the latter counts mapped pages of files, which the system takes back when it needs them. So the process's own
memory at the end (RssAnon) is shown as well.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PART = 100_000


def write_rows(source: Path, folder: Path, rows: int) -> None:
    """Write training rows of two sentences each, and the data's own validation split."""
    folder.mkdir(parents=True)
    table = pd.read_parquet(source / "train.parquet")
    generator = np.random.default_rng(0)
    sentences, labels = table.sentence.str.strip().to_numpy(), table.label.to_numpy()
    schema = pa.schema([("sentence", pa.string()), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
        for start in range(0, rows, PART):
            first, second = generator.integers(0, len(table), (2, min(PART, rows - start)))
            joined = [f"{sentences[one]} and {sentences[other]}" for one, other in zip(first, second, strict=True)]
            writer.write_table(pa.table({"sentence": joined, "label": labels[first]}, schema))
    pd.read_parquet(source / "validation.parquet").to_parquet(folder / "validation.parquet")


def measure(teacher: str, folder: str) -> None:
    """Prepare a run and its first epoch, and print what it took."""
    from kdalign.data.epochs import epoch_batches, micro_batches
    from kdalign.devices import make_accelerator
    from kdalign.distillation.pipeline import prepare_all
    from kdalign.distillation.tokenize import open_run
    from kdalign.recipe import build_recipe

    data = {"data.task": "sst2", "data.folder": folder, "data.max_length": 64}
    with tempfile.TemporaryDirectory() as out:
        recipe = build_recipe(None, {"teacher": teacher, "student": "layers=half", "out": f"{out}/run", **data})
        [run] = prepare_all(recipe)
        opened = open_run(run, make_accelerator("cpu"))
        batches = epoch_batches(opened.texts.train.lengths, 32, 0, 0)
        micro_batches(opened.texts.train, batches[0], 0, 1, None)
    used = resource.getrusage(resource.RUSAGE_SELF)
    [own] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(
        f"{used.ru_utime + used.ru_stime:.1f} CPU s, peak {used.ru_maxrss / 2**20:.2f} GiB, "
        f"own at the end {int(own) / 2**20:.2f} GiB"
    )


def main() -> None:
    """Measure each number of rows twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        measure(given.teacher, given.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        for rows in given.rows:
            data = Path(folder) / str(rows)
            write_rows(given.data, data, rows)
            for turn in ("first", "again"):
                begun = time.perf_counter()
                words = [sys.executable, __file__, *sys.argv[1:], "--worker", str(data)]
                environment = {**os.environ, "KDALIGN_CACHE": f"{folder}/cache"}
                done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
                print(f"{rows:,} rows, {turn}: {time.perf_counter() - begun:.1f} s, {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
