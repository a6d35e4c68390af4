"""Encode the sounds of a run once, where the student's encoder is its teacher's and stays as it is.

A student that keeps all layers of its teacher's encoder and does not train them (``train.freeze=encoder``, as
Distil-Whisper does: Gandhi et al. 2023, arXiv:2311.00430, section 3.2) reads what its teacher reads: only the decoder
is trained, and its steps cost a small part of those with the encoder.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from kdalign.data.media.encodings import Encodings
from kdalign.data.media.inputs import MediaInputs
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation.teacher_answers import hash_weights
from kdalign.distillation.tokenize import OpenedRun, ScoredTexts
from kdalign.environment import machine
from kdalign.errors import Unwritten
from kdalign.models.capture import inference_mode
from kdalign.models.inputs import accepted_inputs
from kdalign.observer import Observer
from kdalign.result_cache import Draft, find_result

ROWS_AT_ONCE = 8
"""Sounds of a batch that is encoded."""


def encode_once(opened: OpenedRun, teacher: PreTrainedModel, accelerator: Accelerator, observer: Observer) -> OpenedRun:
    """Return the run with the encoder's outputs of all its sounds, computed now or read from the cache.

    Those of train have the precision of training; those that are scored are in float32.

    Args:
        opened: a run whose models share the encoder.
        teacher: the teacher, in float32.
        accelerator: the device.
        observer: receives progress.
    """
    texts = opened.texts
    encoder = _Encoder(teacher.to(accelerator.device), hash_weights(teacher.get_encoder()), observer)
    splits = [texts.train, texts.watched, *texts.reported.values()]
    observer.announce(
        f"encoder: shared and frozen, so {sum(map(len, splits)):,} sounds are encoded once, and steps train the decoder"
    )
    try:
        train = encoder.encode(texts.train, "train", opened.bf16)
        watched = encoder.encode(texts.watched, "monitored", False)
        reported = {split: encoder.encode(each, split, False) for split, each in texts.reported.items()}
    except Unwritten as error:
        observer.announce(f"encodings cannot be kept ({error}): every step encodes its sounds")
        return opened
    read_by = (ScoredTexts(watched, reported),)
    texts = replace(texts, train=train, labelled=train, watched=watched, reported=reported, read_by=read_by)
    return replace(opened, texts=texts)


class _Encoder:
    """Encodes splits with a model's encoder, or reads what was encoded before."""

    def __init__(self, model: PreTrainedModel, weights: str, observer: Observer) -> None:
        self._model, self._weights, self._observer = model, weights, observer

    def encode(self, split: TokenizedSplit, name: str, bf16: bool) -> TokenizedSplit:
        """Return a split with the encoder's outputs, in bfloat16 if wanted.

        Raises:
            Unwritten: they cannot be kept.
        """
        media = split.media
        assert media is not None, "sounds are encoded"
        content = {"encoder": self._weights, "media": media.fingerprint(), "bf16": bf16}
        kept = find_result("encodings", content | {"machine": machine(self._model.device)})
        dtype = np.dtype(np.uint16 if bf16 else np.float32)

        def write(draft: Draft) -> None:
            progress = self._observer.progress(f"encoding {name}")
            for start in range(0, len(media.rows), ROWS_AT_ONCE):
                numbers = range(start, min(start + ROWS_AT_ONCE, len(media.rows)))
                draft.append("values", self._compute(media, numbers, bf16).ravel())
                progress(numbers[-1] + 1, len(media.rows))

        found = kept.keep_in_parts(write)
        if found is None:
            raise Unwritten("another process has made room")
        shape = (len(media.rows), int(self._model.config.max_source_positions), -1)
        values = found["values"].view(dtype).reshape(shape)
        return replace(split, media=replace(media, encodings=Encodings(values, np.arange(len(media.rows)))))

    def _compute(self, media: MediaInputs, numbers: range, bf16: bool) -> np.ndarray[Any, Any]:
        """Encode some rows, and return the bits."""
        model = self._model
        inputs = accepted_inputs(model, media.read(list(numbers), (0, 0)).inputs)
        read = {name: value.to(model.device) for name, value in inputs.items()}
        with inference_mode(model), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            output = model.get_encoder()(**read).last_hidden_state.cpu()
        bits = output.to(torch.bfloat16).view(torch.uint16) if bf16 else output.float()
        found: np.ndarray[Any, Any] = bits.contiguous().numpy()
        return found
