"""Outputs of a teacher row by row, as arrays of numbers that take few bytes, and back as activations of a batch.

A row's arrays have one line for each text, token or prediction, and none for padding. Names of arrays: ``classes``,
``features``, ``entries``, ``logs:T``, and of a layer or stack ``hidden:encoder.3``, its ``scale hidden:encoder.3``,
``embeddings:encoder``, ``queries:encoder.3``, ``keys:…``, ``values:…`` and ``map:…``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from kdalign.data.batches import Batch
from kdalign.errors import RunError
from kdalign.models.architecture import CROSS, Layer
from kdalign.models.attention import attention_map
from kdalign.models.capture import Activations, CaptureSpec, pooled
from kdalign.models.lm_head import block_rows
from kdalign.models.token_targets import DenseTokens, TopTokens, top_tokens
from kdalign.teachers.kept import KeptOutputs, temperature_word
from kdalign.teachers.row_keys import predicting_positions, real_positions

Arrays = dict[str, Tensor]
"""A row's arrays by name; the first axis counts lines."""
Floats = Literal["fp32", "fp16", "bf16"]
States = Literal["fp32", "bf16", "int8"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SAME_MAP = 1e-4
"""Largest difference of a map from that of its queries and keys at which it is kept as these."""


@dataclass(frozen=True)
class Formats:
    """Number formats of what is kept.

    Attributes:
        top_k: number of likeliest entries of a distribution over tokens.
        logs: format of their log-probabilities. ``fp16`` rounds by at most 1/2048 of the value.
        states: format of features. ``bf16`` rounds by at most 1/256 of each value, ``int8`` by at most 1/254 of the
            position's largest.
    """

    top_k: int = 16
    logs: Floats = "fp16"
    states: States = "bf16"


def encode_rows(batch: Batch, signals: Activations, kept: KeptOutputs, formats: Formats) -> list[Arrays]:
    """Take what is kept of a teacher's activations at its own positions, row by row, on the CPU.

    Raises:
        RunError: a value that is not finite, or too large for its format.
    """
    rows: list[Arrays] = [{} for _ in batch.counted]
    every = torch.ones(len(rows), 1, dtype=torch.bool)
    if kept.classes:
        _spread(rows, "classes", _rounded(signals.logits, "fp32"), every)
    if kept.features:
        _spread(rows, "features", _rounded(pooled(signals.features, batch.teacher_real), "fp32"), every)
    if kept.tokens:
        assert isinstance(signals.tokens, DenseTokens), "a computed teacher gives dense distributions"
        asked = predicting_positions(batch)
        dense = signals.tokens.select(asked)
        temperatures, vocabulary = tuple(sorted(kept.tokens)), len(dense.head.weight)
        top = top_tokens(dense, formats.top_k, temperatures, block_rows(vocabulary, asked.device))
        entries = top.entries.cpu().to(torch.uint16 if vocabulary <= 2**16 else torch.int32)
        _spread(rows, "entries", entries, asked)
        for temperature, logs in top.logs.items():
            _spread(rows, _logs(temperature), _rounded(logs, formats.logs), asked)
    for layer in kept.hidden:
        _spread_states(rows, f"hidden:{layer}", signals.hidden[layer], real_positions(batch, layer.stack), formats)
    for stack in kept.embeddings:
        _spread_states(rows, f"embeddings:{stack}", signals.embeddings[stack], real_positions(batch, stack), formats)
    for name, layers in _parts(kept):
        for layer in layers:
            where = real_positions(batch, layer.stack)
            lines = vars(signals)[name][layer].transpose(1, 2)[where]  # (tokens, heads, head width)
            _spread(rows, f"{name}:{layer}", _rounded(lines, _wide(formats)), where)
    for layer in kept.attention:
        _spread_maps(rows, layer, batch, signals, _wide(formats))
    return rows


def _logs(temperature: float) -> str:
    """Name of the array of a temperature, in all its digits, so that no two have one name."""
    return f"logs:{temperature_word(temperature)}"


def _parts(kept: KeptOutputs) -> list[tuple[str, frozenset[Layer]]]:
    """Layers whose queries, keys and values are kept, by the name of the part."""
    return [("queries", kept.relations), ("keys", kept.relations), ("values", kept.relations | kept.values)]


def _wide(formats: Formats) -> Floats:
    """Format of queries, keys, values and maps, whose products need more digits than ``bf16`` has."""
    return "fp32" if formats.states == "fp32" else "fp16"


def _rounded(values: Tensor, kind: Floats) -> Tensor:
    """Round to a format, and refuse what it cannot hold."""
    rounded = values.to(DTYPES[kind])
    if not bool(rounded.isfinite().all()):
        cause = "are NaN or infinite" if not bool(values.isfinite().all()) else f"are too large for {kind}"
        raise RunError(f"the teacher's outputs cannot be kept: some {cause}")
    return rounded


def _spread(rows: Sequence[Arrays], name: str, lines: Tensor, where: Bool[Tensor, "batch time"]) -> None:
    """Give each row the lines of its positions."""
    for row, own in zip(rows, torch.split(lines.cpu(), where.sum(dim=1).tolist()), strict=True):
        row[name] = own


def _spread_states(
    rows: Sequence[Arrays], name: str, states: Tensor, where: Bool[Tensor, "batch time"], formats: Formats
) -> None:
    """Give each row its features; in ``int8`` with a scale for each position, its largest value over 127."""
    values = states[where].float()
    if formats.states != "int8":
        _spread(rows, name, _rounded(values, formats.states), where)
        return
    scale = (values.abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    _spread(rows, f"scale {name}", _rounded(scale, "fp32"), where)
    _spread(rows, name, (values / scale).round().to(torch.int8), where)


def _spread_maps(rows: Sequence[Arrays], layer: Layer, batch: Batch, signals: Activations, kind: Floats) -> None:
    """Give each row its map, or the queries and keys that make it if these take fewer bytes and make it exactly."""
    whole = signals.attention[layer]
    asking, seen = (real_positions(batch, stack) for stack in _sides(layer))
    queries, keys = signals.queries.get(layer), signals.keys.get(layer)
    again = None if queries is None or keys is None else _map_of(batch, layer, queries, keys)
    for number, row in enumerate(rows):
        own = whole[number][:, asking[number]][:, :, seen[number]].float()
        if queries is not None and keys is not None and again is not None:
            made = again[number][:, asking[number]][:, :, seen[number]]
            lines = [part[number].transpose(0, 1)[asking[number]] for part in (queries, keys)]
            fewer = f"keys:{layer}" in row or sum(part.numel() for part in lines) < own.numel()
            if fewer and float((made - own).abs().max()) <= _SAME_MAP:
                row |= {
                    f"queries:{layer}": _rounded(lines[0], kind).cpu(),
                    f"keys:{layer}": _rounded(lines[1], kind).cpu(),
                }
                continue
        row[f"map:{layer}"] = _rounded(own.flatten(), kind).cpu()


def _sides(layer: Layer) -> tuple[str, str]:
    """Stacks of a map's queries and of its keys."""
    return ("decoder", "encoder") if layer.stack == CROSS else (layer.stack, layer.stack)


def _map_of(batch: Batch, layer: Layer, queries: Tensor, keys: Tensor) -> Tensor:
    """Compute the map of a text's attention to itself from queries and keys, without a bias or a window."""
    inputs = batch.teacher_inputs
    target = layer.stack == "decoder" and "decoder_input_ids" in inputs
    given = inputs["decoder_attention_mask" if target else "attention_mask"].bool()
    visible = given if given.ndim == 4 else given[:, None, None, :]
    if layer.stack == "decoder" and given.ndim == 2:
        time = given.size(1)
        visible = visible & torch.ones(time, time, dtype=torch.bool, device=given.device).tril()
    return attention_map(queries, keys, visible, queries.size(-1) ** -0.5)


def names_of(kept: KeptOutputs, wanted: CaptureSpec) -> list[str]:
    """Return the arrays to read: answers, and the layers that are wanted."""
    names = [name for name in ("classes", "features") if getattr(kept, name)]
    names += ["entries", *(_logs(temperature) for temperature in sorted(kept.tokens))] if kept.tokens else []
    states = [f"hidden:{layer}" for layer in wanted.hidden] + [f"embeddings:{stack}" for stack in wanted.embeddings]
    names += [name for state in states for name in (state, f"scale {state}")]
    names += [f"{part}:{layer}" for part, layers in _parts(kept) for layer in layers & wanted.relations]
    names += [f"{part}:{layer}" for layer in wanted.attention for part in ("map", "queries", "keys")]
    return list(dict.fromkeys(names))


def decode_rows(batch: Batch, rows: Sequence[Arrays], kept: KeptOutputs, wanted: CaptureSpec) -> Activations:
    """Make activations of a batch at the teacher's positions, in float32, of its rows' arrays; tokens come apart."""
    signals, device, every = Activations(), batch.counted.device, torch.ones(len(rows), 1, dtype=torch.bool)
    if kept.classes:
        signals.logits = _placed(rows, "classes", every)[:, 0].to(device)
    if kept.features:
        mean = _placed(rows, "features", every).to(device)
        signals.features = mean.expand(-1, batch.teacher_real.size(1), -1)
    for layer in wanted.hidden:
        signals.hidden[layer] = _states(rows, f"hidden:{layer}", real_positions(batch, layer.stack))
    for stack in wanted.embeddings:
        signals.embeddings[stack] = _states(rows, f"embeddings:{stack}", real_positions(batch, stack))
    for name, layers in _parts(kept):
        for layer in layers & wanted.relations:
            vars(signals)[name][layer] = _heads(rows, f"{name}:{layer}", real_positions(batch, layer.stack))
    for layer in wanted.attention:
        signals.attention[layer] = _map(rows, layer, batch)
    return signals


def decode_tokens(
    batch: Batch, rows: Sequence[Arrays], temperatures: Iterable[float], top_k: int, vocabulary: int
) -> TopTokens:
    """Make the likeliest tokens of a batch, at the teacher's positions, of its rows' arrays.

    Rounded log-probabilities are normalised again, so that a divergence from them is never below 0.
    """
    asked, device = predicting_positions(batch), batch.counted.device
    empty = {"entries": torch.zeros(0, top_k)}
    logs = {}
    for temperature in temperatures:
        name = _logs(temperature)
        kept = _placed([*rows, {name: torch.zeros(0, top_k + 1)}], name, asked)
        logs[temperature] = kept.to(device).log_softmax(dim=-1)
    return TopTokens(_placed([*rows, empty], "entries", asked, torch.int64).to(device), logs, vocabulary)


def _placed(
    rows: Sequence[Arrays], name: str, where: Bool[Tensor, "batch time"], dtype: torch.dtype = torch.float32
) -> Tensor:
    """(batch, time, ...), the lines of all rows at their positions, and 0 elsewhere."""
    lines = torch.cat([row[name].to(dtype) for row in rows if name in row])
    placed = lines.new_zeros(*where.shape, *lines.shape[1:])
    placed[where.cpu()] = lines
    return placed


def _states(rows: Sequence[Arrays], name: str, where: Bool[Tensor, "batch time"]) -> Tensor:
    states = _placed(rows, name, where)
    if f"scale {name}" in rows[0]:
        states = states * _placed(rows, f"scale {name}", where)
    return states.to(where.device)


def _heads(rows: Sequence[Arrays], name: str, where: Bool[Tensor, "batch time"]) -> Tensor:
    """(batch, heads, time, head width) of one part of attention."""
    return _placed(rows, name, where).to(where.device).transpose(1, 2)


def _map(rows: Sequence[Arrays], layer: Layer, batch: Batch) -> Tensor:
    """(batch, heads, time, keys), each row's map as it was kept, or computed of its queries and keys."""
    asking, seen = (real_positions(batch, stack) for stack in _sides(layer))
    made_of_parts = torch.tensor([not len(row.get(f"map:{layer}", ())) for row in rows], device=asking.device)
    maps = None
    if bool(made_of_parts.any()):
        parts = [_heads(rows, f"{name}:{layer}", asking & made_of_parts[:, None]) for name in ("queries", "keys")]
        maps = _map_of(batch, layer, *parts)
    for number in (~made_of_parts).nonzero()[:, 0].tolist():
        square = asking[number][:, None] & seen[number][None]
        own = rows[number][f"map:{layer}"].float().to(asking.device).view(-1, int(square.sum()))
        if maps is None:
            maps = own.new_zeros(len(rows), len(own), *square.shape)
        maps[number] = maps.new_zeros(()).expand_as(maps[number]).masked_scatter(square, own)
    assert maps is not None, "a batch has rows"
    return maps
