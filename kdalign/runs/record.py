"""The record of a run, which every table is made of, and the files around it.

::

    runs/NAME/  recipe.yaml  inputs.json  plan.json  begun.json  history.jsonl  log.txt
                student/  projections.safetensors  predictions/SPLIT.parquet  checkpoints/step-N/  record.json

``begun.json`` has the hashes of a run's recipe, inputs and plan, and each checkpoint those of its own files and of the
history so far: a stopped run is resumed unchanged, or refused. ``record.json`` is written last, with the other files'
hashes and a seal over itself: a folder that has one is complete.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from kdalign.data.media.rows import Modality
from kdalign.errors import UsageError
from kdalign.files import read_json
from kdalign.metrics.classification import Score
from kdalign.recipe import Recipe, validate_recipe
from kdalign.runs.record_schema import check_record
from kdalign.runs.seal import seal_of

T = TypeVar("T")

SCHEMA = 1
RECORD = "record.json"
BEGUN = "begun.json"
"""File with the SHA-256 of the recipe, the inputs and the plan that a run began with."""
LEFT = (".lock", BEGUN, "inputs.json")
"""Files that a run may leave if it was killed before its recipe was written."""
CARD = "README.md"
"""Model card in the student's folder; users may edit it."""


@dataclass(frozen=True)
class ModelRecord:
    """Source, size and speed of a run's student or teacher.

    Attributes:
        source: name of its checkpoint, or how it was made from the teacher.
        revision: the hub's commit hash, or a hash of a folder's weights.
        parameters: number of parameters, tied ones once.
        megabytes: size of its weights on disk in 10^6 bytes.
        latency_ms: median of one forward, batch 1, ``tokens`` tokens, fp32; None if not measured.
        head: origin of its task head.
        flops: floating-point operations of such a forward, 2 a multiply-add; None if not counted.
        tokens: sequence length of such a forward, 128 unless the models have fewer positions; 1 for an image.
        modality: what it reads: text, sounds before the tokens, or images.
    """

    source: str
    revision: str
    parameters: int
    megabytes: float
    head: str
    latency_ms: float | None = None
    flops: int | None = None
    tokens: int = 128
    modality: Modality = "text"

    @property
    def flops_per_token(self) -> float | None:
        """Floating-point operations of a forward for each token, or for an image; None if not counted."""
        return None if self.flops is None else self.flops / self.tokens

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of each parameter on disk, rounded."""
        return round(self.megabytes * 1e6 / self.parameters)


@dataclass(frozen=True)
class SplitScores:
    """A run's scores on one split.

    Attributes:
        student: the student's, the primary metric first.
        teacher: the teacher's in the same metrics; empty if it was not scored.
        agreement: agreement of student and teacher; None if their answers cannot be compared.
        calibration: expected calibration errors of ``student`` and ``teacher``, if they predict classes.
        teachers: each of several teachers' scores, where ``teacher`` has those of their mixture.
    """

    student: tuple[Score, ...]
    teacher: tuple[Score, ...]
    agreement: Score | None
    calibration: Mapping[str, Score]
    teachers: tuple[tuple[Score, ...], ...] = ()

    def of(self, who: str) -> tuple[Score, ...]:
        """Return the scores of the ``student`` or the ``teacher``."""
        return self.student if who == "student" else self.teacher

    def teacher_score(self, metric: str) -> Score | None:
        """Return the teacher's score in a metric, if it has one."""
        return next((score for score in self.teacher if score.metric == metric), None)


@dataclass(frozen=True)
class SplitData:
    """Facts of a split's data.

    Attributes:
        n: number of examples.
        fingerprint: a hash of texts and labels.
        tokens: number of tokens without padding, if counted.
        truncated: number of examples that were cut to the maximum length.
    """

    n: int
    fingerprint: str
    tokens: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class TrainingCost:
    """Work that a run's training took.

    Attributes:
        steps: steps of the optimizer.
        examples: examples read, counted each time.
        seconds: seconds of training, without evaluation.
        tokens: tokens read, without padding, counted each time.
        ranks: number of processes of the command that finished the run.
        exported_step: step whose weights were exported.
    """

    steps: int
    examples: int
    seconds: float
    tokens: int = 0
    ranks: int = 1
    exported_step: int = 0


@dataclass(frozen=True)
class RunRecord:
    """Everything about a finished run that tables need, as ``record.json`` holds it.

    Attributes:
        scores: by split, ``{"student": [...], "teacher": [...], "agreement": ...}`` as ``split_scores`` reads them.
        training: steps, examples, real tokens, samples per second, last values of the terms, ranks; ``parallelism`` has
            the ranks from each step on, and whether they shared the models (none in older records).
        samples: prompts with the continuations of the exported student and the teacher; empty without generation.
        files: SHA-256 of the folder's other files.
        seconds: seconds since the command that finished the run began.
        phases: the same by phase, such as ``preparing`` and ``training``; empty in older records.
        memory: bytes that the run had at most since it was last resumed (``peak``), and that were ``predicted``; what
            is not known is left out.
        teachers: each of several teachers, of which ``teacher`` is the mixture; empty for one teacher or none.
        seal: SHA-256 of everything else in the record; empty in records of versions that wrote none.
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
    teachers: list[ModelRecord] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    seal: str = field(default="", compare=False)

    @property
    def identity(self) -> str:
        """A hash that tells runs apart, the same in a run's folder and in an ablation's archive."""
        return seal_of({"created": self.created, "recipe": self.recipe})[:16]

    @property
    def split(self) -> str:
        """The split that stands for the task (MNLI's matched one)."""
        return next(iter(self.scores))

    def split_scores(self, split: str) -> SplitScores:
        """Return the scores on a split."""
        tree = self.scores[split]
        return SplitScores(
            student=tuple(map(Score.from_json, tree["student"])),
            teacher=tuple(map(Score.from_json, tree["teacher"])),
            agreement=None if tree["agreement"] is None else Score.from_json(tree["agreement"]),
            calibration={who: Score.from_json(score) for who, score in tree.get("calibration", {}).items()},
            teachers=tuple(tuple(map(Score.from_json, each)) for each in tree.get("teachers", [])),
        )

    @property
    def first_scores(self) -> SplitScores:
        """Scores on the split that stands for the task."""
        return self.split_scores(self.split)

    @property
    def served_teacher(self) -> str:
        """Name and address of a teacher behind an API; empty without one."""
        facts = self.training.get("served_teacher")
        return f"{self.recipe['teacher']} at {facts['url']}" if isinstance(facts, dict) and "url" in facts else ""

    @property
    def reported(self) -> dict[str, SplitData]:
        """Data of the splits that were scored, by split."""
        return {split: _taken(SplitData, facts) for split, facts in self.data["reported"].items()}

    @property
    def cost(self) -> TrainingCost:
        """Steps, examples, tokens and seconds of training."""
        return _taken(TrainingCost, self.training)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)

    def parsed_recipe(self) -> Recipe:
        """Return the run's recipe.

        Raises:
            UsageError: another version wrote keys that this one does not know.
        """
        try:
            return validate_recipe(self.recipe)
        except UsageError as error:
            run = self.recipe.get("out") if isinstance(self.recipe, dict) else None
            where = f"the run {run!r}" if run else f"a run of task {self.task!r}"
            raise UsageError(f"{where}, made by kdalign {self.version}, cannot be read: {error}") from None

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str) -> "RunRecord":
        """Read a record's dictionary.

        Raises:
            UsageError: another schema, or a part that is missing or of another type.
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
            values["teachers"] = [ModelRecord(**each) for each in values.get("teachers", [])]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UsageError(f"{where} is not a run's record: {error}") from None


def _taken(kind: type[T], tree: Mapping[str, Any]) -> T:
    """Make a dataclass from those keys of a dictionary that are its fields."""
    return kind(**{one.name: tree[one.name] for one in fields(kind) if one.name in tree})  # type: ignore[arg-type]


def read_record(path: Path) -> RunRecord:
    """Read the record of a run folder, or a record file.

    Raises:
        UsageError: nothing there, an unfinished run, or not a record.
    """
    tree, where = read_tree(path)
    return RunRecord.from_json(tree, where)


def read_tree(path: Path) -> tuple[dict[str, Any], str]:
    """Read a record's dictionary as it is in its file, with the file's name for error lines.

    Raises:
        UsageError: nothing there, an unfinished run, or no JSON.
    """
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        if path.is_dir() and (path / "recipe.yaml").is_file():
            # Several tasks in one student have their checkpoints above their own folders, and are resumed there.
            above = path.parent if (path.parent / "checkpoints").is_dir() else path
            raise UsageError(f"run {str(path)!r} is not finished; `kdalign distill --out {above} --resume` resumes it")
        raise UsageError(f"no run at {str(path)!r} (a run folder holds {RECORD})")
    tree = read_json(file)
    if not isinstance(tree, dict):
        raise UsageError(f"{str(file)!r} is not a run's record")
    return tree, repr(str(file))
