"""A suite: tasks, each with its models, metrics and settings, scored by one command into one table.

A file is YAML; a row is one model, or one for each task::

    tasks:
      wikitext2: {task: lm, data: ./wikitext2, split: test, metrics: word_ppl}
      multi30k: {task: multi30k-test.yaml, data: ./multi30k, metrics: [bleu, chrf], new_tokens: 64}
    rows:
      GPT-like: ./runs/gpt
      DeBERTa-like: {wikitext2: ./runs/deberta, multi30k: ./runs/deberta-translates}
      served: {multi30k: openai:gpt-4o}

A task takes the settings of ``EvalRequest``, its folder as ``data``. Paths are relative to where the command runs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdalign.data.tasks import load_examples
from kdalign.errors import UsageError, shorten, unknown
from kdalign.evaluation.evaluate import Evaluation, prepare_evaluation
from kdalign.evaluation.find_targets import EVALUATIONS
from kdalign.evaluation.local_model import LocalTarget
from kdalign.evaluation.request import EvalRequest
from kdalign.evaluation.result import EvaluationResult
from kdalign.evaluation.served_model import ServedTarget
from kdalign.evaluation.target import file_stem
from kdalign.files import check_file, read_json, sha256, write_json
from kdalign.observer import NullObserver, Observer
from kdalign.ranks import on_first_rank
from kdalign.recipe.strict_yaml import read_yaml
from kdalign.runs.discovery import check_replaced
from kdalign.runs.folder import find_runs
from kdalign.runs.record import read_record
from kdalign.runs.seal import is_changed, sealed
from kdalign.served import is_served
from kdalign.version import code_digest

_KEYS = ("tasks", "rows", "baselines")
_WORDS = ("task", "data", "dataset", "config", "split", "pseudo", "language", "precision")
_NUMBERS = {"max_length": 8, "limit": 1, "stride": 1, "beams": 1, "new_tokens": 1, "shots": 0, "seed": 0}
"""Settings of a task that are whole numbers, with the least that is accepted."""
_SETTINGS = (*_WORDS, "metrics", *_NUMBERS)


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite.

    Attributes:
        name: name of its columns.
        request: data, metrics and settings.
        models: models by the name of their row.
    """

    name: str
    request: EvalRequest
    models: Mapping[str, str]


def read_suite(file: Path, request: EvalRequest = EvalRequest()) -> tuple[SuiteTask, ...]:
    """Read a suite's tasks.

    Args:
        file: the suite.
        request: settings that the file does not give, such as the device and those of servers.

    Raises:
        UsageError: the file cannot be read, or has a key or value that is not accepted.
    """
    where = f"suite {str(file)!r}"
    tree = read_yaml(file)
    if not isinstance(tree, dict):
        raise UsageError(f"{where} holds no keys (known: {', '.join(_KEYS)})")
    _check_keys(tree, _KEYS, where)
    tasks, rows = (_names(tree, key, where) for key in ("tasks", "rows"))
    files: dict[str, str] = {}
    for name in tasks:
        other = files.setdefault(file_stem(name).casefold(), name)
        if other != name:
            raise UsageError(f"{where}: tasks {other!r} and {name!r} would share a file: give one another name")
    if not isinstance(tree.get("baselines", True), bool):
        raise UsageError(f"{where}: 'baselines' takes true or false; given {tree['baselines']!r}")
    request = replace(request, baselines=tree.get("baselines", request.baselines))
    models = {name: _models(row, tasks, f"{where}, row {name!r}") for name, row in rows.items()}
    suite = []
    for name, settings in tasks.items():
        of_task = {row: own[name] for row, own in models.items() if name in own}
        if not of_task:
            raise UsageError(f"{where}: no row has a model for task {name!r}")
        rows_of = list(of_task)
        for row, model in of_task.items():
            first = next(other for other in rows_of if of_task[other] == model)
            if first != row:
                raise UsageError(f"{where}: rows {first!r} and {row!r} have one model for task {name!r}: {model!r}")
        suite.append(SuiteTask(name, _request(settings, request, f"{where}, task {name!r}"), of_task))
    return tuple(suite)


def _check_keys(tree: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in tree:
        if key not in known:
            raise unknown(f"key in {where}:", str(key), known)


def _names(tree: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return the named parts of a suite.

    Raises:
        UsageError: there is none, or a name cannot stand in a table or a file's name.
    """
    parts = tree.get(key)
    if not isinstance(parts, dict) or not parts:
        raise UsageError(f"{where} needs {key!r}, names with {'settings' if key == 'tasks' else 'models'}")
    for name in parts:
        if not isinstance(name, str) or not name.isprintable() or not file_stem(name) or "/" in name:
            raise UsageError(f"{where}, {key}: {shorten(repr(name), 60)} is no name (accepted: text without '/')")
    return parts


def _models(row: object, tasks: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return a row's models by task: one for all, or those that it names."""
    by_task = dict.fromkeys(tasks, row) if isinstance(row, str) else row
    if not isinstance(by_task, dict) or not by_task:
        raise UsageError(f"{where} takes a model, or tasks with a model each; given {row!r}")
    _check_keys(by_task, tuple(tasks), where)
    for task, model in by_task.items():
        if not isinstance(model, str) or not model:
            raise UsageError(f"{where}, {task}: takes a checkpoint, a run or openai:NAME; given {model!r}")
        if Path(model).is_dir() and len(list(find_runs(Path(model)))) > 1:
            raise UsageError(f"{where}, {task}: {model!r} holds several runs, and a row is one model: name one of them")
    return by_task


def _request(settings: object, request: EvalRequest, where: str) -> EvalRequest:
    """Return the request of a task.

    Raises:
        UsageError: a key or value that is not accepted.
    """
    if not isinstance(settings, dict):
        raise UsageError(f"{where} takes settings ({', '.join(_SETTINGS)}); given {settings!r}")
    _check_keys(settings, _SETTINGS, where)
    if "task" not in settings:
        raise UsageError(f"{where} needs 'task', such as lm or a task file")
    fields: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "metrics":
            names = value.split(",") if isinstance(value, str) else value
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise UsageError(f"{where}: 'metrics' takes names, as in [bleu, chrf]; given {value!r}")
            value = tuple(name.strip() for name in names)
        elif key in _WORDS and not (isinstance(value, str) and value):
            raise UsageError(f"{where}: {key!r} takes text; given {value!r}")
        elif key in _NUMBERS and (type(value) is not int or value < _NUMBERS[key]):
            raise UsageError(f"{where}: {key!r} takes a whole number of at least {_NUMBERS[key]}; given {value!r}")
        fields["folder" if key == "data" else key] = value
    request = replace(request, **fields)
    try:
        request.check()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return request


def evaluate_suite(
    file: Path, request: EvalRequest = EvalRequest(), observer: Observer | None = None
) -> list[EvaluationResult]:
    """Score a suite's models on its tasks; after a stop, a task that the same models were scored on is not repeated.

    Everything is found and checked before the first model loads. The scores of all tasks are in one file,
    ``runs/eval/SUITE.json`` if left out, whose results name the row that they belong to; those of each task are in the
    folder of the same name.

    Args:
        file: the suite.
        request: settings that the suite does not give, such as the device and those of servers.
        observer: shows progress.

    Raises:
        UsageError: the suite has a mistake, or as ``evaluate``.
        RunError: as ``evaluate``.
    """
    observer = observer or NullObserver()
    tasks = read_suite(file, request)
    out = Path(request.out) if request.out else EVALUATIONS / f"{file_stem(file.stem)}.json"
    if out.suffix != ".json":
        raise UsageError(f"--out {str(out)!r}: the scores are written as JSON, give a name that ends in .json")
    check_file(out)
    check_replaced(out)
    evaluations = []
    anything_served = any(is_served(model) for task in tasks for model in task.models.values())
    for task in tasks:
        own = replace(task.request, out=str(out.with_suffix("") / f"{file_stem(task.name)}.json"))
        if anything_served and not any(map(is_served, task.models.values())):
            own = replace(own, base_url=None, chat=False, max_requests=None, max_tokens=None)
        names = {model: row for row, model in task.models.items()}
        try:
            evaluations.append(_with_read(prepare_evaluation(list(names), own, observer, names)))
        except UsageError as error:
            raise UsageError(f"suite {str(file)!r}, task {task.name!r}: {error}") from None
    results: list[EvaluationResult] = []
    finished = out.is_file()  # then the same command scores anew, whatever changed since
    for task, evaluation in zip(tasks, evaluations, strict=True):
        known = None if finished else _known_results(evaluation)
        if known is not None:
            observer.announce(f"{task.name}: scored before, {evaluation.out}")
        scored = evaluation.run() if known is None else known
        results += [_in_row(result, task, tasks) for result in scored]
    tree = sealed({"kind": "evaluation", "of": {"suite": str(file)}, "results": [each.to_json() for each in results]})
    on_first_rank(lambda: write_json(out, tree))
    observer.announce(f"scores of all tasks: {out}")
    return results


def _in_row(result: EvaluationResult, task: SuiteTask, tasks: Sequence[SuiteTask]) -> EvaluationResult:
    """Return a result under its task's name in the suite, as a part of its row."""
    row, model = result.model, task.models.get(result.model)
    others = {other.models[row] for other in tasks if row in other.models}
    place = f" on {task.name}" if len(others) > 1 else ""
    source = () if model is None else (f"{row}: {model}{place}",)
    notes = (*source, *(f"{task.name}: {note}" for note in result.notes))
    return replace(result, task=task.name, row=row, notes=notes)


def _with_read(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose identity says what it reads beside its examples: tasks, models, texts of train."""
    read = [code_digest()]
    for target in evaluation.targets:
        job = target.job
        read += [target.name, repr(job.task), repr(job.settings)]
        if isinstance(target, LocalTarget):
            read += [target.checkpoint.hash, "" if target.run is None else read_record(target.run.path).identity]
            read += [f"{file.name} {sha256(file)}" for file in _settings_files(Path(target.checkpoint.path))]
        elif isinstance(target, ServedTarget):
            read += [target.model, target.url]
        else:
            read += job.training_texts
        if job.settings.shots:
            read.append(load_examples(job.classification, job.task.train).fingerprint())
    digest = hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16]
    return replace(evaluation, identity={**evaluation.identity, "read": digest})


def _settings_files(folder: Path) -> list[Path]:
    """List a checkpoint's files beside its weights, which have a hash of their own: configurations and tokenizers."""
    files = (*folder.glob("*"), *folder.glob("*/*"))  # a sentence model's modules are in folders of their own
    return sorted(file for file in files if file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file())


def _known_results(evaluation: Evaluation) -> list[EvaluationResult] | None:
    """Return the results of the same models and examples; None if they are to be scored.

    So they are by metrics of the user's own, whose code may have changed, and where a file of answers has gone.
    """
    if any(
        ":" in name for target in evaluation.targets for name in evaluation.request.metrics or target.default_metrics
    ):
        return None
    try:
        tree = read_json(evaluation.out)
        if is_changed(tree) or tree["of"] != evaluation.identity:
            return None
        results = [EvaluationResult.from_json(result) for result in tree["results"]]
    except (UsageError, KeyError, TypeError):
        return None
    files = [file for result in results for file in (result.predictions, result.texts) if file is not None]
    return results if all(Path(file).is_file() for file in files) else None
