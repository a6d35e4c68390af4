"""Footnotes on training budgets: whether the rows of a table were trained for equally long, and on what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdalign.comparison.table import list_names
from kdalign.errors import UsageError
from kdalign.files import read_json
from kdalign.runs.ablation_spec import SEARCH, TRIED
from kdalign.runs.discovery import RunGroup


def budget_notes(entries: Sequence[RunGroup]) -> list[str]:
    """Footnotes on the budgets of each ablation's arms, and of rows that do not come from one ablation."""
    ablations = list(dict.fromkeys(entry.ablation for entry in entries if entry.ablation is not None))
    notes = []
    for ablation in ablations:
        prefix = f"{ablation.name}, " if len(ablations) > 1 else ""
        arms = [entry for entry in entries if entry.ablation == ablation]
        notes += [f"{prefix}{note}" for note in [*arm_budget_notes(arms), *_searched_settings(ablation)]]
    if len(ablations) > 1 or any(entry.ablation is None for entry in entries):
        notes += _unequal_steps(entries)
    return notes


def arm_budget_notes(entries: Sequence[RunGroup]) -> list[str]:
    """Footnotes on the budgets of one ablation's arms: steps and tokens, training data, hours.

    Args:
        entries: the runs of its arms.
    """
    differing = [*_unequal_budgets(entries), *_unequal_data(entries)]
    hours: dict[str, float] = {}
    for entry in entries:
        seconds = sum(record.cost.seconds for record in entry.records.values())
        hours[entry.name] = hours.get(entry.name, 0.0) + seconds / 3600
    equal = ["budget: all arms took the same steps and tokens on each task and seed"]
    return [
        *(equal if len(hours) > 1 and not differing else []),
        *differing,
        *_unlabelled_texts(entries),
        f"hours of training: {', '.join(f'{arm} {time:.2f}' for arm, time in hours.items())}",
    ]


def _unequal_budgets(entries: Sequence[RunGroup]) -> list[str]:
    spent: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
    for entry in entries:
        for task, record in entry.records.items():
            training = record.training
            spent.setdefault((task, entry.seed), {})[entry.name] = training["steps"], training["tokens"]
    notes = []
    for (task, seed), arms in spent.items():
        if len(set(arms.values())) > 1:
            listed = ", ".join(f"{arm} {steps:,} steps of {tokens:,} tokens" for arm, (steps, tokens) in arms.items())
            notes.append(f"budgets differ on {task}, seed {seed}: {listed}")
    return notes


def _unequal_data(entries: Sequence[RunGroup]) -> list[str]:
    fingerprints: dict[str, dict[str, str]] = {}
    for entry in entries:
        for task, record in entry.records.items():
            fingerprints.setdefault(task, {})[entry.name] = record.data["train"]["fingerprint"]
    return [
        f"arms learnt from different training examples of {task}: {', '.join(by_arm)}"
        for task, by_arm in fingerprints.items()
        if len(set(by_arm.values())) > 1
    ]


def _unlabelled_texts(entries: Sequence[RunGroup]) -> list[str]:
    counts: dict[str, dict[str, int]] = {}
    for entry in entries:
        for task, record in entry.records.items():
            counts.setdefault(task, {})[entry.name] = record.data.get("unlabelled", {"n": 0})["n"]
    return [
        f"unlabelled texts that arms learnt from on {task}: " + ", ".join(f"{arm} {n:,}" for arm, n in by_arm.items())
        for task, by_arm in counts.items()
        if any(by_arm.values())
    ]


def _searched_settings(ablation: Path) -> list[str]:
    """The settings that a search chose for the arms of an ablation."""
    file = ablation / SEARCH / TRIED
    if not file.is_file():
        return []
    chosen: dict[str, dict[str, Any]] = {}
    trials = read_json(file)
    for trial in trials if isinstance(trials, list) else [trials]:
        if not isinstance(trial, dict) or not isinstance(trial.get("settings"), dict):
            raise UsageError(f"{str(file)!r} is not a search's list of trials")
        if trial.get("chosen"):
            chosen[str(trial.get("arm"))] = trial["settings"]
    listed = [
        f"{arm} {', '.join(f'{key} {value}' for key, value in settings.items()) or 'as it is'}"
        for arm, settings in chosen.items()
    ]
    return [f"settings chosen on a slice of train ({SEARCH}/{TRIED}): {'; '.join(listed)}"]


def _unequal_steps(entries: Sequence[RunGroup]) -> list[str]:
    """Rows that were trained for different numbers of steps, task by task."""
    steps: dict[str, dict[str, int]] = {}
    for entry in entries:
        for task, record in entry.records.items():
            steps.setdefault(task, {})[entry.name] = record.cost.steps
    notes = []
    for task, by_row in steps.items():
        if len(set(by_row.values())) > 1:
            listed = list_names([f"{name} {count:,}" for name, count in by_row.items()])
            notes.append(f"budgets differ on {task}, in steps: {listed}; longer training alone can make a row better")
    return notes
