"""The tables of docs/results.md are those of the results that are kept beside it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_table_is_what_its_command_prints():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert page.count("<!-- kdalign ") == page.count("<!-- end -->") > 0
    made = subprocess.run(
        [sys.executable, ROOT / "docs/refresh.py", "--check"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_kept_results_stay_small():
    files = [path for path in (ROOT / "docs/results").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 300_000
