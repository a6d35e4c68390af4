"""Score models on splits, whatever their family, and keep what they answered."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import torch

from kdalign.data.noise import TextNoise
from kdalign.data.tasks import (
    AnyTask,
    ClassificationTask,
    DataSource,
    LanguageTask,
    find_task,
    load_examples,
    load_texts,
)
from kdalign.data.tasks.language import FAMILIES
from kdalign.devices import make_accelerator
from kdalign.errors import KdalignError, NotFinite, RunError, UsageError, shorten, unknown
from kdalign.evaluation.adapters import adapter_for
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.evaluation.baselines import Baseline
from kdalign.evaluation.generation import GenerationSettings
from kdalign.evaluation.job import UNWRITTEN, EvalJob, EvalSettings, OutputPaths, is_text_metric
from kdalign.evaluation.likelihood import PERPLEXITIES
from kdalign.evaluation.local_model import LocalTarget
from kdalign.evaluation.result import EvaluationResult
from kdalign.evaluation.served_model import ServedTarget
from kdalign.evaluation.target import AGREEMENT, MASKED, Target
from kdalign.files import check_file, write_json
from kdalign.metrics.classification import GROUPS, METRICS, expand_groups
from kdalign.metrics.languages import language_code
from kdalign.metrics.text import TEXT_METRICS, check_words
from kdalign.models import checkpoint_files
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind, head_of
from kdalign.observer import NullObserver, Observer
from kdalign.recipe import LONGEST_INPUT, MOST_ROWS, MOST_TOKENS, DataSettings, task_defaults
from kdalign.registry import check_trusted
from kdalign.runs.discovery import check_replaced
from kdalign.runs.folder import RunFolder, find_runs
from kdalign.runs.integrity import check_weights, read_checked
from kdalign.runs.locks import exclusive
from kdalign.runs.record import RECORD, read_record
from kdalign.served import OPENAI_URL, ApiModel, is_served
from kdalign.served import ServedSettings as ServerSettings

BASELINES = ("copy", "unigram")
EVALUATIONS = Path("runs/eval")
"""Where scores go, if nobody says."""


@dataclass(frozen=True)
class EvalRequest:
    """What to score on and how, as far as the user said; a run fills in the rest from its recipe.

    Attributes:
        task: one or several.
        stride: positions between windows; none overlap where left out.
        pseudo: how a masked model's pseudo-likelihood masks, ``word-l2r`` or ``token``.
        beams: of texts that are written; 1 is greedy.
        new_tokens: at most so many where a model ends its text itself.
        language: of texts, a code such as ``de``; the task's, or words are told apart by Unicode's rules.
        precision: of local models, ``fp32`` or ``bf16``.
        shots: solved examples before each question to a model that answers classes in words.
        seed: of what is drawn, such as those examples.
        base_url: of the API of served models, ``openai:NAME``; OpenAI's where left out.
        chat: whether a served model is asked by chat even where it completes raw text.
        concurrency: requests to a server under way at once.
        max_requests: to pay for; None for any number.
        max_tokens: of a served model's prompts and answers to pay for; None for any number.
        baselines: whether texts are scored beside what needs no model.
        noise: of what is read, for columns of their own beside the others.
        several: whether others are scored beside, so that what a model cannot do is a dash, not an error.
    """

    task: str | Sequence[str] | None = None
    folder: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    metrics: tuple[str, ...] | None = None
    max_length: int | None = None
    limit: int | None = None
    revision: str | None = None
    device: str = "auto"
    out: str | None = None
    stride: int | None = None
    pseudo: str = "word-l2r"
    beams: int = 1
    new_tokens: int = 256
    language: str | None = None
    precision: str = "fp32"
    shots: int = 0
    seed: int = 0
    base_url: str | None = None
    chat: bool = False
    concurrency: int = 4
    max_requests: int | None = None
    max_tokens: int | None = None
    baselines: bool = True
    noise: TextNoise | None = None
    several: bool = False

    @property
    def tasks(self) -> tuple[str | None, ...]:
        """The tasks by name; None for a run's own."""
        if self.task is None:
            return (None,)
        return (self.task,) if isinstance(self.task, str) else tuple(self.task)

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The metrics, with what each group stands for."""
        if self.metrics is None:
            return None
        return expand_groups(self.metrics)


def evaluate(
    targets: Sequence[str], asked: EvalRequest = EvalRequest(), observer: Observer | None = None
) -> list[EvaluationResult]:
    """Score models on splits; predictions, texts and scores are kept in files.

    Args:
        targets: checkpoints, runs, or folders of runs; the newest run below ``runs`` where none is named.
        asked: on what.
        observer: who watches.

    Raises:
        UsageError: a target or split that is not there, or a head for other labels.
    """
    observer = observer or NullObserver()
    if not targets:
        targets = [str(_newest_run(Path("runs")))]
        observer.announce(f"no model named: scoring the newest run, {targets[0]}")
    _check(asked)
    if asked.language is not None:
        asked = replace(asked, language=language_code(asked.language))
        check_words(asked.wanted or (), asked.language or "")
    checked: list[Target] = []
    several = len(targets) > 1
    for task in asked.tasks:
        on_task = replace(asked, task=task, several=several)
        for name in targets:
            checked += [_served_target(name, on_task)] if is_served(name) else _targets(name, on_task)
    _check_used(checked, asked)
    for target in checked:
        for name in asked.wanted or target.default_metrics:
            check_trusted(name, f"{target.name!r}: metric")
        check_words(asked.wanted or target.default_metrics, target.job.language)
        if isinstance(target, LocalTarget):
            target.check(asked.wanted)
    out = Path(asked.out) if asked.out else _default_out(checked, asked)
    if out.suffix != ".json":
        raise UsageError(f"--out {str(out)!r}: the scores are written as JSON, give a name that ends in .json")
    check_file(out)
    check_replaced(out)
    device = make_accelerator(asked.device).device
    of = _of(checked, asked)
    checked = _with_baselines(checked, asked) if asked.baselines else checked
    with exclusive(out.parent, f".{out.name}.lock") as note:  # no other process writes these scores
        if note:
            observer.announce(note)
        return _score_all(checked, asked, out, of, device, observer)


def _score_all(
    checked: Sequence[Target],
    asked: EvalRequest,
    out: Path,
    of: dict[str, object],
    device: torch.device,
    observer: Observer,
) -> list[EvaluationResult]:
    """Score one target after the other, keeping what is measured so far."""
    results: list[EvaluationResult] = []
    # What is measured of some models is kept when another fails; an earlier whole evaluation is not written over by it.
    partial = out.with_suffix(".partial.json")
    for target, word in zip(checked, _words(checked), strict=True):
        if not isinstance(target, Baseline):
            observer.announce(f"scoring {target.name} on {target.job.task.name}, {target.job.examples.split}")
        try:
            results.append(_evaluate_one(target, asked, OutputPaths(out.with_suffix(""), word), device, observer))
        except (KdalignError, KeyboardInterrupt):
            if partial.is_file():
                observer.announce(f"scores so far: {partial}")
            raise
        if _any(results) and target is not checked[-1]:
            write_json(partial, {"kind": "evaluation", "results": [one.to_json() for one in results]})
    if _any(results):
        tree = {"kind": "evaluation", "of": of, "results": [one.to_json() for one in results]}
        write_json(out, tree)
        observer.announce(f"scores and predictions: {out}, {out.with_suffix('')}/")
    partial.unlink(missing_ok=True)
    return results


def _any(results: Sequence[EvaluationResult]) -> bool:
    return any(result.scores or result.submission for result in results)


_MOST = {
    **{"max_length": LONGEST_INPUT, "stride": LONGEST_INPUT, "new_tokens": LONGEST_INPUT, "limit": MOST_ROWS},
    **{"beams": 1_000, "shots": 1_000, "concurrency": 1_000, "seed": 2**31 - 1},
    **{"max_requests": MOST_ROWS, "max_tokens": MOST_TOKENS},
}
"""The largest number that is accepted."""


def _check(asked: EvalRequest) -> None:
    for flag, most in _MOST.items():
        given = getattr(asked, flag)
        if given is not None and given > most:
            shown = shorten(str(given), 40)
            raise UsageError(f"--{flag.replace('_', '-')} {shown} is more than can be meant (accepted: up to {most:,})")
    if asked.metrics is not None and not asked.metrics:
        raise UsageError("--metrics names no metric")
    known = tuple(dict.fromkeys((*METRICS, AGREEMENT, *PERPLEXITIES, MASKED, *TEXT_METRICS, *GROUPS)))
    for name in asked.metrics or ():
        if name not in known and ":" not in name:
            raise unknown("metric", name, known)
    if asked.precision not in DTYPES:
        raise unknown("precision", asked.precision, DTYPES)
    if asked.pseudo not in ("word-l2r", "token"):
        raise unknown("pseudo-likelihood", asked.pseudo, ("word-l2r", "token"))


def _check_used(targets: Sequence[Target], asked: EvalRequest) -> None:
    """Refuse what would be passed over without a word for every model: a stride, solved examples, a server's flags."""
    local = [target for target in targets if isinstance(target, LocalTarget)]
    if asked.stride is not None and not any(
        target.family in ("causal", "permutation")
        and isinstance(target.job.task, LanguageTask)
        and not target.job.task.pairs
        for target in local
    ):
        raise UsageError("--stride is for texts that are scored from left to right, by causal models and XLNet")
    of_servers = {
        **{"--base-url": asked.base_url is not None, "--chat": asked.chat},
        **{"--max-requests": asked.max_requests is not None, "--max-tokens": asked.max_tokens is not None},
    }
    for flag, given in of_servers.items():
        if given and not any(isinstance(target, ServedTarget) for target in targets):
            raise UsageError(f"{flag} is for served models (openai:NAME), and none is named")
    if asked.language is not None and all(isinstance(target.job.task, ClassificationTask) for target in targets):
        raise UsageError("--language is for texts that are written and compared; these tasks are of classes and scores")
    served = any(
        isinstance(target, ServedTarget) and isinstance(target.job.task, ClassificationTask) for target in targets
    )
    if asked.shots and not served and not any(target.prompted for target in local):
        raise UsageError("--shots is for causal and served models on classes; these answer by a head, or write texts")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _evaluate_one(
    target: Target, asked: EvalRequest, place: OutputPaths, device: torch.device, observer: Observer
) -> EvaluationResult:
    reasons = {name: target.unsupported(name) for name in asked.wanted or target.default_metrics}
    possible = [name for name, absent in reasons.items() if absent is None]
    try:
        result = target.measure(possible, place, device, observer)
    except NotFinite as error:
        raise RunError(f"model {target.name!r} gives NaN: {error}; it has no score") from None
    absent = [one for one in reasons.values() if one is not None]
    if asked.noise is not None:
        result = _with_noise(result, target, asked.noise, possible, place, device, observer)
    if isinstance(target, Baseline):
        absent = []
    return replace(result, absent=(*absent, *result.absent))


def _with_noise(
    result: EvaluationResult,
    target: Target,
    noise: TextNoise,
    metrics: Sequence[str],
    place: OutputPaths,
    device: torch.device,
    observer: Observer,
) -> EvaluationResult:
    """The result with the scores of what is answered to noise, as metrics of their own."""
    answered = [name for name in metrics if name not in (AGREEMENT, MASKED, *PERPLEXITIES)]
    if not answered:
        return result
    noisy = replace(target, job=target.job.with_noise(noise))  # type: ignore[type-var]  # every target is a dataclass
    found = noisy.measure(answered, place, device, observer)
    scores = [replace(score, metric=f"{score.metric} {noise}") for score in found.scores]
    note = f"{noise}: {100 * noise.rate:g} % of the words that are read have a mistake each (seed {noise.seed})"
    return replace(result, scores=(*result.scores, *scores), notes=(*result.notes, note))


def _with_baselines(targets: Sequence[Target], asked: EvalRequest) -> list[Target]:
    """The targets with the baselines after the last one of each split whose texts are scored."""
    found: list[Target] = []
    keys = [_split_of(target) for target in targets]
    for number, (target, key) in enumerate(zip(targets, keys, strict=True)):
        found.append(target)
        if key in keys[number + 1 :]:
            continue
        here = [one for one, other in zip(targets, keys, strict=True) if other == key]
        wanted = {
            name: None
            for one in here
            for name in asked.wanted or one.default_metrics
            if not isinstance(one.job.task, ClassificationTask) and one.unsupported(name) is None
        }
        if any(is_text_metric(name) for name in wanted):
            found += [Baseline(name, target.job, tuple(wanted)) for name in BASELINES]
    return found


def _split_of(target: Target) -> tuple[str, str, str]:
    return target.job.task.name, target.job.examples.split, target.job.examples.fingerprint()


def _targets(name: str, asked: EvalRequest) -> list[LocalTarget]:
    """A checkpoint, a run, or every run below a folder."""
    if Path(name).is_dir():
        runs = list(find_runs(Path(name)))
        if runs:
            return [_run_target(run, asked) for run in runs]
    (task,) = asked.tasks
    if task is None:
        if (Path(name) / "recipe.yaml").is_file():
            read_record(Path(name))  # raises: unfinished, and how to go on
        if not Path(name).exists():
            raise UsageError(f"there is no {name!r} here; if it is a model on the hub, say what to score it on: --task")
        raise UsageError(f"{name!r} is no finished run, so say what to score it on: --task")
    checkpoint = checkpoint_files.find_checkpoint(name, asked.revision)
    start = task_defaults(task).get("data", {})
    data = DataSettings(task=(task,), folder=asked.folder, dataset=asked.dataset, config=asked.config, **start)
    return [_checked(name, checkpoint, data, asked, None)]


def _served_target(name: str, asked: EvalRequest) -> ServedTarget:
    """A model behind an API."""
    (task_name,) = asked.tasks
    if task_name is None:
        raise UsageError(f"say what to score {name!r} on: --task")
    if task_name.partition(":")[0] in UNWRITTEN:
        raise UsageError(f"a served model is not asked for task {task_name!r}")
    task = find_task(task_name, asked.folder, asked.dataset, asked.config)
    split = asked.split or task.evaluation[0]
    if isinstance(task, ClassificationTask):
        examples = load_examples(task, split)
    else:
        examples = load_texts(task, split)
    examples = examples.take(range(min(len(examples), asked.limit or len(examples))))
    start = task_defaults(task_name).get("data", {})
    job = EvalJob(
        task, examples, _settings(asked, asked.max_length or DataSettings(task=(task_name,), **start).max_length)
    )
    api = ServerSettings(
        asked.concurrency, max_requests=asked.max_requests, max_tokens=asked.max_tokens, chat=asked.chat
    )
    url = asked.base_url or OPENAI_URL
    folder = (Path(asked.out).parent if asked.out else EVALUATIONS) / "served" / _word(f"{name} {url}")
    target = ServedTarget(name, url, job, folder, api)
    ApiModel(name, url, folder, api).close()  # refuses what cannot be before anything else is scored
    return target


def _run_target(run: Path, asked: EvalRequest) -> LocalTarget:
    """A run's student, on its own task and data unless others are named."""
    record = read_checked(run)
    check_weights(run, record)
    recipe = record.parsed_recipe()
    data, (task,) = recipe.data, asked.tasks
    given = ((task, data.task[0]), (asked.folder, data.folder), (asked.dataset, data.dataset))
    if any(value not in (None, own) for value, own in given):
        names = (task,) if task else data.task
        brings = task is not None and task.endswith((".yaml", ".yml")) and _names_data(task)
        elsewhere = asked if brings or asked.folder is not None or asked.dataset is not None else data
        data = DataSettings(task=names, folder=elsewhere.folder, dataset=elsewhere.dataset, config=elsewhere.config)
    return _checked(
        str(run),
        checkpoint_files.find_checkpoint(str(run)),
        data,
        replace(asked, max_length=asked.max_length or recipe.data.max_length),
        RunFolder(run),
    )


def _names_data(file: str) -> bool:
    """Whether a task file says where its data lies."""
    try:
        return find_task(file).source != DataSource()
    except UsageError:  # said where it is read again, with the data that was named
        return False


def _checked(
    name: str, checkpoint: Checkpoint, data: DataSettings, asked: EvalRequest, run: RunFolder | None
) -> LocalTarget:
    task = find_task(data.task[0], data.folder, data.dataset, data.config)
    max_length = asked.max_length or data.max_length
    if asked.stride is not None and asked.stride > max_length:
        raise UsageError(f"--stride {asked.stride} is longer than the windows of {name!r}, --max-length {max_length}")
    adapter = _work(task, checkpoint, max_length, asked)
    has_head = adapter is not None and adapter.head in (HeadKind.NONE, head_of(checkpoint.config))
    if adapter is not None and has_head:
        adapter.check(checkpoint)
    split = asked.split or task.evaluation[0]
    if adapter is not None:
        examples = adapter.load_examples(split)
    else:
        assert isinstance(task, LanguageTask), "every model has an adapter for classes"
        examples = load_texts(task, split)
    submits = isinstance(task, ClassificationTask) and bool(task.submission) and checkpoint.has_classifier
    submitted = submits and examples.split in task.test
    if asked.limit is not None and submitted:
        raise UsageError(f"split {examples.split} is written as the leaderboard's file, whole: leave --limit out")
    limit = asked.limit or (None if submitted else data.limit) or len(examples)
    examples = examples.take(range(min(len(examples), limit)))
    checkpoint_files.check_length(checkpoint, max_length)
    return LocalTarget(name, checkpoint, EvalJob(task, examples, _settings(asked, max_length)), adapter, run)


def _settings(asked: EvalRequest, max_length: int) -> EvalSettings:
    return EvalSettings(
        GenerationSettings(asked.beams, asked.new_tokens, max_length=max_length),
        asked.language or "",
        asked.pseudo == "word-l2r",
        DTYPES[asked.precision],
        asked.shots,
        asked.seed,
        asked.max_length,
    )


def _work(task: AnyTask, checkpoint: Checkpoint, max_length: int, asked: EvalRequest) -> TaskAdapter | None:
    """The task as the model's family does it; None where it is only asked to write texts, which more families can."""
    family = layout_of(checkpoint.config).family
    written = isinstance(task, LanguageTask) and any(map(is_text_metric, asked.wanted or task.text_metrics))
    unusual = ("seq2seq",) if isinstance(task, LanguageTask) and not task.pairs else ("causal",)
    if isinstance(task, LanguageTask) and family not in FAMILIES[task.kind]:
        if (written and family in unusual) or (asked.several and task.kind not in UNWRITTEN):
            return None
    return adapter_for(task, family, max_length, checkpoint.name, stride=asked.stride)


def _newest_run(folder: Path) -> Path:
    runs = sorted(find_runs(folder), key=lambda run: (run / RECORD).stat().st_mtime)
    if not runs:
        raise UsageError(f"no model named, and no finished run below {str(folder)!r}")
    return runs[-1]


def _default_out(targets: Sequence[Target], asked: EvalRequest) -> Path:
    """A name of its own for each set of models, data and settings: another's scores are never written over."""
    target = targets[0]
    stem = f"{EVALUATIONS}/{_word(target.name)}-{target.job.task.name}-{target.job.examples.split}"
    files = (Path(f"{stem}-{number}.json" if number > 1 else f"{stem}.json") for number in count(1))
    return next(file for file in files if not file.exists() or _holds(file, _of(targets, asked)))


def _of(targets: Sequence[Target], asked: EvalRequest) -> dict[str, object]:
    """What tells one evaluation from another: models, texts, and how they are read and scored."""
    settings = {name: value for name, value in asdict(asked).items() if name not in _ELSEWHERE}
    return {
        "targets": [[one.name, *_split_of(one), one.job.settings.writing.max_length] for one in targets],
        **settings,
        "metrics": list(asked.metrics or ()),
    }


_ELSEWHERE = (
    *("task", "folder", "dataset", "config", "split", "limit", "device", "out", "baselines", "max_length"),
    *("concurrency", "max_requests", "max_tokens", "several"),
)
"""What the targets say, or what moves no number."""


def _holds(file: Path, of: dict[str, object]) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["of"] == of)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _words(targets: Sequence[Target]) -> list[str]:
    """The beginning of each target's files, another for each model and split: nobody's answers are written over."""
    names = list(dict.fromkeys(map(_who, targets)))
    alike = [_word(name) for name in names]
    found = {
        name: word if alike.count(word) == 1 else f"{word}-{alike[:number].count(word) + 1}"
        for number, (name, word) in enumerate(zip(names, alike, strict=True))
    }
    keys = [_split_of(target) for target in targets]
    # Two data sets under one task's name are told apart by their texts.
    double = {task for task, split, _ in keys if len({print_ for t, s, print_ in keys if (t, s) == (task, split)}) > 1}
    return [
        found[_who(target)] + (f"-{key[2][:6]}" if key[0] in double else "")
        for target, key in zip(targets, keys, strict=True)
    ]


def _who(target: Target) -> str:
    return f"baseline-{target.name}" if isinstance(target, Baseline) else target.name


def _word(name: str) -> str:
    """A model's name as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")
