"""Run bad inputs and print what became of them: ``python -m tests.bad_input --count 2000``."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bad_input.case import Case, read_corpus
from tests.bad_input.draw import draw
from tests.bad_input.kinds import KINDS
from tests.bad_input.place import make_place
from tests.bad_input.run import as_row, run_case

CORPUS = Path(__file__).parent / "corpus"
WHOLE = 2000


def cases(place: Path, count: int, seed: int, kinds: list[str], part: int = 1, parts: int = 1) -> list[Case]:
    """All kept cases, and as many drawn ones as make ``count``, shared out by kind.

    Args:
        place: the good inputs.
        count: number of inputs of all parts.
        seed: another one draws others.
        kinds: the only kinds; all if empty.
        part: number of the part, from 1. The first has the kept cases, and each draws its share by seeds of its own.
        parts: number of parts.
    """
    kept = [case for file in sorted(CORPUS.glob("*.yaml")) for case in read_corpus(file, place)]
    rest, sum_of_shares = max(count - len(kept), 0), sum(share for share, _ in KINDS.values())
    found = kept if part == 1 else []
    for number, (kind, (share, strategy)) in enumerate(KINDS.items()):
        wanted = -(-rest * share // sum_of_shares)
        ours = wanted * part // parts - wanted * (part - 1) // parts
        if ours and (not kinds or kind in kinds):
            found += draw(strategy(place), ours, 1_000_000 * seed + 10_000 * part + 100 * number)
    return [case for case in found if not kinds or case.kind in kinds]


def table(rows: list[dict[str, object]]) -> str:
    """Counts by kind, in Markdown."""
    names = [*KINDS, *sorted({str(row["kind"]) for row in rows} - set(KINDS))]
    lines = ["| input | tried | refused, exit 2 | failed, exit 1 | accepted | faults |", "|---|--:|--:|--:|--:|--:|"]
    sums: Counter[str] = Counter()
    for name in names:
        own = [row for row in rows if row["kind"] == name]
        if not own:
            continue
        ends = Counter(str(row["end"]) for row in own)
        counts = [len(own), ends["refused"], ends["failed"], ends["accepted"], sum(bool(row["faults"]) for row in own)]
        lines.append(f"| {name} | " + " | ".join(f"{number:,}" for number in counts) + " |")
        sums.update(dict(zip("abcde", counts, strict=True)))
    return "\n".join([*lines, "| **all** | " + " | ".join(f"{sums[key]:,}" for key in "abcde") + " |"])


def main() -> None:
    """Run the cases; exit code 1 if one has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.bad_input", description=__doc__)
    parser.add_argument("--count", type=int, default=WHOLE, help="Number of inputs, kept ones included.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[], help="Only this kind; repeatable.")
    parser.add_argument("--part", default="1/1", help="Such as 2/5: the second fifth of the inputs.")
    parser.add_argument("--place", type=Path, help="Folder of the good inputs, kept for the next call.")
    parser.add_argument("--rows", type=Path, help="File to which a row of JSON is added for each input.")
    parser.add_argument("--table", action="store_true", help="Print the counts of --rows, and run nothing.")
    given = parser.parse_args()
    rows = []
    if not given.table:
        with TemporaryDirectory() as scratch:
            rows = _run(given, Path(scratch))
    elif given.rows is not None:
        rows = [json.loads(line) for line in given.rows.read_text().splitlines()]
    print(table(rows))
    faulty = [row for row in rows if row["faults"]]
    for row in () if given.table else faulty:
        print(f"\n{row['kind']}: {row['why']}\n  kdalign {' '.join(map(str, row['words']))[:600]}")
        print(f"  {row['faults']}\n  {row['line']}")
    sys.exit(bool(faulty))


def _run(given: argparse.Namespace, scratch: Path) -> list[dict[str, object]]:
    place = (given.place or scratch / "place").resolve()
    make_place(place)
    part, parts = map(int, given.part.split("/"))
    rows = []
    for case in cases(place, given.count, given.seed, given.kind, part, parts):
        rows.append(as_row(run_case(case, place, scratch / "runs")))
        if given.rows is not None:
            with given.rows.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(f"\r{len(rows)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return rows


if __name__ == "__main__":
    main()
