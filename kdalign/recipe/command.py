"""The command that makes a run again: its recipe as flags, what is no flag as ``--set``, defaults left out."""

import json
import shlex
from pathlib import Path

from kdalign.recipe import Recipe

FLAGS = {
    "preset": "--preset",
    "teacher": "--teacher",
    "student": "--student",
    "tokenizer": "--tokenizer",
    "revision": "--revision",
    "init": "--init",
    "data.task": "--task",
    "data.folder": "--data",
    "data.dataset": "--dataset",
    "data.config": "--config",
    "data.max_length": "--max-length",
    "data.limit": "--limit",
    "data.unlabelled": "--unlabelled",
    "align.map": "--map",
    "align.plan": "--plan",
    "objective.hard": "--hard",
    "objective.alpha": "--alpha",
    "objective.beta": "--beta",
    "objective.gamma": "--gamma",
    "objective.delta": "--delta",
    "objective.temperature": "--temperature",
    "objective.divergence": "--divergence",
    "train.epochs": "--epochs",
    "train.max_steps": "--max-steps",
    "train.max_tokens": "--max-tokens",
    "train.batch_size": "--batch-size",
    "train.batch_tokens": "--batch-tokens",
    "train.micro_batch": "--micro-batch",
    "train.lr": "--lr",
    "train.lora": "--lora",
    "train.weight_decay": "--weight-decay",
    "train.scheduler": "--scheduler",
    "train.warmup": "--warmup",
    "train.precision": "--precision",
    "train.device": "--device",
    "train.seed": "--seed",
    "train.select": "--select",
    "train.eval_every": "--eval-every",
    "train.patience": "--patience",
    "out": "--out",
}
"""Recipe keys that ``kdalign distill`` has a flag for."""
_ALWAYS = ("teacher", "student", "data.task")


def distill_command(recipe: Recipe) -> str:
    """The ``kdalign distill`` that gives this recipe; only what is not the default is in it, quoted for a shell."""
    if recipe.multi_task.together and len(recipe.data.task) == 1 and recipe.out:  # one task of several in one student
        return shlex.join(["kdalign", "distill", "--recipe", str(Path(recipe.out).parent / "recipe.yaml")])
    start = {"preset": recipe.preset, "teacher": recipe.teacher, "data": {"task": recipe.data.task}}
    plain = Recipe.model_validate(start).flat() | {"preset": None}
    words = ["kdalign", "distill"]
    for key, value in recipe.flat().items():
        if key not in _ALWAYS and value == plain[key]:
            continue
        if key in FLAGS and value is not None and not (key == "train.batch_size" and recipe.train.batch_tokens):
            words += [FLAGS[key], _as_word(value)]
        else:
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _as_word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
