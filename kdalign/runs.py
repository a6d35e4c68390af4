"""The run folder and the record in it: what every table is made of.

::

    runs/NAME/  recipe.yaml  plan.json  history.jsonl  log.txt  predictions/SPLIT.parquet
                student/     projections.safetensors   checkpoints/step-N/   record.json

``record.json`` is written last, with the other files' hashes and a seal over itself: a folder that has one is complete.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdalign.errors import UsageError
from kdalign.files import read_json, sha256, write_json, write_text
from kdalign.recipe import Recipe, recipe_of
from kdalign.record_schema import check_record

SCHEMA = 1
RECORD = "record.json"
CARD = "README.md"
"""In the student's folder, for its reader to go on writing."""


@dataclass(frozen=True)
class ModelRecord:
    """One of a run's two models: where it came from, its size, its speed.

    Attributes:
        source: how it was named, or cut.
        revision: the hub's commit hash, or a hash of a folder's weights.
        parameters: tied ones once.
        megabytes: of its weights on disk, 10^6 bytes.
        latency_ms: median of one forward, batch 1, 128 tokens, fp32; None where it was not measured.
        head: where its task head came from.
        flops: floating-point operations of such a forward, 2 a multiply-add; None where they were not counted.
        tokens: of such a forward, 128 unless the models have fewer positions.
    """

    source: str
    revision: str
    parameters: int
    megabytes: float
    head: str
    latency_ms: float | None = None
    flops: int | None = None
    tokens: int = 128

    @property
    def flops_per_token(self) -> float | None:
        """Of a forward; None where they were not counted."""
        return None if self.flops is None else self.flops / self.tokens

    @property
    def bytes_per_parameter(self) -> int:
        """Of the weights on disk."""
        return round(self.megabytes * 1e6 / self.parameters)


@dataclass(frozen=True)
class RunRecord:
    """All that a run leaves for tables.

    Attributes:
        scores: split to ``{"student": [...], "teacher": [...], "agreement": ...}``; scores as in ``metrics.Score``.
        training: steps, examples, real tokens, samples per second, last values of the terms, ranks.
        samples: prompts, and what the exported student and the teacher say after each; empty where models say nothing.
        files: SHA-256 of the folder's other files.
        seal: SHA-256 of all else in the record; empty in records of versions that wrote none.
    """

    schema: int
    version: str
    created: str
    task: str
    metrics: tuple[str, ...]
    recipe: dict[str, Any]
    student: ModelRecord
    teacher: ModelRecord | None
    data: dict[str, Any]
    scores: dict[str, Any]
    training: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    samples: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    seal: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    def parsed_recipe(self) -> Recipe:
        """The run's recipe.

        Raises:
            UsageError: another version wrote what this one does not know.
        """
        try:
            return recipe_of(self.recipe)
        except UsageError as error:
            run = self.recipe.get("out") if isinstance(self.recipe, dict) else None
            where = f"the run {run!r}" if run else f"a run of task {self.task!r}"
            raise UsageError(f"{where}, made by kdalign {self.version}, cannot be read: {error}") from None

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str) -> "RunRecord":
        """Read a record's dictionary.

        Raises:
            UsageError: it is of another schema, or a part is missing or of another kind.
        """
        if tree.get("schema") != SCHEMA:
            given = "of nothing that is one" if "schema" not in tree else f"{tree['schema']!r:.40}"
            raise UsageError(f"{where} has record schema {given}; this kdalign reads {SCHEMA}")
        check_record(tree, where)
        try:
            values = dict(tree)
            values["metrics"] = tuple(values["metrics"])
            values["student"] = ModelRecord(**values["student"])
            values["teacher"] = ModelRecord(**values["teacher"]) if values["teacher"] else None
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UsageError(f"{where} is not a run's record: {error}") from None


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def inputs(self) -> Path:
        """Fingerprints of the models and splits that the run reads."""
        return self.path / "inputs.json"

    @property
    def plan(self) -> Path:
        """The calibrated plan."""
        return self.path / "plan.json"

    @property
    def history(self) -> Path:
        """One JSON object a line: steps and evaluations."""
        return self.path / "history.jsonl"

    @property
    def log(self) -> Path:
        """What was announced."""
        return self.path / "log.txt"

    @property
    def student(self) -> Path:
        """The exported student, a stock Transformers checkpoint."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def projections(self) -> Path:
        """The trained projections, which the student does not need."""
        return self.path / "projections.safetensors"

    def predictions(self, split: str) -> Path:
        """The kept predictions of a split."""
        return self.path / "predictions" / f"{split}.parquet"

    @property
    def complete(self) -> bool:
        """Whether the run ended and wrote its record."""
        return (self.path / RECORD).is_file()

    @property
    def started(self) -> bool:
        """Whether anything of a run lies here."""
        return self.path.is_dir() and any(self.path.iterdir())

    def begin(self, recipe: str, inputs: Mapping[str, str], keep: bool) -> None:
        """Make the folder, write the resolved recipe and what the run reads; clear away an earlier run first.

        Args:
            recipe: as YAML.
            inputs: fingerprints of models and splits, by name.
            keep: go on with the run that lies here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RECORD).unlink(missing_ok=True)
        if not keep:
            for old in (self.student, self.checkpoints, self.path / "predictions"):
                shutil.rmtree(old, ignore_errors=True)
            for file in (self.history, self.log, self.plan, self.projections):
                file.unlink(missing_ok=True)
        write_json(self.inputs, inputs)
        write_text(self.recipe, recipe)

    def read_inputs(self) -> dict[str, str]:
        """The fingerprints in ``inputs``; none where it is not there.

        Raises:
            UsageError: it is something else.
        """
        if not self.inputs.is_file():
            return {}
        tree = read_json(self.inputs)
        if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
            raise UsageError(f"{str(self.inputs)!r} does not hold fingerprints by name")
        return tree

    def append_history(self, event: Mapping[str, Any]) -> None:
        """Add a line to the history."""
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False) + "\n")

    def read_history(self) -> list[dict[str, Any]]:
        """All events, oldest first; a line that a killed run left half written is passed over."""
        if not self.history.is_file():
            return []
        events = []
        for line in self.history.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    @property
    def watched(self) -> list[dict[str, Any]]:
        """The evaluations on the watched texts, oldest first: each a step and scores by metric, without samples."""
        return [
            {name: value for name, value in event.items() if name not in ("kind", "samples")}
            for event in self.read_history()
            if event.get("kind") == "evaluation"
        ]

    def cut_history(self, step: int) -> None:
        """Forget events after a step: training goes on from its checkpoint, and looks once more before the next one."""
        kept = [event for event in self.read_history() if event["step"] <= step - (event.get("kind") == "gradients")]
        write_text(self.history, "".join(json.dumps(event) + "\n" for event in kept))

    def write_record(self, record: RunRecord) -> None:
        """Hash the folder's files, seal the record and write it, which makes the run complete."""
        files = {
            str(file.relative_to(self.path)): sha256(file)
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file.name not in (RECORD, self.log.name) and self.checkpoints not in file.parents
        }
        tree = json.loads(json.dumps({**record.to_json(), "files": files}))  # as it will be read
        write_json(self.path / RECORD, {**tree, "seal": seal_of(tree)})


def seal_of(tree: Mapping[str, Any]) -> str:
    """The SHA-256 of a record as it was read from JSON, its seal left out: keys sorted, no white space, ASCII."""
    rest = {key: value for key, value in tree.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_record(path: Path) -> RunRecord:
    """The record of a run folder, or of a record file.

    Raises:
        UsageError: nothing there, an unfinished run, or not a record.
    """
    tree, where = read_tree(path)
    return RunRecord.from_json(tree, where)


def read_tree(path: Path) -> tuple[dict[str, Any], str]:
    """A record as it lies in its file, and the words for that file in an error line.

    Raises:
        UsageError: nothing there, an unfinished run, or no JSON.
    """
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        if path.is_dir() and (path / "recipe.yaml").is_file():
            # Several tasks in one student have their checkpoints above their own folders, and go on there.
            above = path.parent if (path.parent / "checkpoints").is_dir() else path
            raise UsageError(f"run {str(path)!r} is not finished; `kdalign distill --out {above} --resume` goes on")
        raise UsageError(f"no run at {str(path)!r} (a run folder holds {RECORD})")
    tree = read_json(file)
    if not isinstance(tree, dict):
        raise UsageError(f"{str(file)!r} is not a run's record")
    return tree, repr(str(file))


MOST_FOLDERS = 20_000
"""Below one that is named: beyond it, another one was meant."""


@dataclass
class Walk:
    """A walk through the folders below one: into each once, however many links lead there, and not without end.

    Attributes:
        start: where it begins.
        unreadable: folders that may not be looked into.
    """

    start: Path
    unreadable: list[Path] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if (place := _place(self.start)) is not None:
            self._seen.add(place)

    def inside(self, folder: Path) -> list[Path]:
        """The folders in a folder that were not met yet, by name.

        Raises:
            UsageError: more than ``MOST_FOLDERS`` were met.
        """
        try:
            places = {inner: _place(inner) for inner in sorted(folder.iterdir())}
        except OSError:
            self.unreadable.append(folder)
            return []
        own = {place for inner, place in places.items() if place is not None and not inner.is_symlink()}
        found = []
        for inner, place in places.items():
            if place is None or place in self._seen or (inner.is_symlink() and place in own):
                continue
            self._seen.add(place)
            if os.access(inner, os.R_OK | os.X_OK):
                found.append(inner)
            else:
                self.unreadable.append(inner)
        if len(self._seen) > MOST_FOLDERS:
            raise UsageError(
                f"more than {MOST_FOLDERS:,} folders below {str(self.start)!r}: name one nearer to the runs"
            )
        return found


def _place(path: Path) -> tuple[int, int] | None:
    """What tells a folder from all others, whatever leads there; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def find_runs(folder: Path) -> Iterator[Path]:
    """Complete run folders at or below a folder, by name.

    Raises:
        UsageError: too many folders lie below it.
    """
    walk, waiting = Walk(folder), [folder]
    while waiting:
        here = waiting.pop()
        if (here / RECORD).is_file():
            yield here
        elif here.is_dir():
            inner = [one for one in walk.inside(here) if one.name not in ("checkpoints", "student", "predictions")]
            waiting += reversed(inner)
