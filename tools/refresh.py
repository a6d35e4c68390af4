"""Make the tables of the pages of results again, from what is kept beside them: python tools/refresh.py [--check].

A table stands between ``<!-- kdalign ... -->``, the command that makes it, and ``<!-- end -->``.
"""

import difflib
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "objective.md")
BLOCK = re.compile(r"<!-- (kdalign [^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def made(command: str) -> str:
    """What a command prints in Markdown."""
    words = [sys.executable, "-m", *shlex.split(command), "--format", "markdown"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def refreshed(page: str) -> str:
    """The page with every table made again."""
    return BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n{made(block[1])}\n<!-- end -->", page)


def differences(page: Path, after: str) -> list[str]:
    """What differs in a page, for people."""
    before, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), name, "made again", lineterm=""))


if __name__ == "__main__":
    found = {page: refreshed(page.read_text(encoding="utf-8")) for page in PAGES}
    if "--check" in sys.argv[1:]:
        sys.exit("\n".join(line for page, after in found.items() for line in differences(page, after)) or 0)
    for page, after in found.items():
        page.write_text(after, encoding="utf-8")
