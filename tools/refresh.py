"""Render the tables of the documentation from what benchmarks/ keeps: python tools/refresh.py [--check].

A table is between ``<!-- kdalign ... -->`` or ``<!-- python -m benchmarks.run --render ... -->``, the command that
prints it, and ``<!-- end -->``.
"""

import contextlib
import difflib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

from kdalign.cli import app

ROOT = Path(__file__).resolve().parents[1]
MODULE = "python -m benchmarks.run --render "
BLOCK = re.compile(rf"<!-- ((?:kdalign |{re.escape(MODULE)})[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def table(command: str) -> str:
    """Run a command and return its table in Markdown."""
    if command.startswith(MODULE):
        words = [sys.executable, *shlex.split(command)[1:]]
        return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    words = [*shlex.split(command)[1:], "--format", "markdown"]
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as output:
        app(words, standalone_mode=False)
    return output.getvalue().strip()


def refresh(page: str) -> str:
    """Render every table of a page."""
    return BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n{table(block[1])}\n<!-- end -->", page)


def differences(page: Path, after: str) -> list[str]:
    """Compare a page with its refreshed text as a unified diff."""
    before, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), name, "refreshed", lineterm=""))


if __name__ == "__main__":
    named = [*sorted((ROOT / "docs/results").glob("*.md")), ROOT / "docs/performance.md"]
    pages = {page: refresh(page.read_text(encoding="utf-8")) for page in named}
    if "--check" in sys.argv[1:]:
        sys.exit("\n".join(line for page, after in pages.items() for line in differences(page, after)) or 0)
    for page, after in pages.items():
        page.write_text(after, encoding="utf-8")
