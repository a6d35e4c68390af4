"""The tables of docs/results are those that their commands print from the archives in benchmarks."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_table_is_what_its_command_prints():
    for name in ("classification", "objective"):
        page = (ROOT / f"docs/results/{name}.md").read_text(encoding="utf-8")
        assert page.count("<!-- kdalign ") == page.count("<!-- end -->") > 0
    made = subprocess.run(
        [sys.executable, ROOT / "tools/refresh.py", "--check"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("name", ["results", "objective"])
def test_kept_results_stay_small(name):
    files = [path for path in (ROOT / "benchmarks" / name).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 300_000
