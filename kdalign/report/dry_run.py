"""Dry runs: what a run or an ablation would do, and which presets there are."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from kdalign.recipe.task_defaults import NO_TEACHER
from kdalign.report.plan import plan_table
from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line
from kdalign.runs.ablation_spec import arms_without_cache

if TYPE_CHECKING:
    from kdalign.distillation.prepare import PreparedRun
    from kdalign.recipe import TrainSettings
    from kdalign.recipe.presets import Preset
    from kdalign.runs.ablation_spec import AblationSpec, Trial


def preparation_table(prepared: Sequence["PreparedRun"]) -> RenderableType:
    """Render what prepared runs would do."""
    parts: list[RenderableType] = _mixture(prepared) if prepared[0].recipe.multi_task.together else []
    for run in prepared:
        table = new_table(f"{run.task.name}: what would be done")
        table.add_column("")
        table.add_column("", overflow="fold")
        for name, value in _facts(run).items():
            table.add_row(plain_text(name), plain_text(value))
        parts += [table, *([plan_table(run.plan)] if run.plan is not None else [])]
    return Group(*parts)


def _mixture(prepared: Sequence["PreparedRun"]) -> list[RenderableType]:
    """The division of a multi-task student's steps among its tasks."""
    from kdalign.distillation.multitask import find_leaks, plan_mixture

    mixture, train = plan_mixture(prepared), prepared[0].recipe.train
    total = len(mixture.turns)
    table = new_table(f"one student, {len(prepared)} tasks: {total:,} steps of {train.batch_size} examples")
    table.add_column("task")
    for heading in ("training examples", "share", "steps", "epochs"):
        table.add_column(heading, justify="right")
    for name, steps in mixture.steps().items():
        size = mixture.examples[name]
        epochs = f"{steps * train.batch_size / size:.1f}"
        table.add_row(plain_text(name), f"{size:,}", f"{mixture.shares[name]:.1%}", f"{steps:,}", epochs)
    settings = prepared[0].recipe.multi_task
    by = f"{settings.sampling} {settings.temperature:g}" if settings.sampling == "temperature" else settings.sampling
    notes = [
        f"sampling: {by}; the body starts from: {settings.body_from}",
        *map("leak: {}".format, find_leaks(prepared)),
    ]
    return [table, *map(note_line, notes), Text("")]


def preparation_json(prepared: Sequence["PreparedRun"]) -> str:
    """Write what prepared runs would do as JSON: a list with an object per task, with its recipe and plan in full."""
    shared: dict[str, dict[str, float]] = {}
    if prepared[0].recipe.multi_task.together:
        from kdalign.distillation.multitask import plan_mixture

        mixture = plan_mixture(prepared)
        shared = {name: {"share": mixture.shares[name], "steps": steps} for name, steps in mixture.steps().items()}
    runs = [
        {
            "task": run.task.name,
            "teacher": {"name": run.teacher.name, "hash": run.teacher.hash} if run.teacher is not None else None,
            "served_teacher": _teacher(run) if run.recipe.has_served_teacher else None,
            "teachers": [{"name": each.name, "hash": each.hash} for each in run.teachers],
            "finetunes": run.finetunes,
            "cut_from": run.student.copied,
            "checks": [asdict(finding) for finding in run.findings],
            "data": str(run.task.source),
            "found": run.task.found or None,
            "examples": {
                "train": len(run.splits.train),
                **({"unlabelled": len(run.splits.unlabelled.examples)} if run.splits.unlabelled is not None else {}),
                "watched": len(run.splits.watched),
                **{split: len(examples) for split, examples in run.splits.reported.items()},
            },
            "out": str(run.folder.path),
            "recipe": run.recipe.model_dump(mode="json"),
            "plan": json.loads(run.plan.to_json()) if run.plan is not None else None,
            "multi_task": shared.get(run.task.name),
        }
        for run in prepared
    ]
    return json.dumps(runs, indent=2)


def presets_table(presets: Sequence["Preset"]) -> RenderableType:
    """Render presets with what they minimise and their tasks."""
    table = new_table()
    for heading in ("preset", "what it minimises", "tasks of"):
        table.add_column(heading, overflow="fold")
    for preset in presets:
        about = Text.assemble(preset.about, "\n", (preset.source, "dim"))
        table.add_row(plain_text(preset.name), about, ", ".join(preset.tasks))
    return Group(table, Text("· what a preset needs, and its recipe: kdalign recipe show PRESET", style="dim"))


def trials_table(ablation: "AblationSpec", trials: Sequence["Trial"]) -> RenderableType:
    """Render what an ablation would run, arm by arm."""
    arms, seeds = len(ablation.arms), len(ablation.seeds)
    title = plain_text(
        f"{len(trials)} run{'s' * (len(trials) > 1)}: {arms} arm{'s' * (arms > 1)}, {seeds} seed{'s' * (seeds > 1)} "
        f"({' '.join(map(str, ablation.seeds))}), {', '.join(ablation.tasks)}",
        style="bold",
    )
    table = new_table()
    table.add_column("arm")
    table.add_column("differs by", overflow="fold")
    for arm, changes in ablation.arms.items():
        shown = ", ".join(f"{key.removeprefix('objective.')} {value}" for key, value in changes.items())
        table.add_row(plain_text(arm), plain_text(shown or "nothing"))
    recipes = [trial.recipe for trial in trials]
    facts = [
        [f"{one.student} of {' and '.join(one.teacher_names) or NO_TEACHER}" for one in recipes],
        [_length(one.train) for one in recipes],
        [_batch(one.train) for one in recipes],
        [f"learning rate {one.train.lr:g}" for one in recipes],
    ]
    each = plain_text(f"· each: {', '.join(said[0] for said in facts if len(set(said)) == 1)}", style="dim")
    return Group(title, table, each, *(note_line(line) for line in arms_without_cache(trials)))


def _facts(run: "PreparedRun") -> dict[str, str]:
    from kdalign.distillation.checks import join_by_name
    from kdalign.distillation.prepare import teacher_role
    from kdalign.models.layer_selection import layers_text

    train, copied = run.recipe.train, run.student.copied
    facts = {
        **(
            {teacher_role(number): f"{each.name} [{each.hash}]" for number, each in enumerate(run.teachers)}
            or {"teacher": _teacher(run)}
        ),
        "fine-tuned first": "yes, it has no head for the task" if run.finetunes else "no",
        "student": run.recipe.student + (f" from layers {layers_text(copied)}" if copied is not None else ""),
        "size": _size(run),
        "data": str(run.task.source),
        "found": run.task.found,
        "training examples": f"{len(run.splits.train):,}" + " in the first segment" * run.recipe.data.streaming,
        "without labels": str(run.splits.unlabelled or ""),
        "augmented": str(run.recipe.data.augment) if run.recipe.data.augment.by != "none" else "",
        "watched": f"{len(run.splits.watched):,} {run.watched_word}",
        "reported": ", ".join(f"{split} ({len(e):,})" for split, e in run.splits.reported.items()),
        **_objective_facts(run),
        "cached outputs": _cached_outputs(run),
        "on-policy": str(run.recipe.on_policy) if run.recipe.on_policy.share else "",
        "frozen": ", ".join(train.freeze),
        "budget": "" if run.recipe.multi_task.together else _budget(train, run.an_epoch),
        "learning rate": f"{train.lr:g}, {train.scheduler}, warm-up {train.warmup:.0%}; seed {train.seed}",
        "profile": "FLOPs and latency of both models" if train.profile else "none (--no-profile)",
        "run folder": str(run.folder.path),
    }
    found = [(one.what, one.said + (" (allowed)" if one.allowed else "")) for one in run.findings]
    facts = join_by_name([*facts.items(), *found])
    if run.teacher is not None:
        facts["checked later"] = "by the run: the teacher against chance and the student, and whether rows are in order"
    return {name: value for name, value in facts.items() if value}


def _objective_facts(run: "PreparedRun") -> dict[str, str]:
    """The objective: initial weights, schedules, balancing, and how layers are weighted and introduced."""
    from kdalign.recipe.presets import DEFAULT
    from kdalign.recipe.schedules import percent

    recipe, objective, align = run.recipe, run.recipe.objective, run.recipe.align
    moving = objective.moving
    first = {key: moving[key].start if key in moving else each for key, each in objective.built.weights.items() if each}
    layers = ("" if align.weights == "uniform" else align.weights) if isinstance(align.weights, str) else align.weights
    grow = f"one more at a time, from the bottom, over the first {percent(align.grow)} of the steps"
    return {
        "preset": "" if recipe.preset in (None, DEFAULT) else recipe.preset,
        "weights": ", ".join(f"{key} {weight:g}" for key, weight in first.items()),
        "temperature": "" if "temperature" in moving or not objective.built.alpha else f"{objective.temperature:g}",
        "schedule": "; ".join(f"{key} {change}" for key, change in moving.items()),
        "parts": f"layers in the first {percent(objective.align_first)} of the steps, then answers"
        if objective.align_first
        else "",
        "balance": objective.balance if objective.balance != "static" else "",
        "layer weights": layers if isinstance(layers, str) else ", ".join(f"{weight:g}" for weight in layers),
        "layers aligned": grow if align.grow and objective.built.aligning else "",
    }


def _teacher(run: "PreparedRun") -> str:
    """Describe the questions about the training rows to a teacher behind an API; ``none`` without one."""
    if not run.recipe.has_served_teacher:
        return NO_TEACHER
    from kdalign.distillation.served_source import describe_questions

    return describe_questions(run)


def _cached_outputs(run: "PreparedRun") -> str:
    """Outputs of the teacher that a cache would keep, and its folder; empty without a cache."""
    if run.recipe.cache.folder is None:
        return ""
    from kdalign.distillation.teacher_cache import shareable_outputs

    words = ", ".join(shareable_outputs(run).words)
    measured = run.plan is not None and run.plan.choice
    layers = ", and of the layers that the map measures" if measured else ""
    return f"{words}{layers} ({run.recipe.cache.folder})"


def _size(run: "PreparedRun") -> str:
    """The student's size, if its vocabulary is known and it has a teacher, or several."""
    if run.plan is None or run.tokenizers.student is None:
        return ""
    ours, theirs = run.plan.student.parameters, run.plan.teacher.parameters
    whose = "its teachers' together" if len(run.teachers) > 1 else "the teacher's"
    return f"{ours / 1e6:.2f} M parameters, {100 * ours / theirs:.0f} % of {whose}"


def _budget(train: "TrainSettings", examples: int) -> str:
    step = f"{train.batch_size} examples" if train.batch_tokens is None else f"about {train.batch_tokens:,} tokens"
    if train.max_steps is not None:
        return f"{train.max_steps:,} steps of {step}"
    of = f" of {examples:,} examples" if train.max_tokens is None else ""
    return f"{_length(train)}{of}, {step} a step"


def _schedule(train: "TrainSettings") -> str:
    return f"{_length(train)}, {_batch(train)}"


def _batch(train: "TrainSettings") -> str:
    return f"batch {train.batch_size if train.batch_tokens is None else f'of about {train.batch_tokens:,} tokens'}"


def _length(train: "TrainSettings") -> str:
    if train.max_steps is not None:
        return f"{train.max_steps:,} step{'s' * (train.max_steps != 1)}"
    if train.max_tokens is not None:
        return f"{train.max_tokens:,} tokens"
    return f"{train.epochs:g} epoch{'s' * (train.epochs != 1)}"
