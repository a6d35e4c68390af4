"""Command-line flags of recipe keys: one table for options, their help, the inverse command and the reference page.

Imports nothing heavy, so that ``--help`` stays quick: a key's default and choices are looked up when help is shown.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from kdalign.errors import UsageError


@dataclass(frozen=True)
class Flag:
    """An option of the command line and the recipe key that it sets.

    Attributes:
        option: as typed, such as ``--max-steps``.
        key: dotted recipe key; None for the recipe file and for assignments, which are sources of their own.
        help: meaning, without choices and default: these come from the recipe's field.
        kind: type of a value; ``list`` for options that may be repeated, ``bool`` for switches.
        metavar: placeholder of the value in help; the type's name when left out.
        least: smallest number that is accepted.
        sets: value that a switch gives to its key.
        panel: heading in help; the general one when left out.
    """

    option: str
    key: str | None
    help: str
    kind: type = str
    metavar: str | None = None
    least: int | None = None
    sets: bool = True
    panel: str | None = None

    @property
    def name(self) -> str:
        """The option's name as a Python identifier."""
        return self.option.removeprefix("--").replace("-", "_")

    @property
    def has_inverse(self) -> bool:
        """True if a recipe's value of this key can be written as the option and one word."""
        return self.key is not None and self.kind in (str, int, float)

    @property
    def full_help(self) -> str:
        """Help with the choices and the default of the recipe's field."""
        parts = [self.help]
        if self.key is not None and self.kind in (str, int, float):
            parts += [_choices_text(self.key), _default_text(self.key)]
        return " ".join(part for part in parts if part)

    def value(self, given: Any) -> object:
        """The recipe key's value for an option's value; None if the option was not given.

        Raises:
            UsageError: a ``--term`` of another form than NAME=WEIGHT.
        """
        if given is None or given is False or given == []:
            return None
        if self.kind is bool:
            return self.sets
        if self.key == "objective.terms":
            return term_weights(given)
        if self.key == "teacher" and len(given) == 1:
            return given[0]
        return tuple(given) if self.kind is list else given


FLAGS = (
    Flag(
        "--teacher",
        "teacher",
        "Hub id or folder of the large model, openai:NAME (with --base-url), or none. Repeatable: several teachers, "
        "combined as teachers.combine, teachers.weights or teachers.by say.",
        list,
        "TEXT",
    ),
    Flag("--base-url", "served.base_url", "API of a teacher named openai:NAME.", metavar="URL"),
    Flag(
        "--student",
        "student",
        "layers=N or layers=half (layers of the teacher; layers=N,width=N also cuts its width, as do heads, kv_heads, "
        "feed_forward), hub id, folder, or new:TYPE,layers=N,width=N",
    ),
    Flag(
        "--tokenizer",
        "tokenizer",
        "Tokenizer of a student that is cut or new: hub id, folder, or train:SIZE to train one on the training "
        "text (train:chars: its characters, for CTC).",
    ),
    Flag(
        "--task",
        "data.task",
        "cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, a task file .yaml, classification, image-classification; "
        "for tokens lm, lm:sst2 (a task's sentences), lm:COLUMN, masked-lm, language-modeling, chat, translation:A-B, "
        "summarization:A-B, dialogue:A-B, transcription:A-B or speech-recognition:A-B (names of columns), multi30k, "
        "wmt14, wmt16, xsum, cnn_dailymail, samsum, dialogsum, aeslc, wikitext2; or embedding. Several with commas.",
    ),
    Flag("--multi-task", "multi_task.together", "Train one student for all tasks, with a head each.", bool),
    Flag(
        "--data",
        "data.folder",
        "Folder with <split>.parquet, .csv, .tsv or .jsonl, or folders of sounds or images.",
        metavar="DIR",
    ),
    Flag("--dataset", "data.dataset", "Data set on the hub, in place of the task's own.", metavar="HUB"),
    Flag("--config", "data.config", "Configuration of the hub data set."),
    Flag("--recipe", None, "Recipe in YAML; flags win over it.", Path, "FILE"),
    Flag("--set", None, "Any recipe key; wins over flags. Repeatable.", list, "KEY=VALUE"),
    Flag("--preset", "preset", "Published method to start from; see kdalign recipe show."),
    Flag("--plan", "align.plan", "Plan saved by map-layers, in place of --map.", metavar="FILE"),
    Flag(
        "--init",
        "init",
        "Teacher layers that a cut student starts from: uniform, first, last, skip, spread, '1 3 5', random.",
    ),
    Flag(
        "--map",
        "align.map",
        "Layer map, which teacher layer teaches which student layer: auto, uniform, first, last, skip, spread, top "
        "(last pair only), '0:1 1:3 2:5'; by similarity: cka, emd, or your module:function; learned: a weighted mean "
        "of all layers.",
    ),
    Flag("--hard", "objective.hard", "Weight of the labels' cross-entropy.", float),
    Flag("--alpha", "objective.alpha", "Weight of the teacher's soft targets.", float),
    Flag("--beta", "objective.beta", "Weight of the features' cosine distance.", float),
    Flag("--gamma", "objective.gamma", "Weight of the features' Euclidean distance.", float),
    Flag("--delta", "objective.delta", "Weight of the attention maps.", float),
    Flag("--temperature", "objective.temperature", "Temperature of both models' distributions.", float),
    Flag(
        "--term",
        "objective.terms",
        "A further term, built in (pkd, info-nce, ...; a wrong name lists all) or your own (own.py:Loss); repeatable.",
        list,
        "NAME=WEIGHT",
    ),
    Flag("--divergence", "objective.divergence", "Divergence between distributions over classes or tokens."),
    Flag(
        "--on-policy",
        "on_policy.share",
        "Share of the steps on the student's own continuations, scored by the teacher (GKD).",
        float,
        "SHARE",
    ),
    Flag("--epochs", "train.epochs", "Passes over the training split.", float),
    Flag("--max-steps", "train.max_steps", "Number of optimizer steps; wins over --epochs.", int),
    Flag("--max-tokens", "train.max_tokens", "Token budget, without padding; wins over --epochs.", int),
    Flag("--batch-size", "train.batch_size", "Examples per optimizer step, over all ranks.", int),
    Flag(
        "--batch-tokens",
        "train.batch_tokens",
        "Approximate tokens per optimizer step, without padding, in place of --batch-size.",
        int,
    ),
    Flag("--micro-batch", "train.micro_batch", "Examples per forward pass and rank.", int),
    Flag("--lr", "train.lr", "Peak learning rate.", float),
    Flag("--lora", "train.lora", "Train low-rank adapters, merged at the end (needs peft).", int, "RANK"),
    Flag("--weight-decay", "train.weight_decay", "Weight decay of AdamW.", float),
    Flag("--scheduler", "train.scheduler", "Shape of the learning rate after warm-up."),
    Flag("--warmup", "train.warmup", "Share of steps over which the learning rate rises.", float),
    Flag(
        "--max-length", "data.max_length", "Longest input in tokens; longer inputs are cut and counted.", int, least=8
    ),
    Flag(
        "--cache",
        "cache.folder",
        "Folder of the teacher's outputs, computed once and read by every epoch and run, or auto for one in kdalign's "
        "cache.",
        metavar="DIR",
    ),
    Flag("--precision", "train.precision", "Precision of training."),
    Flag("--device", "train.device", "auto, cpu, cuda or mps."),
    Flag("--seed", "train.seed", "Seed of initialization, data order and dropout.", int),
    Flag("--limit", "data.limit", "Use at most this many examples of each split.", int, least=1),
    Flag(
        "--unlabelled",
        "data.unlabelled",
        "Extra text without labels, learned from the teacher's answers: a folder (its train), a file (.txt: one text "
        "per line), or rest: the training rows that --limit leaves out.",
        metavar="DIR",
    ),
    Flag("--top-logprobs", "served.top_k", "Likeliest tokens asked of a served teacher at each position.", int),
    Flag("--max-requests", "served.max_requests", "Budget of requests to a served teacher.", int),
    Flag(
        "--check-teacher",
        "served.check_teacher",
        "Local checkpoint of the served teacher, to compare its numbers with before training.",
        metavar="DIR",
    ),
    Flag("--revision", "revision", "The teacher's revision on the hub."),
    Flag("--select", "train.select", "Student to export: of the last step, or the best on a held-out slice of train."),
    Flag("--eval-every", "train.eval_every", "Steps between evaluations on a slice of train.", int),
    Flag("--keep", "train.keep", "Checkpoints that are kept, the newest.", int),
    Flag("--patience", "train.patience", "Stop after this many evaluations without gain.", int),
    Flag("--tracker", "train.trackers", "Experiment tracker by name, such as tensorboard; repeatable.", list),
    Flag("--out", "out", "The run folder.", metavar="DIR"),
    Flag(
        "--allow",
        "allow",
        "Continue despite what a check found: memory, disk, file-size, special-tokens, no-end, weak-teacher, "
        "shifted-rows; or code: run code that recipes, task files and plans name (own terms, maps, metrics). "
        "Repeatable.",
        list,
        "WHAT",
    ),
    Flag(
        "--no-finetune-teacher",
        "finetune_teacher",
        "Refuse a teacher without a head for the task.",
        bool,
        sets=False,
    ),
    Flag("--no-profile", "train.profile", "Do not measure FLOPs and latency of both models.", bool, sets=False),
)
"""All flags, in the order of ``kdalign distill --help``."""

OPTION_OF = {flag.key: flag.option for flag in FLAGS if flag.key is not None}
"""For each recipe key with a flag, its option."""


def pick_flags(names: str, panel: str | None = None) -> tuple[Flag, ...]:
    """Pick flags by name, separated by spaces, in this order and under this heading of the help."""
    by_name = {flag.name: flag for flag in FLAGS}
    return tuple(replace(by_name[name], panel=panel) for name in names.split())


def term_weights(words: Iterable[str]) -> dict[str, float]:
    """Parse further terms written as NAME=WEIGHT, such as ``pkd=10`` or ``own.py:Loss=0.5``.

    Raises:
        UsageError: a word of another form, or a name given twice.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, _, text = word.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not name.strip() or not 0 <= weight < math.inf:
            raise UsageError(f"--term takes NAME=WEIGHT, a number that is not negative, such as pkd=10; given {word!r}")
        if name.strip() in weights:
            raise UsageError(f"--term {name.strip()!r} is given twice")
        weights[name.strip()] = weight
    return weights


def _choices_text(key: str) -> str:
    """Choices of a key, such as ``One of last, best.``; empty if it accepts other values."""
    from kdalign.recipe.presets import preset_names
    from kdalign.recipe.recipe import Recipe

    fields, *names = Recipe.model_fields, *key.split(".")
    for section in names[:-1]:
        fields = fields[section].annotation.model_fields  # type: ignore[union-attr]
    annotation = fields[names[-1]].annotation
    words = preset_names() if key == "preset" else get_args(annotation) if get_origin(annotation) is Literal else ()
    return f"One of {', '.join(words)}." if words else ""


def _default_text(key: str) -> str:
    """Default of a key, such as ``Default 0.3; for embeddings 0.``; empty if there is none."""
    general = _defaults()[""][key]
    if general is None or key in _REQUIRED:
        return ""
    kinds: dict[str, list[str]] = {}
    for kind, defaults in _defaults().items():
        if defaults[key] != general:
            kinds.setdefault(as_word(defaults[key]), []).append(kind)
    others = [f"{' and '.join(names)} {word}" for word, names in kinds.items()]
    return f"Default {'; '.join([as_word(general), *others])}."


def as_word(value: object) -> str:
    """Format a value as typed after its option: 3 for 3.0, names with commas."""
    if isinstance(value, list):
        return ",".join(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_REQUIRED = ("teacher", "data.task")


@cache
def _defaults() -> dict[str, dict[str, object]]:
    """For each kind of recipe, every key's default; classification first."""
    from kdalign.recipe.presets import DEFAULT
    from kdalign.recipe.recipe import Recipe
    from kdalign.recipe.task_defaults import EMBEDDING_TASK, NO_TEACHER

    starts = {
        "": ("teacher", "classification"),
        "for tokens": ("teacher", "lm"),
        "for embeddings": ("teacher", EMBEDDING_TASK),
        "without a teacher": (NO_TEACHER, "classification"),
    }
    trees = {kind: {"teacher": teacher, "data": {"task": task}} for kind, (teacher, task) in starts.items()}
    return {kind: Recipe.model_validate(tree).flat() | {"preset": DEFAULT} for kind, tree in trees.items()}
