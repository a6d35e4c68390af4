"""Perplexities: the total negative log-likelihood of counted tokens, divided once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.data.batches import Batch, collate
from kdalign.data.epochs import rows_in_order
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit
from kdalign.errors import NotFinite, UsageError
from kdalign.evaluation.metric_names import MASKED_PPL
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import Score
from kdalign.metrics.intervals import ratio_interval
from kdalign.models.capture import CaptureSpec, forward, inference_mode
from kdalign.models.lm_head import row_blocks, vocabulary_scores
from kdalign.models.mixtures import MixedTokens, Mixing
from kdalign.models.sharding import needs_every_rank
from kdalign.models.token_targets import DenseTokens
from kdalign.observer import ProgressCallback, no_progress
from kdalign.ranks import share_batches
from kdalign.runs.prediction_table import TokenPredictions
from kdalign.version import __version__

MOST_NATS = 700
"""Largest logarithm of a perplexity: e to the power of 710 is beyond what a float holds."""

_MIXTURE_ROWS = 64
"""Positions whose logits, of every model of a mixture, exist at a time."""
TOKENS_AT_ONCE = 4096
"""Tokens of a batch. SmolLM2 in bfloat16 on two cores is a tenth slower at 8,192, whose activations leave the caches,
and a quarter at 1,024."""


_RowPrediction = tuple[float, Array]
"""A row's negative log-likelihood in nats, and the likeliest token at each of its targets."""


def predict_tokens(
    model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
) -> TokenPredictions:
    """Predict the target tokens of a split in one pass, in the model's own precision; its mode is restored afterwards.

    Ranks share the pass.

    Args:
        model: a model with a language-model head.
        encoded: rows with targets.
        progress: called with the number of tokens read, and of all.
    """
    device = next(model.parameters()).device
    done, total = 0, int(encoded.lengths.sum())

    def read(rows: list[int]) -> tuple[list[_RowPrediction], int]:
        batch = collate(encoded, rows).to(device)
        signals = forward(model, batch.inputs, CaptureSpec(), None)
        assert batch.targets is not None, "a language-modelling task has targets"
        assert signals.head is not None, "a language model has a vocabulary"
        predicted = batch.predicted
        scores = vocabulary_scores(signals.features[predicted], signals.head, batch.targets[predicted])
        return _by_row(predicted, *scores), int(batch.real.sum())

    joined = _Joined(encoded)
    with inference_mode(model):
        batches = rows_in_order(encoded, TOKENS_AT_ONCE, tokens=True)
        for rows, (found, count) in share_batches(batches, read, in_step=needs_every_rank(model)):
            joined.add(rows, found)
            done += count
            progress(done, total)
    return joined.predictions


def _by_row(predicted: Tensor, losses: Tensor, likeliest: Tensor) -> list[_RowPrediction]:
    """Divide the scores of a batch's targets among its rows.

    Args:
        predicted: (rows, time), true where the next token is a target.
        losses: (targets,) in nats.
        likeliest: (targets,) the likeliest token.
    """
    ends = predicted.sum(dim=1).cumsum(0).tolist()
    return [
        (float(losses[start:end].double().sum()), likeliest[start:end].cpu().numpy())
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


class _Joined:
    """Predictions of rows, in whatever order they come."""

    def __init__(self, encoded: TokenizedSplit) -> None:
        """Begin without predictions.

        Raises:
            UsageError: there is no row.
        """
        if not len(encoded):
            raise UsageError("no text has a token that could be predicted")
        self._nll, self._best = np.zeros(len(encoded)), dict[int, Array]()

    def add(self, rows: Sequence[int], found: Sequence[_RowPrediction]) -> None:
        """Add the predictions of rows."""
        for row, (nats, best) in zip(rows, found, strict=True):
            self._nll[row], self._best[row] = nats, best

    @property
    def predictions(self) -> TokenPredictions:
        """The predictions of all rows, in their order."""
        best = [self._best[row] for row in range(len(self._nll))]
        return TokenPredictions(self._nll, np.array([len(each) for each in best], dtype=np.int64), np.concatenate(best))


def predict_token_mixture(
    models: Sequence[PreTrainedModel], encoded: TokenizedSplit, mixing: Mixing
) -> list[TokenPredictions]:
    """Predict the target tokens of a split by the mixture of several models, and by each of them, in one pass.

    Ranks share the pass. No target is read for the weights of the mixture.

    Args:
        models: models with language-model heads and one tokenizer.
        encoded: rows with targets.
        mixing: the models' weights.

    Returns:
        The mixture's predictions, then each model's.
    """
    device = next(models[0].parameters()).device

    def read(rows: list[int]) -> list[list[_RowPrediction]]:
        batch = collate(encoded, rows).to(device)
        assert batch.targets is not None, "a language-modelling task has targets"
        predicted = batch.predicted
        targets = batch.targets[predicted]
        said = [_dense_tokens(model, batch).select(predicted) for model in models]
        unknown = MixedTokens(tuple(said), mixing, torch.full_like(targets, IGNORED)).prepared(None, None)
        scores = [_scores_in_blocks(unknown, targets), *(_scores_in_blocks(each, targets) for each in said)]
        return [_by_row(predicted, *each) for each in scores]

    joined = [_Joined(encoded) for _ in range(1 + len(models))]
    batches = rows_in_order(encoded, TOKENS_AT_ONCE, tokens=True)
    for rows, found in share_batches(batches, read, in_step=needs_every_rank(*models)):
        for whose, own in zip(joined, found, strict=True):
            whose.add(rows, own)
    return [each.predictions for each in joined]


def _dense_tokens(model: PreTrainedModel, batch: Batch) -> DenseTokens:
    with inference_mode(model):
        signals = forward(model, batch.inputs, CaptureSpec(), None)
    assert signals.head is not None, "a language model has a vocabulary"
    return DenseTokens(signals.features, signals.head)


def _scores_in_blocks(said: DenseTokens | MixedTokens, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target, in nats, and the most probable entry; refuse what is not finite."""
    nll, best = torch.empty(len(targets), device=targets.device), torch.empty_like(targets)
    with torch.inference_mode():
        for block in row_blocks(len(targets), _MIXTURE_ROWS):
            logits = said.block(block, 1.0).float()
            nll[block] = F.cross_entropy(logits, targets[block], reduction="none")
            best[block] = logits.argmax(dim=-1)
    if not bool(nll.isfinite().all()):
        raise NotFinite(f"{int((~nll.isfinite()).sum()):,} of {len(nll):,} tokens have likelihoods that are not finite")
    return nll, best


@dataclass(frozen=True)
class TokenLikelihoods:
    """Likelihoods of rows of tokens, and the length of their text.

    Attributes:
        nll: (rows,) negative log-likelihood of a row's target tokens, in nats.
        tokens: (rows,) number of target tokens.
        words: number of words of all targets; 0 if unknown.
        bytes: number of bytes of all targets; 0 if unknown.
    """

    nll: Array
    tokens: Array
    words: int
    bytes: int


def perplexities(
    predictions: TokenPredictions,
    encoded: TokenizedSplit,
    signature: str,
    interval: bool,
    *,
    masked: bool = False,
    mark: str = "",
) -> list[Score]:
    r"""Compute perplexities, all from one total: :math:`\exp(\mathrm{NLL} / n)` for n tokens, words or bytes.

    ``ppl`` is a target token's; ``word_ppl``, ``byte_ppl`` and ``bits_per_byte`` are over the words and bytes of the
    text, which models with other tokenizers share. With ``masked`` the total is of the masked tokens alone,
    ``masked_ppl``, and compares with nothing else. Where texts were cut, their words and bytes are not known.

    Args:
        predictions: predictions of the rows of ``encoded``.
        encoded: the split, with the words and bytes of its targets.
        signature: the protocol, from ``protocol``.
        interval: compute 95 % intervals as well.
        masked: 15 % of the tokens were predicted.
        mark: mark of the number in a table, such as ``pseudo``.
    """
    nll, tokens = predictions.nll, predictions.tokens
    if encoded.groups is not None:
        _, group = np.unique(encoded.groups, return_inverse=True)
        nll, tokens = np.bincount(group, nll), np.bincount(group, tokens)
    rows = TokenLikelihoods(nll, tokens, encoded.words, encoded.bytes)
    return token_perplexities(rows, signature, interval, masked=masked, mark=mark)


def token_perplexities(
    rows: TokenLikelihoods, signature: str, interval: bool = True, *, masked: bool = False, mark: str = ""
) -> list[Score]:
    """Compute the perplexities of rows of tokens, as ``perplexities`` does."""
    total, tokens = float(rows.nll.sum()), int(rows.tokens.sum())
    # Rows or texts are resampled, each with its tokens: a text's tokens are not independent of one another.
    low, high = ratio_interval(rows.nll, rows.tokens) if interval else (None, None)

    def perplexity(name: str, units: int, unit: str = "") -> Score:
        def value_of(nats: float) -> float | None:  # a token
            per_unit = nats * tokens / units
            return per_unit / math.log(2) if unit else _exp(per_unit)

        ends = (None if low is None else value_of(low), None if high is None else value_of(high))
        reason = _no_value_reason(name, total / units)
        return Score(name, value_of(total / tokens), unit, units, False, signature, *ends, mark=mark, reason=reason)

    if masked:
        return [perplexity(MASKED_PPL, tokens)]
    scores = [perplexity("ppl", tokens)]
    if rows.words:
        scores.append(perplexity("word_ppl", rows.words))
    if rows.bytes:
        scores += [perplexity("byte_ppl", rows.bytes), perplexity("bits_per_byte", rows.bytes, unit="bits")]
    return scores


def word_perplexities(nll: Array, words: Array, size: Array, signature: str) -> list[Score]:
    """Compute the perplexities of texts from likelihoods of their words.

    Args:
        nll: (texts,) negative log-likelihood of a text's words, in nats.
        words: (texts,) number of words.
        size: (texts,) length in bytes.
        signature: how the likelihoods were computed.
    """
    scores = []
    for name, units, unit in (("word_ppl", words, ""), ("byte_ppl", size, ""), ("bits_per_byte", size, "bits")):
        nats = float(nll.sum() / units.sum())
        value, low, high = (
            None if end is None else end / math.log(2) if unit else _exp(end)
            for end in (nats, *ratio_interval(nll, units))
        )
        reason = _no_value_reason(name, nats)
        scores.append(Score(name, value, unit, int(units.sum()), False, signature, low, high, reason=reason))
    return scores


def _exp(nats: float) -> float | None:
    """Return a perplexity; None if it is beyond what a float holds, as of words of hundreds of characters."""
    return math.exp(nats) if nats < MOST_NATS else None


def _no_value_reason(name: str, nats: float) -> str:
    """Return the reason why a metric has no value at a likelihood, in nats a unit."""
    if not math.isfinite(nats):
        return "the model gives a token of the text a probability of 0"
    unit = {"word_ppl": "word", "byte_ppl": "byte"}.get(name, "token")
    return f"it is 2 to the power of {nats / math.log(2):,.0f} (the bits a {unit}), beyond what a float holds"


def protocol(way: str, length: int, stride: int | None = None, form: str = "") -> str:
    """Return a score's signature: how a likelihood is computed, for a key of ``_PROTOCOLS``.

    Args:
        way: the key.
        length: longest row in tokens.
        stride: tokens from the start of a window to that of the next; None if they do not overlap.
        form: how what precedes the targets is written.
    """
    step = f"stride {stride}" if stride is not None and stride < length else "no overlap"
    return f"{_PROTOCOLS[way].format(n=length, step=step, form=form)}; kdalign {__version__}"


_PROTOCOLS = {
    "causal": "left to right, windows of {n}, {step}, from a start token",
    "permutation": "left to right, windows of {n}, {step}, each text's first token unscored",
    "seq2seq": "target given source",
    "prompted": "target given its source in {form}, sources cut so that both have {n} tokens",
    "chat": "the assistant's tokens given all before, conversations cut at {n}",
    "answers": "each answer given all before it, a row an answer, rows cut at {n}",
    "masked": "15 % of the tokens masked, one fixed draw",
    "word-l2r": "pseudo: each token masked with what follows in its word (PLL-word-l2r), windows of {n}",
    "served": "left to right as the server tells, each text's first token unscored where it tells none",
    "token": "pseudo: each token masked alone (PLL), windows of {n}",
}


def token_metrics(family: str) -> tuple[str, ...]:
    """Return the names of a family's perplexities, the primary one first."""
    return (MASKED_PPL,) if family == "masked" else ("ppl", "word_ppl")


def token_agreement(student: TokenPredictions, teacher: TokenPredictions, interval: bool) -> Score:
    """Compute the share of target tokens at which both models find the same token likeliest, in per cent."""
    agreed = np.add.reduceat(student.best == teacher.best, _starts(student.tokens), dtype=np.int64)
    return agreement_score(np.where(student.tokens > 0, agreed, 0), student.tokens, interval)


def agreement_score(agreed: Array, tokens: Array, interval: bool) -> Score:
    """Compute the share of (rows,) agreed tokens in all of them, in per cent."""
    total = int(tokens.sum())
    low, high = ratio_interval(agreed, tokens) if interval else (None, None)
    return Score(
        "agreement",
        100.0 * float(agreed.sum()) / total,
        "%",
        total,
        True,
        "likeliest token",
        None if low is None else 100 * low,
        None if high is None else 100 * high,
    )


def _starts(tokens: Array) -> Array:
    """Return the index of each row's first token."""
    starts: Array = np.concatenate([[0], np.cumsum(tokens)[:-1]])
    capped: Array = np.minimum(starts, tokens.sum() - 1)  # an empty row at the end has no start
    return capped
