"""The explanation of a loss or a gradient that is not finite."""

import math
from types import SimpleNamespace

import torch
from torch import nn

from kdalign.training.diverged import explain_divergence


def why(parts, weights=None, temperature=2.0, loss=math.nan, norm=math.nan, step=0, model=None):
    objective = SimpleNamespace(weights=weights or dict.fromkeys(parts, 1.0), softened_at=temperature)
    return explain_divergence(model or nn.Linear(2, 2), objective, parts, (loss, norm), step)


def test_a_loss_that_is_no_number_names_its_term():
    said = why({"hard": 0.7, "soft": math.nan}, temperature=1e-30)
    assert "at step 1 the loss is nan" in said
    assert "of its terms soft is nan (before its weight); its temperature is 1e-30" in said
    assert "before any step, so --lr is not the reason" in said
    assert "fp32" not in said, "it is fp32"
    assert "lower --lr" in why({"soft": math.inf}, step=3)


def test_a_gradient_that_is_no_number_names_a_weight_that_is_too_large():
    said = why({"hard": 0.7, "cosine": 0.3}, {"hard": 1.0, "cosine": 1e30}, loss=3e29, norm=math.inf)
    assert "the weight of cosine, 1e+30, is too large for a value of 0.3" in said
    assert "--lr" not in said


def test_weights_that_the_step_before_made_infinite_ask_for_a_lower_learning_rate():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias[0] = math.inf
    said = why({"hard": math.nan}, step=4, model=model)
    assert "the step before made the weight 'bias' NaN or infinite; lower --lr" in said
