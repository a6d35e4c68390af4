"""Several models' predictions as one: mixtures of classes and tokens, means of scores, and a model for each row."""

import math

import numpy as np
import pytest
import torch

from kdalign.data.tasks import GLUE
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.evaluation.adapters.classification import ClassificationAdapter
from kdalign.evaluation.ensembles import predict_ensemble
from kdalign.evaluation.likelihood import predict_token_mixture, predict_tokens
from kdalign.models.mixtures import Mixing
from kdalign.runs.prediction_table import Predictions

NO_ROWS = TokenizedSplit({"input_ids": [[1], [1]]}, None, {})


class Saying:
    """An adapter of classes or scores whose models are their logits."""

    def __init__(self, task):
        self.head, self.predicts_tokens = ClassificationAdapter(GLUE[task], 8).head, False

    def predict(self, logits, encoded):
        return Predictions(np.array(logits, dtype=np.float32), np.array([]))


def test_classes_are_mixed_by_probability_and_scores_averaged():
    sure, even = [[math.log(0.9), math.log(0.1)]] * 2, [[math.log(0.3), math.log(0.7)]] * 2
    mixture, own = predict_ensemble(Saying("sst2"), [sure, even], [NO_ROWS] * 2, Mixing((0.25, 0.75)))
    assert np.exp(mixture.logits[0]).tolist() == pytest.approx([0.45, 0.55])
    assert mixture.values.tolist() == [1, 1]
    assert len(own) == 2
    scores, _ = predict_ensemble(Saying("stsb"), [[[4.0], [1.0]], [[2.0], [3.0]]], [NO_ROWS] * 2, Mixing((0.75, 0.25)))
    assert scores.values.tolist() == [3.5, 1.5]


def test_each_row_has_the_answer_of_its_own_model():
    rows = TokenizedSplit({"input_ids": [[1], [1]]}, None, {}, taught_by=np.array([1, 0]))
    mixture, _ = predict_ensemble(Saying("sst2"), [[[2.0, 0.0]] * 2, [[0.0, 3.0]] * 2], [rows] * 2, Mixing((0.5, 0.5)))
    assert mixture.logits.tolist() == [[0.0, 3.0], [2.0, 0.0]]


def causal(seed):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=16, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


def test_a_mixture_of_language_models_has_the_likelihood_of_mixed_probabilities():
    rows = [[1, 2, 3, 4], [5, 6, 7]]
    targets = [[2, 3, 4, 0], [6, 7, 0]]
    encoded = TokenizedSplit({"input_ids": rows, "targets": targets}, None, {"input_ids": 0, "targets": -100})
    models = [causal(1), causal(2)]
    mixture, *each = predict_token_mixture(models, encoded, Mixing((0.25, 0.75)))
    for model, found in zip(models, each, strict=True):
        alone = predict_tokens(model, encoded)
        assert found.nll == pytest.approx(alone.nll, abs=1e-4)
        assert (found.best == alone.best).all()
    for number, (ids, wanted) in enumerate(zip(rows, targets, strict=True)):
        with torch.no_grad():
            both = [model(torch.tensor([ids])).logits[0].softmax(dim=-1) for model in models]
        mixed = 0.25 * both[0] + 0.75 * both[1]
        by_hand = -sum(math.log(float(mixed[place, token])) for place, token in enumerate(wanted))
        assert mixture.nll[number] == pytest.approx(by_hand, abs=1e-4)
