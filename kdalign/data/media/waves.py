"""Samples of sounds as a model's input: wav2vec 2.0 and its kin divide them into frames by convolutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdalign.data.media.readers import INPUT_MASK, AudioReader, Decoded

Convolutions = tuple[tuple[int, int], ...]
"""(kernel, stride) of each convolution, from the samples on."""


def frames_of(samples: np.ndarray[Any, Any], convolutions: Convolutions) -> np.ndarray[Any, Any]:
    """Return the number of frames that convolutions without padding make of each number of samples."""
    for kernel, stride in convolutions:
        samples = (samples - kernel) // stride + 1
    return samples


def samples_of(frames: int, convolutions: Convolutions) -> int:
    """Return the smallest number of samples of which convolutions make this many frames."""
    for kernel, stride in reversed(convolutions):
        frames = (frames - 1) * stride + kernel
    return frames


@dataclass(frozen=True)
class WaveReader(AudioReader):
    """Feature extractor of a model that reads samples.

    Attributes:
        convolutions: those that make frames of them.
        masks: True if the model is told which samples are padding; else its frames depend on it (a group norm over
            time), as of models that were trained without a mask.
    """

    convolutions: Convolutions = ()
    masks: bool = True

    def decode(self, encoded: bytes, where: str) -> Decoded:
        """Decode a sound at the model's rate, as long as its header says, by which frames are counted."""
        sound, length = super().decode(encoded, where), self.samples_in(encoded, where)
        return np.pad(sound[:length], (0, max(0, length - len(sound))))

    def inputs(self, decoded: Sequence[Decoded]) -> dict[str, Tensor]:
        """Return ``input_values``, (batch, samples), padded to the longest, and their mask if the model takes one.

        A sound too short for a frame is followed by silence.
        """
        least = samples_of(1, self.convolutions)
        lengths = [max(len(sound), least) for sound in decoded]
        sounds = [np.pad(sound, (0, length - len(sound))) for sound, length in zip(decoded, lengths, strict=True)]
        read = self.extractor(
            sounds, sampling_rate=self.rate, return_tensors="pt", padding=True, return_attention_mask=True
        )
        inputs = {"input_values": read["input_values"].to(torch.float32)}
        return inputs | ({INPUT_MASK: read["attention_mask"].long()} if self.masks else {})

    def positions_of(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the number of frames of each sound."""
        frames: np.ndarray[Any, Any] = np.maximum(1, frames_of(samples, self.convolutions))
        return frames

    @property
    def facts(self) -> object:
        """The extractor's settings."""
        return [self.extractor.to_dict(), self.convolutions, self.masks]
