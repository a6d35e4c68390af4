"""Teacher whose outputs are kept in a cache: no weights in memory, and one pass over the rows for all runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdalign.data.batches import Batch, collate
from kdalign.data.epochs import in_order, rows_in_order
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import RunError, UsageError, shorten
from kdalign.models.capture import Activations, CaptureSpec
from kdalign.models.lm_head import LMHead, block_rows, row_blocks
from kdalign.models.sharding import needs_every_rank
from kdalign.models.token_targets import DenseTokens, TopTokens
from kdalign.observer import ProgressCallback
from kdalign.ranks import on_every_rank, share_batches
from kdalign.teachers.base import Teacher, TermRequest
from kdalign.teachers.cache_files import CacheFolder, CacheIndex, ShardFacts, ShardWriter
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.kept import outputs_of_term, parse_kept, unkeepable
from kdalign.teachers.row_keys import predicting_positions, real_positions, row_keys
from kdalign.teachers.row_outputs import Arrays, Formats, decode_rows, decode_tokens, encode_rows, names_of

FORMAT = 1
"""Counts up when the same folder would be read as other numbers."""
LADDER: Sequence[int] = (8, 16, 32, 64, 128, 256)
"""Numbers of likeliest entries from which the smallest is chosen whose tail is light enough."""
PASS_TOKENS = 4096
"""Positions of a batch of the pass that fills a cache."""


@dataclass(frozen=True)
class CacheSource:
    """Origin of the numbers in a cache: the teacher, and all else that decides its outputs.

    Attributes:
        teacher: name of the model, for error lines.
        weights: fingerprint of its weights.
        config: fingerprint of its configuration.
        tokenizer: fingerprint of its tokenizer.
        precision: precision of its forward.
        labels: order of a classifier's logits; empty for others.
        vocabulary: number of entries of its vocabulary.
    """

    teacher: str
    weights: str
    config: str
    tokenizer: str
    precision: str
    labels: tuple[str, ...]
    vocabulary: int

    @property
    def facts(self) -> dict[str, Any]:
        """The values by name, as they are in ``cache.json``."""
        return {"format": FORMAT, **vars(self), "labels": list(self.labels)}


_CHANGES = {
    "format": "another version of kdalign's format",
    "weights": "another teacher",
    "config": "a teacher of another configuration",
    "tokenizer": "another tokenizer",
    "precision": "a teacher at another precision",
    "labels": "another order of labels",
    "vocabulary": "another vocabulary",
}


def check_source(folder: CacheFolder, meta: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse a cache of another teacher, tokenizer, precision or order of labels.

    Args:
        folder: the cache.
        meta: what it was built of.
        facts: what a run asks for, or a part of it, as in ``CacheSource.facts``.

    Raises:
        UsageError: the first difference, and what can be done.
    """
    for name, what in _CHANGES.items():
        if name in facts and meta.get(name) != facts[name]:
            raise UsageError(
                f"{str(folder.path)!r} holds outputs of {what}: {shorten(str(meta.get(name)), 80)} there, "
                f"{shorten(str(facts[name]), 80)} here; give another --cache, or build it again: "
                f"`kdalign cache build --overwrite --out {folder.path}`"
            )


class CachedTeacher:
    """Teacher that reads its outputs from a cache.

    Attributes:
        folder: the cache.
        kept: outputs that it holds.
        formats: their number formats.
    """

    def __init__(self, folder: CacheFolder) -> None:
        """Open a cache without its shards, which ``open`` does.

        Raises:
            UsageError: the folder holds no cache, or a damaged one.
        """
        meta = folder.meta
        try:
            self.kept = parse_kept(meta["keep"], "keep")
            self.formats = Formats(int(meta["top_k"] or 0), meta["logs"], meta["states"])
            self._vocabulary = int(meta["vocabulary"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{str(folder.path / 'cache.json')!r} is damaged: build the cache again") from None
        self.folder = folder
        self.index: CacheIndex | None = None

    def open(self, checked: bool = False) -> None:
        """Open the shards that are there now.

        Args:
            checked: True if their checksums were compared before.

        Raises:
            UsageError: a shard is damaged.
        """
        if not checked:
            self.folder.check()
        self.index = CacheIndex(self.folder)

    def __call__(self, batch: Batch, wanted: CaptureSpec) -> Activations:
        """Read the rows of a batch by their content.

        Raises:
            RunError: a row is not in the cache.
        """
        assert self.index is not None, "the shards are opened before training"
        names = names_of(self.kept, wanted)
        found = [self.index.read(key, names) for key in row_keys(batch)]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            number = "" if batch.rows is None else f" {int(batch.rows[found.index(None)])}"
            raise RunError(
                f"row{number} of train is not in the cache {str(self.folder.path)!r}: `kdalign cache build` adds it"
            )
        signals = decode_rows(batch, rows, self.kept, wanted)
        if self.kept.tokens:
            temperatures = sorted(self.kept.tokens)
            signals.tokens = decode_tokens(batch, rows, temperatures, self.formats.top_k, self._vocabulary)
        if batch.matching is None:
            return signals
        if isinstance(signals.tokens, TopTokens):
            align = batch.matching.align_predictions
            logs = {temperature: align(kept) for temperature, kept in signals.tokens.logs.items()}
            signals.tokens = replace(signals.tokens, entries=align(signals.tokens.entries), logs=logs)
        return signals.moved(batch.matching)

    @property
    def facts(self) -> dict[str, Any]:
        """Outputs, number formats, counts and the mean probability outside the kept entries, for a record."""
        assert self.index is not None, "the shards are opened before training"
        counts = self.index.facts
        facts: dict[str, Any] = {
            "folder": str(self.folder.path),
            "kept": list(self.kept.words),
            "states": self.formats.states,
        }
        if self.kept.tokens:
            facts |= {"top_k": self.formats.top_k, "logs": self.formats.logs, "mean_tails": counts.mean_tails}
        sizes = {name: getattr(counts, name) for name in ("rows", "tokens", "predictions", "bytes", "bytes_a_token")}
        return facts | sizes

    def refusal(self, request: TermRequest) -> str | None:
        """Return why it cannot give what a term asks for: what is not kept, and the command that keeps it."""
        why = unkeepable(request)
        if why is not None:
            return why
        alone = bool(request.wanted.relations) and request.wanted.relations <= self.kept.values
        missing = self.kept.missing(outputs_of_term(request, values_only=alone))
        if not missing:
            return None
        words = " ".join(f"--keep {word}" for word in (*self.kept.words, *missing))
        return (
            f"asks for {', '.join(missing)}, which the cache {str(self.folder.path)!r} does not keep (it keeps "
            f"{', '.join(self.kept.words)}): `kdalign cache build {words}` into another folder, or --cache auto"
        )


@dataclass(frozen=True)
class MissingRows:
    """Rows that a cache does not hold, each content once, and the batches of a pass that have any of them.

    The batches are those of a pass over all rows, whatever is there already: so what is kept of a row depends neither
    on when a pass was stopped nor on how many ranks share it.

    Attributes:
        rows: their numbers, sorted.
        batches: numbers of the rows of each batch, known ones included.
    """

    rows: tuple[int, ...]
    batches: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)


def missing_rows(index: CacheIndex, encoded: TokenizedSplit, rows: Sequence[int]) -> MissingRows:
    """Return the rows that a cache does not hold."""
    keys: dict[int, bytes] = {}
    for numbers, batch in in_order(encoded.take(rows), PASS_TOKENS, tokens=True):
        keys |= dict(zip(numbers, row_keys(batch), strict=True))
    first: dict[bytes, int] = {}
    for number in range(len(rows)):
        first.setdefault(keys[number], rows[number])
    distinct, missing = sorted(first.values()), {row for key, row in first.items() if key not in index}
    batches = rows_in_order(encoded.take(distinct), PASS_TOKENS, tokens=True)
    asked = (tuple(distinct[number] for number in batch) for batch in batches)
    return MissingRows(tuple(sorted(missing)), tuple(batch for batch in asked if not missing.isdisjoint(batch)))


def fill_cache(
    teacher: ComputedTeacher,
    cached: CachedTeacher,
    encoded: TokenizedSplit,
    missing: MissingRows,
    device: torch.device,
    progress: ProgressCallback,
) -> ShardFacts:
    """Let a teacher read rows once, and keep its outputs; ranks share the batches, and each writes shards of its own.

    Args:
        teacher: computes them.
        cached: the cache; it sees the new rows once it is opened again.
        encoded: the training rows.
        missing: the rows that are missing.
        device: device of the teacher.
        progress: callback for tokens read and all tokens.

    Returns:
        Counts of what all ranks have written.

    Raises:
        RunError: outputs that are not finite, on any rank.
        Unwritten: the disk is full, or writing is not permitted.
    """
    wanted, writer, done = set(missing.rows), ShardWriter(cached.folder), 0
    total = sum(int(encoded.lengths[list(batch)].sum()) for batch in missing.batches)

    def read(numbers: Sequence[int]) -> None:
        batch = collate(encoded, numbers)
        moved = batch.to(device)
        signals = teacher(replace(moved, matching=None), cached.kept.spec)
        outputs = encode_rows(moved, signals, cached.kept, cached.formats)
        new = [place for place, row in enumerate(numbers) if row in wanted]
        keys, outputs = row_keys(batch), [outputs[place] for place in new]
        read_for_these = batch if len(new) == len(numbers) else collate(encoded, [numbers[place] for place in new])
        writer.add([keys[place] for place in new], outputs, _count(read_for_these, outputs))

    def finish() -> ShardFacts:
        writer.flush()
        return writer.written

    try:
        for numbers, _ in share_batches(missing.batches, read, in_step=needs_every_rank(teacher.model)):
            done += int(encoded.lengths[list(numbers)].sum())
            progress(done, total)
    except BaseException:
        writer.flush()
        raise
    return sum(on_every_rank(finish), ShardFacts())


def _count(batch: Batch, rows: Sequence[Arrays]) -> ShardFacts:
    tokens = int(batch.teacher_real.sum())
    if "decoder_input_ids" in batch.teacher_inputs:
        tokens += int(real_positions(batch, "decoder").sum())
    tails: dict[str, float] = {}
    for row in rows:
        for name, logs in row.items():
            if name.startswith("logs:"):
                place = name.removeprefix("logs:")
                tails[place] = tails.get(place, 0.0) + float(logs[:, -1].double().exp().sum())
    predictions = int(predicting_positions(batch).sum()) if tails else 0
    return ShardFacts(len(rows), tokens, predictions, 0, tails)


def choose_top_k(
    teacher: Teacher, batches: Iterable[Batch], temperatures: Iterable[float], tail: float, device: torch.device
) -> tuple[int, float, int]:
    """Choose the smallest number of likeliest entries that leaves at most ``tail`` probability to the rest.

    Args:
        teacher: computes dense distributions.
        batches: a few rows.
        temperatures: the share counts at the temperature at which it is largest.
        tail: largest mean probability outside the entries.
        device: device of the teacher.

    Returns:
        The number, one of ``LADDER`` (the largest if none is enough) below the vocabulary's; the mean probability
        outside that many entries; and the number of positions that it is measured on.
    """
    sums: dict[float, torch.Tensor] = {}
    count, ladder = 0, tuple(LADDER)
    for batch in batches:
        moved = batch.to(device)
        tokens = teacher(replace(moved, matching=None), CaptureSpec()).tokens
        assert isinstance(tokens, DenseTokens), "a computed teacher gives dense distributions"
        dense = tokens.select(predicting_positions(moved))
        vocabulary = len(dense.head.weight)
        ladder = tuple(dict.fromkeys(min(k, vocabulary - 1) for k in LADDER))
        count += len(dense.features)
        for temperature in temperatures:
            found = _tails(dense.features, dense.head, temperature, ladder)
            sums[temperature] = sums.get(temperature, 0) + found
    worst = torch.stack(list(sums.values())).amax(dim=0) / max(count, 1)
    enough = [number for number, mass in enumerate(worst.tolist()) if mass <= tail]
    place = enough[0] if enough else len(ladder) - 1
    return ladder[place], float(worst[place]), count


def _tails(features: torch.Tensor, head: LMHead, temperature: float, ladder: Sequence[int]) -> torch.Tensor:
    """Sum over positions of the probability outside the k likeliest entries, for each k."""
    total = torch.zeros(len(ladder), dtype=torch.float64)
    with torch.no_grad():
        for block in row_blocks(len(features), block_rows(len(head.weight), features.device)):
            likely = (head.logits(features[block]) / temperature).softmax(dim=1).topk(max(ladder), dim=1).values
            inside = likely.double().cumsum(dim=1)[:, [k - 1 for k in ladder]]
            total += (1 - inside).clamp_min(0).sum(dim=0).cpu()
    return total
