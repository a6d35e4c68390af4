"""The recipe: all sections, and the rules across them."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, model_validator

from kdalign.errors import did_you_mean
from kdalign.recipe.objective import ObjectiveWeights
from kdalign.recipe.presets import preset_named
from kdalign.recipe.sections import AlignSettings, DataSettings, FinetuneSettings, Section, TrainSettings
from kdalign.recipe.task_defaults import (
    ALONE_DEFAULTS,
    NO_TEACHER,
    PRETRAINED,
    SERVED_DEFAULTS,
    SERVED_PREFIX,
    MultiTask,
    is_missing,
    output_kind,
    task_defaults,
)
from kdalign.recipe.teachers import CacheSettings, OnPolicySettings, ServedTeacherSettings, TeachersSettings

Check = Literal["memory", "disk", "file-size", "special-tokens", "no-end", "weak-teacher", "shifted-rows"]
CHECKS: tuple[str, ...] = get_args(Check)
"""Preflight checks whose errors ``--allow`` lets through."""


class Recipe(Section):
    """All settings of one ``kdalign distill`` run."""

    preset: str | None = None
    """A published method to start from (``kdalign recipe show``). Keys of the recipe win over those of the preset."""
    teacher: str | tuple[str, ...]
    """Hub id or folder of the large model, a list of several, or ``openai:NAME`` for one behind an API (section
    ``served``); with ``none`` the student is trained without a teacher."""
    student: str = "layers=half"
    """Hub id, folder, ``layers=N`` or ``layers=half`` (layers of the teacher, of several the first;
    ``layers=N,width=N`` also makes it narrower), or ``new:TYPE,layers=N,width=N`` (a new model)."""
    revision: str | None = None
    """The teacher's revision on the hub; for one teacher."""
    student_revision: str | None = None
    """The student's revision on the hub."""
    tokenizer: str | None = None
    """Tokenizer of a student that is cut out of the teacher or new: hub id, folder, or ``train:SIZE`` to train one on
    the training text (``train:chars``: its characters, for CTC); the teacher's by default."""
    init: str = "uniform"
    """Teacher layers that a cut student starts from: the name of a fixed map, numbers such as ``1 3 5``, or
    ``random``."""
    init_from: Literal["fine-tuned", "pretrained"] = "fine-tuned"
    """Teacher weights that a cut student starts from, for a teacher that is fine-tuned first: those after fine-tuning
    or those before."""
    narrow_by: Literal["pca", "svd", "importance", "random"] = "pca"
    """How a cut student becomes narrower: along the main directions of its features (``pca``) or of its word
    embeddings (``svd``), by its largest channels (``importance``), or with random weights."""
    finetune_teacher: bool = True
    """Fine-tune a teacher that has no head for the task; with false such a teacher is an error."""
    allow: tuple[Check, ...] = ()
    """Findings of the preflight checks that do not stop the run."""
    data: DataSettings
    """Text to train on and to score on."""
    align: AlignSettings = AlignSettings()
    """Layer pairs, and how their features are compared."""
    objective: ObjectiveWeights = ObjectiveWeights()
    """Weights of the loss terms."""
    train: TrainSettings = TrainSettings()
    """Training of the student."""
    cache: CacheSettings = CacheSettings()
    """Cache of the teacher's outputs."""
    on_policy: OnPolicySettings = OnPolicySettings()
    """Steps on texts that the student writes itself."""
    teachers: TeachersSettings = TeachersSettings()
    """Several teachers, and how what they say becomes one."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Fine-tuning of a teacher that has no head for the task."""
    served: ServedTeacherSettings = ServedTeacherSettings()
    """A teacher behind an API."""
    multi_task: MultiTask = MultiTask()
    """Several tasks in one student."""
    out: str | None = None
    """The run folder; named after the task, the models and the seed when left out."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, tree: Any) -> Any:
        """Fill in the defaults of a preset, of the kind of task, and of a student without a teacher."""
        if not isinstance(tree, Mapping):
            return tree
        tree = {
            key: given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
            for key, given in tree.items()
        }
        if isinstance(tree.get("teacher"), list | tuple) and len(tree["teacher"]) == 1:
            (tree["teacher"],) = tree["teacher"]
        names = _task_names(tree.get("data"))
        if isinstance(tree.get("preset"), str):
            preset = preset_named(tree["preset"])
            for name in names:
                preset.check(output_kind(name), name)
            tree = preset.under(tree, names)
        filled = dict(tree)
        starts = [task_defaults(name) for name in names]
        starts += [ALONE_DEFAULTS] if tree.get("teacher") == NO_TEACHER else []
        starts += [SERVED_DEFAULTS] if str(tree.get("teacher")).startswith(SERVED_PREFIX) else []
        for start in starts:
            for section, values in start.items():
                own = tree.get(section, {})
                if isinstance(own, Mapping):
                    filled[section] = {**filled.get(section, {}), **values, **own}
        return filled

    @model_validator(mode="after")
    def _check_batch_tokens(self) -> "Recipe":
        tokens = self.train.batch_tokens
        if tokens is not None and tokens < self.data.max_length:
            raise ValueError(
                f"train.batch_tokens={tokens} is less than one row, data.max_length={self.data.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _check_remapping(self) -> "Recipe":
        staged = self.objective.align_first or self.align.grow
        if staged and self.align.remap_every is not None:
            raise ValueError(
                "align.remap_every is for layers aligned all the time: leave objective.align_first and align.grow at 0"
            )
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> "Recipe":
        if self.cache.folder is None:
            # Not its formats and tail: a recipe that was dumped with earlier defaults must stay readable.
            if self.cache.keep or self.cache.top_k is not None:
                raise ValueError("cache.keep and cache.top_k are for a cache: give --cache, too")
            return self
        if self._unkeepable is not None:
            raise ValueError(f"{self._unkeepable}: leave out --cache")
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> "Recipe":
        """Refuse what needs all rows of the training split."""
        data, train = self.data, self.train
        if not data.streaming:
            return self
        if train.max_steps is None and train.max_tokens is None:
            raise ValueError("data.streaming=true has no epochs: give --max-steps or --max-tokens")
        refused = {
            "--limit draws from all rows of train": data.limit is not None,
            "--unlabelled joins its texts to all rows of train": data.unlabelled is not None,
            "data.augment.by=masked-lm writes new texts of all rows first": data.augment.by == "masked-lm",
            "--select best and --patience hold out a slice of all rows": train.holds_out,
            "--multi-task divides the steps by the numbers of rows": self.multi_task.together,
            "teachers.by looks for the rows of each teacher first": self.teachers.by is not None,
            "a teacher behind an API is asked about all rows first": self.asks_server,
        }
        for reason, given in refused.items():
            if given:
                raise ValueError(f"data.streaming=true never holds all rows of train, and {reason}: leave one out")
        return self

    @model_validator(mode="after")
    def _check_grow(self) -> "Recipe":
        grow, first = self.align.grow, self.objective.align_first
        if first and grow > first:
            raise ValueError(f"align.grow={grow:g} is more than the steps that align layers, align_first={first:g}")
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> "Recipe":
        if not self.has_teacher and self.objective.needs_teacher:
            raise ValueError("there is no teacher: every weight but hard and masked_lm must be 0")
        return self

    @model_validator(mode="after")
    def _check_on_policy(self) -> "Recipe":
        if not self.on_policy.share:
            return self
        if not self.has_teacher:
            raise ValueError("--on-policy trains on what a teacher says of the student's texts: give --teacher")
        for task in self.data.task:
            if output_kind(task) != "tokens" and not is_missing(task):
                raise ValueError(f"--on-policy is for models that write texts: not for task {task!r}")
        ends = [*(after for after, _ in self.objective.stages[1:]), 1.0]
        for (_, stage), end in zip(self.objective.stages, ends, strict=True):
            if end <= self.on_policy.after:
                continue
            if stage.built.hard and not stage.built.alpha:
                part = " after objective.align_first" if self.objective.align_first else ""
                raise ValueError(
                    f"--on-policy has no labels, and alpha, the weight of the teacher's answers, is 0{part}: give "
                    f"--alpha a weight"
                )
        if self.teachers.combine == "confidence":
            raise ValueError(
                "teachers.combine=confidence weighs teachers by the tokens of the data, and --on-policy has others "
                "(accepted: mean, teachers.weights, teachers.by)"
            )
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> "Recipe":
        names, own = self.teacher_names, self.teachers
        if isinstance(self.teacher, str):
            if own != TeachersSettings():
                raise ValueError("the section teachers is for several teachers: give --teacher more than once")
            return self
        if len(names) < 2:
            raise ValueError("teacher is an empty list: name a model, or none")
        if NO_TEACHER in names:
            raise ValueError(
                f"--teacher {NO_TEACHER} is for a student without a teacher, and others are given: leave one out"
            )
        served = next((name for name in names if name.startswith(SERVED_PREFIX)), None)
        if served is not None:
            raise ValueError(
                f"teacher {served!r} is behind an API, whose likeliest tokens cannot be averaged with other teachers' "
                f"answers: give it alone, or the model's weights"
            )
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"teacher {twice!r} is named twice; to let it count for more, give teachers.weights")
        if own.weights and len(own.weights) != len(names):
            raise ValueError(
                f"teachers.weights has {len(own.weights)} weights for {len(names)} teachers ({', '.join(names)})"
            )
        if self.revision is not None:
            raise ValueError("--revision is for one teacher: give folders of several (hf download --revision)")
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> "Recipe":
        names = self.teacher_names
        numbers = [str(number + 1) for number in range(len(names))]
        for value, teacher in self.teachers.sources.items():
            if teacher not in (*names, *numbers):
                near = did_you_mean(teacher, names)
                raise ValueError(
                    f"teachers.sources: {value!r} names teacher {teacher!r}{near} (accepted: 1 to {len(names)}, or "
                    f"{', '.join(names)})"
                )
        return self

    @model_validator(mode="after")
    def _check_unlabelled(self) -> "Recipe":
        data = self.data
        if data.unlabelled is None and (data.unlabelled_limit is not None or data.unlabelled_share is not None):
            raise ValueError("data.unlabelled_limit and data.unlabelled_share need data.unlabelled: give that as well")
        if data.unlabelled is None and not data.augment.unlabelled:
            return self
        flag = "--unlabelled" if data.unlabelled is not None else "data.augment without keep_labels"
        if not self.has_teacher and not self.objective.built.masked_lm:
            raise ValueError(f"text without labels ({flag}) needs a teacher to learn from: give --teacher")
        if not self.objective.learns_without_labels:
            which = "the part after objective.align_first" if self.objective.align_first else "the objective"
            raise ValueError(
                f"{which} only learns from labels (hard), which text without labels ({flag}) does not have: give "
                f"--alpha a weight, or leave it out"
            )
        if data.unlabelled_share is not None and self.train.batch_tokens is not None:
            raise ValueError("data.unlabelled_share is a share of rows: use it with --batch-size, not --batch-tokens")
        return self

    @model_validator(mode="after")
    def _check_task_settings(self) -> "Recipe":
        tasks, own, together = self.data.task, self.multi_task, self.multi_task.together
        named = {"multi_task.tasks": [*own.tasks], "multi_task.body_from": [own.body_from]}
        for key, names in named.items() if len(tasks) > 1 else ():
            accepted = (*tasks, *([PRETRAINED] if key.endswith("body_from") else []))
            for name in names:
                if name not in accepted:
                    near = did_you_mean(name, accepted)
                    raise ValueError(f"{key} names {name!r}{near} (accepted: {', '.join(accepted)})")
        if not together and own.tasks and len(tasks) == 1:
            raise ValueError("multi_task.tasks is for several tasks: with one, give its keys, such as objective.beta")
        if not together and own != MultiTask(tasks=own.tasks):
            raise ValueError(
                "multi_task.sampling, temperature and body_from are for tasks that are trained together: give "
                "--multi-task"
            )
        return self

    @model_validator(mode="after")
    def _check_multi_task(self) -> "Recipe":
        if not self.multi_task.together:
            return self
        tasks, train = self.data.task, self.train
        for task in tasks:
            if output_kind(task) != "classes":
                raise ValueError(f"--multi-task is for tasks of classes or scores: not for task {task!r}")
        refused = {
            "--lora": train.lora is not None,
            "train.sharding": train.sharding != "none",
            "align.remap_every": self.align.remap_every is not None,
            "--select best": train.select == "best",
            "--patience": train.patience is not None,
            "--max-tokens": train.max_tokens is not None,
            "--batch-tokens": train.batch_tokens is not None,
            "--tokenizer train:SIZE": (self.tokenizer or "").startswith("train:"),
        }
        for flag, given in refused.items():
            if given:
                raise ValueError(f"--multi-task does not support {flag}: train the tasks one by one")
        return self

    @property
    def has_teacher(self) -> bool:
        """True unless the student is trained without a teacher."""
        return self.teacher != NO_TEACHER

    @property
    def has_served_teacher(self) -> bool:
        """True for a teacher behind an API, whose weights are not here."""
        return isinstance(self.teacher, str) and self.teacher.startswith(SERVED_PREFIX)

    @property
    def asks_server(self) -> bool:
        """True if a term compares with a teacher behind an API."""
        return self.has_served_teacher and self.objective.needs_teacher

    @property
    def loads_teacher(self) -> bool:
        """True if the teacher's weights are loaded."""
        return self.has_teacher and not self.has_served_teacher

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Names of the teachers; none without one."""
        if isinstance(self.teacher, str):
            return (self.teacher,) if self.has_teacher else ()
        return self.teacher

    @property
    def teacher_shares(self) -> tuple[float, ...]:
        """Weights of several teachers, in sum 1; empty for one teacher or none."""
        count = len(self.teacher_names)
        return self.teachers.shares or (1 / count,) * count if count > 1 else ()

    @property
    def uncached(self) -> str | None:
        """Reason for which no cache can keep what this run's teacher says; None if one may."""
        if self.on_policy.share:
            return "it trains on texts that the student has yet to write, which a cache cannot hold"
        softened = self.objective.built.alpha and "temperature" in self.objective.moving
        if softened and any(output_kind(task) == "tokens" for task in self.data.task):
            return "its temperature changes during training, and a cache keeps tokens at fixed ones"
        return self._unkeepable

    @property
    def _unkeepable(self) -> str | None:
        """The reason, as far as it is not one of the terms that compare."""
        if not self.has_teacher:
            return "--cache keeps a teacher's outputs, and there is no teacher"
        if self.has_served_teacher:
            return "a teacher behind an API is asked about each row once, and its answers are kept already"
        if len(self.teacher_names) > 1:
            return "--cache keeps the outputs of one teacher, and there are several"
        if self.data.augment.corrupts:
            by = self.data.augment.by
            return f"data.augment.by={by} changes rows in every epoch, so that no outputs can be kept"
        if self.align.remap_every is not None:
            return "align.remap_every measures the teacher's layers during training"
        if self.data.streaming:
            return "data.streaming=true reads rows that are not known before training"
        return None

    def with_changes(self, **changes: object) -> "Recipe":
        """Copy with top-level fields replaced, and validate again."""
        return Recipe.model_validate({**self.model_dump(), **changes})

    def flat(self) -> dict[str, object]:
        """All values by dotted key."""
        return _flat(type(self), self.model_dump(mode="json"))

    def dump(self) -> str:
        """Format as YAML with every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _task_names(data: Any) -> list[str]:
    """The names of tasks in a data section that is not validated yet."""
    tasks = data.get("task") if isinstance(data, Mapping) else None
    names = tasks.split(",") if isinstance(tasks, str) else tasks if isinstance(tasks, list | tuple) else ()
    return [name.strip() for name in names if isinstance(name, str)]


def _flat(section: type[BaseModel], tree: Mapping[str, Any], before: str = "") -> dict[str, object]:
    """Flatten a section's values to dotted keys."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        inner = section.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= _flat(inner, value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
