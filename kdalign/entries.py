"""What goes into one table: runs by recipe and seed, and evaluations, read from their files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdalign.errors import UsageError
from kdalign.integrity import read_checked
from kdalign.runs import RECORD, RunRecord, read_record


@dataclass(frozen=True)
class Entry:
    """Runs of one recipe and seed, by task."""

    name: str
    records: dict[str, RunRecord] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The runs' own."""
        return int(next(iter(self.records.values())).recipe["train"]["seed"])

    @cached_property
    def key(self) -> str:
        """Equal for runs that differ by seed alone."""
        record = next(iter(self.records.values()))
        flat = record.parsed_recipe().flat()
        for name in ("train.seed", "out", "data.task"):
            flat.pop(name)
        return json.dumps([sorted(self.records), flat], sort_keys=True)


def read_entries(path: Path) -> list[Entry]:
    """The runs at a run folder, a record, or a folder of runs (one folder per task makes one entry).

    Raises:
        UsageError: nothing there, an unfinished run, or one that was changed after it ended.
    """
    if (path / RECORD).is_file() or path.name == RECORD or not path.is_dir():
        record = read_checked(path)
        folder = path.parent if path.name == RECORD else path
        return [Entry(folder.name, {record.task: record})]
    inner = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    if (path / "recipe.yaml").is_file():  # one recipe over several tasks: one row
        runs = [read_checked(folder) for folder in inner if (folder / "recipe.yaml").is_file()]
        if not runs:
            read_record(path)  # raises, saying that it is unfinished
        return [Entry(path.name, {record.task: record for record in runs})]
    found = [entry for folder in inner if _holds_runs(folder) for entry in read_entries(folder)]
    if not found:
        read_record(path)
    return found


def _holds_runs(folder: Path) -> bool:
    return next(folder.rglob(RECORD), None) is not None


def read_evaluation(path: Path) -> list[dict[str, Any]]:
    """The results in a file that ``kdalign eval`` wrote.

    Raises:
        UsageError: the file is something else.
    """
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"{str(path)!r} is neither a run nor an evaluation (published rows: --reference {path.name})")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{str(path)!r} is not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or tree.get("kind") != "evaluation" or not isinstance(tree.get("results"), list):
        raise UsageError(f"{str(path)!r} is neither a run nor an evaluation that `kdalign eval` wrote")
    results: list[dict[str, Any]] = tree["results"]
    return results


def records_of(entries: Sequence[Entry]) -> list[RunRecord]:
    """All records, row by row."""
    return [record for entry in entries for record in entry.records.values()]


def first_split(record: RunRecord) -> dict[str, Any]:
    """The scores of the split that stands for the task (MNLI's matched one)."""
    return next(iter(record.scores.values()))


def evaluation_name(result: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> str:
    """What a row calls an evaluation: its model and split; how many of which data, where others share both."""
    name, data = Path(result["model"]).name, f"{result['n']:,} of {Path(result['source']).name}"
    if any(Path(one["model"]).name == name and one["model"] != result["model"] for one in others):
        name = result["model"]
    alike = [one for one in others if (one["model"], one["split"]) == (result["model"], result["split"])]
    if any(
        (one["task"], one["n"], one["source"]) != (result["task"], result["n"], result["source"])
        and one["task"] == result["task"]
        for one in alike
    ):
        return f"{name} ({result['split']}, {data})"
    return f"{name} ({result['split']})"


def _protocol(record: RunRecord) -> str:
    """What a run was scored on and by what."""
    split, scores = next(iter(record.scores.items()))
    facts = record.data["reported"][split]
    return f"{split}, n = {facts['n']:,} [{facts['fingerprint'][:8]}]; {how_made(scores['student'])}"


def how_made(scores: Sequence[dict[str, Any]]) -> str:
    """How scores were taken: the metrics that share a signature together."""
    metrics: dict[str, list[str]] = {}
    for score in scores:
        metrics.setdefault(score["signature"], []).append(score["metric"])
    return "; ".join(f"{', '.join(names)} by {signature}" for signature, names in metrics.items())


def protocols(entries: Sequence[Entry]) -> dict[str, set[str]]:
    """By task, what its runs were scored on and by what; more than one where rows do not rank."""
    seen: dict[str, set[str]] = {}
    for record in records_of(entries):
        seen.setdefault(record.task, set()).add(_protocol(record))
    return seen


def tasks_differ(entries: Sequence[Entry]) -> bool:
    """Whether entries are of other tasks than one another."""
    return len({tuple(sorted(entry.records)) for entry in entries}) > 1


def teachers_differ(entries: Sequence[Entry]) -> bool:
    """Whether a task has several teachers."""
    teachers = {(one.task, one.teacher.revision) for one in records_of(entries) if one.teacher is not None}
    return len(teachers) > len({task for task, _ in teachers})
