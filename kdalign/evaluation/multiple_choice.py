r"""Multiple choice: classify by the likelihood of label words after a question.

.. math:: s_k = \sum_i \log p(a_{k,i} \mid c, a_{k,<i})

for context c and answer a_k of label k, tokens i, in nats; the class is the k of the largest s_k. This is ``acc`` of
lm-evaluation-harness 0.4.13 for tasks of ``output_type: multiple_choice`` (``lm_eval/api/task.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.batches import collate
from kdalign.data.epochs import rows_in_order
from kdalign.data.tasks import PromptedExample
from kdalign.data.tokenization import special_frame, start_token
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import UsageError
from kdalign.evaluation.likelihood import TOKENS_AT_ONCE
from kdalign.evaluation.predictions import check_finite
from kdalign.metrics.arrays import Array
from kdalign.models.capture import CaptureSpec, forward, inference_mode
from kdalign.models.lm_head import vocabulary_scores
from kdalign.models.sharding import needs_every_rank
from kdalign.observer import ProgressCallback, no_progress
from kdalign.ranks import share_batches
from kdalign.runs.prediction_table import Predictions

Per = Literal["answer", "byte"]
"""Unit of an answer's log-likelihood: the whole answer, or each of its bytes."""

QUESTIONS_AT_ONCE = 256
"""Questions tokenized and sorted by length together: 40,000 with solved examples would take gigabytes."""

Tokens = list[int]


@dataclass(frozen=True)
class LabelScores:
    """Log-likelihoods of each label's answer.

    Attributes:
        values: (questions, labels), in nats.
        truncated: number of questions whose context lost its beginning, to fit.
    """

    values: Array
    truncated: int


def label_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[PromptedExample],
    max_length: int,
    progress: ProgressCallback = no_progress,
) -> LabelScores:
    """Compute the log-likelihood of every answer with a causal model, in its own precision. Ranks share the questions.

    Args:
        model: the model; its mode is restored afterwards.
        tokenizer: the model's tokenizer.
        questions: questions with equal numbers of answers.
        max_length: longest input in tokens. A longer context loses its beginning and its start token, as in
            lm-evaluation-harness.
        progress: called with the number of questions answered, and of all.

    Raises:
        UsageError: an answer has no token, or more than ``max_length``.
    """
    values, truncated = np.zeros((len(questions), len(questions[0].answers))), 0
    with inference_mode(model):
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            batch = questions[start : start + QUESTIONS_AT_ONCE]
            pieces = tokenize_answers(tokenizer, batch)
            truncated += sum(any(len(c) + len(a) - 1 > max_length for c, a in pairs) for pairs in pieces)
            values[start : start + len(batch)] = _scores(model, pieces, max_length, tokenizer.pad_token_id or 0)
            progress(start + len(batch), len(questions))
    return LabelScores(values, truncated)


def choose(scores: Array, questions: Sequence[PromptedExample], per: Per = "answer") -> Predictions:
    """Choose the likeliest label of each question, the first of equals; ``logits`` are the compared values.

    Args:
        scores: (questions, labels), log-likelihoods of whole answers in nats.
        questions: the questions.
        per: ``answer`` compares whole answers; ``byte`` divides by the answer's length in UTF-8 without its separator,
            so that long answers have no disadvantage: ``acc_bytes`` of lm-evaluation-harness 0.4.13, and its
            ``acc_norm``, which divides by characters, where answers are ASCII.

    Raises:
        NotFinite: scores are NaN; -inf is allowed, for an answer that the model never gives.
    """
    check_finite(scores, "log-likelihoods")
    if per == "byte":
        scores = scores / [[len(answer.strip().encode()) for answer in question.answers] for question in questions]
    return Predictions(scores, scores.argmax(axis=1))


def signature(origin: str, count: int = 0, seed: int = 0, per: Per = "answer") -> str:
    """Describe how classes are chosen, for a note: origin of the prompt and number of solved examples."""
    shots = f"{count} solved examples drawn by seed {seed}" if count else "no solved examples"
    return f"likeliest answer{' per byte' if per == 'byte' else ''}; {origin}; {shots}"


def tokenize_answers(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[PromptedExample]
) -> list[list[tuple[Tokens, Tokens]]]:
    """Tokenize the context and the answer of each question and label.

    As ``_encode_pair`` of lm-evaluation-harness (``lm_eval/api/model.py``): white space at a context's end goes to the
    answer, context and answer are tokenized as one text, and the answer is what follows as many tokens as the context
    has by itself. Special tokens before a text are kept, those after it are not; an empty context becomes a start
    token. Where the answer joins the context's last token, it is tokenized by itself.

    Raises:
        UsageError: the tokenizer makes no token of an answer.
    """

    def tokens(texts: Sequence[str]) -> list[Tokens]:
        ids: list[Tokens] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    before, _ = special_frame(tokenizer)
    contexts = tokens([question.context.rstrip() for question in questions])
    wholes = iter(tokens([question.context + answer for question in questions for answer in question.answers]))
    pieces = []
    for question, context in zip(questions, contexts, strict=True):
        pairs = []
        for answer in question.answers:
            ids = next(wholes)[len(context) :] or tokens([answer])[0]
            if not ids:
                raise UsageError(f"the tokenizer makes no token of the answer {answer!r}")
            pairs.append(([*before, *context] or start_token(tokenizer), ids))
        pieces.append(pairs)
    return pieces


def _scores(
    model: PreTrainedModel, pieces: Sequence[Sequence[tuple[Tokens, Tokens]]], max_length: int, pad: int
) -> Array:
    """Compute log-likelihoods (questions, labels); an input that begins another of its question shares its row."""
    inputs: list[Tokens] = []
    targets: list[list[tuple[int, int, int, int]]] = []  # of each input: question, label, position, token
    for number, pairs in enumerate(pieces):
        longest = max(len(answer) for _, answer in pairs)
        if longest > max_length:
            raise UsageError(f"an answer of {longest} tokens is longer than the {max_length} that are read")
        first = len(inputs)
        read = [([*context, *answer][:-1][-max_length:], label) for label, (context, answer) in enumerate(pairs)]
        for ids, label in sorted(read, key=lambda pair: -len(pair[0])):
            row = next((row for row in range(first, len(inputs)) if inputs[row][: len(ids)] == ids), len(inputs))
            if row == len(inputs):
                inputs.append(ids)
                targets.append([])
            answer = pairs[label][1]
            positions = range(len(ids) - len(answer), len(ids))
            targets[row] += [
                (number, label, position, token) for position, token in zip(positions, answer, strict=True)
            ]
    values = np.zeros((len(pieces), len(pieces[0])))
    encoded = TokenizedSplit({"input_ids": inputs}, None, {"input_ids": pad})
    device = next(model.parameters()).device

    def score_rows(rows: list[int]) -> tuple[Array, Array, Array]:
        inputs = collate(encoded, rows).to(device).inputs
        signals = forward(model, inputs, CaptureSpec(), None)
        assert signals.head is not None, "answers are scored by a language model"
        in_batch = np.array([(line, *target) for line, row in enumerate(rows) for target in targets[row]])
        lines, numbers, labels, positions, tokens = in_batch.T
        features = signals.features[torch.from_numpy(lines).to(device), torch.from_numpy(positions).to(device)]
        nll, _ = vocabulary_scores(features, signals.head, torch.from_numpy(tokens).to(device))
        return numbers, labels, nll.double().cpu().numpy()

    batches = rows_in_order(encoded, TOKENS_AT_ONCE, tokens=True)
    for _, (numbers, labels, nll) in share_batches(batches, score_rows, in_step=needs_every_rank(model)):
        np.subtract.at(values, (numbers, labels), nll)
    return values
