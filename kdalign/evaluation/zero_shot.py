"""Classify images by a dual encoder: the class whose caption is most similar."""

import numpy as np
import torch
from transformers import PreTrainedModel

from kdalign.data.input_reader import InputReader
from kdalign.data.media.inputs import MediaInputs
from kdalign.data.tasks import ClassificationTask, Examples
from kdalign.errors import UsageError
from kdalign.evaluation.predictions import check_finite
from kdalign.models.capture import inference_mode
from kdalign.models.inputs import padded_length
from kdalign.models.sharding import needs_every_rank
from kdalign.observer import ProgressCallback
from kdalign.ranks import share_batches
from kdalign.runs.prediction_table import Predictions

IMAGES_AT_ONCE = 64


def check_text_end(reader: InputReader) -> None:
    """Refuse an end token by which Transformers' CLIP does not find the end of a text; SigLIP reads its last position.

    CLIP takes a text's embedding at the first end token; if the configuration's is 2, as in the first published ones,
    at the token with the largest number, which must then be the end.

    Raises:
        UsageError: both tokens.
    """
    if padded_length(reader.config):
        return
    named, end = reader.config.text_config.eos_token_id, reader.tokenizer.eos_token_id
    if named != end and not (named == 2 and end == max(reader.tokenizer.get_vocab().values())):
        raise UsageError(
            f"CLIP takes a text's embedding at its end token, which is {named} in its configuration and {end} in its "
            "tokenizer: set eos_token_id of text_config in config.json"
        )
    if named == 2 and end == 2:
        raise UsageError(
            "the end token of this CLIP is number 2, for which Transformers takes a text's embedding at its token with "
            "the largest number (accepted: another number, or 2 in the configuration where the end is the largest)"
        )


def captions_of(task: ClassificationTask) -> tuple[str, ...]:
    """Return the caption of each class: the task's, or ``a photo of a LABEL.`` (arXiv:2103.00020, section 3.1.4)."""
    return task.captions or tuple(f"a photo of a {label}." for label in task.labels)


def classify_by_captions(
    model: PreTrainedModel,
    reader: InputReader,
    examples: Examples,
    task: ClassificationTask,
    progress: ProgressCallback,
) -> Predictions:
    """Predict the class whose caption is most similar to each image; logits are cosines times the model's scale.

    Raises:
        NotFinite: embeddings are NaN or infinite.
        UsageError: a text's end cannot be found.
    """
    check_text_end(reader)
    assert reader.media is not None, "a dual encoder reads images"
    assert examples.media is not None, "the task has images"
    media, device = MediaInputs.of(examples.media, reader.media), next(model.parameters()).device
    most = int(model.config.text_config.max_position_embeddings)
    whole = bool(padded_length(model.config))
    ids = reader.tokenizer(
        list(captions_of(task)),
        padding="max_length" if whole else True,
        truncation=True,
        max_length=most,
        return_tensors="pt",
        return_attention_mask=not whole,
        return_token_type_ids=False,
    ).to(device)

    def read(rows: list[int]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        pixels = media.read(rows, (0, 0)).inputs["pixel_values"].to(device, model.dtype)
        logits: np.ndarray[tuple[int, int], np.dtype[np.float32]] = (
            model(pixel_values=pixels, **ids).logits_per_image.float().cpu().numpy()
        )
        return logits

    logits = np.empty((len(examples), len(task.labels)), dtype=np.float32)
    batches = (
        list(range(start, min(start + IMAGES_AT_ONCE, len(examples))))
        for start in range(0, len(examples), IMAGES_AT_ONCE)
    )
    done = 0
    with inference_mode(model), torch.no_grad():
        for rows, found in share_batches(batches, read, in_step=needs_every_rank(model)):
            logits[rows] = found
            done += len(rows)
            progress(done, len(examples))
    check_finite(logits, "logits")
    return Predictions(logits, logits.argmax(axis=1))
