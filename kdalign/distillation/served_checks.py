"""Refuse recipes that a teacher behind an API cannot serve, before anything is sent."""

from kdalign.data.tasks import AnyTask, LanguageTask
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.models import student_spec
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.media_reader import check_served
from kdalign.models.student_source import StudentSource
from kdalign.objective.objective import Objective
from kdalign.recipe import ANSWER_TERMS, Recipe
from kdalign.recipe.terms import ALIGNING_KEYS
from kdalign.served import ServedSettings
from kdalign.served.prompt_reader import PromptReader, answers_file
from kdalign.teachers.served import served_refusal


def check_served_teacher(recipe: Recipe, task: AnyTask) -> None:
    """Refuse tasks and options that no served teacher can serve; nothing is sent.

    Raises:
        UsageError: the setting, and what is accepted.
    """
    name, student = recipe.teacher_names[0], recipe.student
    check_served(name, task)
    if not isinstance(task, LanguageTask) or task.scored is not None:
        raise UsageError(
            f"teacher {name!r} gives distributions over tokens alone, so it cannot teach task {task.name!r} (accepted: "
            "lm, chat and other tasks of tokens, or a checkpoint as --teacher)"
        )
    if student_spec.is_cut(student):
        raise UsageError(
            f"--student {student!r} is cut out of the teacher's weights, which a server does not give: give a "
            "checkpoint (hub id or folder), or new:TYPE,layers=N,width=N with --tokenizer"
        )
    if recipe.served.base_url is None:
        raise UsageError(f"teacher {name!r} is behind an API: give its address, --base-url http://HOST:PORT/v1")
    if recipe.cache.folder is not None:
        raise UsageError(f"--cache is for a teacher whose weights are here: what {name!r} says is kept anyway")
    if recipe.revision is not None:
        raise UsageError(f"--revision is for a teacher on the hub, and {name!r} is behind an API")
    weights = recipe.objective.built
    aligning = [key for key in ALIGNING_KEYS if getattr(weights, key) > 0]
    aligning += [f"terms.{name}" for name in weights.further if name not in ANSWER_TERMS]
    if aligning:
        raise UsageError(
            f"objective.{aligning[0]} compares layers, and a server shows none of them: give it the weight 0, or the "
            "model's weights (--teacher DIR)"
        )
    if recipe.served.check_teacher is not None:
        find_checkpoint(recipe.served.check_teacher)
    open_reader(recipe).close()


def check_served_terms(recipe: Recipe, objective: Objective, student: StudentSource) -> None:
    """Refuse a student that reads otherwise, and terms that ask for more than tokens at temperature 1.

    Raises:
        UsageError: the student or the term, and what is accepted.
    """
    if student.family != "causal":
        raise UsageError(
            f"a served teacher reads from left to right, so its student is a causal model; {student.name!r} is a "
            f"{student.family} one: `kdalign generate --teacher {recipe.teacher_names[0]}` writes texts that it can "
            f"learn from"
        )
    for request in objective.requests(()):
        refusal = served_refusal(request)
        if refusal is not None:
            raise UsageError(f"term {request.term!r} {refusal}")
    if "temperature" in objective.moving:
        raise UsageError(
            "a schedule of the temperature needs the teacher's weights: a server gives temperature 1 alone"
        )


def open_reader(recipe: Recipe) -> PromptReader:
    """Open the recipe's served teacher; nothing is sent."""
    served = recipe.served
    assert served.base_url is not None, "checked: a served teacher has an address"
    settings = ServedSettings(
        served.concurrency, served.timeout, served.retries, served.max_requests, served.max_tokens
    )
    name = recipe.teacher_names[0]
    file = answers_file(cache_folder() / "served", name, served.base_url)
    return PromptReader(name, served.base_url, file, served.top_k, settings)
