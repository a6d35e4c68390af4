"""The recipe's sections: data, layers, training and fine-tuning."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from kdalign.errors import did_you_mean, shorten
from kdalign.recipe.schedules import MOST_TEMPERATURE, MOST_WEIGHT

MOST_STEPS = 10**9
MOST_ROWS = 10**12
MOST_TOKENS = 10**15
MOST_EPOCHS = 1e6
LONGEST_INPUT = 10**6
"""Tokens of one input."""
MOST_DECAY = 1e3
LARGEST = 1e38
"""What a float32 holds, about."""

LearningRate = Annotated[float, Field(gt=0, le=LARGEST)]
Epochs = Annotated[float, Field(gt=0, le=MOST_EPOCHS)]
WeightDecay = Annotated[float, Field(ge=0, le=MOST_DECAY)]
Share = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
Temperature = Annotated[float, Field(ge=1 / MOST_TEMPERATURE, le=MOST_TEMPERATURE)]


class Section(BaseModel):
    """A part of a recipe: what is not known is refused, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic would take true for 1, and "yes" for true."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bytes | bytearray | set | frozenset):
            raise ValueError("takes numbers, words, and lists of them")
        given = value if isinstance(value, list | tuple) else [value]
        if Any not in kinds and bool not in kinds and any(isinstance(one, bool) for one in given):
            raise ValueError("true and false are neither a number nor a name (a name is quoted)")
        if bool in kinds and not isinstance(value, bool) and len(kinds) == 1:
            raise ValueError("must be true or false")
        blank = any(isinstance(one, str) and not one.strip() for one in given)
        if str in kinds and blank and info.field_name != "task":  # which says more
            raise ValueError("is empty; leave the key out, or give null, where nothing is meant")
        return value


def check_plain(value: object, where: str) -> None:
    """Refuse what YAML can hold and a recipe cannot: bytes, dates, sets, and numbers that are not finite.

    Raises:
        ValueError: what is accepted.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}, which is no text (quote it)")
            check_plain(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, where)
    elif not (value is None or isinstance(value, str | bool | int | float)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"{where} takes finite numbers, words, and lists of them; given {shorten(repr(value), 100)}")


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of; of words that are listed, their own."""
    parts = get_args(annotation)
    if not parts:
        return {annotation}
    return {
        kind for part in parts for kind in (_kinds(part) if isinstance(part, type) or get_args(part) else {type(part)})
    }


AUGMENT_RATES: Mapping[str, float] = {"masked-lm": 0.4, "spans": 0.15, "cutoff": 0.1}
"""What ``Augment.rate`` is for each way, where it is left out."""


_VIEWS, _NEW = ("spans", "cutoff"), ("masked-lm",)
AUGMENT_KEYS: Mapping[str, tuple[str, ...]] = {
    "rate": _VIEWS + _NEW,
    "share": _VIEWS,
    **dict.fromkeys(("model", "copies", "candidates", "keep_labels", "seed"), _NEW),
}
"""For which ways a key of ``Augment`` is."""


class AugmentSettings(Section):
    """Other views of the training rows."""

    by: Literal["none", "masked-lm", "spans", "cutoff"] = "none"
    """``masked-lm``: new texts whose words a masked language model has replaced; ``spans``: runs of tokens that are
    masked, ``cutoff``: tokens that are cut off, drawn anew for each row and epoch."""
    rate: float | None = Field(None, gt=0, lt=1)
    """The chance of a word to be replaced (0.4), or the share of a row's tokens masked (0.15) or cut off (0.1)."""
    share: float = Field(0.5, gt=0, le=1)
    """Of ``spans`` and ``cutoff``: the chance of a row to be changed in an epoch; others are read as they are."""
    model: str | None = None
    """Of ``masked-lm``: the masked language model, a hub id or a folder."""
    copies: int = Field(1, ge=1, le=10_000)
    """Of ``masked-lm``: new texts of each labelled row, made once; 20 in TinyBERT."""
    candidates: int = Field(15, ge=1, le=10**6)
    """Of ``masked-lm``: a word is drawn from so many likely ones."""
    keep_labels: bool = False
    """Of ``masked-lm``: whether new texts have the label of the row they are made of; else it is not known."""
    seed: Seed = 0
    """Of ``masked-lm``: of what is drawn; the same texts for all seeds of the training."""

    @model_validator(mode="after")
    def _of_one_way(self) -> "AugmentSettings":
        for key, field in type(self).model_fields.items():
            ways = AUGMENT_KEYS.get(key, ())
            if ways and self.by not in ways and getattr(self, key) != field.default:
                raise ValueError(f"data.augment.{key} is for data.augment.by={' or '.join(ways)}")
        return self

    @property
    def corrupts(self) -> bool:
        """Whether rows are changed as they are read."""
        return self.by in ("spans", "cutoff")

    @property
    def rate_used(self) -> float:
        """As given, or that of the way."""
        return self.rate or AUGMENT_RATES[self.by]

    @property
    def unlabelled(self) -> bool:
        """Whether it makes rows whose label is not known."""
        return self.by == "masked-lm" and not self.keep_labels

    def __str__(self) -> str:
        if self.by == "masked-lm":
            new = f"{self.copies} new text{'s' * (self.copies > 1)} of each labelled row"
            return f"{new}, {self.rate_used:.0%} of the words replaced by {self.model}"
        if self.by == "spans":
            return f"{self.rate_used:.0%} of the tokens masked in runs, in {self.share:.0%} of an epoch's rows"
        return f"{self.rate_used:.0%} of the tokens cut off, in {self.share:.0%} of an epoch's rows"


class DataSettings(Section):
    """Which text the student learns from and is scored on."""

    task: tuple[str, ...]
    """Names of tasks, or paths of task files; several train one student each, or one for all with
    ``multi_task.together``."""
    folder: str | None = None
    """A folder with ``<split>.parquet|csv|tsv|jsonl``, or one such folder per task name."""
    dataset: str | None = None
    """A hub data set instead of the task's own."""
    config: str | None = None
    """The hub data set's configuration."""
    max_length: int = Field(128, ge=8, le=LONGEST_INPUT)
    """Longest input in tokens; longer ones are cut, counted and reported."""
    order: Literal["drawn", "left-to-right"] = "drawn"
    """In which order a permutation model (XLNet) is trained to predict tokens; it is scored from left to right."""
    limit: Rows | None = None
    """At most so many training examples (drawn by the seed) and scored examples (the first ones)."""
    limit_seed: Seed | None = None
    """Of that draw; the training's own seed when left out. Arms of an ablation learn from one draw, 0."""
    unlabelled: str | None = None
    """Text without labels to learn from as well: a folder or a file with the task's columns (of a folder, its split
    ``train``), or ``rest``, the training rows that ``limit`` leaves out. Every term but those of labels counts it."""
    unlabelled_limit: Rows | None = None
    """At most so many of these texts, drawn as for ``limit``."""
    unlabelled_share: float | None = Field(None, gt=0, lt=1)
    """The share of an epoch's rows that have no label, drawn anew for each; all of them once an epoch when left out."""
    augment: AugmentSettings = AugmentSettings()
    """Other views of the training rows, such as ``{by: cutoff}``."""

    @field_validator("task", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("task")
    @classmethod
    def _named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value) or not value:
            raise ValueError("name at least one task, separated by commas")
        if len(set(value)) < len(value):
            raise ValueError("a task is named twice")
        return value


LAYER_WEIGHTS = ("uniform", "ramp", "learned", "adaptive")
"""Words for lambda_l."""
UNLABELLED_KEYS = ("unlabelled", "unlabelled_limit", "unlabelled_share")
"""Of ``Data``, those of text without labels."""


class AlignSettings(Section):
    """Which teacher layer teaches which student layer."""

    map: str = "auto"
    """``auto`` (the layers that the student was cut from, else uniform), a fixed map, or pairs such as ``0:1 1:3``."""
    remap_every: Steps | None = None
    """Steps after which a map by likeness is measured again on the student as it is then; once, before training, when
    left out."""
    plan: str | None = None
    """A plan saved by ``kdalign map-layers`` instead."""
    weights: tuple[float, ...] | str = "uniform"
    """lambda_l, which sum to 1: ``uniform``, ``ramp`` (in proportion to a layer's rank from the bottom), ``learned``,
    ``adaptive`` (more for layers that are further off), or one number for each pair of layers."""
    grow: float = Field(0.0, ge=0, le=1)
    """Share of the steps over which layers are aligned one more at a time, from the bottom; all of them from the start
    at 0. Nothing where no layers are compared."""
    heads: Literal["auto", "each", "mean", "mix"] = "auto"
    """How attention maps are compared: head by head, averaged over heads, or the student's mixed by learned shares
    into as many as the teacher has; ``auto`` is head by head where the numbers agree, else mixed."""
    relations: Literal["values", "all"] = "values"
    """What ``objective.relations`` compares: values as in MiniLM, or queries, keys and values as in MiniLMv2."""
    relation_heads: int | None = Field(None, ge=1, le=10**6)
    """Heads of relations, a divisor of both models' widths; the largest up to the teacher's own when left out."""
    projection: Literal["linear", "norm", "mlp", "orthogonal"] = "linear"
    """What brings features of different widths together."""
    side: Literal["student", "teacher"] = "student"
    """Whose features are projected; the teacher's by an orthogonal projection alone."""
    shared: bool = False
    """One projection for all pairs of a stack instead of one for each."""
    start: Literal["random", "least-squares", "procrustes", "pca"] = "random"
    """How projections start: at random, or from the features of a few training examples."""

    @field_validator("weights", mode="before")
    @classmethod
    def _word_or_numbers(cls, value: object) -> object:
        if value is not None and not isinstance(value, str | list | tuple):
            raise ValueError(f"accepted are {', '.join(LAYER_WEIGHTS)}, or numbers such as [1, 2, 3]")
        return "uniform" if value is None else value

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | str) -> tuple[float, ...] | str:
        if isinstance(value, str):
            if value not in LAYER_WEIGHTS:
                near = did_you_mean(value, LAYER_WEIGHTS)
                raise ValueError(f"no such weights{near} (accepted: {', '.join(LAYER_WEIGHTS)}, or [1, 2, 3])")
        elif any(not weight >= 0 for weight in value) or not 0 < sum(value) < math.inf:
            raise ValueError("weights lambda_l must not be negative, one must be above 0, and their sum finite")
        return value


class TrainSettings(Section):
    """How the student is trained."""

    epochs: Epochs = 3.0
    max_steps: Steps | None = None
    """Optimizer steps; wins over epochs."""
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Stop with the step in which so many real tokens were trained on; wins over epochs."""
    batch_size: int = Field(64, ge=1, le=MOST_STEPS)
    """Examples per optimizer step, over all ranks."""
    batch_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """About so many real tokens per optimizer step instead, so that short texts weigh no more than long ones."""
    micro_batch: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Examples per forward and rank; the whole share when left out."""
    lr: LearningRate = 2e-4
    weight_decay: WeightDecay = 0.01
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises."""
    clip: float = Field(1.0, gt=0, le=LARGEST)
    """Largest norm of the gradient."""
    lora: int | None = Field(None, ge=1, le=10**6)
    """Train low-rank adapters of this rank instead of the layers' weights; they are merged before export."""
    freeze: tuple[str, ...] = ()
    """Parts of the student that are not trained: ``embeddings``, ``head``, ``layers=0-1`` (of each stack) or
    ``layers=encoder:0``; several with commas."""
    dropout: Share | None = None
    """The student's dropout; as its configuration says when left out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: Seed = 0
    eval_every: Steps | None = None
    """Steps between evaluations on a slice of train; a tenth of the run when left out."""
    checkpoint_every: Steps | None = None
    """Steps between checkpoints; a minute of training lies between them when left out."""
    samples: int = Field(3, ge=0, le=10_000)
    """With each evaluation, so many prompts are continued by the student, for models that go left to right."""
    select: Literal["last", "best"] = "last"
    """Which step's student is exported: the last, or the best on a slice held out of train."""
    patience: Steps | None = None
    """Stop after so many evaluations without a better score on the held-out slice."""
    holdout: float = Field(0.05, gt=0, lt=0.5)
    """Share of train held out, by whole texts, for ``select: best`` and ``patience``."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers of accelerate by name, such as ``tensorboard``."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _parts(cls, value: object) -> object:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        for word in words if isinstance(words, list | tuple) else ():
            if not re.fullmatch(r"embeddings|head|layers=(\w+:)?[0-9]{1,9}(-[0-9]{1,9})?", str(word)):
                near = did_you_mean(str(word), ("embeddings", "head", "layers"))
                raise ValueError(
                    f"no part {word!r}{near} (accepted: embeddings, head, layers=N, layers=N-M, layers=STACK:N-M)"
                )
        return words

    @model_validator(mode="after")
    def _freezes_or_adapts(self) -> "TrainSettings":
        if self.freeze and self.lora is not None:
            raise ValueError("adapters leave layers and embeddings as they are: give train.freeze or --lora, not both")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> "TrainSettings":
        if self.max_steps is not None and self.max_tokens is not None:
            raise ValueError("give train.max_steps or train.max_tokens, not both")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether a slice of train is kept from training."""
        return self.select == "best" or self.patience is not None


class FinetuneSettings(Section):
    """How a teacher without a head for the task is first fine-tuned on it."""

    epochs: Epochs = 3.0
    batch_size: int = Field(32, ge=1, le=MOST_STEPS)
    lr: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.01
    warmup: Share = 0.06
    seed: Seed = 0
