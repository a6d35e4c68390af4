"""Prepare what all peers share, and measure the machine: students cut from the teachers, rows, peaks and operations.

Run by `benchmarks.run` as a process of its own, so that the one that starts the peers stays small.

    python -m benchmarks.prepare FOLDER TEACHER DATA [LM_TEACHER]
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import Moment, bandwidth, peak_flops
from benchmarks.settings import PAIR_SHAPE, ROWS_KEPT
from benchmarks.step import flops_of_training
from kdalign.data.tasks import find_task, load_examples
from kdalign.devices import make_accelerator
from kdalign.environment import machine
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.hardware import PRECISIONS
from kdalign.models.layer_selection import choose_layers
from kdalign.models.loading import load_classifier, load_language_model
from kdalign.models.student import copy_layers
from kdalign.models.tokenizer import load_tokenizer


def cut(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stack: str, folder: Path) -> PreTrainedModel:
    """Cut a student of half the teacher's layers and save it."""
    depth = int(teacher.config.num_hidden_layers)
    student = copy_layers(teacher, {stack: choose_layers("uniform", max(1, depth // 2), depth)})
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return student


def count(teacher: PreTrainedModel, student: PreTrainedModel, length: int) -> dict[str, float]:
    """Count the operations of a step for each token: the teacher's forward, and all of the student's."""
    return {
        "teacher": flops_of_training(teacher, length, backward=False),
        "student": flops_of_training(student, length, backward=True),
        "length": length,
    }


def save_rows(data: str, folder: Path) -> list[str]:
    """Save some rows of train, drawn once, and the validation split; return the training texts.

    A run on embeddings also wants pairs with a similarity to score, although no embedding is scored here.
    """
    task, pairs = find_task("sst2", data), folder / "pairs"
    pairs.mkdir(parents=True)
    tables = {}
    for split in ("train", "validation"):
        examples = load_examples(task, split)
        tables[split] = pd.DataFrame({"sentence": examples.texts[0], "label": examples.labels})
    order = np.random.default_rng(0).permutation(len(tables["train"]))[:ROWS_KEPT]
    tables["train"] = tables["train"].iloc[order]
    for split, table in tables.items():
        table.to_parquet(folder / f"{split}.parquet")
    texts = tables["train"]["sentence"].tolist()
    pd.DataFrame({"sentence": texts}).to_parquet(pairs / "train.parquet")
    few = pd.DataFrame({"sentence1": texts[:16], "sentence2": texts[1:17], "label": np.linspace(0, 1, 16)})
    few.to_parquet(pairs / "validation.parquet")
    return texts


def prepare_classifier(teacher: str, data: str, folder: Path) -> dict[str, float]:
    """Save rows and a student, and count the operations at the rows' mean length."""
    checkpoint = find_checkpoint(teacher)
    texts = save_rows(data, folder / "data")
    tokenizer = load_tokenizer(checkpoint)
    tokens = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    big = load_classifier(checkpoint, find_task("sst2", data), fresh_head=False, seed=0).float()
    student = cut(big, tokenizer, "encoder", folder / "classifier")
    return count(big, student, round(float(np.mean([len(row) for row in tokens]))))


def prepare_language(teacher: str, folder: Path) -> dict[str, float]:
    """Save a student of a language model, and count the operations at the rows' length."""
    checkpoint = find_checkpoint(teacher)
    big = load_language_model(checkpoint).float()
    student = cut(big, load_tokenizer(checkpoint), "decoder", folder / "language")
    return count(big, student, PAIR_SHAPE[1])


def main() -> None:
    """Prepare, and print what was measured in JSON."""
    folder, teacher, data, *language = sys.argv[1:]
    begun = Moment.now()
    peaks = {precision: peak_flops(precision) for precision in PRECISIONS}
    found = {"peaks": peaks, "bandwidth": bandwidth(), "other_cores": begun.other_cores(Moment.now())}
    flops = {"classifier": prepare_classifier(teacher, data, Path(folder))}
    if language:
        flops["language"] = prepare_language(language[0], Path(folder))
    print(json.dumps({**found, "flops": flops, "machine": machine(make_accelerator("cpu").device)}))


if __name__ == "__main__":
    main()
