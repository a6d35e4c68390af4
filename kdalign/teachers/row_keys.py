"""Keys of rows by content: a hash of all that a teacher reads in a row, without padding.

A row has the same key in every order of the data, epoch, seed, batch size and rank. A packed row is its own key.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from kdalign.data.batches import Batch
from kdalign.data.media.inputs import MEDIA_KEY
from kdalign.data.media.readers import INPUT_MASK
from kdalign.data.tokenized_split import IGNORED, MASKED

DIGEST = 16
"""Bytes of a key."""


def real_positions(batch: Batch, stack: str) -> Bool[Tensor, "batch theirs"]:
    """Return the teacher's real positions in a stack: an encoder-decoder's decoder reads the target."""
    inputs = batch.teacher_inputs
    if stack == "decoder" and "decoder_input_ids" in inputs:
        return inputs["decoder_attention_mask"].bool()
    return batch.teacher_real


def predicting_positions(batch: Batch) -> Bool[Tensor, "batch theirs"]:
    """Return the teacher's positions at which a student may be compared with its distribution of the next token.

    With one tokenizer these are the positions of the targets, so that the prompts of conversations cost nothing; with
    two all real ones, so that students of several tokenizers share them. A model that labels frames may at each.
    """
    labels_frames = MEDIA_KEY in batch.inputs and "decoder_input_ids" not in batch.inputs
    if batch.matching is not None or batch.targets is None or labels_frames:
        return real_positions(batch, "decoder")
    return batch.targets != IGNORED


def row_keys(batch: Batch) -> list[bytes]:
    """Hash the rows of a batch, on any device: ids, token types, positions, masks, and positions that predict.

    Of sounds and images, ``MEDIA_KEY`` is hashed: their numbers differ by a rounding, or by padding, from batch to
    batch.
    """
    inputs = {
        name: _array(value)
        for name, value in batch.teacher_inputs.items()
        if not (name.startswith(MASKED) or name == INPUT_MASK or value.is_floating_point())
    }
    reals = {stack: _array(real_positions(batch, stack)) for stack in ("encoder", "decoder")}
    asked = _array(predicting_positions(batch))
    keys = []
    for row in range(len(batch.counted)):
        digest = hashlib.blake2b(digest_size=DIGEST)
        for name in sorted(inputs):
            real = reals["decoder" if name.startswith("decoder_") else "encoder"][row]
            _add(digest, name, _without_padding(inputs[name][row], real))
        if batch.targets is not None:
            _add(digest, "asked for", _without_padding(asked[row], reals["decoder"][row]))
        keys.append(digest.digest())
    return keys


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    values = values.detach().cpu()
    return values.numpy() if values.dtype != torch.bfloat16 else values.float().numpy()


def _without_padding(values: np.ndarray[Any, Any], real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut every axis of time to the span from the first real position to the last."""
    places = np.flatnonzero(real)
    span = slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
    return values[tuple(span if size == len(real) else slice(None) for size in values.shape)]


def _add(digest: "hashlib.blake2b", name: str, values: np.ndarray[Any, Any]) -> None:
    """Add a named array: its shape, and its values in one type for every integer, or in bits.

    Other numbers are those of an image that is changed each time it is read.
    """
    if values.dtype.kind == "f":
        digest.update(f"{name}\0{values.shape}\0".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
        return
    binary = values.dtype == np.bool_ or values.ndim > 1
    content = np.packbits(values != 0) if binary else np.ascontiguousarray(values, dtype="<i8")
    digest.update(f"{name}\0{values.shape}\0".encode())
    digest.update(content.tobytes())
