"""Repeat faults at random moments, and print what became of them as Markdown.

python -m tests.faults --kills 200
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for ``support``, as pytest has it

from tests.faults.kinds import CHANGES, KINDS, MISSED, Kind, kinds_of
from tests.faults.trial import Bench, Trial, bench

FIVE = ("distill", "ablate", "eval", "cache build", "generate")


def main() -> int:
    """Run the trials; 1 if one of them found a fault."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    trials = list[Trial]()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdalign-faults-", dir=options.folder) as folder, bench(Path(folder)) as on:
        for number, trial in enumerate(_files(on, options) if options.files else _trials(on, options), options.first):
            trials.append(trial)
            state = "; ".join(trial.faults) or trial.outcome
            print(f"{number} {trial.command}, {trial.kind} {trial.said}: {state}", file=sys.stderr, flush=True)
    print(table(trials, time.monotonic() - begun))
    return int(any(trial.faults for trial in trials))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="number of faults (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of their moments (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to go on where another call ended")
    parser.add_argument("--commands", default=",".join(FIVE), help=f"with commas (default: {','.join(FIVE)})")
    parser.add_argument("--kinds", default=",".join(kind.name for kind in KINDS), help="kinds of faults, with commas")
    parser.add_argument("--files", action="store_true", help="damage each file that the commands write, instead")
    parser.add_argument("--folder", help="where to work (default: the system's folder of temporary files)")
    options = parser.parse_args()
    for name in ("commands", "kinds"):
        setattr(options, name, getattr(options, name).split(","))
    return options


def _trials(on: Bench, options: argparse.Namespace) -> Iterator[Trial]:
    """Faults of each command and kind, in turns."""
    turns = _turns(on, options.commands, options.kinds, options.seed)
    for number in range(options.first, options.first + options.kills):
        for again in range(MISSES):
            trial = on.try_once(*turns[number % len(turns)], f"{options.seed}.{number}.{again}")
            if trial.faults or not trial.said.endswith(MISSED):
                break
        yield trial


MISSES = 5
"""Times that a fault may strike after the command's end, before it is counted so."""


STOPS = ("SIGKILL at a write", "clock jumps")
"""Kinds of faults after which a command is unfinished, and after which it is finished."""


def _files(on: Bench, options: argparse.Namespace) -> Iterator[Trial]:
    """Each file that a command has left unfinished and finished, damaged in each way."""
    for command in options.commands:
        for kind in KINDS:
            if kind.name in STOPS:
                yield from on.try_files(command, kind, str(options.seed), tuple(CHANGES))


def _turns(on: Bench, commands: Sequence[str], kinds: Sequence[str], seed: int) -> list[tuple[str, Kind]]:
    """Each command with each kind of fault that it can meet, in turns."""
    pairs = [
        (command, kind)
        for command in commands
        for kind in kinds_of(on.commands[command], on.disk.mounted)
        if kind.name in kinds
    ]
    random.Random(seed).shuffle(pairs)
    return pairs


def table(trials: Sequence[Trial], seconds: float) -> str:
    """The trials by command and kind, and each fault that was found."""
    commands = list(dict.fromkeys(trial.command for trial in trials))
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    known = [kind.name for kind in KINDS]
    kinds.sort(key=lambda kind: known.index(kind) if kind in known else len(known))
    counts = Counter((trial.command, trial.kind) for trial in trials)
    faults = Counter((trial.command, trial.kind) for trial in trials if trial.faults)
    lines = [f"| fault | {' | '.join(commands)} |", f"|---|{'--:|' * len(commands)}"]
    for kind in kinds:
        cells = [_cell(counts[command, kind], faults[command, kind]) for command in commands]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    whole = sum(not trial.faults for trial in trials)
    outcomes = Counter(trial.outcome for trial in trials if not trial.faults)
    lines += ["", f"{whole} of {len(trials)} ended in the undisturbed result, in {seconds / 60:.0f} minutes: "]
    lines[-1] += ", ".join(f"{count} by {outcome}" for outcome, count in outcomes.most_common()) + "."
    for trial in trials:
        if trial.faults:
            lines += [
                "",
                f"- {trial.command}, {trial.kind} {trial.said} (seed {trial.seed}): {'; '.join(trial.faults)}",
            ]
            lines += [f"  - `{line}`" for line in trial.lines]
    return "\n".join(lines)


def _cell(count: int, faults: int) -> str:
    return "" if not count else f"{count}" if not faults else f"{count}, **{faults} wrong**"


if __name__ == "__main__":
    sys.exit(main())
