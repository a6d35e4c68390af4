r"""Classes by the likelihood of the words that stand for them, in the context of a question.

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

from kdalign.data.batches import TokenizedSplit, in_order
from kdalign.data.tasks import PromptedExample
from kdalign.data.tokenization import special_frame, start_token
from kdalign.errors import UsageError
from kdalign.evaluation.likelihood import TOKENS_AT_ONCE
from kdalign.evaluation.predictions import check_finite
from kdalign.metrics.arrays import Array
from kdalign.models.architecture import accepted_inputs
from kdalign.models.capture import CaptureSpec, forward, inference_mode
from kdalign.models.lm_head import vocabulary_scores
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions

Per = Literal["answer", "byte"]
"""What an answer's log-likelihood is of: the whole answer, or each of its bytes."""

QUESTIONS_AT_ONCE = 256
"""Questions that are tokenized and sorted by length together: 40,000 with solved examples would take gigabytes."""

Tokens = list[int]


@dataclass(frozen=True)
class LabelScores:
    """How likely a model finds each label's answer.

    Attributes:
        values: (questions, labels), log-likelihoods in nats.
        truncated: questions whose context was cut, from its beginning, to fit.
    """

    values: Array
    truncated: int


def label_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[PromptedExample],
    max_length: int,
    tell: ProgressCallback = no_progress,
) -> LabelScores:
    """The log-likelihood of every answer, by a causal model in its own precision.

    Args:
        model: its mode is put back afterwards.
        tokenizer: the model's.
        questions: each with as many answers.
        max_length: the most tokens that the model reads at once. A longer context loses its beginning, a start token
            with it, as in lm-evaluation-harness.
        tell: told how many questions are answered, and of how many.

    Raises:
        UsageError: an answer without a token, or of more than ``max_length``.
    """
    values, truncated = np.zeros((len(questions), len(questions[0].answers))), 0
    with inference_mode(model):
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            some = questions[start : start + QUESTIONS_AT_ONCE]
            pieces = encode_answers(tokenizer, some)
            truncated += sum(any(len(c) + len(a) - 1 > max_length for c, a in pairs) for pairs in pieces)
            values[start : start + len(some)] = _scores(model, pieces, max_length, tokenizer.pad_token_id or 0)
            tell(start + len(some), len(questions))
    return LabelScores(values, truncated)


def choose(scores: Array, questions: Sequence[PromptedExample], per: Per = "answer") -> Predictions:
    """The likeliest label of each question, the first of equals; ``logits`` are what was compared.

    Args:
        scores: (questions, labels), log-likelihoods of whole answers in nats.
        questions: what was asked.
        per: ``answer`` compares them as they are; ``byte`` divides by the answer's length in UTF-8 without its
            separator, so that long answers are not at a loss: ``acc_bytes`` of lm-evaluation-harness 0.4.13, and its
            ``acc_norm``, which divides by characters, where answers are ASCII.

    Raises:
        NotFinite: scores that are no numbers; -inf is one, of an answer that the model never gives.
    """
    check_finite(scores, "log-likelihoods")
    if per == "byte":
        scores = scores / [[len(answer.strip().encode()) for answer in each.answers] for each in questions]
    return Predictions(scores, scores.argmax(axis=1))


def signature(origin: str, count: int = 0, seed: int = 0, per: Per = "answer") -> str:
    """How classes were chosen, for a score: whose prompt (``Wording.origin``), after how many solved examples."""
    shots = f"{count} solved examples drawn by seed {seed}" if count else "no solved examples"
    return f"likeliest answer{' per byte' if per == 'byte' else ''}; {origin}; {shots}"


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[PromptedExample]
) -> list[list[tuple[Tokens, Tokens]]]:
    """For each question and label, the tokens of the context and those of the answer.

    As ``_encode_pair`` of lm-evaluation-harness (``lm_eval/api/model.py``): white space at a context's end goes to the
    answer, context and answer are tokenized as one text, and the answer is what follows as many tokens as the context
    has by itself. What the tokenizer puts before a text is kept, what it puts after one is not; an empty context is a
    start token. Where the answer joins the context's last token, it is tokenized by itself.

    Raises:
        UsageError: the tokenizer makes nothing of an answer.
    """

    def tokens(texts: Sequence[str]) -> list[Tokens]:
        found: list[Tokens] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found

    before, _ = special_frame(tokenizer)
    contexts = tokens([each.context.rstrip() for each in questions])
    wholes = iter(tokens([each.context + answer for each in questions for answer in each.answers]))
    pieces = []
    for question, context in zip(questions, contexts, strict=True):
        pairs = []
        for answer in question.answers:
            asked = next(wholes)[len(context) :] or tokens([answer])[0]
            if not asked:
                raise UsageError(f"the tokenizer makes no token of the answer {answer!r}")
            pairs.append(([*before, *context] or start_token(tokenizer), asked))
        pieces.append(pairs)
    return pieces


def _scores(
    model: PreTrainedModel, pieces: Sequence[Sequence[tuple[Tokens, Tokens]]], max_length: int, pad: int
) -> Array:
    """(questions, labels); an answer's input that begins another's of its question is read there."""
    inputs: list[Tokens] = []
    asked: list[list[tuple[int, int, int, int]]] = []  # of each input: question, label, position, token
    for number, pairs in enumerate(pieces):
        longest = max(len(answer) for _, answer in pairs)
        if longest > max_length:
            raise UsageError(f"an answer of {longest} tokens is longer than the {max_length} that are read")
        first = len(inputs)
        read = [([*context, *answer][:-1][-max_length:], label) for label, (context, answer) in enumerate(pairs)]
        for ids, label in sorted(read, key=lambda each: -len(each[0])):
            row = next((row for row in range(first, len(inputs)) if inputs[row][: len(ids)] == ids), len(inputs))
            if row == len(inputs):
                inputs.append(ids)
                asked.append([])
            answer = pairs[label][1]
            places = range(len(ids) - len(answer), len(ids))
            asked[row] += [(number, label, place, token) for place, token in zip(places, answer, strict=True)]
    values = np.zeros((len(pieces), len(pieces[0])))
    encoded = TokenizedSplit({"input_ids": inputs}, None, {"input_ids": pad})
    device = next(model.parameters()).device
    for rows, batch in in_order(encoded, TOKENS_AT_ONCE, tokens=True):
        signals = forward(model, accepted_inputs(model, batch.to(device).inputs), CaptureSpec(), None)
        assert signals.head is not None, "answers are asked of a language model"
        every = np.array([(line, *each) for line, row in enumerate(rows) for each in asked[row]])
        lines, numbers, labels, places, tokens = every.T
        features = signals.features[torch.from_numpy(lines).to(device), torch.from_numpy(places).to(device)]
        nll, _ = vocabulary_scores(features, signals.head, torch.from_numpy(tokens).to(device))
        np.subtract.at(values, (numbers, labels), nll.double().cpu().numpy())
    return values
