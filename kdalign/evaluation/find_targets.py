"""Find the targets that a request names: checkpoints, runs, served models; check them before any weights load."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdalign.data.media.rows import NOUNS
from kdalign.data.tasks import (
    AnyTask,
    ClassificationTask,
    DataSource,
    LanguageTask,
    find_task,
    load_examples,
    load_texts,
    task_of,
)
from kdalign.data.tasks.language import FAMILIES
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.job import UNWRITTEN, EvalJob, EvalSettings
from kdalign.evaluation.local_model import LocalTarget
from kdalign.evaluation.metric_names import is_text_metric
from kdalign.evaluation.request import DTYPES, EvalRequest
from kdalign.evaluation.served_model import ServedTarget
from kdalign.evaluation.target import Target, file_stem
from kdalign.models import checkpoint_files
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.media_reader import check_modality, check_served
from kdalign.recipe import DataSettings
from kdalign.recipe.task_defaults import task_defaults
from kdalign.runs.folder import RunFolder, find_runs
from kdalign.runs.integrity import check_weights, read_checked
from kdalign.runs.record import RECORD, read_record
from kdalign.served import OPENAI_URL, ApiModel, ServedSettings, is_served

EVALUATIONS = Path("runs/eval")
"""Default folder of scores."""


def newest_run(folder: Path) -> Path:
    """Return the newest finished run below a folder.

    Raises:
        UsageError: there is none.
    """
    runs = sorted(find_runs(folder), key=lambda run: (run / RECORD).stat().st_mtime)
    if not runs:
        raise UsageError(f"no model named, and no finished run below {str(folder)!r}")
    return runs[-1]


def find_targets(name: str, task: str | None, request: EvalRequest, several: bool) -> Sequence[Target]:
    """Find a checkpoint, a run, every run below a folder, or a served model.

    Args:
        name: path, name on the hub, or ``openai:NAME``.
        task: name of the task; None for a run's own.
        request: data and settings.
        several: other models are scored as well, so that what this one cannot do is a dash, not an error.

    Raises:
        UsageError: there is no such model or data, or they do not fit.
    """
    if is_served(name):
        return [_served_target(name, task, request)]
    if Path(name).is_dir():
        runs = list(find_runs(Path(name)))
        if runs:
            return [_run_target(run, task, request, several) for run in runs]
    if task is None:
        if (Path(name) / "recipe.yaml").is_file():
            read_record(Path(name))  # raises: unfinished, and how to resume
        if not Path(name).exists():
            raise UsageError(f"there is no {name!r} here; if it is a model on the hub, say what to score it on: --task")
        raise UsageError(f"{name!r} is not a finished run, so say what to score it on: --task")
    checkpoint = checkpoint_files.find_checkpoint(name, request.revision)
    defaults = task_defaults(task).get("data", {})
    data = DataSettings(task=(task,), folder=request.folder, dataset=request.dataset, config=request.config, **defaults)
    return [_local_target(name, checkpoint, data, request, several)]


def _served_target(name: str, task_name: str | None, request: EvalRequest) -> ServedTarget:
    """Open a model behind an API once, so that what it refuses is known before anything is scored."""
    if task_name is None:
        raise UsageError(f"say what to score {name!r} on: --task")
    if task_name.partition(":")[0] in UNWRITTEN:
        raise UsageError(f"a served model cannot be scored on task {task_name!r}")
    task = find_task(task_name, request.folder, request.dataset, request.config)
    check_served(name, task)
    split = request.split or task.evaluation[0]
    examples = load_examples(task, split) if isinstance(task, ClassificationTask) else load_texts(task, split)
    examples = examples.take(range(min(len(examples), request.limit or len(examples))))
    defaults = task_defaults(task_name).get("data", {})
    max_length = request.max_length or DataSettings(task=(task_name,), **defaults).max_length
    settings = ServedSettings(
        request.concurrency, max_requests=request.max_requests, max_tokens=request.max_tokens, chat=request.chat
    )
    url = request.base_url or OPENAI_URL
    folder = (Path(request.out).parent if request.out else EVALUATIONS) / "served" / file_stem(f"{name} {url}")
    ApiModel(name, url, folder, settings).close()
    return ServedTarget(name, name, url, EvalJob(task, examples, _settings(request, max_length)), folder, settings)


def _run_target(run: Path, task: str | None, request: EvalRequest, several: bool) -> LocalTarget:
    """Take a run's student, on its own task and data unless others are named."""
    record = read_checked(run)
    check_weights(run, record)
    recipe = record.parsed_recipe()
    data = recipe.data
    own = ((task, data.task[0]), (request.folder, data.folder), (request.dataset, data.dataset))
    if any(value not in (None, recorded) for value, recorded in own):
        names = (task,) if task else data.task
        has_data = task is not None and task.endswith((".yaml", ".yml")) and _names_data(task)
        source = request if has_data or request.folder is not None or request.dataset is not None else data
        held = {"streaming": data.streaming, "stream_rows": data.stream_rows} if source is data else {}
        data = DataSettings(task=names, folder=source.folder, dataset=source.dataset, config=source.config, **held)
    request = replace(request, max_length=request.max_length or recipe.data.max_length)
    checkpoint = checkpoint_files.find_checkpoint(str(run))
    return _local_target(str(run), checkpoint, data, request, several, RunFolder(run))


def _names_data(file: str) -> bool:
    """Return whether a task file names its data."""
    try:
        return find_task(file).source != DataSource()
    except UsageError:  # raised again where it is read with the data that was named
        return False


def _local_target(
    name: str,
    checkpoint: Checkpoint,
    data: DataSettings,
    request: EvalRequest,
    several: bool,
    run: RunFolder | None = None,
) -> LocalTarget:
    task = task_of(data)
    check_modality(checkpoint.name, checkpoint.config.model_type, task)
    if request.noise is not None and task.modality != "text":
        has = f"{NOUNS[task.modality]}s"
        raise UsageError(f"--noise changes letters, and task {task.name!r} has {has}: leave it out")
    max_length = request.max_length or data.max_length
    if request.max_length is None and layout_of(checkpoint.config).family == "dual":
        max_length = min(max_length, checkpoint_files.max_positions(checkpoint.config))
    if request.stride is not None and request.stride > max_length:
        raise UsageError(f"--stride {request.stride} is longer than the windows of {name!r}, --max-length {max_length}")
    adapter = _adapter(task, checkpoint, max_length, request, several)
    if adapter is not None and adapter.head in (HeadKind.NONE, head_of(checkpoint.config)):
        adapter.check(checkpoint)
    split = request.split or task.evaluation[0]
    if data.streaming and (split == task.train or request.shots):
        mend = "leave out --shots, which draws examples from it" if request.shots else "name another split"
        raise UsageError(f"run {name!r} reads split {task.train!r} as a stream, never as a whole: {mend}")
    if adapter is not None:
        examples = adapter.load_examples(split)
    else:
        assert isinstance(task, LanguageTask), "every model has an adapter for classes"
        examples = load_texts(task, split)
    job = EvalJob(task, examples, _settings(request, max_length))
    submitted = job.is_test_submission and checkpoint.has_classifier
    if request.limit is not None and submitted:
        raise UsageError(f"split {examples.split} is written as the leaderboard's file, whole: leave --limit out")
    limit = request.limit or (None if submitted else data.limit) or len(examples)
    job = replace(job, examples=examples.take(range(min(len(examples), limit))))
    checkpoint_files.check_length(checkpoint, max_length)
    return LocalTarget(name, checkpoint, job, adapter, run)


def _settings(request: EvalRequest, max_length: int) -> EvalSettings:
    return EvalSettings(
        GenerationSettings(request.beams, request.new_tokens, max_length=max_length),
        request.language or "",
        request.pseudo == "word-l2r",
        DTYPES[request.precision],
        request.shots,
        request.seed,
        request.max_length,
    )


def _adapter(
    task: AnyTask, checkpoint: Checkpoint, max_length: int, request: EvalRequest, several: bool
) -> TaskAdapter | None:
    """Return the task's adapter for the model's family; None if the model can only generate the task's texts."""
    family = layout_of(checkpoint.config).family
    if isinstance(task, LanguageTask) and family not in FAMILIES[task.kind]:
        generates = any(map(is_text_metric, request.metric_names or task.text_metrics))
        answers = family in ("masked", "permutation") if task.pairs else family == "seq2seq"
        if (generates and answers) or (several and task.kind not in UNWRITTEN):
            return None
    return adapter_for(task, family, max_length, checkpoint.name, stride=request.stride)
