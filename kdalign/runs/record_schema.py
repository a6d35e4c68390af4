"""Schemas of records and evaluations: a file of another shape is refused before anything reads it.

Unknown keys are accepted, so that records of older and newer versions can be read; what tables read must be there.
A number is finite and not text of digits; a split's name is not a path.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from kdalign.errors import UsageError

_MOST = 10**18
"""Limit of counts of tokens, parameters or operations."""


def _no_path(name: str) -> str:
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0") or len(name) > 200:
        raise ValueError("is not a name of a split, which is a part of file names")
    return name


def _inside(name: str) -> str:
    if not name or name.startswith(("/", "\\")) or "\0" in name or ".." in name.replace("\\", "/").split("/"):
        raise ValueError("is not a file in the run's own folder")
    return name


Text = Annotated[StrictStr, Field(max_length=1_000_000)]
Word = Annotated[StrictStr, Field(min_length=1, max_length=10_000)]
Split = Annotated[Word, AfterValidator(_no_path)]
File = Annotated[Word, AfterValidator(_inside)]
Count = Annotated[StrictInt, Field(ge=0, le=_MOST)]
Positive = Annotated[StrictInt, Field(ge=1, le=_MOST)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=_MOST)]
Digest = Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _Score(_Shape):
    metric: Word
    value: Number | None
    unit: Text
    n: Count
    higher_is_better: StrictBool
    signature: Text
    low: Number | None
    high: Number | None
    mark: Text = ""
    reason: Text = ""
    note: Text = ""


class _Scores(_Shape):
    student: Annotated[list[_Score], Field(min_length=1)]
    teacher: list[_Score]
    agreement: _Score | None
    calibration: dict[Literal["student", "teacher"], _Score] = {}
    teachers: list[list[_Score]] = []


class _Model(_Shape):
    source: Text
    revision: Text
    parameters: Positive
    megabytes: Amount
    head: Text
    latency_ms: Amount | None = None
    flops: Count | None = None
    tokens: Positive = 128
    modality: Literal["text", "audio", "image"] = "text"


class _Texts(_Shape):
    n: Count
    fingerprint: Text
    tokens: Count = 0
    truncated: Count = 0


class _Several(_Shape):
    n: Count
    tokens: Count = 0


class _Watched(_Shape):
    n: Count = 0


class _Data(_Shape):
    source: Text = ""
    train: _Texts | None = None
    watched: _Watched = _Watched()
    reported: dict[Split, _Texts]
    unlabelled: _Texts | None = None
    augmented: _Several | None = None
    checks: dict[Text, Text] = {}
    tokenizer: Text = ""


class _Share(_Shape):
    steps: Count
    examples: Count = 0


class _Together(_Shape):
    tasks: dict[Word, _Share]
    parameters: Count
    megabytes: Amount
    steps: Count
    seconds: Amount
    leaks: list[Text]


class _Cache(_Shape):
    kept: list[Text]
    states: Text
    rows: Count
    tokens: Count
    bytes: Count
    bytes_a_token: Amount
    top_k: Count = 0
    logs: Text = ""
    mean_tails: dict[Text, Amount] = {}


class _Stream(_Shape):
    read: Count
    passes: Positive
    segments: Positive
    checked: Count


class _Parallelism(_Shape):
    step: Count
    ranks: Positive
    sharding: Text


class _Training(_Shape):
    steps: Count
    examples: Count
    seconds: Amount
    tokens: Count = 0
    ranks: Positive = 1
    parallelism: list[_Parallelism] = []
    exported_step: Count = 0
    terms: dict[Text, Number | None] = {}
    multi_task: _Together | None = None
    cache: _Cache | None = None
    stream: _Stream | None = None


class _Environment(_Shape):
    device: Text = ""
    platform: Text = ""
    python: Text = ""
    libraries: dict[Text, Text] = {}


class _Train(_Shape):
    seed: Count


class _Recipe(_Shape):
    train: _Train


class _Record(_Shape):
    version: Text
    created: Text
    task: Word
    metrics: Annotated[list[Word], Field(min_length=1)]
    recipe: _Recipe
    student: _Model
    teacher: _Model | None
    teachers: list[_Model] = []
    data: _Data
    scores: Annotated[dict[Split, _Scores], Field(min_length=1)]
    training: _Training
    environment: _Environment
    seconds: Amount
    phases: dict[Text, Amount] = {}
    memory: dict[Text, Count] = {}
    samples: list[dict[Text, Text]] = []
    files: dict[File, Digest] = {}
    seal: Text = ""


class _CardTexts(_Texts):
    truncated: Count


class _CardTrain(_CardTexts):
    tokens: Count


class _CardWatched(_Watched):
    n: Count
    of: Annotated[Text, Field(alias="from")]


class _CardData(_Shape):
    source: Text
    train: _CardTrain
    watched: _CardWatched
    reported: dict[Split, _CardTexts]
    unlabelled: _CardTrain | None = None


class _CardTraining(_Training):
    tokens: Count
    ranks: Positive
    exported_step: Count


class _CardEnvironment(_Environment):
    device: Text
    threads: Count
    platform: Text
    python: Text
    libraries: dict[Text, Text]


class _CardRecord(_Shape):
    data: _CardData
    training: _CardTraining
    environment: _CardEnvironment


class _Absent(_Shape):
    metric: Word
    reason: Text
    command: Text


class _Result(_Shape):
    model: Word
    task: Word
    split: Split
    source: Text
    n: Count
    scores: list[_Score]
    absent: list[_Absent]
    truncated: Count = 0
    passed_over: Count = 0
    predictions: Word | None = None
    submission: Word | None = None
    texts: Word | None = None
    kind: Text = "model"
    parameters: Count | None = None
    trained_tokens: Count | None = None
    notes: list[Text] = []
    served: dict[Text, Any] | None = None
    run: Text = ""
    examples: Text = ""
    language: Text = ""
    writing: Text = ""
    real_time_factor: Amount | None = None
    row: Text = ""


def check_record(tree: Mapping[str, Any], where: str) -> None:
    """Refuse a file that is not a record; the error names the first wrong part.

    Args:
        tree: dictionary read from JSON.
        where: the file, for the error line.

    Raises:
        UsageError: a part is missing or of another type.
    """
    what = f"{where} is not a run's record"
    _check(_Record, tree, what)
    for split in tree["scores"]:
        if split not in tree["data"]["reported"]:
            raise UsageError(f"{what}: it has scores of split {split!r}, and data.reported does not say of which texts")
    told = tuple(tree["metrics"])
    if any(":" in name for name in told):
        return  # own metrics have a name of their own in the scores
    for split, scores in tree["scores"].items():
        found = [score["metric"] for score in scores["student"]]
        if told[0] not in found:
            raise UsageError(f"{what}: its metric is {told[0]!r}, and its scores of {split} are {', '.join(found)}")


def check_for_card(tree: Mapping[str, Any], where: str) -> None:
    """Refuse a record that lacks what a model card needs in addition to tables.

    Raises:
        UsageError: as ``check_record``.
    """
    _check(_CardRecord, tree, f"{where} lacks what a card says")


def check_results(results: object, where: str) -> None:
    """Refuse a file that does not hold an evaluation's results.

    Raises:
        UsageError: as ``check_record``.
    """
    for number, result in enumerate(results if isinstance(results, list) else [results]):
        _check(_Result, result, f"{where} is not an evaluation that `kdalign eval` wrote: results.{number}")


def _check(shape: type[BaseModel], tree: object, what: str) -> None:
    try:
        shape.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] == "missing" else f", given {first['input']!r:.80}"
        raise UsageError(f"{what}: {place}{': ' if place else ''}{said[0].lower()}{said[1:]}{given}") from None
