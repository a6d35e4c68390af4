"""Compare how a search chooses: by Optuna as kdalign does, and one key after another, at equal numbers of trials.

All settings of a small space are trained once, on slices of train (docs/results/search.md has the commands). Both ways
are then followed on these results, which a real search would have found, with many seeds, and in every order of keys:

    python -m benchmarks.search --collect ABLATION benchmarks/objective/search-methods.json
    python -m benchmarks.search benchmarks/objective/search-methods.json
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna

from kdalign.distillation.search_study import QUARTERS, RUNGS, ArmStudy, open_study

SEEDS = 100
MORE = 3
"""Trials that pruning leaves time for in this space."""
OWN = {"train.lr": 2e-4, "objective.temperature": 2.0, "objective.alpha": 0.7}
"""The arm's own settings, the recipe's defaults."""


@dataclass(frozen=True)
class Result:
    """What a setting leaves on one task.

    Attributes:
        score: the student's score on the slice, the mean of its metrics.
        watched: share of the steps, and the mean of what was monitored then.
    """

    score: float
    watched: Sequence[tuple[float, float]]


Table = Mapping[tuple[Any, ...], Mapping[str, Result]]
"""Results by settings, in the order of the keys, and task."""


def collect(ablation: Path) -> dict[str, Any]:
    """Read the results of a sweep over all settings."""
    from kdalign.runs.archive import read_all_archived

    rows = []
    for run in read_all_archived(ablation):
        scores = next(iter(run.record.scores.values()))["student"]
        steps = run.record.training["steps"]
        watched = [
            [event["step"] / steps, fmean(value or 0 for name, value in event.items() if name not in _NO_METRICS)]
            for event in run.watched
            if event["step"]
        ]
        flat = run.trial.recipe.flat()
        settings = {key: flat[key] for key in OWN}
        score = fmean(score["value"] or 0 for score in scores)
        rows.append({"settings": settings, "task": run.trial.task, "score": score, "watched": watched})
    return {"rows": rows}


_NO_METRICS = ("step", "agreement")


def read(file: Path) -> tuple[Table, dict[str, list[Any]]]:
    """Read collected results, and each key's values."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    table: dict[tuple[Any, ...], dict[str, Result]] = {}
    for row in rows:
        setting = tuple(row["settings"][key] for key in OWN)
        table.setdefault(setting, {})[row["task"]] = Result(row["score"], [tuple(pair) for pair in row["watched"]])
    values = {key: sorted({setting[number] for setting in table}) for number, key in enumerate(OWN)}
    assert len(table) == math.prod(map(len, values.values())), "every setting was trained"
    return table, values


def one_after_another(
    table: Table, values: Mapping[str, Sequence[Any]], tasks: Sequence[str], order: Sequence[str]
) -> tuple[float, int]:
    """Choose key by key: the score of the choice, and how many settings were trained for it."""
    chosen, tried = dict(OWN), set()

    def score(settings: Mapping[str, Any]) -> float:
        setting = tuple(settings[key] for key in OWN)
        tried.add(setting)
        return fmean(table[setting][task].score for task in tasks)

    for key in order:
        chosen = max(({**chosen, key: value} for value in values[key]), key=score)
    return score(chosen), len(tried)


def by_optuna(
    table: Table, values: Mapping[str, Sequence[Any]], tasks: Sequence[str], trials: int, seed: int
) -> tuple[float, float]:
    """Choose as ``--search`` does: the score of the choice, and the share of the training that was not pruned."""
    space = {key: tuple(inner) for key, inner in values.items()}
    storage = optuna.storages.InMemoryStorage()
    study = ArmStudy("soft", space, trials, seed, open_study(storage, "soft", space, OWN, {}))
    trained = []
    while (attempt := study.ask()) is not None:
        results = table[tuple(attempt.settings[key] for key in OWN)]
        stopped = next(
            (place for place, quarter, mean in _rungs(results, tasks) if attempt.is_pruned(quarter, mean)), None
        )
        trained.append(1.0 if stopped is None else stopped)
        if stopped is not None:
            attempt.prune()
            continue
        for task in tasks:
            attempt.add_score(task, results[task].score)
        attempt.finish()
    return max(one.score for one in study.candidates() if one.score is not None), fmean(trained)


def _rungs(results: Mapping[str, Result], tasks: Sequence[str]) -> Iterator[tuple[float, int, float]]:
    """Yield each rung once: the share of the training, its quarter, and the mean of what is known there."""
    left = list(RUNGS)
    for number, task in enumerate(tasks):
        done = [results[name].score for name in tasks[:number]]
        for share, value in results[task].watched:
            place = (number + share) / len(tasks)
            while left and place >= left[0] / QUARTERS - 1e-9:
                yield place, left.pop(0), fmean([*done, value])


def compare(table: Table, values: Mapping[str, Sequence[Any]], tasks: Sequence[str], more: int) -> str:
    """One row of the table: both ways on these tasks, Optuna with so many trials more than the other way."""
    scores = [fmean(results[task].score for task in tasks) for results in table.values()]
    orders = [one_after_another(table, values, tasks, order) for order in itertools.permutations(values)]
    trials = max(number for _, number in orders) + more
    searches = [by_optuna(table, values, tasks, trials, seed) for seed in range(SEEDS)]
    old, new = fmean(score for score, _ in orders), [score for score, _ in searches]
    better = sum(score >= old - 1e-9 for score in new) / SEEDS
    cells = [
        ", ".join(tasks), f"{max(scores):.2f}", f"{old:.2f} ({trials - more})", f"{new[0]:.2f} ({trials})",
        f"{fmean(new):.2f}", f"{better:.0%}", f"{trials * fmean(share for _, share in searches):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", metavar="ABLATION", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.collect is not None:
        given.file.write_text(json.dumps(collect(given.collect), indent=1) + "\n", encoding="utf-8")
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table, values = read(given.file)
    tasks = list(next(iter(table.values())))
    print(
        "| tasks | best of all | one key after another (trials) | Optuna, kdalign's seed (trials) | Optuna, mean of "
        "seeds | seeds at least as good | trainings that its trials cost |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for more in (0, MORE):
        for group in [[task] for task in tasks] + [tasks]:
            print(compare(table, values, group, more), flush=True)


if __name__ == "__main__":
    main()
