"""Transcribe sounds by a model that labels their frames: the likeliest label of each, without repeats and blanks."""

from transformers import PreTrainedModel

from kdalign.data.batches import collate
from kdalign.data.epochs import rows_in_order
from kdalign.data.media.waves import WaveReader
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.data.transcripts import collapse
from kdalign.errors import NotFinite, UsageError
from kdalign.models.capture import CaptureSpec, forward, inference_mode
from kdalign.models.sharding import needs_every_rank
from kdalign.observer import ProgressCallback, no_progress
from kdalign.ranks import share_batches
from kdalign.runs.written_texts import WrittenTexts

FRAMES_AT_ONCE = 4096
"""Frames of a batch."""


def transcribe_frames(
    model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
) -> WrittenTexts:
    """Transcribe a split in one pass, in the model's own precision; its mode is restored afterwards.

    A row is read by itself if padding would change its frames. Ranks share the pass.

    Args:
        model: a model with a CTC head.
        encoded: rows of sounds.
        progress: called with the number of frames read, and of all.

    Raises:
        UsageError: there is no row.
        NotFinite: the model gives NaN.
    """
    transcripts, media = encoded.transcripts, encoded.media
    assert transcripts is not None, "a task of speech has transcripts"
    assert media is not None, "a task of speech has sounds"
    if not len(encoded):
        raise UsageError("there is no sound to transcribe")
    device = next(model.parameters()).device
    done, total = 0, int(encoded.lengths.sum())

    def read(rows: list[int]) -> tuple[list[str], int]:
        batch = collate(encoded, rows).to(device)
        logits = forward(model, batch.inputs, CaptureSpec(), None).logits
        if not bool(logits[batch.real].isfinite().all()):
            raise NotFinite("its logits are not finite numbers")
        lengths, best = batch.real.sum(dim=1).tolist(), logits.argmax(dim=-1).tolist()
        labels = [collapse(row[:length], transcripts.blank) for row, length in zip(best, lengths, strict=True)]
        return [transcripts.write(row) for row in labels], sum(lengths)

    apart = isinstance(media.reader, WaveReader) and not media.reader.masks
    batches = rows_in_order(encoded, 1 if apart else FRAMES_AT_ONCE, tokens=not apart)
    texts = [""] * len(encoded)
    with inference_mode(model):
        for rows, (found, count) in share_batches(batches, read, in_step=needs_every_rank(model)):
            for row, text in zip(rows, found, strict=True):
                texts[row] = text
            done += count
            progress(done, total)
    return WrittenTexts.of(texts)
