"""How likely a language model finds a text: total negative log-likelihood over counted tokens, divided once."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from kdalign.architecture import accepted_inputs
from kdalign.batches import Encoded, in_order
from kdalign.capture import Wanted, answering, run
from kdalign.files import whole_file
from kdalign.metrics import Score
from kdalign.statistics import ratio_interval
from kdalign.version import __version__
from kdalign.vocabulary import vocabulary_scores

Array = np.ndarray[Any, Any]

TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class TokenAnswers:
    """A language model's answers on a split, row by row in the split's order.

    Attributes:
        nll: (rows,) negative log-likelihood of a row's target tokens, in nats.
        tokens: (rows,) number of target tokens.
        best: (all target tokens,) the likeliest token at each.
    """

    nll: Array
    tokens: Array
    best: Array


def answer(model: PreTrainedModel, encoded: Encoded) -> TokenAnswers:
    """One forward pass over a split in the model's own precision; the model's mode is put back afterwards."""
    device = next(model.parameters()).device
    rows_at_once = max(1, TOKENS_AT_ONCE // max(8, int(encoded.lengths.max())))
    nll, tokens = np.zeros(len(encoded)), np.zeros(len(encoded), dtype=np.int64)
    best: dict[int, Array] = {}
    with answering(model):
        for rows, batch in in_order(encoded, rows_at_once):
            batch = batch.to(device)
            signals = run(model, accepted_inputs(model, batch.inputs), Wanted(), None)
            assert batch.targets is not None, "a language-modelling task has targets"
            assert signals.head is not None, "a language model has a vocabulary"
            asked = batch.predicted
            each, likeliest = vocabulary_scores(signals.features[asked], signals.head, batch.targets[asked])
            ends = asked.sum(dim=1).cumsum(0).tolist()
            for row, start, end in zip(rows, [0, *ends[:-1]], ends, strict=True):
                nll[row] = float(each[start:end].double().sum())
                tokens[row] = end - start
                best[row] = likeliest[start:end].cpu().numpy()
    return TokenAnswers(nll, tokens, np.concatenate([best[row] for row in range(len(encoded))]))


def perplexities(answers: TokenAnswers, way: str, words: int, max_length: int, interval: bool) -> list[Score]:
    """The perplexities that a way to take the likelihood gives, a key of ``_PROTOCOLS``.

    Left to right (causal, permutation, encoder-decoder): ``ppl``, a target token's, and ``word_ppl``, the same total
    over the words of the text, which models with other tokenizers share. A masked model's is of the masked tokens
    alone, ``masked_ppl``, and compares with nothing else. Where texts were cut, their words are not known.
    """
    how = f"{_PROTOCOLS[way].format(n=max_length)}; kdalign {__version__}"
    total = int(answers.tokens.sum())
    if way == "masked":
        return [_perplexity("masked_ppl", answers, total, how, interval)]
    found = [_perplexity("ppl", answers, total, how, interval)]
    return [*found, _perplexity("word_ppl", answers, words, how, interval)] if words else found


_PROTOCOLS = {
    "causal": "left to right, windows of {n}, no overlap, from a start token",
    "permutation": "left to right, windows of {n}, no overlap, each window's first token unscored",
    "seq2seq": "target given source",
    "chat": "the assistant's tokens given all before, conversations cut at {n}",
    "masked": "15 % of the tokens masked, one fixed draw",
}


PERPLEXITIES = ("ppl", "word_ppl", "masked_ppl")


def metrics_of(family: str) -> tuple[str, ...]:
    """The names of a family's perplexities, the primary one first."""
    return ("masked_ppl",) if family == "masked" else ("ppl", "word_ppl")


def _perplexity(name: str, answers: TokenAnswers, units: int, how: str, interval: bool) -> Score:
    low = high = None
    if interval:
        # Rows are resampled, each with its tokens: a text's tokens are not independent of one another.
        log_low, log_high = ratio_interval(answers.nll, answers.tokens)
        scale = answers.tokens.sum() / units
        if log_low is not None and log_high is not None:
            low, high = math.exp(log_low * scale), math.exp(log_high * scale)
    return Score(name, math.exp(answers.nll.sum() / units), "", units, False, how, low, high)


def token_agreement(student: TokenAnswers, teacher: TokenAnswers, interval: bool) -> Score:
    """The share of target tokens at which both models find the same token likeliest, in per cent."""
    same = np.add.reduceat(student.best == teacher.best, _starts(student.tokens), dtype=np.int64)
    same = np.where(student.tokens > 0, same, 0)
    total = int(student.tokens.sum())
    low, high = ratio_interval(same, student.tokens) if interval else (None, None)
    return Score(
        "agreement",
        100.0 * float(same.sum()) / total,
        "%",
        total,
        True,
        "likeliest token",
        None if low is None else 100 * low,
        None if high is None else 100 * high,
    )


def _starts(tokens: Array) -> Array:
    starts: Array = np.concatenate([[0], np.cumsum(tokens)[:-1]])
    capped: Array = np.minimum(starts, tokens.sum() - 1)
    return capped  # an empty row at the end starts nowhere


def read_teacher(file: Path) -> TokenAnswers:
    """The teacher's answers that ``write_answers`` kept."""
    import pandas as pd

    table = pd.read_parquet(file)
    best = np.concatenate(table["teacher_best"].to_list())
    return TokenAnswers(table["teacher_nll"].to_numpy(), table["tokens"].to_numpy(), best)


def write_answers(file: Path, student: TokenAnswers, teacher: TokenAnswers | None) -> None:
    """Keep a split's answers as parquet, a row each: ``nll``, ``tokens``, ``best``, and the teacher's."""
    import pandas as pd

    def columns(answers: TokenAnswers, word: str) -> dict[str, Any]:
        pieces = np.split(answers.best, np.cumsum(answers.tokens)[:-1])
        return {f"{word}nll": answers.nll, f"{word}best": pieces}

    table = {"tokens": student.tokens} | columns(student, "")
    if teacher is not None:
        table |= columns(teacher, "teacher_")
    with whole_file(file) as temporary:
        pd.DataFrame(table).to_parquet(temporary, index=False)
