"""Find columns of train that are shifted against each other, by a teacher's answers about neighbouring rows."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.tasks import ClassificationTask, Examples
from kdalign.data.text_rows import join_texts
from kdalign.distillation.checks import Finding
from kdalign.evaluation.adapters.base import AnyPredictions
from kdalign.metrics.arrays import Array
from kdalign.metrics.chance import log_softmax, shuffled_fit
from kdalign.runs.prediction_table import Predictions

BLOCKS, BLOCK_ROWS = 8, 8
"""Blocks of neighbouring rows, spread over train, and the rows of each."""
MOST_TOKENS = 4_096
"""Most tokens of all blocks together; long texts leave fewer blocks, at least one."""
_LEVEL = 0.01
_LEAST_SHARE = 0.25
"""Least share of rows whose target must fit a neighbour best."""
_WORDS = {-1: "the row before", 1: "the next row"}

_POSITIONS = {"audio": 1500, "image": 200}
"""Positions of a sound or an image of usual models: Whisper's, and a ViT's of 224 x 224 pixels."""
Predict = Callable[[Examples], AnyPredictions]
"""A teacher's predictions on examples."""


def neighbouring_rows(examples: Examples) -> tuple[Examples, ...]:
    """Take blocks of rows that follow one another in their file, spread evenly over it."""
    n = len(examples)
    count = min(BLOCKS, n // BLOCK_ROWS)
    if count < 2:
        return (examples.take(range(min(n, BLOCK_ROWS))),)
    starts = [number * (n - BLOCK_ROWS) // (count - 1) for number in range(count)]
    return tuple(examples.take(range(start, start + BLOCK_ROWS)) for start in starts)


def few_blocks(blocks: Sequence[Examples], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Examples]:
    """Keep blocks of three rows or more within ``MOST_TOKENS``, at least one if there is any."""
    kept, read = list[Examples](), 0
    for block in blocks:
        texts = block.texts if block.media is None else block.texts[1:]
        pieces = tokenizer(list(chain(*texts)), verbose=False)["input_ids"] if texts else []
        read += sum(min(max_length, len(ids)) for ids in pieces)
        read += 0 if block.media is None else len(block) * _POSITIONS[block.media.modality]
        if len(block) > 2 and (not kept or read <= MOST_TOKENS):
            kept.append(block)
    return kept


def with_offsets(blocks: Sequence[Examples], offsets: Sequence[int], label: int = 0) -> Examples:
    """Join the inner rows of blocks, with each column taken from the rows before (-1), after (1) or their own (0).

    Args:
        blocks: of three rows or more.
        offsets: one for each column of texts.
        label: that of the labels.
    """
    texts = (
        join_texts([block.texts[column][1 + offset : len(block) - 1 + offset] for block in blocks])
        for column, offset in enumerate(offsets)
    )
    labels = [block.labels[1 + label : len(block) - 1 + label] for block in blocks if block.labels is not None]
    return Examples(blocks[0].split, tuple(texts), np.concatenate(labels) if labels else None)


def find_shifted_targets(predict: Predict, blocks: Sequence[Examples]) -> Iterator[Finding]:
    """Find targets that fit the source of a neighbouring row better than their own.

    The share of rows that fit each neighbour best is compared: they are equal, by a sign test, for a teacher that does
    not read its source.

    Args:
        predict: the teacher's likelihoods of targets given sources.
        blocks: neighbouring rows with a source and a target each.
    """
    rows = [predict(with_offsets(blocks, (offset, 0))).nll for offset in (0, -1, 1)]
    if len({len(row) for row in rows}) > 1:
        return  # a row was left out, as one without room for its target
    nll = np.stack(rows)
    best = np.bincount(nll.argmin(axis=0), minlength=3)  # of equal ones the row's own
    n, fits = nll.shape[1], {-1: int(best[1]), 1: int(best[2])}
    offset = max(fits, key=lambda each: fits[each])
    if fits[offset] >= _LEAST_SHARE * n and _one_sided(fits[offset], fits[-offset]) < _LEVEL:
        yield Finding(
            "shifted-rows",
            f"the target of {fits[offset]} in {n} rows of train fits the source of {_WORDS[offset]} best (its own: "
            f"{best[0]}, that of {_WORDS[-offset]}: {fits[-offset]})",
            "shift one column by a row, or find the row that one of them lacks",
        )


def _one_sided(more: int, fewer: int) -> float:
    """Compute the probability that chance gives this majority of signs, or a larger one."""
    from scipy.stats import binomtest

    return float(binomtest(more, more + fewer, 0.5, alternative="greater").pvalue)


def find_shifted_labels(predict: Predict, blocks: Sequence[Examples], task: ClassificationTask) -> Iterator[Finding]:
    """Find a column that fits the others if it is taken from a neighbouring row, for a teacher that is at chance.

    Args:
        predict: the teacher's answers.
        blocks: neighbouring rows with labels.
        task: the task, whose columns are named.
    """
    columns = len(blocks[0].texts)
    plain = predict(with_offsets(blocks, (0,) * columns))
    for offset in _WORDS:
        yield from _fitting(plain, with_offsets(blocks, (0,) * columns, offset).labels, task.label, offset)
    labels = with_offsets(blocks, (0,) * columns).labels
    if columns > 1:
        for column, offset in product(range(columns), _WORDS):
            offsets = [offset if number == column else 0 for number in range(columns)]
            answers = predict(with_offsets(blocks, offsets))
            yield from _fitting(answers, labels, task.columns[column], offset)


def _fitting(answers: Predictions, labels: Array | None, column: str, offset: int) -> Iterator[Finding]:
    assert labels is not None, "a split without labels is refused"
    scores = answers.logits if answers.logits.shape[1] == 1 else log_softmax(answers.logits)
    if shuffled_fit(scores, labels)[0] < _LEVEL / len(_WORDS) / 3:  # of the ways that are tried
        yield Finding(
            "shifted-rows",
            f"the teacher's answers fit the labels of train once column {column!r} is taken from {_WORDS[offset]}, and "
            f"not as it is",
            "shift that column by a row, or find the row that it lacks",
        )
