"""Make the tables of docs/results.md again, from the results that are kept beside it: python docs/refresh.py [--check].

A table stands between ``<!-- kdalign ... -->``, the command that makes it, and ``<!-- end -->``.
"""

import difflib
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
BLOCK = re.compile(r"<!-- (kdalign [^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def made(command: str) -> str:
    """What a command prints in Markdown."""
    words = [sys.executable, "-m", *shlex.split(command), "--format", "markdown"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def refreshed(page: str) -> str:
    """The page with every table made again."""
    return BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n{made(block[1])}\n<!-- end -->", page)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = refreshed(before)
    if "--check" in sys.argv[1:]:
        lines = list(
            difflib.unified_diff(before.splitlines(), after.splitlines(), "docs/results.md", "made again", lineterm="")
        )
        sys.exit("\n".join(lines) or 0)
    PAGE.write_text(after, encoding="utf-8")
