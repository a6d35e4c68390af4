"""Score checkpoints and runs on a split, and keep the predictions."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch

from kdalign import models
from kdalign.architecture import HeadKind, head_of, layout_of
from kdalign.errors import UsageError, unknown
from kdalign.evaluation import Absent, Evaluation
from kdalign.files import check_writable, write_json
from kdalign.likelihood import PERPLEXITIES
from kdalign.metrics import LANGUAGE_MODEL_METRICS, METRICS
from kdalign.models import Checkpoint
from kdalign.observer import Observer, Silent
from kdalign.recipe import Data, defaults_of
from kdalign.runs import RECORD, RunFolder, find_runs, read_record
from kdalign.tasks import GLUE, AnyTask, Examples, Task, find_task, write_submission
from kdalign.training import make_accelerator
from kdalign.work import Work, work_on

AGREEMENT = "agreement"


@dataclass(frozen=True)
class Asked:
    """What to score on, as far as the user said; a run fills in the rest from its recipe."""

    task: str | None = None
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


@dataclass(frozen=True)
class _Target:
    """One model, checked, with the split it is scored on."""

    name: str
    checkpoint: Checkpoint
    work: Work
    examples: Examples
    run: RunFolder | None

    @property
    def task(self) -> AnyTask:
        """The task."""
        return self.work.task

    @property
    def has_head(self) -> bool:
        """Whether the checkpoint says that it has the head that the task is answered by."""
        return _has_head(self.checkpoint, self.work)


def evaluate(targets: Sequence[str], asked: Asked = Asked(), observer: Observer | None = None) -> list[Evaluation]:
    """Score models on a split; predictions and scores are kept in a file.

    Args:
        targets: checkpoints, runs, or folders of runs; the newest run below ``runs`` where none is named.
        asked: on what.
        observer: who watches.

    Raises:
        UsageError: a target or split that is not there, or a head for other labels.
    """
    observer = observer or Silent()
    if not targets:
        targets = [str(_newest_run(Path("runs")))]
        observer.announce(f"no model named: scoring the newest run, {targets[0]}")
    for name in asked.metrics or ():
        known = tuple(dict.fromkeys((*METRICS, AGREEMENT, *PERPLEXITIES, *LANGUAGE_MODEL_METRICS)))
        if name not in known and ":" not in name:
            raise unknown("metric", name, known)
    checked = [target for name in targets for target in _targets(name, asked)]
    out = Path(asked.out) if asked.out else _default_out(checked, asked)
    if out.suffix != ".json":
        raise UsageError(f"--out {str(out)!r}: the scores are written as JSON, give a name that ends in .json")
    check_writable(out.parent)
    accelerator = make_accelerator(asked.device)
    results = []
    for target, word in zip(checked, _words(checked), strict=True):
        observer.announce(f"scoring {target.name} on {target.task.name}, {target.examples.split}")
        results.append(_evaluate_one(target, asked, out.with_suffix(""), word, accelerator.device))
    if not any(result.scores or result.submission for result in results):
        return results
    tree = {"kind": "evaluation", "of": _of(checked, asked), "results": [result.to_json() for result in results]}
    write_json(out, tree)
    observer.announce(f"scores and predictions: {out}, {out.with_suffix('')}/")
    return results


def _evaluate_one(target: _Target, asked: Asked, folder: Path, word: str, device: torch.device) -> Evaluation:
    work, task, examples = target.work, target.task, target.examples
    kept = _kept_teacher(target)
    wanted = asked.metrics or (*work.metrics, *((AGREEMENT,) if kept is not None else ()))
    reasons = {name: _why_not(name, target, kept) for name in wanted}
    result = Evaluation(
        model=target.name,
        task=task.name,
        split=examples.split,
        source=str(task.source),
        n=len(examples),
        truncated=0,
        scores=(),
        absent=tuple(absent for absent in reasons.values() if absent is not None),
    )
    possible = [name for name, absent in reasons.items() if absent is None]
    submits = examples.split in task.test and isinstance(task, Task) and target.has_head
    if not (possible or submits):
        return result
    model = work.load(target.checkpoint, fresh_head=False, seed=0).to(device)
    tokenizer = models.load_tokenizer(target.checkpoint)
    encoded = work.encode(examples, tokenizer, target.checkpoint.config, scored=True)
    found = work.answer(model, encoded)
    answers = work.kept(kept) if kept is not None else None
    file = folder / f"{word}-{task.name}-{examples.split}.parquet"
    work.keep(file, found, encoded, answers)
    submission = None
    if submits and isinstance(task, Task):
        submission = write_submission(task, examples.split, found.values, folder / word)
    if "word_ppl" in possible and not encoded.words:
        result = replace(result, absent=(*result.absent, Absent("word_ppl", "texts were cut, so words are not known")))
    measured = work.scores(found, encoded, [name for name in possible if name != AGREEMENT])
    if AGREEMENT in possible and answers is not None:
        measured.append(work.agreement(found, answers))
    return replace(
        result,
        truncated=encoded.truncated,
        passed_over=encoded.passed_over,
        scores=tuple(measured),
        predictions=str(file),
        submission=str(submission) if submission else None,
    )


def _why_not(name: str, target: _Target, kept: Path | None) -> Absent | None:
    """Why a model cannot be scored by a metric; None where it can."""
    task, model = target.task, target.checkpoint.name
    alone = f"kdalign distill --teacher none --student {model}"
    if not target.has_head:
        if isinstance(task, Task):
            command = f"kdalign distill --teacher {model} --student layers=half --task {task.name}"
            return Absent(name, f"{model} has no classification head", command)
        return Absent(name, f"{model} has no language-model head", f"{alone} --task {task.word}{task.source.flags}")
    if name == AGREEMENT:
        if kept is None:
            return Absent(
                name, "the teacher's answers on this split are not kept: only runs keep them, whole splits only"
            )
        return None
    if isinstance(task, Task) and name in (*LANGUAGE_MODEL_METRICS, *PERPLEXITIES):
        text = f"lm:{task.name}" if task.name in GLUE else "lm --data DIR"
        return Absent(name, f"{model} has no language-model head", f"{alone} --task {text}")
    if target.work.head is HeadKind.NONE and target.examples.labels is None:
        return Absent(name, f"split {target.examples.split} has no pairs with their likeness")
    if not isinstance(task, Task):
        if name in target.work.metrics:
            return None
        return Absent(name, f"task {task.name} gives this model {', '.join(target.work.metrics)}")
    if not task.fits(task.metric(name)):
        kind = "a score" if task.regression else f"{len(task.labels)} classes"
        return Absent(name, f"task {task.name} has {kind}; its metrics are {', '.join(task.metrics)}")
    if target.examples.labels is None:
        return Absent(name, f"split {target.examples.split} has no labels")
    return None


def _targets(name: str, asked: Asked) -> list[_Target]:
    """A checkpoint, a run, or every run below a folder."""
    if Path(name).is_dir():
        runs = list(find_runs(Path(name)))
        if runs:
            return [_run_target(run, asked) for run in runs]
    if asked.task is None:
        if (Path(name) / "recipe.yaml").is_file():
            read_record(Path(name))  # raises: unfinished, and how to go on
        if not Path(name).exists():
            raise UsageError(f"there is no {name!r} here; if it is a model on the hub, say what to score it on: --task")
        raise UsageError(f"{name!r} is no finished run, so say what to score it on: --task")
    checkpoint = models.locate(name, asked.revision)
    start = defaults_of(asked.task).get("data", {})
    data = Data(task=(asked.task,), folder=asked.folder, dataset=asked.dataset, config=asked.config, **start)
    return [_checked(name, checkpoint, data, asked, None)]


def _run_target(run: Path, asked: Asked) -> _Target:
    """A run's student, on its own task and data unless others are named."""
    recipe = read_record(run).parsed_recipe()
    data = recipe.data
    given = ((asked.task, data.task[0]), (asked.folder, data.folder), (asked.dataset, data.dataset))
    if any(value not in (None, own) for value, own in given):
        names = (asked.task,) if asked.task else data.task
        elsewhere = asked if asked.folder is not None or asked.dataset is not None else data
        data = Data(task=names, folder=elsewhere.folder, dataset=elsewhere.dataset, config=elsewhere.config)
    return _checked(
        str(run),
        models.locate(str(run)),
        data,
        replace(asked, max_length=asked.max_length or recipe.data.max_length),
        RunFolder(run),
    )


def _checked(name: str, checkpoint: Checkpoint, data: Data, asked: Asked, run: RunFolder | None) -> _Target:
    task = find_task(data.task[0], data.folder, data.dataset, data.config)
    max_length = asked.max_length or data.max_length
    work = work_on(task, layout_of(checkpoint.config).family, max_length, checkpoint.name)
    if _has_head(checkpoint, work):
        work.check(checkpoint)
    examples = work.examples(asked.split or task.evaluation[0])
    submits = isinstance(task, Task) and bool(task.submission) and checkpoint.has_classifier
    submitted = submits and examples.split in task.test
    if asked.limit is not None and submitted:
        raise UsageError(f"split {examples.split} is written as the leaderboard's file, whole: leave --limit out")
    limit = asked.limit or (None if submitted else data.limit) or len(examples)
    examples = examples.take(range(min(len(examples), limit)))
    models.check_length(checkpoint, max_length)
    return _Target(name, checkpoint, work, examples, run)


def _has_head(checkpoint: Checkpoint, work: Work) -> bool:
    return work.head in (HeadKind.NONE, head_of(checkpoint.config))


def _kept_teacher(target: _Target) -> Path | None:
    """The file in which a run kept its teacher's answers on this very split; None where there is none."""
    if target.run is None:
        return None
    record, split = read_record(target.run.path), target.examples.split
    kept = record.data["reported"].get(split)
    if record.teacher is None or kept is None or kept["fingerprint"] != target.examples.fingerprint():
        return None
    if record.scores[split]["agreement"] is None:  # answers to other tokens than the student's
        return None
    return target.run.predictions(split)


def _newest_run(folder: Path) -> Path:
    runs = sorted(find_runs(folder), key=lambda run: (run / RECORD).stat().st_mtime)
    if not runs:
        raise UsageError(f"no model named, and no finished run below {str(folder)!r}")
    return runs[-1]


def _default_out(targets: Sequence[_Target], asked: Asked) -> Path:
    """A name of its own for each set of models, data and settings: another's scores are never written over."""
    target = targets[0]
    stem = f"runs/eval/{_word(target.name)}-{target.task.name}-{target.examples.split}"
    files = (Path(f"{stem}-{number}.json" if number > 1 else f"{stem}.json") for number in count(1))
    return next(file for file in files if not file.exists() or _holds(file, _of(targets, asked)))


def _of(targets: Sequence[_Target], asked: Asked) -> dict[str, object]:
    """What tells one evaluation from another: models, texts, and how they are read and scored."""
    return {
        "targets": [
            [one.name, one.task.name, one.examples.split, one.examples.fingerprint(), one.work.max_length]
            for one in targets
        ],
        "metrics": list(asked.metrics or ()),
        "revision": asked.revision,
    }


def _holds(file: Path, of: dict[str, object]) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["of"] == of)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _words(targets: Sequence[_Target]) -> list[str]:
    """A file name's beginning for each target, another for each model: ``a/b`` and ``a-b`` do not share theirs."""
    names = list(dict.fromkeys(target.name for target in targets))
    alike = [_word(name) for name in names]
    found = {
        name: word if alike.count(word) == 1 else f"{word}-{alike[:number].count(word) + 1}"
        for number, (name, word) in enumerate(zip(names, alike, strict=True))
    }
    return [found[target.name] for target in targets]


def _word(name: str) -> str:
    """A model's name as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")
