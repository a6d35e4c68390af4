"""Size of a cache before it is built, and whether its disk has room for it."""

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdalign.data.tokenized_split import IGNORED, TEACHER, TokenizedSplit
from kdalign.distillation.checks import Finding, settle
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.teacher_cache import cache_meta, cache_source, find_folder, rows_of_run, shareable_outputs
from kdalign.distillation.tokenize import OpenedRun
from kdalign.files import size_text
from kdalign.models.architecture import CROSS, describe
from kdalign.teachers.kept import KeptOutputs

USUAL_TOP_K = 16
"""Number of likeliest tokens by which the size is estimated before it is chosen."""
_ROW_BYTES = 40
"""Bytes of a row's key and of where its lines begin."""


@dataclass(frozen=True)
class RowsRead:
    """Sizes of the rows that a teacher reads.

    Attributes:
        lengths: number of tokens of each.
        decoded: number of tokens that its decoder reads in addition.
        predictions: number of positions that predict a token.
    """

    lengths: np.ndarray[Any, Any]
    decoded: int
    predictions: int

    @classmethod
    def of(cls, encoded: TokenizedSplit) -> "RowsRead":
        """Count the tokens of all rows of a split."""
        columns, reads = encoded.token_rows, f"{TEACHER}input_ids"
        own = columns.get(reads, columns.get("input_ids"))  # none of sounds and images
        lengths = (encoded.lengths if own is None else own.lengths).astype(np.int64)  # products of them are large
        decoded = int(columns["decoder_input_ids"].lengths.sum()) if "decoder_input_ids" in columns else 0
        asked = columns.get(reads, columns.get("targets"))
        return cls(lengths, decoded, 0 if asked is None else int(np.count_nonzero(asked.values != IGNORED)))

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return int(self.lengths.sum()) + self.decoded


def check_cache_room(opened: OpenedRun) -> None:
    """Refuse a cache that its disk has no room for, by an estimate, before anything is written.

    Raises:
        UsageError: the sizes, and what can be done.
    """
    run, recipe = opened.run, opened.recipe
    if recipe.cache.folder is None or run.teacher is None or not recipe.objective.needs_teacher:
        return
    kept, encoded = shareable_outputs(run), opened.texts.train
    source = cache_source(run, run.teacher.hash, recipe.train.precision)
    place = folder = find_folder(recipe.cache, cache_meta(source, kept, recipe.cache)).path.absolute()
    there = sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0
    needed = estimate_bytes(run, kept, RowsRead.of(encoded.take(rows_of_run(opened, run.plan)))) - there
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        said = f"disk does not suffice: about {size_text(needed)} for the cache {str(folder)!r}; {size_text(free)} free"
        list(settle([Finding("disk", said, "choose another --cache, let it keep less, or make room")], recipe.allow))


def estimate_bytes(run: PreparedRun, kept: KeptOutputs, read: RowsRead) -> int:
    """Estimate the bytes of a cache of what a run's teacher says of these rows."""
    assert run.teacher is not None, "checked: there is a teacher"
    theirs, settings, lengths = describe(run.teacher.config), run.recipe.cache, read.lengths
    of_state = {"fp32": 4, "bf16": 2, "int8": 1}[settings.states]
    scale, wide = 4 if settings.states == "int8" else 0, 4 if settings.states == "fp32" else 2
    stacks = {stack.name: stack for stack in theirs.stacks}
    names = [layer.stack for layer in kept.hidden] + list(kept.embeddings)
    a_token = sum(of_state * stacks[name].width + scale for name in names)
    for layers, queries, others in ((kept.relations, 1, 2), (kept.values, 0, 1)):
        for layer in layers:
            stack = stacks[layer.stack]
            a_token += wide * stack.head_width * (queries * stack.heads + others * stack.kv_heads)
    total = float(_ROW_BYTES * len(lengths) + a_token * lengths.sum())
    for layer in kept.attention:
        stack = stacks["decoder" if layer.stack == CROSS else layer.stack]
        parts = stack.head_width * (stack.heads + stack.kv_heads)
        whole = stack.heads * lengths
        smaller = np.minimum(parts, whole) if layer.stack != CROSS else whole
        total += wide * float((smaller * lengths).sum())
    k, numbers = settings.top_k or USUAL_TOP_K, 2 if theirs.vocabulary <= 2**16 else 4
    logs = 4 if settings.logs == "fp32" else 2
    total += (read.predictions if kept.tokens else 0) * (k * numbers + len(kept.tokens) * (k + 1) * logs)
    total += len(lengths) * 4 * (len(getattr(run.task, "labels", ())) or 1) * kept.classes
    total += len(lengths) * 4 * theirs.stacks[-1].width * kept.features
    return int(total)
