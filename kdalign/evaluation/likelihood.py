"""How likely a language model finds a text: total negative log-likelihood over counted tokens, divided once."""

import math

import numpy as np
from transformers import PreTrainedModel

from kdalign.data.batches import TokenizedSplit, in_order
from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Score
from kdalign.metrics.intervals import ratio_interval
from kdalign.models.architecture import accepted_inputs
from kdalign.models.capture import CaptureSpec, forward, inference_mode
from kdalign.models.lm_head import vocabulary_scores
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import TokenPredictions
from kdalign.version import __version__

MOST_NATS = 700
"""Of a perplexity's logarithm: e to the power of 710 is beyond what a float holds."""

TOKENS_AT_ONCE = 4096
"""SmolLM2 in bfloat16 on two cores: at 8,192 a tenth slower, whose activations leave the caches, at 1,024 a quarter."""


def predict_tokens(
    model: PreTrainedModel, encoded: TokenizedSplit, tell: ProgressCallback = no_progress
) -> TokenPredictions:
    """One forward pass over a split in the model's own precision; the model's mode is put back afterwards.

    Args:
        model: with a language-model head.
        encoded: rows with targets.
        tell: told how many tokens have been read, and of how many.
    """
    device = next(model.parameters()).device
    nll, tokens = np.zeros(len(encoded)), np.zeros(len(encoded), dtype=np.int64)
    best: dict[int, Array] = {}
    read, total = 0, int(encoded.lengths.sum())
    if not len(encoded):
        raise UsageError("no text has a token that could be asked for")
    with inference_mode(model):
        for rows, batch in in_order(encoded, TOKENS_AT_ONCE, tokens=True):
            batch = batch.to(device)
            signals = forward(model, accepted_inputs(model, batch.inputs), CaptureSpec(), None)
            assert batch.targets is not None, "a language-modelling task has targets"
            assert signals.head is not None, "a language model has a vocabulary"
            asked = batch.predicted
            each, likeliest = vocabulary_scores(signals.features[asked], signals.head, batch.targets[asked])
            ends = asked.sum(dim=1).cumsum(0).tolist()
            for row, start, end in zip(rows, [0, *ends[:-1]], ends, strict=True):
                nll[row] = float(each[start:end].double().sum())
                tokens[row] = end - start
                best[row] = likeliest[start:end].cpu().numpy()
            read += int(batch.real.sum())
            tell(read, total)
    return TokenPredictions(nll, tokens, np.concatenate([best[row] for row in range(len(encoded))]))


def perplexities(
    answers: TokenPredictions,
    encoded: TokenizedSplit,
    how: str,
    interval: bool,
    *,
    masked: bool = False,
    mark: str = "",
) -> list[Score]:
    r"""The perplexities of answers, all from one total: :math:`\exp(\mathrm{NLL} / n)` for n tokens, words or bytes.

    ``ppl`` is a target token's; ``word_ppl``, ``byte_ppl`` and ``bits_per_byte`` are over the words and bytes of the
    text, which models with other tokenizers share. With ``masked`` the total is of the masked tokens alone,
    ``masked_ppl``, and compares with nothing else. Where texts were cut, their words and bytes are not known.

    Args:
        answers: to the rows of ``encoded``.
        encoded: knows the words and bytes that were asked for.
        how: the protocol, from ``protocol``.
        interval: whether to compute one.
        masked: whether 15 % of the tokens were asked for.
        mark: what a table says beside the number, such as ``pseudo``.
    """
    nll, tokens = answers.nll, answers.tokens
    if encoded.groups is not None:
        _, group = np.unique(encoded.groups, return_inverse=True)
        nll, tokens = np.bincount(group, nll), np.bincount(group, tokens)
    return token_perplexities(nll, tokens, encoded.words, encoded.bytes, how, interval, masked=masked, mark=mark)


def token_perplexities(
    nll: Array,
    tokens: Array,
    words: int,
    size: int,
    how: str,
    interval: bool = True,
    *,
    masked: bool = False,
    mark: str = "",
) -> list[Score]:
    """The perplexities of rows (n,) of tokens, as in ``perplexities``; 0 ``words`` or bytes are not known."""
    total, units = float(nll.sum()), int(tokens.sum())
    # Rows or texts are resampled, each with its tokens: a text's tokens are not independent of one another.
    low, high = ratio_interval(nll, tokens) if interval else (None, None)

    def perplexity(name: str, per: int, unit: str = "") -> Score:
        def of(nats: float) -> float | None:  # a token
            per_unit = nats * units / per
            return per_unit / math.log(2) if unit else _exp(per_unit)

        ends = (None if low is None else of(low), None if high is None else of(high))
        why = _why_none(name, total / per)
        return Score(name, of(total / units), unit, per, False, how, *ends, mark=mark, reason=why)

    if masked:
        return [perplexity("masked_ppl", units)]
    found = [perplexity("ppl", units)]
    if words:
        found.append(perplexity("word_ppl", words))
    if size:
        found += [perplexity("byte_ppl", size), perplexity("bits_per_byte", size, unit="bits")]
    return found


def word_perplexities(nll: Array, words: Array, size: Array, how: str) -> list[Score]:
    """The perplexities of texts (n,) whose words were given a likelihood as wholes, by totals; ``size`` in bytes."""
    found = []
    for name, units, unit in (("word_ppl", words, ""), ("byte_ppl", size, ""), ("bits_per_byte", size, "bits")):
        low, high = ratio_interval(nll, units)
        nats = float(nll.sum() / units.sum())
        ends = (nats, low, high)
        value, low, high = (None if one is None else one / math.log(2) if unit else _exp(one) for one in ends)
        why = _why_none(name, nats)
        found.append(Score(name, value, unit, int(units.sum()), False, how, low, high, reason=why))
    return found


def _exp(nats: float) -> float | None:
    """A perplexity; None where it is beyond every number, as of words of hundreds of characters."""
    return math.exp(nats) if nats < MOST_NATS else None


def _why_none(name: str, nats: float) -> str:
    """Why a metric has no value at this likelihood, in nats a unit."""
    if not math.isfinite(nats):
        return "the model gives a token of the text a probability of 0"
    unit = {"word_ppl": "word", "byte_ppl": "byte"}.get(name, "token")
    return f"it is 2 to the power of {nats / math.log(2):,.0f} (the bits a {unit}), beyond what a float holds"


def protocol(way: str, length: int, stride: int | None = None) -> str:
    """How a likelihood is taken, a key of ``_PROTOCOLS``, as a score's signature."""
    step = f"stride {stride}" if stride is not None and stride < length else "no overlap"
    return f"{_PROTOCOLS[way].format(n=length, step=step)}; kdalign {__version__}"


_PROTOCOLS = {
    "causal": "left to right, windows of {n}, {step}, from a start token",
    "permutation": "left to right, windows of {n}, {step}, each text's first token unscored",
    "seq2seq": "target given source",
    "chat": "the assistant's tokens given all before, conversations cut at {n}",
    "masked": "15 % of the tokens masked, one fixed draw",
    "word-l2r": "pseudo: each token masked with what follows in its word (PLL-word-l2r), windows of {n}",
    "served": "left to right as the server tells, each text's first token unscored where it tells none",
    "token": "pseudo: each token masked alone (PLL), windows of {n}",
}


PERPLEXITIES = ("ppl", "word_ppl", "byte_ppl", "bits_per_byte")
"""From the likelihood of all tokens."""


def token_metrics(family: str) -> tuple[str, ...]:
    """The names of a family's perplexities, the primary one first."""
    return ("masked_ppl",) if family == "masked" else ("ppl", "word_ppl")


def token_agreement(student: TokenPredictions, teacher: TokenPredictions, interval: bool) -> Score:
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
