"""Build a cache of teacher outputs by itself, say what it would take, and verify one against its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from kdalign.data.batches import collate
from kdalign.devices import check_device, make_accelerator
from kdalign.distillation.cache_size import RowsRead, estimate_bytes
from kdalign.distillation.load import load_teachers
from kdalign.distillation.prepare import PreparedRun, prepare
from kdalign.distillation.teacher_cache import (
    CacheBuild,
    cache_meta,
    cache_source,
    check_cache,
    check_formats,
    check_keeps,
    check_outputs,
    find_folder,
    shareable_outputs,
)
from kdalign.distillation.teacher_source import product_dtype
from kdalign.distillation.tokenize import OpenedRun, open_run, with_augmentation
from kdalign.errors import UsageError
from kdalign.files import check_links
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.recipe import AUTO_CACHE, Recipe
from kdalign.teachers.cache_files import CacheFolder
from kdalign.teachers.cached import CachedTeacher, check_source
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.kept import KeptOutputs, parse_kept
from kdalign.teachers.row_keys import row_keys
from kdalign.teachers.row_outputs import Arrays, encode_rows

SAMPLE_ROWS = 32
"""Rows that are computed again to verify a cache."""


@dataclass(frozen=True)
class CachePreview:
    """Preview of a cache: outputs, rows and an estimate of its size.

    Attributes:
        folder: where it would be.
        kept: words of what would be kept.
        rows: number of training rows.
        tokens: number of tokens that the teacher would read.
        bytes: estimate of the size.
        top_k: number of likeliest tokens; None while it is to be chosen, or without tokens.
        resumes: True if a part is there already.
    """

    folder: Path
    kept: tuple[str, ...]
    rows: int
    tokens: int
    bytes: int
    top_k: int | None
    resumes: bool


def build_cache(recipe: Recipe, keep: Sequence[str], observer: Observer, *, overwrite: bool = False) -> CacheFolder:
    """Let a recipe's teacher read all training rows once, and keep its outputs; the same call resumes after a stop.

    Args:
        recipe: its ``cache`` names the folder.
        keep: words of what to keep; what the recipe's terms ask for if there are none.
        observer: receives progress.
        overwrite: build the cache again.

    Raises:
        UsageError: the recipe has no such outputs, or the folder holds something else.
        RunError: outputs that are not finite.
    """
    run, kept, accelerator = _prepare(recipe, keep, overwrite)
    opened = open_run(run, accelerator)
    teacher, weights = _load(opened, accelerator, observer)
    if run.augmenting is not None:
        texts = with_augmentation(run, opened.texts, opened.tokenizer, accelerator, observer)
        opened = replace(opened, texts=texts)
    source = cache_source(run, weights, opened.recipe.train.precision)
    folder = find_folder(recipe.cache, cache_meta(source, kept, recipe.cache))
    if overwrite:
        on_first_rank(folder.remove)
    rows = list(range(len(opened.texts.train)))
    return CacheBuild(opened, teacher, source, kept, accelerator, observer).run(rows, recipe.cache).folder


def preview_cache(recipe: Recipe, keep: Sequence[str], *, overwrite: bool = False) -> CachePreview:
    """Check a cache without loading the teacher or writing anything, and estimate its size.

    Raises:
        UsageError: as ``build_cache``.
    """
    run, kept, accelerator = _prepare(recipe, keep, overwrite)
    opened = open_run(run, accelerator)
    assert run.teacher is not None, "checked: there is a teacher"
    source = cache_source(run, run.teacher.hash, opened.recipe.train.precision)
    folder = find_folder(recipe.cache, cache_meta(source, kept, recipe.cache))
    read = RowsRead.of(opened.texts.train)
    size = estimate_bytes(run, kept, read)
    top_k = recipe.cache.top_k if kept.tokens else None
    resumes = folder.is_cache and not overwrite
    return CachePreview(folder.path, kept.words, len(read.lengths), read.tokens, size, top_k, resumes)


def _prepare(recipe: Recipe, keep: Sequence[str], overwrite: bool) -> tuple[PreparedRun, KeptOutputs, Accelerator]:
    """Check a recipe and what to keep of its teacher."""
    if not recipe.has_teacher:
        raise UsageError("a cache keeps a teacher's outputs: give --teacher")
    if len(recipe.data.task) > 1:
        raise UsageError(f"a cache is of one task: given {', '.join(recipe.data.task)}")
    check_device(recipe.train.device)
    run, named = prepare(recipe), Path(str(recipe.cache.folder))
    if overwrite and recipe.cache.folder != AUTO_CACHE and CacheFolder(named).is_cache:
        check_links(named)
        check_cache(replace(run, recipe=recipe.with_changes(cache={"folder": AUTO_CACHE})))
    else:
        check_cache(run)
    if not keep and run.plan is not None and run.plan.choice and recipe.objective.built.aligning:
        raise UsageError(
            f"map {run.plan.choice!r} is measured before training, so that its layers are not known yet: name what to "
            f"keep, such as --keep hidden:encoder.3, or let distill --cache build the cache"
        )
    kept = parse_kept(keep) if keep else shareable_outputs(run)
    if not kept.words:
        raise UsageError("the recipe's terms ask for nothing of the teacher: name what to keep by --keep")
    check_outputs(run, kept, "--keep")
    if CacheFolder(named).is_cache and not overwrite:
        check_keeps(CacheFolder(named), kept)
        check_formats(CacheFolder(named), recipe.cache)
    return run, kept, make_accelerator(recipe.train.device)


def _load(opened: OpenedRun, accelerator: Accelerator, observer: Observer) -> tuple[ComputedTeacher, str]:
    """Load the teacher at the precision of training, fine-tuning it first if it has no head; and its fingerprint."""
    run = opened.run
    (loaded,) = load_teachers(run, opened.recipe, accelerator, opened.bf16, observer)
    dtype = product_dtype(opened) or torch.float32
    order = run.adapter.output_order(loaded.model)
    return ComputedTeacher(loaded.model, order, dtype, accelerator.device), loaded.weights


@dataclass(frozen=True)
class Verification:
    """Result of computing some rows of a cache again.

    Attributes:
        rows: number of rows that were compared.
        differences: by array, the largest difference over the array's largest value.
        tokens: share of kept entries that are among the likeliest again; None without tokens.
    """

    rows: int
    differences: dict[str, float]
    tokens: float | None

    @property
    def differs(self) -> bool:
        """True if the outputs are not those of the teacher."""
        return any(each > LARGEST_DIFFERENCE for each in self.differences.values())


LARGEST_DIFFERENCE = 0.02
"""Largest difference of the same teacher's outputs over their largest value, by rounding in bf16 or int8."""


def verify_rows(recipe: Recipe, observer: Observer) -> Verification:
    """Let a recipe's teacher compute a few rows of a cache again, and compare.

    Args:
        recipe: its ``cache.folder`` is the cache, its data the rows.
        observer: receives progress.

    Raises:
        UsageError: another teacher, a damaged cache, or rows of other data.
    """
    folder = CacheFolder(Path(str(recipe.cache.folder)))
    cached = CachedTeacher(folder)
    cached.open()
    assert cached.index is not None, "it was opened"
    check_device(recipe.train.device)
    run, accelerator = prepare(recipe), make_accelerator(recipe.train.device)
    opened = open_run(run, accelerator)
    teacher, weights = _load(opened, accelerator, observer)
    check_source(folder, folder.meta, cache_source(run, weights, opened.recipe.train.precision).facts)
    encoded, found = opened.texts.train, list[tuple[Arrays, Arrays]]()
    for row in np.random.default_rng(0).permutation(len(encoded)).tolist():
        batch = collate(encoded, [row])
        [key] = row_keys(batch)
        if len(found) < SAMPLE_ROWS and key in cached.index:
            moved = batch.to(accelerator.device)
            signals = teacher(replace(moved, matching=None), cached.kept.spec)
            [again] = encode_rows(moved, signals, cached.kept, cached.formats)
            there = cached.index.read(key, list(again))
            assert there is not None, "its key is there"
            found.append((there, again))
    if not found:
        raise UsageError(f"no row of {run.task.source}'s train is in {str(folder.path)!r}: it is of other data")
    return _compare(found)


def _compare(rows: Sequence[tuple[Arrays, Arrays]]) -> Verification:
    differences: dict[str, float] = {}
    same = entries = 0
    for there, again in rows:
        for name, values in again.items():
            if name == "entries":
                old, new = there[name].long(), values.long()
                same += int((old[:, :, None] == new[:, None, :]).any(dim=2).sum())
                entries += new.numel()
            elif name in there and len(values):
                old, new = there[name].double(), values.double()
                if name.startswith("logs:"):
                    old, new = old.exp(), new.exp()
                apart = float((old - new).abs().max() / new.abs().max().clamp_min(1e-9))
                differences[name] = max(differences.get(name, 0.0), apart)
    return Verification(len(rows), differences, same / entries if entries else None)
