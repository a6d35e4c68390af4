"""Cache of a run's teacher outputs: name it, build or extend it before the first step, and read it in training."""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from filelock import FileLock
from transformers import PretrainedConfig

from kdalign.alignment.calibration import SIMILARITY_TOKENS
from kdalign.alignment.plan import Plan
from kdalign.data.epochs import epoch_batches, sample_batches, sample_rows, total_steps
from kdalign.data.media import readers
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenization import fingerprint
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.tokenize import OpenedRun
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.files import check_writable, writing
from kdalign.models.architecture import CROSS, Layer, describe, layout_of, vocabulary_size
from kdalign.models.heads import HeadKind
from kdalign.models.layouts import AttentionLayout
from kdalign.objective.build import build_objective
from kdalign.objective.checks import check_teacher
from kdalign.objective.objective import Objective
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.recipe import AUTO_CACHE, CacheSettings
from kdalign.teachers.cache_files import CacheFolder
from kdalign.teachers.cached import CachedTeacher, CacheSource, check_source, choose_top_k, fill_cache, missing_rows
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.kept import KeptOutputs, outputs_of_term, parse_kept, unkeepable

_LOCK = ".lock"
"""File in a cache's folder that is locked by the process that adds rows."""


def kept_outputs(objectives: Iterable[Objective], plan: Plan | None) -> KeptOutputs:
    """Return the outputs that these objectives ask of a teacher under a plan."""
    kept = KeptOutputs()
    for objective in objectives:
        requests = objective.requests(plan.teaching if plan is not None else ())
        values_only = plan is not None and plan.relations == "values"
        for request in requests:
            kept |= outputs_of_term(request, values_only)
        if requests and plan is not None and plan.attended:  # a mean of layers is weighted by their features
            kept |= KeptOutputs(hidden=frozenset(plan.teaching))
    return kept


def shareable_outputs(run: PreparedRun) -> KeptOutputs:
    """Return the outputs that a run is known to ask for, and those that it keeps in addition.

    Layers of a map that is measured on text are not known yet.
    """
    objectives = [build_objective(run.task, weights, run.plan) for _, weights in run.recipe.objective.stages]
    kept = kept_outputs(objectives, run.plan)
    if run.plan is not None and run.plan.choice:
        kept = KeptOutputs(classes=kept.classes, tokens=kept.tokens, features=kept.features, embeddings=kept.embeddings)
    return kept | parse_kept(run.recipe.cache.keep, "cache.keep")


def cache_source(run: PreparedRun, weights: str, precision: str) -> CacheSource:
    """Describe what decides a teacher's outputs.

    Args:
        run: a run with a teacher.
        weights: fingerprint of the teacher's weights, after fine-tuning.
        precision: precision of training.
    """
    assert run.teacher is not None, "a cache is a teacher's"
    theirs = run.tokenizers.teacher
    media = run.tokenizers.teacher_media or run.tokenizers.media
    task = run.task
    labels = tuple(task.labels) if isinstance(task, ClassificationTask) else ()
    config = run.teacher.config
    return CacheSource(
        run.teacher.name,
        weights,
        config_fingerprint(config),
        ("" if theirs is None else fingerprint(theirs)) + ("" if media is None else readers.fingerprint(media)),
        precision,
        labels,
        vocabulary_size(config),
    )


_NAMES = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "id2label", "label2id")
"""Keys of a configuration that change no number; labels are compared by the task's."""


def config_fingerprint(config: PretrainedConfig) -> str:
    """Hash the values of a configuration that differ from its type's defaults, whichever library version wrote them."""
    kept = {name: value for name, value in config.to_diff_dict().items() if name not in _NAMES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cache_meta(source: CacheSource, kept: KeptOutputs, settings: CacheSettings) -> dict[str, Any]:
    """Return all that decides the numbers of a new cache; ``top_k`` is None while it is not chosen."""
    asks_tokens = bool(kept.tokens)
    return source.facts | {
        "keep": list(kept.words),
        "tail": settings.tail if asks_tokens and settings.top_k is None else None,
        "top_k": settings.top_k if asks_tokens else None,
        "logs": settings.logs,
        "states": settings.states,
    }


def find_folder(settings: CacheSettings, meta: dict[str, Any]) -> CacheFolder:
    """Return the folder that is named, or the one in kdalign's cache for these outputs."""
    if settings.folder != AUTO_CACHE:
        return CacheFolder(Path(str(settings.folder)))
    named = {key: value for key, value in meta.items() if key != "teacher"}
    key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
    return CacheFolder(cache_folder() / "outputs" / key)


def check_cache(run: PreparedRun) -> None:
    """Refuse a cache that cannot be, or a folder with something else in it, before anything is written.

    Raises:
        UsageError: outputs that no cache can keep, or how the folder differs, and what can be done.
    """
    settings = run.recipe.cache
    if settings.folder is None:
        return
    _check_keepable(run)
    if settings.folder == AUTO_CACHE:
        check_writable(cache_folder() / "outputs")
        return
    folder = CacheFolder(Path(settings.folder))
    check_writable(folder.path)
    if not folder.is_cache:
        if folder.path.is_dir() and any(file.name != _LOCK for file in folder.path.iterdir()):
            raise UsageError(f"--cache {settings.folder!r} is not empty and holds no teacher outputs: give another")
        return
    assert run.teacher is not None, "checked: there is a teacher"
    facts = cache_source(run, run.teacher.hash, run.recipe.train.precision).facts
    unknown = {"weights"} if run.finetunes else set()
    unknown |= {"precision"} if run.recipe.train.precision == "auto" else set()
    check_source(folder, folder.meta, {name: value for name, value in facts.items() if name not in unknown})
    CachedTeacher(folder)


def _check_keepable(run: PreparedRun) -> None:
    """Refuse rows that change in every epoch, and terms whose requests change during training."""
    assert run.teacher is not None, "checked: there is a teacher"
    check_outputs(run, parse_kept(run.recipe.cache.keep, "cache.keep"))
    top_k, entries = run.recipe.cache.top_k, vocabulary_size(run.teacher.config)
    if top_k is not None and top_k >= entries:
        raise UsageError(f"cache.top_k={top_k}: the teacher's vocabulary has {entries:,} entries; give fewer")
    family = layout_of(run.teacher.config).family
    changes = {"masked": "masks other tokens", "permutation": "predicts in another order"}.get(family)
    if run.adapter.predicts_tokens and changes and not (family == "permutation" and run.recipe.data.order != "drawn"):
        raise UsageError(
            f"training a {family} language model {changes} in every epoch, so that no outputs can be kept: leave out "
            f"--cache"
        )
    for _, weights in run.recipe.objective.stages:
        objective = build_objective(run.task, weights, run.plan)
        if run.adapter.head is HeadKind.CTC and objective.compares_answers:
            raise UsageError("a teacher's labels of frames cannot be kept, features can: give --alpha 0, or no --cache")
        samples = run.recipe.on_policy.share > 0
        for request in objective.requests(run.plan.teaching if run.plan is not None else (), samples):
            why = unkeepable(request)
            if why is not None:
                raise UsageError(f"term {request.term!r} {why}")


def check_outputs(run: PreparedRun, kept: KeptOutputs, option: str = "cache.keep") -> None:
    """Refuse outputs that a teacher does not have.

    Raises:
        UsageError: the word, and what the teacher has.
    """
    assert run.teacher is not None, "checked: there is a teacher"
    theirs, head = describe(run.teacher.config), run.adapter.head
    answer = {HeadKind.CLASSIFIER: "classes", HeadKind.NONE: "features"}.get(head, "tokens")
    layers = {layer for stack in theirs.stacks for layer in stack.all_layers}
    crossing = {Layer(CROSS, layer.number) for layer in layers if theirs.reads_target(layer.stack)}
    stacks = {stack.name for stack in theirs.stacks}
    wrong = [name for name in ("classes", "features", "tokens") if getattr(kept, name) and name != answer]
    wrong += [f"hidden:{layer}" for layer in sorted(kept.hidden - layers)]
    wrong += [f"attention:{layer}" for layer in sorted(kept.attention - layers - crossing)]
    wrong += [f"relations:{layer}" for layer in sorted((kept.relations | kept.values) - layers)]
    wrong += [f"embeddings:{stack}" for stack in sorted(kept.embeddings - stacks)]
    if wrong:
        has = ", ".join(f"{stack.name}.0 to {stack.name}.{stack.layers - 1}" for stack in theirs.stacks)
        raise UsageError(f"{option} {wrong[0]!r}: the teacher has no such output (it has: {answer}; layers {has})")
    if theirs.attention is AttentionLayout.CLOSED and kept.attention | kept.relations | kept.values:
        raise UsageError(f"{option}: attention of {theirs.model_type} cannot be captured (accepted: other outputs)")


def check_keeps(folder: CacheFolder, kept: KeptOutputs) -> None:
    """Refuse a cache that does not keep all of these outputs.

    Raises:
        UsageError: what it keeps and what it does not, and what can be done.
    """
    there = CachedTeacher(folder).kept
    missing = there.missing(kept)
    if missing:
        raise UsageError(
            f"{str(folder.path)!r} keeps {', '.join(there.words)}, and not {', '.join(missing)}: give another folder, "
            f"or build it again (--overwrite)"
        )


def check_formats(folder: CacheFolder, settings: CacheSettings) -> None:
    """Refuse a cache of other formats than those that a recipe gives; what it leaves out is as the cache has it.

    Raises:
        UsageError: the first difference.
    """
    meta, usual = folder.meta, CacheSettings()
    for name in ("top_k", "logs", "states"):
        given = getattr(settings, name)
        if given != getattr(usual, name) and given != meta.get(name):
            raise UsageError(
                f"cache.{name} is {given} here, and {str(folder.path)!r} was built with {meta.get(name)}: leave the "
                f"key out, or give another --cache"
            )


@dataclass(frozen=True)
class CacheBuild:
    """A teacher whose outputs on a run's rows are kept.

    Attributes:
        opened: the run, its texts tokenized.
        teacher: the teacher, whose weights are loaded.
        source: what decides its outputs.
        kept: outputs to keep.
        accelerator: device and ranks.
        observer: receives progress.
    """

    opened: OpenedRun
    teacher: ComputedTeacher
    source: CacheSource
    kept: KeptOutputs
    accelerator: Accelerator
    observer: Observer

    def run(self, rows: Sequence[int], settings: CacheSettings) -> CachedTeacher:
        """Open the cache of these settings, or begin it, and add the rows that are missing; ranks share the work.

        Raises:
            UsageError: the folder holds other outputs, or a damaged shard.
            RunError: outputs that are not finite.
            Unwritten: the disk is full, or writing is not permitted.
        """
        meta = cache_meta(self.source, self.kept, settings)
        folder = find_folder(settings, meta)
        with writing(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        # Of several runs that need the same outputs at the same time, one computes them and the others wait.
        with FileLock(str(folder.path / _LOCK)) if self.accelerator.is_main_process else nullcontext():
            if not on_first_rank(lambda: self._is_begun(folder)):
                meta = self._with_top_k(meta)
                on_first_rank(lambda: folder.begin(meta))
            cached = CachedTeacher(folder)
            self._fill(cached, rows)
            cached.open(checked=True)
            self.accelerator.wait_for_everyone()
        return cached

    def _is_begun(self, folder: CacheFolder) -> bool:
        """Return whether there is a cache, which is checked."""
        folder.remove_unfinished()
        if folder.is_cache:
            check_source(folder, folder.meta, self.source.facts)
            check_formats(folder, self.opened.recipe.cache)
            check_keeps(folder, self.kept)
        return folder.is_cache

    def _with_top_k(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Choose the number of likeliest tokens, if it is to be chosen; each rank reads the same few rows."""
        if meta["keep"] and self.kept.tokens and meta["top_k"] is None:
            few = sample_batches(self.opened.texts.train, 0, SIMILARITY_TOKENS)
            device, temperatures = self.accelerator.device, sorted(self.kept.tokens)
            k, mass, tokens = choose_top_k(self.teacher, few, temperatures, meta["tail"], device)
            self.observer.announce(
                f"cache: the {k} likeliest tokens are kept, and all others as one: {mass:.2%} of the probability on "
                f"{tokens:,} positions (asked for: at most {meta['tail']:.2%})"
            )
            return meta | {"top_k": k}
        return meta

    def _fill(self, cached: CachedTeacher, rows: Sequence[int]) -> None:
        """Compute the rows that are missing."""
        encoded, accelerator = self.opened.texts.train, self.accelerator
        cached.open()
        assert cached.index is not None, "it was opened"
        missing = missing_rows(cached.index, encoded, rows)
        accelerator.wait_for_everyone()  # all have seen the same shards
        where, kept = cached.folder.path, ", ".join(cached.kept.words)
        if not missing:
            self.observer.announce(f"cache: the teacher's outputs on {len(rows):,} rows are there: {where}")
            return
        self.observer.announce(
            f"cache: the teacher reads {len(missing):,} of {len(rows):,} rows once, for every epoch and run: {kept}; "
            f"{where}"
        )
        begun, progress = time.perf_counter(), self.observer.progress("the teacher's outputs")
        written = fill_cache(self.teacher, cached, encoded, missing, accelerator.device, progress)
        seconds = max(time.perf_counter() - begun, 1e-9)
        self.observer.announce(
            f"cache: {written.tokens:,} tokens in {seconds:.0f} s ({written.tokens / seconds:,.0f} tokens/s), "
            f"{written.bytes / 1e6:,.1f} MB, {written.bytes_a_token:.1f} bytes a token"
        )


def rows_of_run(opened: OpenedRun, plan: Plan | None) -> list[int]:
    """Return the rows of train that a run reads: those of its steps, and those on which it measures."""
    encoded, train = opened.texts.train, opened.recipe.train
    if opened.recipe.multi_task.together:  # whose steps are of all tasks
        return list(range(len(encoded)))
    used = np.zeros(len(encoded), dtype=bool)
    used[0] = True  # its first row shows which parameters are reached
    if plan is not None and plan.attended:
        used[sample_rows(encoded, train.seed, SIMILARITY_TOKENS)] = True
    left, epoch = total_steps(train, encoded), 0
    while left > 0 and not used.all():
        size, tokens = train.batch_size, train.batch_tokens
        batches = epoch_batches(encoded.lengths, size, train.seed, epoch, tokens, encoded.mixture)
        for batch in islice(batches, left):
            used[batch] = True
        left, epoch = left - len(batches), epoch + 1
    rows: list[int] = np.flatnonzero(used).tolist()
    return rows


def use_cache(
    opened: OpenedRun,
    teacher: ComputedTeacher,
    weights: str,
    objectives: Sequence[Objective],
    plan: Plan | None,
    accelerator: Accelerator,
    observer: Observer,
) -> CachedTeacher | None:
    """Build or extend the cache of a run, and return the teacher that reads it; None if no term asks for anything.

    Args:
        opened: the run, its texts tokenized.
        teacher: the teacher, whose weights are loaded.
        weights: fingerprint of its weights.
        objectives: objective of each stage.
        plan: layers that are compared.
        accelerator: device and ranks.
        observer: receives progress.

    Raises:
        UsageError: a term asks for what the cache does not keep, or the folder holds something else.
    """
    settings = opened.recipe.cache
    asked = kept_outputs(objectives, plan)
    if not asked.words:
        return None
    kept = asked | parse_kept(settings.keep, "cache.keep")
    source = cache_source(opened.run, weights, opened.recipe.train.precision)
    build = CacheBuild(opened, teacher, source, kept, accelerator, observer)
    folder = find_folder(settings, cache_meta(source, kept, settings))
    if folder.is_cache:
        there = CachedTeacher(folder)
        for objective in objectives:
            check_teacher(objective, there, plan)
    return build.run(rows_of_run(opened, plan), settings)
