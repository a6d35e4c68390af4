"""Measure kdalign's speed beside what else could be picked: one command, each peer in an environment of its own.

The rows of the table take turns, each turn in a new process. The table goes to the terminal and every figure to a file
in JSON, from which `--render` prints the same tables in Markdown, and `--write` puts them into docs/performance.md.

    python -m benchmarks.run --quick --teacher DIR --data DIR/sst2
    python -m benchmarks.run --full --teacher DIR --data DIR/sst2 --lm-teacher DIR --write
    python -m benchmarks.run --quick --teacher DIR --data DIR/sst2 --only kdalign textbrewer --out mine.json
    python -m benchmarks.run --render benchmarks/results/speed.json

Run it on a quiet machine: a row says if it was not. Peers and their versions are in benchmarks/environments.py; the
first run downloads them, torchdistill's with a torch of its own (5 GB) where the running one is a build for CPUs alone.
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.environments import PACKAGES, NotInstalled, python_of
from benchmarks.settings import GROUPS, MODES, Mode, Row, choose_rows
from benchmarks.table import markdown, show
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
QUICK = Path("speed-quick.json")
PAGE = ROOT / "docs" / "performance.md"
LONGEST = 1800
"""Seconds after which a peer's turn is given up."""


def tell(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


class Failed(Exception):
    """A process has failed; the message is the last line that it wrote."""


@dataclass
class Measured:
    """A row and its turns so far; ``error`` is the last line of one that failed."""

    row: Row
    turns: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is kept."""
        return {**asdict(self.row), "turns": self.turns, "error": self.error}


def run_module(python: Path, module: str, words: list[str]) -> dict[str, Any]:
    """Run a module in a process of its own and return what its last line says in JSON.

    Raises:
        Failed: it ended with an error, or took too long.
    """
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [str(python), "-m", module, *words],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, **settings}, timeout=LONGEST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"no result after {LONGEST} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise Failed(said[-1])
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise Failed("it told no result") from None
    return found


def job_of(row: Row, given: argparse.Namespace, folder: Path, turn: int, limits: dict[str, float]) -> str:
    """Return a row's job in a turn, as `benchmarks.peers.meter.Job` reads it."""
    models = GROUPS[row.group].models
    places = {
        "teacher": given.lm_teacher if models == "language" else given.teacher,
        "student": str(folder / models),
        "data": str(folder / "data"),
        "scratch": str(folder),
        "seed": turn,
    }
    return json.dumps({"variant": row.variant, **places, **limits})


def find_pythons(rows: list[Row], environments: Path) -> dict[str, Path | str]:
    """Return each peer's Python, or why it has none."""
    found: dict[str, Path | str] = {}
    for peer in dict.fromkeys(row.peer for row in rows):
        tell(f"environment of {peer}")
        try:
            found[peer] = python_of(peer, environments)
        except NotInstalled as error:
            found[peer] = f"cannot be installed: {error}"
    return found


def take_turns(
    rows: list[Row], mode: Mode, given: argparse.Namespace, folder: Path, pythons: dict[str, Path | str]
) -> list[Measured]:
    """Measure all rows in turns; a row that failed goes on with its next turn."""
    measured = [Measured(row) for row in rows]
    for turn in range(mode.turns):
        for number, each in enumerate(measured, start=1):
            row, python, limits = each.row, pythons[each.row.peer], mode.limits(each.row, turn)
            if limits is None:
                continue
            tell(f"turn {turn + 1} of {mode.turns}, row {number} of {len(rows)}: {row.peer}, {row.what}")
            if isinstance(python, str):
                each.error = python
                continue
            try:
                found = run_module(python, row.module, [job_of(row, given, folder, turn, limits)])
            except Failed as error:
                each.error = str(error)
                tell(f"failed: {error}")
                continue
            each.turns.append({"turn": turn, **found})
    return measured


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure all that is asked for, and return it as it is kept."""
    begun, rows = time.monotonic(), choose_rows(given.only, bool(given.lm_teacher))
    if not given.lm_teacher:
        tell("no --lm-teacher: language models are left out")
    mode = MODES["full" if given.full else "quick"].with_turns(given.turns)
    pythons = find_pythons(rows, given.environments)
    with tempfile.TemporaryDirectory(prefix="kdalign-benchmark-") as scratch:
        folder = Path(scratch)
        tell("peaks of the machine, students and rows")
        words = [scratch, given.teacher, given.data, *([given.lm_teacher] if given.lm_teacher else [])]
        machine = run_module(Path(sys.executable), "benchmarks.prepare", words)
        measured = take_turns(rows, mode, given, folder, pythons)
    return {
        "command": command_of(given),
        "created": datetime.date.today().isoformat(),
        "settings": asdict(mode),
        "versions": {peer: PACKAGES[peer].pinned for peer in pythons if peer in PACKAGES},
        **machine,
        "minutes": (time.monotonic() - begun) / 60,
        "rows": [each.to_json() for each in measured],
    }


def command_of(given: argparse.Namespace) -> str:
    """Return the command as others may give it: with the names of folders, and without where they lie here."""
    words = ["--full" if given.full else "--quick"]
    for name in ("teacher", "data", "lm_teacher"):
        if getattr(given, name):
            words += [f"--{name.replace('_', '-')}", Path(getattr(given, name)).name]
    words += ["--only", *given.only] if given.only else []
    words += ["--turns", str(given.turns)] if given.turns else []
    return shlex.join(["python", "-m", "benchmarks.run", *words])


def write_page(kept: dict[str, Any], page: Path, source: str) -> None:
    """Put the tables between two comments, of which the first names the file that they are made of.

    They are put in place of those that are there, and else at the page's end; `tools/refresh.py` checks them.
    """
    begin, end = f"<!-- python -m benchmarks.run --render {source} -->\n", "\n<!-- end -->"
    before, found, after = page.read_text(encoding="utf-8").partition(begin)
    if found:
        after = after.partition(end)[2]
    else:
        before, after = f"{before.rstrip()}\n\n## Beside other libraries\n\n", "\n"
    write_text(page, f"{before}{begin}{markdown(kept)}{end}{after}")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="2 turns of a few steps, without scores: some minutes")
    what.add_argument("--full", action="store_true", help="5 turns, and the students' accuracy: about half an hour")
    what.add_argument("--render", type=Path, metavar="FILE", help="print the tables of a file in Markdown, and stop")
    parser.add_argument("--teacher", metavar="DIR", help="classifier of SST-2: folder of a Hugging Face checkpoint")
    parser.add_argument("--data", metavar="DIR", help="folder with train and validation of SST-2 in parquet")
    parser.add_argument("--lm-teacher", metavar="DIR", help="language model; without one that group is left out")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", default=cache_folder() / "benchmarks",
        help="folder of the peers' environments, which are made there (default: in kdalign's cache)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"default {RESULTS.relative_to(ROOT)}, and with --quick {QUICK}"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="peers to measure")
    parser.add_argument("--turns", type=int, metavar="N", help="turns of each row")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.relative_to(ROOT)}, too")
    return parser


def check(given: argparse.Namespace) -> None:
    """Refuse a command line that cannot be measured, before anything is made.

    Raises:
        UsageError: what is missing or wrong.
    """
    choose_rows(given.only, language=True)
    if not (given.quick or given.full):
        raise UsageError("give --quick or --full, or --render FILE")
    for name, what in (("teacher", "a classifier of SST-2"), ("data", "its data")):
        if getattr(given, name) is None:
            raise UsageError(f"give --{name} DIR, the folder of {what}")
    for name in ("teacher", "data", "lm_teacher"):
        folder = getattr(given, name)
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"--{name.replace('_', '-')} {folder}: there is no such folder")
        setattr(given, name, folder and str(Path(folder).resolve()))
    if given.turns is not None and given.turns < 1:
        raise UsageError(f"--turns {given.turns}: 1 or more are needed")
    given.out = given.out or (RESULTS if given.full or given.write else QUICK)
    if given.write and given.out.resolve() != RESULTS:
        raise UsageError(
            f"--write goes with the file that the page names, {RESULTS.relative_to(ROOT)}: leave out --out"
        )


def main() -> None:
    """Measure or render; exit with 2 for a mistake on the command line, 1 for a failure, 130 for Ctrl-C."""
    given = make_parser().parse_args()
    try:
        if given.render:
            print(markdown(read_json(given.render)))
            return
        check(given)
        kept = measure(given)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, kept)
        show(kept, Console())
        if given.write:
            write_page(kept, PAGE, str(RESULTS.relative_to(ROOT)))
    except UsageError as error:
        tell(f"benchmarks.run: error: {error}")
        sys.exit(2)
    except Failed as error:
        tell(f"benchmarks.run: error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        tell("stopped; nothing is kept")
        sys.exit(130)


if __name__ == "__main__":
    main()
