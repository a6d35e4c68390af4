"""The folders of a run: their names, who claims them, and whether an unfinished one may be resumed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdalign.data.tasks import AnyTask
from kdalign.errors import UsageError
from kdalign.files import check_links
from kdalign.models import checkpoint_files, student_spec
from kdalign.recipe import AUTO_CACHE, PRETRAINED, Recipe, load_recipe, missing_keys, recipe_of_task
from kdalign.recipe.task_defaults import SERVED_PREFIX
from kdalign.recipe.teachers import SERVED_LIMITS
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import read_checked
from kdalign.training.checkpoint import newest_sound


def split_by_task(recipe: Recipe) -> list[Recipe]:
    """One recipe per task; several get a folder each below ``out``.

    Raises:
        UsageError: a single task to be learned together, or keys of one task that are wrong.
    """
    tasks = recipe.data.task
    if len(tasks) == 1:
        others = [name for name in recipe.multi_task.tasks if name != tasks[0]]
        if recipe.multi_task.together and others:  # what a task's own folder holds
            raise UsageError(
                f"task {tasks[0]!r} is learned together with {', '.join(others)}: give the folder above this task's"
            )
        if recipe.multi_task.together:
            raise UsageError(f"--multi-task takes two tasks or more: given {tasks[0]!r} alone")
        return [recipe]
    parent = Path(recipe.out or f"runs/{default_name(recipe, None)}")
    starts = _starts(recipe)
    parts = []
    for task in tasks:
        cache = recipe.cache.model_dump()
        if cache["folder"] not in (None, AUTO_CACHE):
            cache["folder"] = str(Path(cache["folder"]) / _folder_name(task))
        out = str(parent / _folder_name(task))
        parts.append(recipe_of_task(recipe, task, out=out, init_from=starts[task], cache=cache))
    return parts


def _starts(recipe: Recipe) -> dict[str, str]:
    """Return the start of each task's student: layers of the fine-tuned teacher, or of the teacher before that.

    Several tasks in one student start from the teacher before that, unless the recipe names the task whose teacher is
    taken.
    """
    starts: dict[str, str] = dict.fromkeys(recipe.data.task, recipe.init_from)
    if not recipe.multi_task.together:
        return starts
    named = recipe.multi_task.body_from
    copies = student_spec.is_cut(recipe.student) and recipe.init != "random" and recipe.loads_teacher
    if copies and not checkpoint_files.find_checkpoint(recipe.teacher_names[0], recipe.revision).has_classifier:
        return {task: "fine-tuned" if task == named else PRETRAINED for task in starts}
    if named != PRETRAINED:
        raise UsageError(
            f"multi_task.body_from={named} is for a student that copies layers of a teacher that is fine-tuned first"
        )
    return starts


def _folder_name(task: str) -> str:
    """Turn a task's name or file into a folder's name."""
    return Path(task).stem if task.endswith((".yaml", ".yml")) else re.sub(r"[^\w.]+", "-", task)


def default_name(recipe: Recipe, task: AnyTask | None) -> str:
    """Name a run's folder by task, teacher, student and seed."""
    words = [task.name if task else "-".join(map(_folder_name, recipe.data.task))]
    words += ["together"] if recipe.multi_task.together else []
    words += [Path(name).name.removeprefix(SERVED_PREFIX) for name in recipe.teacher_names] or ["alone"]
    words += [Path(recipe.student).name.replace("=", ""), f"seed{recipe.train.seed}"]
    return "-".join(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in words)


def claim(
    folder: RunFolder,
    recipe: Recipe,
    resume: bool,
    overwrite: bool,
    inputs: Mapping[str, str] | None = None,
    parts: Sequence[RunFolder] = (),
) -> None:
    """Refuse a folder that is not empty, unless it holds a run to resume or to overwrite; nothing is changed yet.

    A run to resume must be as it was left: a finished one by its record, another by the hashes that it began with and
    those of its newest whole checkpoint.

    Args:
        folder: folder of the run, or of several.
        recipe: what is to be done there.
        resume: True to resume the run.
        overwrite: True to replace the run by the new one.
        inputs: fingerprints of what the run reads; None for a folder above several runs.
        parts: folders with the histories of its checkpoints, if its own holds none.

    Raises:
        UsageError: what the folder holds, and what can be done.
    """
    if not folder.started:
        return
    if overwrite:
        _check_inputs_stay(folder, recipe)
    if resume or overwrite:
        check_links(folder.path)
    if not folder.recipe.is_file():
        raise UsageError(f"{str(folder.path)!r} is not empty and holds no run; choose another --out")
    if resume:
        _check_resumable(folder, recipe, inputs or {}, parts)
    elif not overwrite:
        tasks = recipe.data.task
        runs = [folder] if len(tasks) == 1 else [RunFolder(folder.path / _folder_name(task)) for task in tasks]
        state = "a finished run" if all(run.complete for run in runs) else "an unfinished run"
        raise UsageError(f"{str(folder.path)!r} holds {state}: give --resume, --overwrite or another --out")


def _check_resumable(folder: RunFolder, recipe: Recipe, inputs: Mapping[str, str], parts: Sequence[RunFolder]) -> None:
    """Refuse to resume a run that was changed, or that has another recipe or other inputs."""
    if folder.complete:
        read_checked(folder.path)
    else:
        _check_unfinished(folder, parts)
    difference = _difference(load_recipe(folder.recipe), recipe)
    if difference:
        raise UsageError(f"{str(folder.path)!r} holds a run of another recipe ({difference}); give another --out")
    before = folder.read_inputs()
    for name, value in inputs.items():
        if before.get(name, value) != value:
            raise UsageError(
                f"{str(folder.path)!r} holds a run on another {name} ({before[name]} then, {value} now); "
                f"give --overwrite or another --out"
            )


def _check_inputs_stay(folder: RunFolder, recipe: Recipe) -> None:
    """Refuse to overwrite a folder that holds an input of the run.

    Raises:
        UsageError: the input.
    """
    data = recipe.data
    named = [
        *(("teacher", name) for name in recipe.teacher_names),
        *(("student", recipe.student), ("tokenizer", recipe.tokenizer)),
        *(
            ("data.folder", data.folder),
            ("data.unlabelled", data.unlabelled),
            ("data.augment.model", data.augment.model),
        ),
        *(("cache.folder", recipe.cache.folder), ("served.check_teacher", recipe.served.check_teacher)),
        *(("align.plan", recipe.align.plan), *(("data.task", task) for task in data.task)),
    ]
    for key, name in named:
        if name is not None and Path(name).expanduser().exists():
            if Path(name).expanduser().resolve().is_relative_to(folder.path.resolve()):
                raise UsageError(f"{key} {name!r} is in {str(folder.path)!r}, which --overwrite would remove first")


def _check_unfinished(folder: RunFolder, parts: Sequence[RunFolder]) -> None:
    """Refuse an unfinished run whose files were changed.

    Raises:
        UsageError: the file, and what can be done.
    """
    found = newest_sound(folder, parts)
    if folder.check_begun(found.progress.plan):
        return
    lacking = missing_keys(folder.recipe)  # an older version began it, and wrote no hashes
    if lacking:
        raise UsageError(
            f"run {str(folder.path)!r}: recipe.yaml lacks {lacking[0]!r}, which a run's own recipe has: put it back as "
            f"it was, or start again with --overwrite"
        )


_RESULT_STAYS = (
    "out", "allow", "cache.keep", "train.keep", "train.sharding", *(f"served.{key}" for key in SERVED_LIMITS)
)  # fmt: skip
"""Keys that may differ when a run is resumed."""


def _difference(saved: Recipe, given: Recipe) -> str:
    """Return the first key on which two recipes differ.

    The folder does not count, nor do limits of requests, what checks may find, a precision that is left to kdalign,
    what a cache keeps for other runs, or how ranks share a model.
    """
    ours, theirs = given.flat(), saved.flat()
    for key, value in ours.items():
        if key in _RESULT_STAYS or (key == "train.precision" and "auto" in (value, theirs[key])):
            continue
        if theirs[key] != value:
            return f"{key} is {theirs[key]} there, {value} here"
    return ""
