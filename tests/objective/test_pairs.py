"""Losses of dual encoders: Transformers' own contrastive loss, and divergences worked by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from kdalign.errors import UsageError
from kdalign.models.capture import Activations, CaptureSpec, forward
from kdalign.objective.build import build_pair_objective
from kdalign.objective.losses import pair_contrast, pair_sigmoid, pair_similarity
from kdalign.objective.terms import PairContrast, PairSimilarity
from kdalign.recipe import ObjectiveWeights

TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def clip(seed):
    torch.manual_seed(seed)
    text = {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {"image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=TOWER | text, vision_config=TOWER | vision, projection_dim=8)).eval()


def siglip(seed):
    torch.manual_seed(seed)
    text, vision = (
        {"vocab_size": 50, "max_position_embeddings": 4, "pad_token_id": 0},
        {"image_size": 8, "patch_size": 4},
    )
    model = SiglipModel(SiglipConfig(text_config=TOWER | text, vision_config=TOWER | vision)).eval()
    torch.nn.init.constant_(model.logit_scale, 1.5)
    torch.nn.init.constant_(model.logit_bias, -2.0)
    return model


def pairs():
    torch.manual_seed(0)
    ids = torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0], [1, 5, 6, 2], [1, 3, 2, 0]])
    return {"input_ids": ids, "input_mask": (ids > 0).long(), "pixel_values": torch.randn(4, 3, 8, 8)}


def test_the_contrastive_loss_is_that_of_transformers():
    model, inputs = clip(0), pairs()
    signals = forward(model, inputs, CaptureSpec(), None)
    own = model(inputs["input_ids"], inputs["pixel_values"], attention_mask=inputs["input_mask"], return_loss=True).loss
    found = pair_contrast(signals.image_features, signals.text_features, signals.scale)
    torch.testing.assert_close(found, own)


def test_the_sigmoid_loss_and_the_towers_are_those_of_transformers():
    """A text is padded to all positions, and nothing tells padding from words."""
    model, inputs = siglip(0), pairs()
    inputs["input_mask"] = torch.ones_like(inputs["input_ids"])
    signals = forward(model, inputs, CaptureSpec(), None)
    own = model(inputs["input_ids"], inputs["pixel_values"], return_loss=True)
    torch.testing.assert_close(signals.image_features, own.image_embeds)
    torch.testing.assert_close(signals.text_features, own.text_embeds)
    found = pair_sigmoid(signals.image_features, signals.text_features, signals.scale, signals.bias)
    torch.testing.assert_close(found, own.loss)
    batch = SimpleNamespace(counted=torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(PairContrast()(SimpleNamespace(student=signals, batch=batch)), own.loss)


def test_the_sigmoid_loss_by_hand():
    """Right pairs have cosine 1, the wrong ones 0: 2 log(1 + e^-(s + b)) + 2 log(1 + e^b) over two images."""
    unit, scale, bias = torch.eye(2), 3.0, -1.0
    expected = math.log(1 + math.exp(-(scale + bias))) + math.log(1 + math.exp(bias))
    found = pair_sigmoid(unit, unit, torch.tensor([scale]), torch.tensor([bias]))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_divergence_is_0_at_the_teacher_and_that_of_both_directions_elsewhere():
    student, teacher = (forward(clip(seed), pairs(), CaptureSpec(), None) for seed in (0, 1))
    ours, theirs = ((each.image_features, each.text_features, each.scale) for each in (student, teacher))
    assert abs(pair_similarity(theirs, theirs, 2.0).item()) < 1e-6
    logits = [(each[2].double() * each[0].double() @ each[1].double().T / 2).detach() for each in (ours, theirs)]
    each_way = [
        sum(
            float(F.kl_div(a[i].log_softmax(0), b[i].log_softmax(0), log_target=True, reduction="sum"))
            for i in range(4)
        )
        for a, b in (logits, [each.T for each in logits])
    ]
    assert math.isclose(pair_similarity(ours, theirs, 2.0).item(), 4 * sum(each_way) / 8, rel_tol=1e-5)


@pytest.mark.parametrize("change", [{"divergence": "reverse"}, {"standardise": True}])
def test_what_pairs_are_not_compared_by_is_refused(change):
    with pytest.raises(UsageError, match="pairs of image and text are compared by forward KL"):
        build_pair_objective(ObjectiveWeights(**change), None)


def test_a_group_too_small_to_compare_still_reaches_both_towers_and_the_scale():
    """A probe of one row a rank decides which parameters are frozen."""
    parts = [
        torch.ones(1, 4, requires_grad=True),
        torch.ones(1, 4, requires_grad=True),
        torch.ones((), requires_grad=True),
    ]
    signals = Activations()
    signals.image_features, signals.text_features, signals.scale = parts
    batch = SimpleNamespace(counted=torch.tensor([True]))
    for term in (PairContrast(), PairSimilarity(1.0)):
        loss = term(SimpleNamespace(student=signals, teacher=signals, batch=batch))
        assert loss.item() == 0
        assert all(grad is not None for grad in torch.autograd.grad(loss, parts))


def test_the_temperature_and_the_weight_of_labels_follow_their_schedules():
    moving = {"temperature": {"to": 1.0}, "hard": {"to": 3.0}}
    weights = ObjectiveWeights(hard=1, alpha=1, beta=0, gamma=0, delta=0, temperature=4, schedule=moving)
    begun, ended = (build_pair_objective(weights, None).at(place).terms for place in (0.0, 1.0))
    assert [each["pair-similarity"][1].temperature for each in (begun, ended)] == [4.0, 1.0]
    assert [each["contrastive"][0] for each in (begun, ended)] == [1.0, 3.0]
