"""The recipe: all that decides a run, validated once and frozen.

Three sources make one recipe: a YAML file, flags that win over it, and ``--set section.key=value`` that wins over
both. The dump holds every default, and loading the dump gives the same recipe again.
"""

import math
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdalign.errors import UsageError, did_you_mean
from kdalign.presets import preset_named
from kdalign.schedules import Scheduled, checked, scheduled


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


AUGMENT_RATES: Mapping[str, float] = {"masked-lm": 0.4, "spans": 0.15, "cutoff": 0.1}
"""What ``Augment.rate`` is for each way, where it is left out."""


class Augment(_Section):
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
    copies: int = Field(1, ge=1)
    """Of ``masked-lm``: new texts of each labelled row, made once; 20 in TinyBERT."""
    candidates: int = Field(15, ge=1)
    """Of ``masked-lm``: a word is drawn from so many likely ones."""
    keep_labels: bool = False
    """Of ``masked-lm``: whether new texts have the label of the row they are made of; else it is not known."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of ``masked-lm``: of what is drawn; the same texts for all seeds of the training."""

    @model_validator(mode="after")
    def _of_one_way(self) -> "Augment":
        if self.by != "masked-lm" and self.model is not None:
            raise ValueError("data.augment.model is for data.augment.by=masked-lm")
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


class Data(_Section):
    """Which text the student learns from and is scored on."""

    task: tuple[str, ...]
    """Names of tasks, or paths of task files; several train one student each."""
    folder: str | None = None
    """A folder with ``<split>.parquet|csv|tsv|jsonl``, or one such folder per task name."""
    dataset: str | None = None
    """A hub data set instead of the task's own."""
    config: str | None = None
    """The hub data set's configuration."""
    max_length: int = Field(128, ge=8)
    """Longest input in tokens; longer ones are cut, counted and reported."""
    order: Literal["drawn", "left-to-right"] = "drawn"
    """In which order a permutation model (XLNet) is trained to predict tokens; it is scored from left to right."""
    limit: int | None = Field(None, ge=1)
    """At most so many training examples (drawn by the seed) and scored examples (the first ones)."""
    limit_seed: int | None = Field(None, ge=0, lt=2**31)
    """Of that draw; the training's own seed when left out. Arms of an ablation learn from one draw, 0."""
    unlabelled: str | None = None
    """Text without labels to learn from as well: a folder or a file with the task's columns (of a folder, its split
    ``train``), or ``rest``, the training rows that ``limit`` leaves out. Every term but those of labels counts it."""
    unlabelled_limit: int | None = Field(None, ge=1)
    """At most so many of these texts, drawn as for ``limit``."""
    unlabelled_share: float | None = Field(None, gt=0, lt=1)
    """The share of an epoch's rows that have no label, drawn anew for each; all of them once an epoch when left out."""
    augment: Augment = Augment()
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


class Align(_Section):
    """Which teacher layer teaches which student layer."""

    map: str = "auto"
    """``auto`` (the layers that the student was cut from, else uniform), a fixed map, or pairs such as ``0:1 1:3``."""
    remap_every: int | None = Field(None, ge=1)
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
    relation_heads: int | None = Field(None, ge=1)
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
        elif any(not weight >= 0 for weight in value) or not sum(value) > 0:
            raise ValueError("weights lambda_l must not be negative, and one must be above 0")
        return value


TERM_KEYS = ("hard", "alpha", "beta", "gamma", "delta", "embeddings", "relations", "masked_lm")
"""The objective's weights."""
ALONE_KEYS = ("hard", "masked_lm")
"""Those of the terms that look at no teacher."""
ALIGNING_KEYS = ("beta", "gamma", "delta", "embeddings", "relations")
"""Those of the terms that compare layers."""
ANSWER_TERMS = ("logit-mse", "dkd", "dist")
"""Further terms that compare answers; all others compare layers."""
KEYS_OF_TERMS = {
    "hard": "hard",
    "soft": "alpha",
    "embedding": "alpha",
    "similarity": "alpha",
    "cosine": "beta",
    "euclid": "gamma",
    "attention": "delta",
    "embeddings": "embeddings",
    "relations": "relations",
}
"""For each term of the objective, the recipe's key of its weight; a further term's is its name."""


class Objective(_Section):
    """L = hard CE + alpha L_soft + beta L_feat + gamma L_dist + delta L_attn (arXiv:2412.19449)."""

    hard: float = Field(0.3, ge=0)
    alpha: float = Field(0.7, ge=0)
    beta: float = Field(1.0, ge=0)
    gamma: float = Field(1.0, ge=0)
    delta: float = Field(1.0, ge=0)
    embeddings: float = Field(0.0, ge=0)
    """Cosine between the embeddings, what the first layers read; worth a try where depth is cut hard."""
    relations: float = Field(0.0, ge=0)
    """KL between how positions relate by their values (or queries and keys, too); widths and heads may differ."""
    masked_lm: float = Field(0.0, ge=0)
    """Cross-entropy of a student that classifies on masked tokens of its texts (15 %), by a head of its own that is not
    exported; costs about one more forward and backward of the student."""
    temperature: float = Field(2.0, gt=0)
    divergence: Literal["forward", "reverse", "js", "skew", "adaptive"] = "forward"
    """How answers are compared with the teacher's."""
    standardise: bool = False
    """Bring both models' logits of classes to mean 0 and spread 1 before they are compared."""
    terms: Mapping[str, Mapping[str, Any]] = {}
    """Further terms by name, shipped or your own (``file.py:Name``): a weight each, or ``weight`` and options."""
    schedule: Mapping[str, Mapping[str, Any]] = {}
    """What changes on the way, ``temperature`` or a weight by its key or its term's name: ``to`` (from the recipe's
    value), ``shape`` (linear, cosine, steps or constant), ``from`` and ``until`` (shares of the steps), ``steps``
    (jumps)."""
    balance: Literal["static", "size", "uncertainty", "pace"] = "static"
    """What weights are multiplied by on the way: nothing; one by each term's running size; what is learnt; or more for
    terms that fall more slowly."""
    align_first: float = Field(0.0, ge=0, lt=1)
    """Share of the steps in which layers alone are aligned; after them only ``hard`` and ``alpha`` count."""

    @field_validator("terms", mode="before")
    @classmethod
    def _with_weights(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("terms takes names, each with its weight, such as {pkd: 10}")
        return {str(name): _with_weight(str(name), given) for name, given in value.items()}

    @field_validator("schedule", mode="before")
    @classmethod
    def _as_changes(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("schedule takes keys with what they go to, such as {alpha: {to: 0}}")
        return {
            str(key): checked(
                str(key), {k: _number(v) for k, v in given.items()} if isinstance(given, Mapping) else given
            )
            for key, given in value.items()
        }

    @model_validator(mode="after")
    def _scheduled_keys_are_there(self) -> "Objective":
        known = ["temperature", *TERM_KEYS, *self.terms]
        for key, change in self.schedule.items():
            if key not in known:
                near = did_you_mean(key, known)
                raise ValueError(f"schedule of {key!r}: no such weight{near} (accepted: {', '.join(known)})")
            aligns = key in ALIGNING_KEYS or (key in self.terms and key not in ANSWER_TERMS)
            if self.align_first and aligns and change["from"] >= self.align_first:
                raise ValueError(
                    f"schedule of {key}: layers are aligned in the first {self.align_first:g} of the steps "
                    f"(align_first); from={change['from']:g} must lie before"
                )
            if self.align_first and not aligns and change.get("until", 1.0) <= self.align_first:
                raise ValueError(
                    f"schedule of {key}: answers count after the first {self.align_first:g} of the steps "
                    f"(align_first); until={change['until']:g} must lie after"
                )
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Objective":
        built = self.built
        if built.hard == 0 and not self.needs_teacher:
            alone = "masked_lm teaches no classes" if self.masked_lm else "every weight is 0"
            raise ValueError(f"{alone}: there is nothing to learn from")
        answering = built.hard + built.alpha > 0 or any(name in ANSWER_TERMS for name in built.further)
        if self.align_first and not (answering and built.aligning):
            aligning = ", ".join(ALIGNING_KEYS)
            raise ValueError(f"align_first needs one of {aligning} for its first part, hard or alpha for its second")
        return self

    @property
    def stages(self) -> tuple[tuple[float, "Objective"], ...]:
        """One after the other, the share of the steps after which each begins, and what it minimises."""
        if not self.align_first:
            return ((0.0, self),)
        answers = {name: given for name, given in self.terms.items() if name in ANSWER_TERMS}
        layers = {name: given for name, given in self.terms.items() if name not in answers}
        of_layers = {key: each for key, each in self.schedule.items() if key in ALIGNING_KEYS or key in layers}
        of_answers = {key: each for key, each in self.schedule.items() if key not in of_layers}
        aligning = self.model_copy(update={"hard": 0.0, "alpha": 0.0, "terms": layers, "schedule": of_layers})
        none = dict.fromkeys((*ALIGNING_KEYS, "masked_lm"), 0.0)
        answering = self.model_copy(update={**none, "terms": answers, "schedule": of_answers})
        return (0.0, aligning), (self.align_first, answering)

    @property
    def moving(self) -> dict[str, Scheduled]:
        """What is scheduled, by its key."""
        starts = {"temperature": self.temperature} | {key: getattr(self, key) for key in TERM_KEYS}
        starts |= {name: given["weight"] for name, given in self.terms.items()}
        return {key: scheduled(starts[key], change) for key, change in self.schedule.items()}

    @property
    def built(self) -> "Objective":
        """What terms are made for: weights that rise from 0 are what they rise to, and nothing is scheduled."""
        if not self.schedule:
            return self
        risen = {key: each.to for key, each in self.moving.items() if each.start == 0}
        terms = {name: {**given, "weight": risen.get(name, given["weight"])} for name, given in self.terms.items()}
        own = {key: value for key, value in risen.items() if key in TERM_KEYS}
        return self.model_copy(update={**own, "terms": terms, "schedule": {}})

    @property
    def further(self) -> dict[str, float]:
        """The weights of further terms, those of weight 0 left out."""
        return {name: given["weight"] for name, given in self.terms.items() if given["weight"] > 0}

    @property
    def aligning(self) -> bool:
        """Whether any term compares layers."""
        further = any(name not in ANSWER_TERMS for name in self.further)
        return further or any(getattr(self, key) > 0 for key in ALIGNING_KEYS)

    @property
    def weights(self) -> dict[str, float]:
        """Each term's weight at first, by its key; a further term's by its name."""
        return {key: getattr(self, key) for key in TERM_KEYS} | self.further

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at the teacher."""
        return any(weight > 0 for key, weight in self.built.weights.items() if key not in ALONE_KEYS)

    @property
    def learns_without_labels(self) -> bool:
        """Whether something is learnt at all times from text whose labels are not known."""
        return all(stage.needs_teacher or stage.masked_lm > 0 for _, stage in self.stages)


def _with_weight(name: str, given: object) -> dict[str, Any]:
    options = {"weight": 1.0, **given} if isinstance(given, Mapping) else {"weight": given}
    options = {str(key): _number(value) for key, value in options.items()}
    weight = options["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"term {name!r} takes a weight that is not negative; given {weight!r}")
    return options


def _number(value: object) -> object:
    """A number that YAML 1.1 reads as text, such as 1e-4."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


_UNALIGNED: Mapping[str, Any] = {**dict.fromkeys(ALIGNING_KEYS, 0.0), "terms": {}, "schedule": {}}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "labels": {"hard": 1.0, "alpha": 0.0, **_UNALIGNED},
    "soft": _UNALIGNED,
    "align": {"hard": 1.0, "alpha": 0.0, "align_first": 0.5, "schedule": {}},
    "joint": {},
}
"""What is compared on one budget, by what differs from the recipe's objective: hard labels only; hard and soft labels;
layers aligned for the first half of the steps and hard labels for the second; everything at once."""


class Train(_Section):
    """How the student is trained."""

    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; wins over epochs."""
    max_tokens: int | None = Field(None, ge=1)
    """Stop with the step in which so many real tokens were trained on; wins over epochs."""
    batch_size: int = Field(64, ge=1)
    """Examples per optimizer step, over all ranks."""
    batch_tokens: int | None = Field(None, ge=1)
    """About so many real tokens per optimizer step instead, so that short texts weigh no more than long ones."""
    micro_batch: int | None = Field(None, ge=1)
    """Examples per forward and rank; the whole share when left out."""
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.06, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    lora: int | None = Field(None, ge=1)
    """Train low-rank adapters of this rank instead of the layers' weights; they are merged before export."""
    freeze: tuple[str, ...] = ()
    """Parts of the student that are not trained: ``embeddings``, ``head``, ``layers=0-1`` (of each stack) or
    ``layers=encoder:0``; several with commas."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """The student's dropout; as its configuration says when left out."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: int = Field(0, ge=0, lt=2**31)
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations on a slice of train; a tenth of the run when left out."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; a minute of training lies between them when left out."""
    samples: int = Field(3, ge=0)
    """With each evaluation, so many prompts are continued by the student, for models that go left to right."""
    select: Literal["last", "best"] = "last"
    """Which step's student is exported: the last, or the best on a slice held out of train."""
    patience: int | None = Field(None, ge=1)
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
            if not re.fullmatch(r"embeddings|head|layers=(\w+:)?\d+(-\d+)?", str(word)):
                near = did_you_mean(str(word), ("embeddings", "head", "layers"))
                raise ValueError(
                    f"no part {word!r}{near} (accepted: embeddings, head, layers=N, layers=N-M, layers=STACK:N-M)"
                )
        return words

    @model_validator(mode="after")
    def _freezes_or_adapts(self) -> "Train":
        if self.freeze and self.lora is not None:
            raise ValueError("adapters leave layers and embeddings as they are: give train.freeze or --lora, not both")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> "Train":
        if self.max_steps is not None and self.max_tokens is not None:
            raise ValueError("give train.max_steps or train.max_tokens, not both")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether a slice of train is kept from training."""
        return self.select == "best" or self.patience is not None


class Finetune(_Section):
    """How a teacher without a head for the task is first fine-tuned on it."""

    epochs: float = Field(3.0, gt=0)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.06, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**31)


PRETRAINED = "pretrained"
_OF_A_TASK: Mapping[str, type[BaseModel]] = {
    "data": Data,
    "align": Align,
    "objective": Objective,
    "finetune": Finetune,
}
"""Sections that may differ from task to task of one student."""


class MultiTask(_Section):
    """Several tasks learnt by one student: layers and embeddings that they share, and a head for each."""

    together: bool = False
    """Train one student for all tasks instead of one for each (``--multi-task``)."""
    sampling: Literal["temperature", "size", "equal"] = "temperature"
    """Whose batch a step takes: a task is drawn by its number of training examples to the power of 1 / temperature, by
    that number itself, or as often as any other."""
    temperature: float = Field(2.0, ge=1)
    """Of ``sampling: temperature``: 1 is ``size``, and the higher the nearer to ``equal``."""
    body_from: str = PRETRAINED
    """Where shared layers that are cut out of the teacher start: from it as it was before it was fine-tuned, which
    favours no task; or as it was after that for the task of this name."""
    tasks: Mapping[str, Mapping[str, Any]] = {}
    """What differs for a task: keys of ``data``, ``align``, ``objective`` and ``finetune``, such as
    ``{cola: {objective.beta: 2}}``."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _by_whole_keys(cls, value: object) -> object:
        """Sections as a recipe has them, too: ``{cola: {objective: {beta: 2}}}``."""
        if not isinstance(value, Mapping) or not all(isinstance(changes, Mapping) for changes in value.values()):
            raise ValueError(
                "multi_task.tasks takes names of tasks, each with keys, such as {cola: {objective.beta: 2}}"
            )
        found: dict[str, dict[str, Any]] = {}
        for task, changes in value.items():
            flat = found.setdefault(str(task), {})
            for key, given in changes.items():
                inner = given.items() if key in _OF_A_TASK and isinstance(given, Mapping) else None
                flat |= {key: given} if inner is None else {f"{key}.{name}": each for name, each in inner}
        return found

    @field_validator("tasks")
    @classmethod
    def _changes_what_a_task_has(cls, value: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        known = [f"{name}.{key}" for name, section in _OF_A_TASK.items() for key in section.model_fields]
        known.remove("data.task")
        for task, changes in value.items():
            for key in changes:
                if key not in known:
                    near = did_you_mean(str(key), known)
                    raise ValueError(f"{task} cannot change {key!r}{near} (accepted: keys of {', '.join(_OF_A_TASK)})")
        return value


NO_TEACHER = "none"

TOKEN_TASKS = (
    "lm",
    "masked-lm",
    "language-modeling",
    "translation",
    "summarization",
    "dialogue",
    "transcription",
    "chat",
)
EMBEDDING_TASK = "embedding"

LANGUAGE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "data": {"max_length": 256},
    "objective": {"temperature": 1.0, "beta": 1.0, "gamma": 0.0, "delta": 0.0},
    "train": {"epochs": 1.0, "batch_size": 16},
}
"""What differs for tasks whose answers are tokens: temperature 1 and features by cosine alone (Muralidharan et al.
2024, arXiv:2407.14679: for decoders attention relations add nothing), and longer rows."""
EMBEDDING_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "objective": {"hard": 0.0, "alpha": 1.0},
    "train": {"epochs": 1.0, "dropout": 0.0},
}
"""What differs for embeddings, which have no labels; without dropout the training loss falls much further."""
ALONE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "objective": {"hard": 1.0, "alpha": 0.0, "beta": 0.0, "gamma": 0.0, "delta": 0.0}
}
"""What differs where there is no teacher."""


def defaults_of(task: str) -> Mapping[str, Mapping[str, Any]]:
    """What differs for a task, by its name."""
    kind = _kind_of(task)
    return LANGUAGE_DEFAULTS if kind in TOKEN_TASKS else EMBEDDING_DEFAULTS if kind == EMBEDDING_TASK else {}


def _answers_of(task: str) -> str:
    """What a task's answers are, as presets say it."""
    kind = _kind_of(task)
    return "tokens" if kind in TOKEN_TASKS else "embeddings" if kind == EMBEDDING_TASK else "classes"


TASK_FILES = Path(__file__).parent / "tasks" / "files"
"""Task files that are shipped: their names without the ending are tasks, too."""


def _kind_of(task: str) -> str:
    """What a task's name begins with, or the kind that a task file says."""
    file = Path(task) if task.endswith((".yaml", ".yml")) else TASK_FILES / f"{task}.yaml"
    if not file.is_file():
        return task.partition(":")[0]
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # said by whoever reads the whole of it
        return ""
    return str(tree.get("kind", "")) if isinstance(tree, dict) else ""


class Recipe(_Section):
    """One run of ``kdalign distill``, whole."""

    preset: str | None = None
    """A method of the field to begin with (``kdalign recipe show``); what the recipe says wins over it."""
    teacher: str
    """Hub id, folder, or ``none``: the student is then trained alone."""
    student: str = "layers=half"
    """Hub id, folder, ``layers=N`` or ``layers=half`` (cut out of the teacher, ``layers=N,width=N`` narrower, too), or
    ``new:TYPE,layers=N,width=N``."""
    revision: str | None = None
    """The teacher's revision on the hub."""
    student_revision: str | None = None
    tokenizer: str | None = None
    """Of a student that is built from nothing: hub id, folder, or ``train:SIZE``, trained on the training text."""
    init: str = "uniform"
    """Which teacher layers a cut student starts from: a fixed map's name, numbers such as ``1 3 5``, or ``random``."""
    init_from: Literal["fine-tuned", "pretrained"] = "fine-tuned"
    """Where the teacher is fine-tuned first: whether a cut student starts from it after that, or as it was before."""
    narrow_by: Literal["pca", "svd", "importance", "random"] = "pca"
    """How a cut student becomes narrower: along its features' main directions, its word embeddings', or by its largest
    channels; or all weights at random."""
    finetune_teacher: bool = True
    """Fine-tune a teacher that has no head for the task; refuse it when false."""
    allow: tuple[Literal["memory", "disk", "special-tokens"], ...] = ()
    """Findings of the checks before a run that are let through."""
    data: Data
    align: Align = Align()
    objective: Objective = Objective()
    train: Train = Train()
    finetune: Finetune = Finetune()
    multi_task: MultiTask = MultiTask()
    out: str | None = None
    """The run folder; named after task, models and seed when left out."""

    @model_validator(mode="before")
    @classmethod
    def _fit_the_task(cls, tree: Any) -> Any:
        """Where nothing is said, a preset, language models and students without a teacher start from other values."""
        if not isinstance(tree, Mapping):
            return tree
        data = tree.get("data")
        tasks = data.get("task") or () if isinstance(data, Mapping) else ()
        names = tasks.split(",") if isinstance(tasks, str) else tasks
        if isinstance(tree.get("preset"), str):
            preset = preset_named(tree["preset"])
            for name in names:
                preset.check(_answers_of(str(name).strip()), str(name).strip())
            tree = preset.under(tree)
        filled = dict(tree)
        starts = [defaults_of(str(name).strip()) for name in names]
        starts += [ALONE_DEFAULTS] if tree.get("teacher") == NO_TEACHER else []
        for start in starts:
            for section, values in start.items():
                given = tree.get(section, {})
                if isinstance(given, Mapping):
                    filled[section] = {**filled.get(section, {}), **values, **given}
        return filled

    @model_validator(mode="after")
    def _rows_fit_a_batch(self) -> "Recipe":
        tokens = self.train.batch_tokens
        if tokens is not None and tokens < self.data.max_length:
            raise ValueError(
                f"train.batch_tokens={tokens} is less than one row, data.max_length={self.data.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _mapped_once_in_stages(self) -> "Recipe":
        staged = self.objective.align_first or self.align.grow
        if staged and self.align.remap_every is not None:
            raise ValueError(
                "align.remap_every is for layers aligned all the time: leave objective.align_first and align.grow at 0"
            )
        return self

    @model_validator(mode="after")
    def _grows_while_layers_are_aligned(self) -> "Recipe":
        grow, first = self.align.grow, self.objective.align_first
        if first and grow > first:
            raise ValueError(f"align.grow={grow:g} is more than the steps that align layers, align_first={first:g}")
        return self

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> "Recipe":
        if not self.has_teacher and self.objective.needs_teacher:
            raise ValueError("there is no teacher: every weight but hard and masked_lm must be 0")
        return self

    @model_validator(mode="after")
    def _learns_from_unlabelled(self) -> "Recipe":
        data = self.data
        if data.unlabelled is None and (data.unlabelled_limit is not None or data.unlabelled_share is not None):
            raise ValueError("data.unlabelled_limit and data.unlabelled_share are of data.unlabelled: give that, too")
        if data.unlabelled is None and not data.augment.unlabelled:
            return self
        flag = "--unlabelled" if data.unlabelled is not None else "data.augment without keep_labels"
        if not self.has_teacher and not self.objective.masked_lm:
            raise ValueError(f"text without labels ({flag}) is learnt from a teacher's answers: give --teacher")
        if not self.objective.learns_without_labels:
            which = "the part after objective.align_first" if self.objective.align_first else "the objective"
            raise ValueError(
                f"{which} learns from labels alone (hard), and text without labels ({flag}) has none: give "
                f"--alpha a weight, or leave it out"
            )
        if data.unlabelled_share is not None and self.train.batch_tokens is not None:
            raise ValueError("data.unlabelled_share is a share of rows: it takes --batch-size, not --batch-tokens")
        return self

    @model_validator(mode="after")
    def _can_be_learnt_together(self) -> "Recipe":
        if not self.multi_task.together:
            if self.multi_task != MultiTask():
                raise ValueError("the keys of multi_task are for tasks that are trained together: give --multi-task")
            return self
        tasks, train = self.data.task, self.train
        for task in tasks:
            if _kind_of(task) in (*TOKEN_TASKS, EMBEDDING_TASK):
                raise ValueError(f"--multi-task is for classes and scores, each with a head: not for task {task!r}")
        refused = {
            "--lora": train.lora is not None,
            "align.remap_every": self.align.remap_every is not None,
            "--select best": train.select == "best",
            "--patience": train.patience is not None,
            "--max-tokens": train.max_tokens is not None,
            "--batch-tokens": train.batch_tokens is not None,
            "--tokenizer train:SIZE": (self.tokenizer or "").startswith("train:"),
        }
        for flag, given in refused.items():
            if given:
                raise ValueError(f"--multi-task does not go with {flag}: train the tasks one by one")
        named = {"multi_task.tasks": [*self.multi_task.tasks], "multi_task.body_from": [self.multi_task.body_from]}
        for key, names in named.items() if len(tasks) > 1 else ():
            accepted = (*tasks, *([PRETRAINED] if key.endswith("body_from") else []))
            for name in names:
                if name not in accepted:
                    near = did_you_mean(name, accepted)
                    raise ValueError(f"{key} names {name!r}{near} (accepted: {', '.join(accepted)})")
        return self

    def for_task(self, task: str, **changes: object) -> "Recipe":
        """The recipe of one task of several, with what differs for it and these changes of keys at its top.

        Raises:
            UsageError: a value that is not accepted.
        """
        together = self.multi_task
        tree = self.model_dump() | changes
        assign(tree, "data.task", (task,))
        for key, value in together.tasks.get(task, {}).items():
            assign(tree, key, value)
        if together.together:  # with which others it is learnt, and what differs for them
            assign(tree, "multi_task.tasks", {name: together.tasks.get(name, {}) for name in self.data.task})
        try:
            return recipe_of(tree)
        except UsageError as error:
            raise UsageError(f"multi_task.tasks, {task}: {error}" if task in together.tasks else str(error)) from None

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher."""
        return self.teacher != NO_TEACHER

    def with_changes(self, **changes: object) -> "Recipe":
        """A copy with top-level fields replaced, validated again."""
        return Recipe.model_validate({**self.model_dump(), **changes})

    def flat(self) -> dict[str, object]:
        """Every value by its dotted key."""
        return _flat(type(self), self.model_dump(mode="json"))

    def dump(self) -> str:
        """The recipe as YAML, every default visible."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _flat(section: type[BaseModel], tree: Mapping[str, Any], before: str = "") -> dict[str, object]:
    """A section's values by their dotted keys."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        inner = section.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= _flat(inner, value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def build_recipe(
    file: Path | None = None, flags: Mapping[str, object] | None = None, sets: Iterable[str] = ()
) -> Recipe:
    """Make one recipe of a file, flags that win over it, and assignments that win over both.

    Args:
        file: YAML.
        flags: dotted key to value, such as ``{"train.lr": 1e-4}``; None means "not given".
        sets: assignments such as ``train.lr=1e-4``, their values read as YAML.

    Raises:
        UsageError: unreadable file, unknown key (with the nearest known one), or a value that is not accepted.
    """
    return recipe_of(merged(read_tree(file) if file else {}, flags or {}, sets))


def merged(tree: Mapping[str, Any], flags: Mapping[str, object], sets: Iterable[str]) -> dict[str, Any]:
    """A tree of keys and values with flags that win over it, and assignments that win over both.

    Raises:
        UsageError: an assignment that is none, or to a key of something that has no keys.
    """
    found = deepcopy(dict(tree))
    for key, value in flags.items():
        if key == "objective.terms" and isinstance(value, Mapping):
            _add_terms(found, value)
        elif value is not None:
            assign(found, key, value)
    for assignment in sets:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set takes section.key=value, such as train.lr=1e-4; given {assignment!r}")
        assign(found, key.strip(), value_of(key.strip(), text))
    return found


def recipe_of(tree: Mapping[str, Any]) -> Recipe:
    """The recipe that a tree of keys and values holds.

    Raises:
        UsageError: unknown key (with the nearest known one), or a value that is not accepted.
    """
    if not isinstance(tree, Mapping):
        raise UsageError("a recipe has keys")
    _check_keys(Recipe, tree, "")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_first_line(error)) from None


def load_recipe(file: Path) -> Recipe:
    """Read a recipe file."""
    return build_recipe(file)


def read_tree(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe {str(file)!r}: {_reason(error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date that does not exist
        raise UsageError(f"recipe {str(file)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"recipe {str(file)!r} holds no keys")
    return tree


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def value_of(key: str, text: str) -> Any:
    """A value as YAML reads it, but 1e-4 as the number that people mean (YAML 1.1 reads a string).

    Where a key holds text, the text is kept: YAML 1.1 reads the pair of layers ``1:3`` as the number 63.
    """
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a ValueError is a date that does not exist
        return text
    if value is not None and _holds_text(key):
        return value if isinstance(value, str) else text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def term_weights(words: Iterable[str]) -> dict[str, float]:
    """The further terms of words NAME=WEIGHT, such as ``pkd=10`` or ``own.py:Loss=0.5``.

    Raises:
        UsageError: a word of another form.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not name.strip() or not 0 <= weight < math.inf:
            raise UsageError(f"--term takes NAME=WEIGHT, a number that is not negative, such as pkd=10; given {word!r}")
        if name.strip() in found:
            raise UsageError(f"--term {name.strip()!r} is given twice")
        found[name.strip()] = weight
    return found


def _add_terms(tree: dict[str, Any], weights: Mapping[str, float]) -> None:
    """Name further terms in a tree, in place; options of those that are there stay."""
    section = tree.setdefault("objective", {})
    terms = section.setdefault("terms", {}) if isinstance(section, dict) else None
    if not isinstance(terms, dict):
        raise UsageError("recipe key 'objective.terms' takes names, each with its weight, such as {pkd: 10}")
    for name, weight in weights.items():
        options = terms.get(name)
        terms[name] = {**options, "weight": weight} if isinstance(options, Mapping) else weight


def _holds_text(key: str) -> bool:
    *sections, name = key.split(".")
    known = Recipe.model_fields
    for section in sections:
        inner = known[section].annotation if section in known else None
        known = inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
    return name in known and known[name].annotation in (str, str | None)


def assign(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in a tree, in place.

    Raises:
        UsageError: a part of the key holds a value.
    """
    *sections, last = key.split(".")
    for number, section in enumerate(sections):
        inner = tree.setdefault(section, {})
        if sections[:number] == ["objective", "terms"] and isinstance(inner, int | float):
            inner = tree[section] = {"weight": inner}  # a term that was named by its weight gets an option
        if not isinstance(inner, dict):
            raise UsageError(f"recipe key {section!r} is not a section")
        tree = inner
    tree[last] = value


def _check_keys(section: type[BaseModel], tree: Mapping[str, Any], path: str) -> None:
    """Name the first unknown key and the nearest known one, before pydantic's longer report."""
    for key, value in tree.items():
        field = section.model_fields.get(str(key))
        if field is None:
            known = [path + name for name in section.model_fields]
            elsewhere = [name for name in _all_keys(Recipe) if name.rpartition(".")[2] == str(key)]
            near = did_you_mean(path + str(key), known) or did_you_mean(str(key), _all_keys(Recipe))
            near = f"; did you mean {elsewhere[0]!r}?" if elsewhere else near
            raise UsageError(f"unknown recipe key {path + str(key)!r}{near} (accepted: {', '.join(known)})")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if not isinstance(value, Mapping):
                raise UsageError(f"recipe key {path + str(key)!r} is a section with keys of its own")
            _check_keys(inner, value, f"{path}{key}.")


def _all_keys(section: type[BaseModel], path: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _all_keys(inner, f"{path}{name}.")
        else:
            keys.append(path + name)
    return keys


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        flag = {"data": "--task", "teacher": "--teacher", "data.task": "--task"}.get(key, key)
        return f"missing {flag}: give it as a flag or as {key!r} in the recipe"
    said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key}={first['input']!r}: {said}" if key else said  # of several keys: the message names them
