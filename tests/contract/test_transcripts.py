"""The numerical contract across modalities: a teacher reads transcripts, its student hears the sounds."""

import pytest
import torch
import torch.nn.functional as F

from kdalign.data.batches import collate
from kdalign.data.epochs import micro_batches
from kdalign.models.inputs import accepted_inputs
from kdalign.objective.terms import Unit
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from support.transcript_setting import Setting

PAIRS = (("wav2vec2", "bert"), ("wav2vec2", "llama"), ("whisper", "bert"), ("whisper", "llama"))
LAYERS = {
    "wav2vec2": "wav2vec2.encoder.layers",
    "whisper": "model.encoder.layers",
    "bert": "bert.encoder.layer",
    "llama": "model.layers",
}


@pytest.fixture(scope="module")
def settings():
    made = {}

    def setting(*pair):
        if pair not in made:
            made[pair] = Setting(*pair)
        return made[pair]

    return setting


def close(one, other, atol=1e-5):
    assert one.keys() == other.keys()
    for name, value in one.items():
        largest = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(value, other[name], atol=atol * largest, rtol=1e-4, msg=name)


def layer_outputs(kind, model, **inputs):
    """What each layer of a stack gives for one row, in float64, without kdalign's capture."""
    kept = []

    def keep(_module, _inputs, output):
        kept.append((output[0] if isinstance(output, tuple) else output).detach()[0].double())

    handles = [layer.register_forward_hook(keep) for layer in model.get_submodule(LAYERS[kind])]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return kept


def averages_alone(setting, pair, row):
    """Averages by layer of a row that each model reads alone: over its frames, and its tokens without special ones."""
    student, teacher = setting.learner.student, setting.teacher.model
    inputs = accepted_inputs(student, collate(setting.data, [row]).inputs)
    frames = int(setting.data.media.lengths[row])
    tokens = setting.tokenizer(setting.texts[row])["input_ids"]
    inner = slice(1, -1 if pair[1] == "bert" else None)  # [CLS] ... [SEP], and <s> ...
    read = layer_outputs(pair[1], teacher, input_ids=torch.tensor([tokens]))
    heard = layer_outputs(pair[0], student, **inputs)
    return [each[:frames].mean(0) for each in heard], [each[inner].mean(0) for each in read]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_averages_over_real_frames_and_tokens_without_special_ones_are_compared(settings, pair):
    setting = settings(*pair)
    batch = collate(setting.data, range(6))
    rows = [row for row in range(6) if setting.texts[row]]
    cosines, euclids, averages = [], [], {}
    for row in rows:
        ours, theirs = averages_alone(setting, pair, row)
        for own, of, weight in setting.plan.pairs:
            with torch.no_grad():
                given = ours[own.number].float()[None, None]
                projected = setting.learner.projections(given, own, of)[0, 0].double()
            target = theirs[of.number]
            averages.setdefault(of, []).append(target)
            cosines.append(weight * (1 - F.cosine_similarity(projected, target, dim=0)))
            euclids.append(weight * (projected - target).square().mean() / setting.plan.statistics[f"variance/{of}"])
    for layer, each in averages.items():  # the variance is that of averages, too
        variance = float(torch.stack(each).var(0, correction=0).mean())
        assert setting.plan.statistics[f"variance/{layer}"] == pytest.approx(variance, rel=1e-3)
    parts = setting.breakdown(batch).parts
    assert float(parts["cosine"]) == pytest.approx(float(sum(cosines)) / len(rows), rel=1e-4)
    assert float(parts["euclid"]) == pytest.approx(float(sum(euclids)) / len(rows), rel=1e-3)


def test_what_is_averaged_of_a_transcript_is_told_worked_by_hand(settings):
    setting = settings("whisper", "bert")
    batch = collate(setting.data, range(4))
    one, no_one = [29, 192], [28, 93, 29, 192]
    assert batch.other_inputs["input_ids"][0].tolist() == [2, *one, 3, 0, 0, 0, 0, 0]
    assert batch.other_inputs["attention_mask"].sum(dim=1).tolist() == [4, 9, 6, 2]
    assert batch.other_inputs["input_ids"][2, :6].tolist() == [2, *no_one, 3]
    assert batch.told.sum(dim=1).tolist() == [2, 7, 4, 0]
    assert batch.told[0].tolist() == [False, True, True, *[False] * 6]
    assert batch.paired.tolist() == [True, True, True, False]
    assert not any(name.startswith("teacher ") for name in batch.inputs)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_step_split_into_micro_batches_and_ranks_has_the_same_gradient(settings, pair):
    setting = settings(*pair)
    whole = micro_batches(setting.data, range(6), 0, 1, None)
    units = count_units(whole)
    assert units[Unit.PAIRED] == sum(map(bool, setting.texts))
    expected = setting.gradient(whole, units)
    ones = micro_batches(setting.data, range(6), 0, 1, 1)
    ranks = [batch for rank in (0, 1) for batch in micro_batches(setting.data, range(6), rank, 2, 2)]
    assert (len(ones), len(ranks)) == (6, 4)
    for shares in (ones, ranks):
        close(setting.gradient(shares), expected)
    reached = {name for name, gradient in expected.items() if float(gradient.abs().max()) > 1e-3}
    assert any(name.startswith("projections.") for name in reached)
    assert any("encoder.layers.0." in name for name in reached)


@pytest.mark.parametrize("student", ["wav2vec2", "whisper"])
def test_longer_rows_beside_it_change_no_part_and_no_gradient(settings, student):
    setting = settings(student, "bert")
    tight, beside = collate(setting.data, [0, 4]), collate(setting.data, [0, 4, 1])
    beside.counted[2] = False
    units = count_units([tight])
    assert beside.told.size(1) > tight.told.size(1)
    assert count_units([beside]) == units
    close(setting.breakdown(tight, units).parts, setting.breakdown(beside, units).parts)
    close(setting.gradient([beside], units), setting.gradient([tight], units))


def test_a_transcript_without_a_token_is_no_example_of_the_averages_and_gives_no_nan(settings):
    for teacher in ("bert", "llama"):
        setting = settings("whisper", teacher)
        alone = collate(setting.data, [3])
        assert count_units([alone])[Unit.PAIRED] == 0
        assert all(bool(each.isfinite().all()) for each in setting.gradient([alone]).values())
        parts = setting.breakdown(alone).parts
        assert (float(parts["cosine"]), float(parts["euclid"])) == (0, 0)
        assert float(parts["hard"]) > 0, "its label is learnt all the same"


@pytest.mark.parametrize("part", ["beta", "gamma"])
@pytest.mark.parametrize("pair", PAIRS[:1] + PAIRS[3:], ids="-".join)
def test_each_part_alone_falls_below_a_tenth_of_its_start_on_one_batch(pair, part):
    weights = {name: float(name == part) for name in ("hard", "alpha", "beta", "gamma", "delta")}
    alone = Setting(*pair, Weights(**weights))
    batch = collate(alone.data, range(3))
    optimizer = torch.optim.AdamW(alone.learner.parameters(), lr=3e-3, weight_decay=0)
    start = value = float(alone.breakdown(batch).total.detach())
    for _ in range(400):
        optimizer.zero_grad()
        total = alone.breakdown(batch).total
        total.backward()
        optimizer.step()
        value = float(total.detach())
        if value < start / 10:
            break
    assert start > 1e-2
    assert value < start / 10


@pytest.mark.parametrize("name", ["nmse", "info-nce", "rkd-distance", "similarity-preserving"])
def test_terms_on_examples_compare_averages(name):
    weights = Weights(hard=0, alpha=0, beta=0, gamma=0, delta=0, terms={name: {"weight": 1}})
    setting = Setting("wav2vec2", "bert", weights)
    tight, wide = collate(setting.data, range(4)), collate(setting.data, [*range(4), 5])
    wide.counted[4] = False
    value = float(setting.breakdown(tight).total.detach())
    assert value > 1e-3
    assert float(setting.breakdown(wide, count_units([tight])).total.detach()) == pytest.approx(value, rel=1e-4)
