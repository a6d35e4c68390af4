"""Sections of a recipe: data, layers, training and fine-tuning."""

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
"""Most tokens of one input."""
MOST_DECAY = 1e3
LARGEST = 1e38
"""About the largest float32."""

LearningRate = Annotated[float, Field(gt=0, le=LARGEST)]
Epochs = Annotated[float, Field(gt=0, le=MOST_EPOCHS)]
WeightDecay = Annotated[float, Field(ge=0, le=MOST_DECAY)]
Share = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
Divergence = Literal["forward", "reverse", "js", "skew", "adaptive"]
Temperature = Annotated[float, Field(ge=1 / MOST_TEMPERATURE, le=MOST_TEMPERATURE)]


class Section(BaseModel):
    """A frozen section of a recipe; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: object, info: ValidationInfo) -> object:
        """Refuse values of another type that pydantic would convert, such as true for 1 and "yes" for true."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bytes | bytearray | set | frozenset):
            raise ValueError("takes numbers, words, and lists of them")
        given = value if isinstance(value, list | tuple) else [value]
        if Any not in kinds and bool not in kinds and any(isinstance(one, bool) for one in given):
            raise ValueError("true and false are neither a number nor a name (a name is quoted)")
        if bool in kinds and not isinstance(value, bool) and len(kinds) == 1:
            raise ValueError("must be true or false")
        blank = any(isinstance(one, str) and not one.strip() for one in given)
        if str in kinds and blank and info.field_name != "task":  # it has an error of its own
            raise ValueError("is empty; leave the key out, or give null")
        return value


def check_plain(value: object, where: str) -> None:
    """Refuse values of YAML that a recipe cannot hold: bytes, dates, sets, and numbers that are not finite.

    Raises:
        ValueError: a value that is not accepted.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}, which is not text (quote it)")
            check_plain(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, where)
    elif not (value is None or isinstance(value, str | bool | int | float)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"{where} takes finite numbers, words, and lists of them; given {shorten(repr(value), 100)}")


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation; for a Literal, the types of its values."""
    parts = get_args(annotation)
    if not parts:
        return {annotation}
    return {
        kind for part in parts for kind in (_kinds(part) if isinstance(part, type) or get_args(part) else {type(part)})
    }


AUGMENT_RATES: Mapping[str, float] = {"masked-lm": 0.4, "spans": 0.15, "cutoff": 0.1, "crop": 0.1}
"""Default of ``data.augment.rate`` for each method."""


_VIEWS, _NEW, _IMAGES = ("spans", "cutoff"), ("masked-lm",), ("crop",)
AUGMENT_KEYS: Mapping[str, tuple[str, ...]] = {
    "rate": _VIEWS + _NEW + _IMAGES,
    "share": _VIEWS,
    "flip": _IMAGES,
    **dict.fromkeys(("model", "copies", "candidates", "keep_labels", "seed"), _NEW),
}
"""Methods that use each key of ``data.augment``."""


class AugmentSettings(Section):
    """Augmentation of the training rows."""

    by: Literal["none", "masked-lm", "spans", "cutoff", "crop"] = "none"
    """Method: ``masked-lm`` replaces words by a masked language model and adds the new texts; ``spans`` masks runs of
    tokens and ``cutoff`` cuts tokens off, drawn for each row and epoch; ``crop`` moves images."""
    rate: float | None = Field(None, gt=0, lt=1)
    """Probability that a word is replaced (0.4 when left out); the share of a row's tokens that is masked (0.15) or
    cut off (0.1); or the largest part of its height and width by which an image is moved (0.1)."""
    flip: bool = False
    """For ``crop``: mirror half of the images, left to right."""
    share: float = Field(0.5, gt=0, le=1)
    """For ``spans`` and ``cutoff``: probability that a row is changed in an epoch."""
    model: str | None = None
    """For ``masked-lm``: the masked language model, a hub id or a folder."""
    copies: int = Field(1, ge=1, le=10_000)
    """For ``masked-lm``: new texts per labelled row, written once before training; TinyBERT uses 20."""
    candidates: int = Field(15, ge=1, le=10**6)
    """For ``masked-lm``: number of likely words from which a replacement is drawn."""
    keep_labels: bool = False
    """For ``masked-lm``: give a new text the label of its row; otherwise new texts have no label."""
    seed: Seed = 0
    """For ``masked-lm``: seed of the replacements, so that all seeds of the training read the same texts."""

    @model_validator(mode="after")
    def _check_method(self) -> "AugmentSettings":
        for key, field in type(self).model_fields.items():
            ways = AUGMENT_KEYS.get(key, ())
            if ways and self.by not in ways and getattr(self, key) != field.default:
                raise ValueError(f"data.augment.{key} is for data.augment.by={' or '.join(ways)}")
        return self

    @property
    def corrupts(self) -> bool:
        """True if rows are changed as they are read."""
        return self.by in (*_VIEWS, *_IMAGES)

    @property
    def rate_used(self) -> float:
        """The rate, or the default of the method."""
        return self.rate or AUGMENT_RATES[self.by]

    @property
    def unlabelled(self) -> bool:
        """True if it adds rows without labels."""
        return self.by == "masked-lm" and not self.keep_labels

    def __str__(self) -> str:
        if self.by == "masked-lm":
            new = f"{self.copies} new text{'s' * (self.copies > 1)} of each labelled row"
            return f"{new}, {self.rate_used:.0%} of the words replaced by {self.model}"
        if self.by == "crop":
            mirrored = ", and half of them mirrored" if self.flip else ""
            return f"images moved by up to {self.rate_used:.0%} of their size{mirrored}, seen by both models alike"
        if self.by == "spans":
            return f"{self.rate_used:.0%} of the tokens masked in runs, in {self.share:.0%} of an epoch's rows"
        return f"{self.rate_used:.0%} of the tokens cut off, in {self.share:.0%} of an epoch's rows"


class DataSettings(Section):
    """Text, sounds or images to train on and to score on."""

    task: tuple[str, ...]
    """Names of tasks or paths of task files. Several tasks train one student each, or one for all with
    ``multi_task.together``."""
    folder: str | None = None
    """A folder with ``<split>.parquet|csv|tsv|jsonl``, or one such folder per task name. Sounds and images are bytes or
    files that a column names, or folders ``<split>``: by class, with ``metadata.csv`` (its column ``file_name``), or
    with a transcript ``NAME.txt`` beside each sound."""
    dataset: str | None = None
    """A data set on the hub in place of the task's own."""
    config: str | None = None
    """Configuration of the hub data set."""
    max_length: int = Field(128, ge=8, le=LONGEST_INPUT)
    """Longest input in tokens; longer inputs are cut, counted and reported."""
    order: Literal["drawn", "left-to-right"] = "drawn"
    """Prediction order in which a permutation model (XLNet) is trained; it is always scored from left to right."""
    limit: Rows | None = None
    """Most training examples, drawn by the seed, and most scored examples, the first ones."""
    limit_seed: Seed | None = None
    """Seed of the draw for ``limit``; the training seed when left out. All arms of an ablation use 0."""
    unlabelled: str | None = None
    """Extra text without labels: a folder (its split ``train``) or a file with the task's columns, or ``rest``, the
    training rows that ``limit`` leaves out. Every term that needs no labels uses it."""
    unlabelled_limit: Rows | None = None
    """Most rows of that text, drawn as for ``limit``."""
    unlabelled_share: float | None = Field(None, gt=0, lt=1)
    """Share of an epoch's rows without labels, drawn for each epoch; all of them once per epoch when left out."""
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of the training rows, such as ``{by: cutoff}``."""
    streaming: bool = False
    """Read the training split as a stream, ``stream_rows`` rows at a time, so that it is never held or downloaded as a
    whole. Needs ``train.max_steps`` or ``train.max_tokens``. Checks, calibration and the monitored slice see the first
    of these segments alone."""
    stream_rows: int = Field(16_384, ge=2, le=MOST_ROWS)
    """For ``streaming``: rows of a segment, which are shuffled and batched by length as an epoch of their own."""

    @field_validator("task", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("task")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value) or not value:
            raise ValueError("name at least one task, separated by commas")
        if len(set(value)) < len(value):
            raise ValueError("a task is named twice")
        return value

    @property
    def held_rows(self) -> int | None:
        """Rows of the training split that are held at a time; None for all."""
        return self.stream_rows if self.streaming else None


LAYER_WEIGHTS = ("uniform", "ramp", "learned", "adaptive")
"""Names of layer weights lambda_l."""
UNLABELLED_KEYS = ("unlabelled", "unlabelled_limit", "unlabelled_share")
"""Keys of ``data`` for text without labels."""


class AlignSettings(Section):
    """Layer pairs, and how their features are compared."""

    map: str = "auto"
    """Layer map: ``auto`` (the layers that the student was cut from, otherwise uniform), the name of a map, or pairs
    such as ``0:1 1:3``."""
    remap_every: Steps | None = None
    """Steps after which a similarity map is computed again on the current student; once, before training, when left
    out."""
    plan: str | None = None
    """A plan saved by ``kdalign map-layers``, in place of ``map``."""
    weights: tuple[float, ...] | str = "uniform"
    """Layer weights lambda_l, which sum to 1: ``uniform``, ``ramp`` (in proportion to a layer's rank from the bottom),
    ``learned``, ``adaptive`` (more for layers that are further apart), or one number per pair of layers."""
    grow: float = Field(0.0, ge=0, le=1)
    """Share of the steps over which layer pairs are added one by one from the bottom; at 0 all pairs count from the
    first step."""
    heads: Literal["auto", "each", "mean", "mix"] = "auto"
    """Comparison of attention maps: ``each`` head by head, ``mean`` over heads, ``mix`` with learned mixtures of the
    student's heads; ``auto`` is head by head if both models have the same number, otherwise mixed."""
    relations: Literal["values", "all"] = "values"
    """Tensors compared by ``objective.relations``: values as in MiniLM, or queries, keys and values as in MiniLMv2."""
    relation_heads: int | None = Field(None, ge=1, le=10**6)
    """Number of relation heads, a divisor of both models' widths; when left out, the largest up to the teacher's
    number of heads."""
    projection: Literal["linear", "norm", "mlp", "orthogonal"] = "linear"
    """Projection between features of different widths."""
    side: Literal["student", "teacher"] = "student"
    """Model whose features are projected; the teacher's only by an orthogonal projection."""
    shared: bool = False
    """Use one projection for all layer pairs of a stack."""
    start: Literal["random", "least-squares", "procrustes", "pca"] = "random"
    """Initial weights of projections: random, or fitted to the features of a few training examples."""

    @field_validator("weights", mode="before")
    @classmethod
    def _check_weights_type(cls, value: object) -> object:
        if value is not None and not isinstance(value, str | list | tuple):
            raise ValueError(f"accepted are {', '.join(LAYER_WEIGHTS)}, or numbers such as [1, 2, 3]")
        return "uniform" if value is None else value

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: tuple[float, ...] | str) -> tuple[float, ...] | str:
        if isinstance(value, str):
            if value not in LAYER_WEIGHTS:
                near = did_you_mean(value, LAYER_WEIGHTS)
                raise ValueError(f"no such weights{near} (accepted: {', '.join(LAYER_WEIGHTS)}, or [1, 2, 3])")
        elif any(not weight >= 0 for weight in value) or not 0 < sum(value) < math.inf:
            raise ValueError("weights lambda_l must not be negative, one must be above 0, and their sum finite")
        return value


class TrainSettings(Section):
    """Training of the student."""

    epochs: Epochs = 3.0
    """Passes over the training split."""
    max_steps: Steps | None = None
    """Number of optimizer steps; wins over epochs."""
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Token budget: training stops with the step that reaches this number of tokens without padding; wins over epochs.
    """
    batch_size: int = Field(64, ge=1, le=MOST_STEPS)
    """Examples per optimizer step, over all ranks."""
    batch_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Approximate number of tokens per optimizer step, without padding, in place of ``batch_size``, so that short
    texts count no more than long ones."""
    micro_batch: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Examples per forward pass and rank; a rank's whole share of the batch when left out."""
    lr: LearningRate = 2e-4
    """Peak learning rate of AdamW."""
    weight_decay: WeightDecay = 0.01
    """Weight decay of AdamW."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises."""
    clip: float = Field(1.0, gt=0, le=LARGEST)
    """Largest norm of the gradient."""
    gradient_checkpointing: bool = False
    """Activation checkpointing: the student's layers keep only their inputs, and the backward pass computes the rest
    again, which takes less memory and one more forward pass of these layers. The gradients are the same."""
    optimizer_state: Literal["fp32", "bf16", "8bit"] = "fp32"
    """Format in which AdamW keeps its two moments: ``fp32`` (8 bytes for each trained weight), ``bf16`` (4, rounded at
    random so that none stands still) or ``8bit`` (about 2, by bitsandbytes: ``pip install 'kdalign[8bit]'``)."""
    sharding: Literal["none", "fsdp2"] = "none"
    """How several ranks share the student and a teacher in memory: ``none`` (each holds all of both) or ``fsdp2``
    (each holds some rows of every weight, gradient and moment, and layers are gathered when they are computed; by
    torch's ``fully_shard``). With one process it changes nothing."""
    lora: int | None = Field(None, ge=1, le=10**6)
    """Rank of low-rank adapters that are trained in place of the layers' weights and merged before export."""
    freeze: tuple[str, ...] = ()
    """Parts of the student that are not trained: ``embeddings``, ``head``, ``encoder`` (of an encoder-decoder),
    ``layers=0-1`` (of each stack) or ``layers=encoder:0``; several with commas."""
    dropout: Share | None = None
    """Dropout of the student; its configuration's when left out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of training; ``auto`` is bf16 on hardware with fast bfloat16 (GPUs; CPUs with AVX-512 BF16 or AMX),
    otherwise fp32."""
    device: str = "auto"
    """Device: auto, cpu, cuda or mps."""
    profile: bool = True
    """Count FLOPs and measure latency of both models before training."""
    seed: Seed = 0
    """Seed of initialization, data order and dropout."""
    eval_every: Steps | None = None
    """Steps between evaluations on a slice of the training split; a tenth of the run when left out."""
    checkpoint_every: Steps | None = None
    """Steps between checkpoints; one per minute of training when left out."""
    keep: int = Field(2, ge=1, le=10**6)
    """Number of checkpoints that are kept, the newest; from one a run resumes, and from the one before if it is
    damaged."""
    samples: int = Field(3, ge=0, le=10_000)
    """Number of prompts that the student continues at each evaluation, for models that generate text."""
    select: Literal["last", "best"] = "last"
    """Exported student: that of the last step, or the best on a slice held out of the training split."""
    patience: Steps | None = None
    """Evaluations without a better score on the held-out slice after which training stops."""
    holdout: float = Field(0.05, gt=0, lt=0.5)
    """Share of the training split held out, by whole texts, for ``select: best`` and ``patience``."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers of accelerate by name, such as ``tensorboard``."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _check_parts(cls, value: object) -> object:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        for word in words if isinstance(words, list | tuple) else ():
            if not re.fullmatch(r"embeddings|head|encoder|layers=(\w+:)?[0-9]{1,9}(-[0-9]{1,9})?", str(word)):
                near = did_you_mean(str(word), ("embeddings", "head", "encoder", "layers"))
                raise ValueError(
                    f"no part {word!r}{near} (accepted: embeddings, head, encoder, layers=N, layers=N-M, "
                    "layers=STACK:N-M)"
                )
        return words

    @model_validator(mode="after")
    def _check_lora(self) -> "TrainSettings":
        if self.freeze and self.lora is not None:
            raise ValueError("adapters leave layers and embeddings as they are: give train.freeze or --lora, not both")
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "TrainSettings":
        if self.sharding != "none" and self.optimizer_state == "8bit":
            raise ValueError(
                "train.optimizer_state=8bit scales blocks of weights that a shard would cut: with train.sharding=fsdp2 "
                "give fp32 or bf16"
            )
        if self.sharding != "none" and self.device == "mps":
            raise ValueError("train.sharding=fsdp2 is for several ranks, which mps does not have: leave it out")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> "TrainSettings":
        if self.max_steps is not None and self.max_tokens is not None:
            raise ValueError("give train.max_steps or train.max_tokens, not both")
        return self

    @property
    def holds_out(self) -> bool:
        """True if a slice of the training split is held out."""
        return self.select == "best" or self.patience is not None


class FinetuneSettings(Section):
    """Fine-tuning of a teacher that has no head for the task."""

    epochs: Epochs = 3.0
    """Passes over the training split."""
    batch_size: int = Field(32, ge=1, le=MOST_STEPS)
    """Examples per optimizer step."""
    lr: LearningRate = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: WeightDecay = 0.01
    """Weight decay of AdamW."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises."""
    seed: Seed = 0
    """Seed of the head's initialization, the data order and dropout."""
