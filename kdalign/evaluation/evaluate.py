"""Score models on splits, whatever their family; predictions, texts and scores are kept in files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from glob import escape
from itertools import count
from pathlib import Path

import torch

from kdalign.devices import make_accelerator
from kdalign.errors import KdalignError, NotFinite, RunError, UsageError
from kdalign.evaluation.baselines import Baseline
from kdalign.evaluation.find_targets import EVALUATIONS, find_targets, newest_run
from kdalign.evaluation.job import OutputPaths
from kdalign.evaluation.local_model import LocalTarget
from kdalign.evaluation.metric_names import AGREEMENT, MASKED_PPL, PERPLEXITIES, is_text_metric
from kdalign.evaluation.request import EvalRequest
from kdalign.evaluation.result import EvaluationResult
from kdalign.evaluation.served_model import ServedTarget
from kdalign.evaluation.target import Target, file_stem
from kdalign.files import check_file, read_json, remove_drafts, write_json
from kdalign.metrics.languages import language_code
from kdalign.metrics.text import check_words
from kdalign.observer import NullObserver, Observer
from kdalign.ranks import entered_on_first_rank, on_first_rank
from kdalign.registry import check_trusted
from kdalign.runs.discovery import check_replaced
from kdalign.runs.locks import exclusive
from kdalign.runs.seal import sealed

BASELINES = ("copy", "unigram")


def evaluate(
    targets: Sequence[str], request: EvalRequest = EvalRequest(), observer: Observer | None = None
) -> list[EvaluationResult]:
    """Score models on splits; predictions, texts and scores are kept in files.

    Several processes, as ``torchrun`` starts them, call it alike: they share what local models read, and the first one
    asks servers and writes the files.

    Args:
        targets: checkpoints, runs, folders of runs or served models; if empty, the newest run below ``runs``.
        request: data, metrics and settings.
        observer: shows progress.

    Raises:
        UsageError: a target or split does not exist, or a model's head is for other labels.
        RunError: a model gives NaN, or a server fails.
    """
    observer = observer or NullObserver()
    if not targets:
        targets = [str(newest_run(Path("runs")))]
        observer.announce(f"no model named: scoring the newest run, {targets[0]}")
    return prepare_evaluation(targets, request, observer).run()


def prepare_evaluation(
    targets: Sequence[str], request: EvalRequest, observer: Observer, names: Mapping[str, str] | None = None
) -> "Evaluation":
    """Find and check everything that an evaluation needs, before any weights load and without writing.

    Args:
        targets: as in ``evaluate``; at least one.
        request: data, metrics and settings.
        observer: shows progress.
        names: names of rows by target, in place of the targets' own.

    Raises:
        UsageError: as in ``evaluate``.
    """
    request.check()
    if request.language is not None:
        request = replace(request, language=language_code(request.language))
        check_words(request.metric_names or (), request.language or "")
    checked = _checked_targets(targets, request, names or {})
    out = Path(request.out) if request.out else _default_out(checked, request)
    if out.suffix != ".json":
        raise UsageError(f"--out {str(out)!r}: the scores are written as JSON, give a name that ends in .json")
    check_file(out)
    check_replaced(out)
    device = make_accelerator(request.device).device
    rows = _with_baselines(checked, request) if request.baselines else checked
    return Evaluation(request, tuple(rows), _identity(checked, request), out, device, observer)


def _checked_targets(sources: Sequence[str], request: EvalRequest, names: Mapping[str, str]) -> list[Target]:
    """Find every target on every task, and refuse what cannot be scored before any weights load."""
    several = len(sources) > 1
    targets = [
        replace(target, name=names.get(source, target.name))  # type: ignore[type-var]  # targets are dataclasses
        for task in request.tasks
        for source in sources
        for target in find_targets(source, task, request, several)
    ]
    _check_used(targets, request)
    for target in targets:
        metrics = request.metric_names or target.default_metrics
        for metric in metrics:
            check_trusted(metric, f"{target.name!r}: metric")
        check_words(metrics, target.job.language)
        if isinstance(target, LocalTarget):
            target.check(request.metric_names)
    return targets


def _check_used(targets: Sequence[Target], request: EvalRequest) -> None:
    """Refuse settings that no target would use: a stride, a server's options, a language, solved examples."""
    local = [target for target in targets if isinstance(target, LocalTarget)]
    served = [target for target in targets if isinstance(target, ServedTarget)]
    if request.stride is not None and not any(target.reads_windows for target in local):
        raise UsageError("--stride is for texts that are scored from left to right, by causal models and XLNet")
    of_servers = {
        **{"--base-url": request.base_url is not None, "--chat": request.chat},
        **{"--max-requests": request.max_requests is not None, "--max-tokens": request.max_tokens is not None},
    }
    for flag, is_given in of_servers.items():
        if is_given and not served:
            raise UsageError(f"{flag} is for served models (openai:NAME), and none is named")
    if request.language is not None and all(target.job.is_classification for target in targets):
        raise UsageError("--language is for texts that are written and compared; these tasks are of classes and scores")
    by_words = [target for target in local if target.prompted and not target.zero_shot]
    prompted = any(target.job.is_classification for target in served) or bool(by_words)
    if request.shots and not prompted:
        raise UsageError("--shots is for causal and served models on classes; these answer by a head, or write texts")


@dataclass(frozen=True)
class Evaluation:
    """A checked evaluation, which scores its targets one after the other into a file.

    Attributes:
        request: data, metrics and settings.
        targets: models and baselines.
        identity: what distinguishes this evaluation from others, for the file.
        out: file of the scores.
        device: device that local models run on.
        observer: shows progress.
    """

    request: EvalRequest
    targets: tuple[Target, ...]
    identity: dict[str, object]
    out: Path
    device: torch.device
    observer: Observer

    @property
    def partial(self) -> Path:
        """File of the scores so far: an earlier complete evaluation is not overwritten by a partial one."""
        return self.out.with_suffix(".partial.json")

    def run(self) -> list[EvaluationResult]:
        """Score all targets; when one fails, the scores so far stay in a file of their own.

        Raises:
            RunError: a model gives NaN, or a server fails.
        """
        lock = exclusive(self.out.parent, f".{self.out.name}.lock")  # no other process writes these scores
        with entered_on_first_rank(lock) as note:
            if note:
                self.observer.announce(note)
            else:
                on_first_rank(self._remove_drafts)
            return self._score_all()

    def _score_all(self) -> list[EvaluationResult]:
        results: list[EvaluationResult] = []
        partial = self.partial
        for target, stem in zip(self.targets, _stems(self.targets), strict=True):
            if not isinstance(target, Baseline):
                self.observer.announce(f"scoring {target.name} on {target.job.task.name}, {target.job.examples.split}")
            try:
                results.append(self._score(target, OutputPaths(self.out.with_suffix(""), stem)))
            except (KdalignError, KeyboardInterrupt):
                if partial.is_file():
                    self.observer.announce(f"scores so far: {partial}")
                raise
            if _any_scores(results) and target is not self.targets[-1]:
                self._write(partial, {"kind": "evaluation"}, results)
        if _any_scores(results):
            self._write(self.out, {"kind": "evaluation", "of": self.identity}, results)
            self.observer.announce(f"scores and predictions: {self.out}, {self.out.with_suffix('')}/")
        on_first_rank(lambda: partial.unlink(missing_ok=True))
        return results

    def _remove_drafts(self) -> None:
        """Remove what a process that was killed left half written."""
        for file in (self.out, self.partial):
            remove_drafts(self.out.parent, f"{escape(file.name)}.*")
        remove_drafts(self.out.with_suffix(""))

    def _write(self, file: Path, about: dict[str, object], results: Sequence[EvaluationResult]) -> None:
        tree = {**about, "results": [result.to_json() for result in results]}
        on_first_rank(lambda: write_json(file, sealed(tree)))

    def _score(self, target: Target, output: OutputPaths) -> EvaluationResult:
        metrics = self.request.metric_names or target.default_metrics
        missing = {name: target.unsupported(name) for name in metrics}
        supported = [name for name, reason in missing.items() if reason is None]
        try:
            result = self._measure(target, supported, output)
        except NotFinite as error:
            raise RunError(f"model {target.name!r} gives NaN: {error}; it has no score") from None
        if self.request.noise is not None:
            result = self._add_noisy_scores(result, target, supported, output)
        if isinstance(target, Baseline):
            return result
        return replace(result, absent=(*filter(None, missing.values()), *result.absent))

    def _measure(self, target: Target, metrics: Sequence[str], output: OutputPaths) -> EvaluationResult:
        """Score a target: a local model on all ranks, which share what it reads; what has no model on the first."""
        if isinstance(target, LocalTarget):
            return target.measure(metrics, output, self.device, self.observer)
        return on_first_rank(lambda: target.measure(metrics, output, self.device, self.observer))

    def _add_noisy_scores(
        self, result: EvaluationResult, target: Target, metrics: Sequence[str], output: OutputPaths
    ) -> EvaluationResult:
        """Add the scores of answers to noisy inputs, as metrics of their own."""
        noise = self.request.noise
        metrics = [name for name in metrics if name not in (AGREEMENT, MASKED_PPL, *PERPLEXITIES)]
        if noise is None or not metrics:
            return result
        noisy = replace(target, job=target.job.with_noise(noise))  # type: ignore[type-var]  # targets are dataclasses
        scores = [
            replace(score, metric=f"{score.metric} {noise}") for score in self._measure(noisy, metrics, output).scores
        ]
        note = f"{noise}: {100 * noise.rate:g} % of the words that are read have a mistake each (seed {noise.seed})"
        return replace(result, scores=(*result.scores, *scores), notes=(*result.notes, note))


def _any_scores(results: Sequence[EvaluationResult]) -> bool:
    return any(result.scores or result.submission for result in results)


def _with_baselines(targets: Sequence[Target], request: EvalRequest) -> list[Target]:
    """Insert the baselines after the last target of each split for which texts are generated.

    Raises:
        UsageError: texts that a baseline learns from cannot be read.
    """
    rows: list[Target] = []
    splits = [_split_key(target) for target in targets]
    for number, (target, split) in enumerate(zip(targets, splits, strict=True)):
        rows.append(target)
        if split in splits[number + 1 :]:
            continue
        metrics = {
            name: None
            for other, key in zip(targets, splits, strict=True)
            if key == split and not other.job.is_classification
            for name in request.metric_names or other.default_metrics
            if other.unsupported(name) is None
        }
        if any(is_text_metric(name) for name in metrics):
            learned = target.job.training_texts  # a bad row of train is said before models are scored
            names: tuple[str, ...] = BASELINES
            if target.job.examples.media is not None:  # a sound is no text to copy, nor to learn words from
                names = ("unigram",) if learned else ()
            rows += [Baseline(name, target.job, tuple(metrics)) for name in names]
    return rows


def _split_key(target: Target) -> tuple[str, str, str]:
    """Task, split and fingerprint of the examples."""
    return target.job.task.name, target.job.examples.split, target.job.examples.fingerprint()


def _default_out(targets: Sequence[Target], request: EvalRequest) -> Path:
    """Choose a file for each set of models, data and settings, so that no other evaluation is overwritten."""
    target = targets[0]
    stem = f"{EVALUATIONS}/{file_stem(target.name)}-{target.job.task.name}-{target.job.examples.split}"
    files = (Path(f"{stem}-{number}.json" if number > 1 else f"{stem}.json") for number in count(1))
    return next(file for file in files if not file.exists() or _holds(file, _identity(targets, request)))


def _identity(targets: Sequence[Target], request: EvalRequest) -> dict[str, object]:
    """Return what distinguishes one evaluation from another: models, texts, and how they are read and scored."""
    settings = {name: value for name, value in asdict(request).items() if name not in _NOT_IDENTITY}
    return {
        "targets": [
            [target.name, *_split_key(target), target.job.settings.generation.max_length] for target in targets
        ],
        **settings,
        "metrics": list(request.metrics or ()),
    }


_NOT_IDENTITY = (
    *("task", "folder", "dataset", "config", "split", "limit", "device", "out", "baselines", "max_length"),
    *("concurrency", "max_requests", "max_tokens"),
)
"""Fields of a request that the targets say, or that change no number."""


def _holds(file: Path, identity: dict[str, object]) -> bool:
    """Return whether a file holds the scores of this very evaluation."""
    try:
        return bool(read_json(file)["of"] == identity)
    except (UsageError, KeyError, TypeError, IndexError):
        return False


def _stems(targets: Sequence[Target]) -> list[str]:
    """Return a unique file prefix for each (model, split)."""
    names = list(dict.fromkeys(map(_unique_name, targets)))
    stems = [file_stem(name) for name in names]
    stem_of = {
        name: stem if stems.count(stem) == 1 else f"{stem}-{stems[:number].count(stem) + 1}"
        for number, (name, stem) in enumerate(zip(names, stems, strict=True))
    }
    keys = [_split_key(target) for target in targets]
    # Two data sets with one task's name are distinguished by their texts.
    several = {task for task, split, _ in keys if len({text for t, s, text in keys if (t, s) == (task, split)}) > 1}
    return [
        stem_of[_unique_name(target)] + (f"-{text[:6]}" if task in several else "")
        for target, (task, _, text) in zip(targets, keys, strict=True)
    ]


def _unique_name(target: Target) -> str:
    return f"baseline-{target.name}" if isinstance(target, Baseline) else target.name
