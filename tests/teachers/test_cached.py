"""A cached teacher says what the computed one says, whatever the order, the batches and the padding."""

from dataclasses import replace

import pytest
import torch

from kdalign.data.batches import collate
from kdalign.errors import RunError, UsageError
from kdalign.models.capture import Activations
from kdalign.models.lm_head import LMHead
from kdalign.models.token_targets import DenseTokens
from kdalign.objective.build import build_language_objective
from kdalign.objective.checks import check_teacher
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.teachers.cached import choose_top_k
from kdalign.teachers.row_keys import row_keys
from support import classifier_setting, dual_setting, family_setting
from support.cache_setting import begin_cache, build_cache, fill


def parts(setting, teacher, batches):
    """Each term over all batches, and the gradient of their weighted sum."""
    setting.learner.zero_grad()
    units, sums = count_units(batches), {}
    for batch in batches:
        taught = teacher(batch, setting.learner.wanted_of_teacher)
        found = setting.objective(TermInputs(setting.learner(batch.inputs, taught), taught, batch), units)
        found.total.backward()
        for name, value in found.parts.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    gradients = [p.grad.flatten() for p in setting.learner.parameters() if p.grad is not None]
    return sums, torch.cat(gradients)


def batches_of(setting, *shares, width=None):
    return [collate(setting.data, rows, width=width) for rows in shares]


ORDERED, SHUFFLED = ([0, 1, 2, 3], [4, 5, 6, 7]), ([7, 2], [5, 0, 3], [6], [1, 4])


@family_setting.ONE_OF_EACH
def test_every_term_of_every_family_is_that_of_the_computed_teacher_in_other_batches(kind, tmp_path):
    setting = family_setting.Setting(kind)
    rows = range(len(setting.data))
    whole, others = [list(rows)], [list(rows)[1::2], list(rows)[::2]]
    vocabulary = setting.teacher.model.config.vocab_size
    cached = build_cache(setting, tmp_path / "cache", top_k=vocabulary - 1)
    online, slope = parts(setting, setting.teacher, batches_of(setting, *whole))
    offline, cached_slope = parts(setting, cached, batches_of(setting, *others))
    assert offline == pytest.approx(online, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(cached_slope, slope, atol=1e-5 * float(slope.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5", "deberta-v2"])
def test_a_teacher_in_bfloat16_is_kept_as_it_computes(kind, tmp_path):
    setting = family_setting.Setting(kind, bf16=True)
    rows = list(range(len(setting.data)))
    vocabulary = setting.teacher.model.config.vocab_size
    cached = build_cache(setting, tmp_path / "cache", top_k=vocabulary - 1)
    online, _ = parts(setting, setting.teacher, batches_of(setting, rows))
    offline, _ = parts(setting, cached, batches_of(setting, rows))
    assert offline == pytest.approx(online, rel=2e-2, abs=1e-3)


@classifier_setting.FAMILIES
def test_every_term_of_classes_is_that_of_the_computed_teacher_in_other_batches(theirs, ours, width, tmp_path):
    setting = classifier_setting.Setting(theirs, ours, width)
    cached = build_cache(setting, tmp_path / "cache")
    online, slope = parts(setting, setting.teacher, batches_of(setting, *ORDERED))
    offline, cached_slope = parts(setting, cached, batches_of(setting, *SHUFFLED))
    assert offline == pytest.approx(online, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(cached_slope, slope, atol=1e-6 * float(slope.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("kind", ["classes", "causal"])
def test_a_teacher_with_another_tokenizer_is_kept_at_its_own_positions(kind, tmp_path):
    setting = dual_setting.Setting(kind)
    vocabulary = setting.teacher.model.config.vocab_size
    cached = build_cache(setting, tmp_path / "cache", top_k=vocabulary - 1)
    rows = list(range(len(setting.data)))
    online, _ = parts(setting, setting.teacher, batches_of(setting, rows))
    offline, _ = parts(setting, cached, batches_of(setting, rows[1::2], rows[::2]))
    if kind == "causal":  # the distance of entries that one vocabulary lacks is not kept
        assert 0 < offline.pop("soft") < online.pop("soft")
    assert offline == pytest.approx(online, rel=1e-4, abs=1e-5)


def test_rows_are_found_whatever_their_padding_order_and_batch(tmp_path):
    setting = classifier_setting.Setting("bert", "bert", 32)
    cached = build_cache(setting, tmp_path / "cache")
    wanted = setting.learner.wanted_of_teacher
    for rows, width in (([0, 1, 2, 3, 4, 5, 6, 7], None), ([3], 40), ([6, 1], 17)):
        signals = cached(collate(setting.data, rows, width=width), wanted)
        online = setting.teacher(collate(setting.data, rows), wanted)
        torch.testing.assert_close(signals.logits, online.logits, atol=1e-6, rtol=1e-6)
    taken = setting.data.take([5, 2])
    torch.testing.assert_close(cached(collate(taken, [1]), wanted).logits, online_row(setting, 2), atol=1e-6, rtol=0)
    stand_in = collate(setting.data, [4], counted=False)
    torch.testing.assert_close(cached(stand_in, wanted).logits, online_row(setting, 4), atol=1e-6, rtol=0)


def online_row(setting, row):
    return setting.teacher(collate(setting.data, [row]), setting.learner.wanted_of_teacher).logits


@pytest.mark.parametrize(("states", "largest"), [("bf16", 1 / 256), ("int8", 1 / 254)])
def test_features_are_rounded_by_no_more_than_is_stated(states, largest, tmp_path):
    setting = classifier_setting.Setting("bert", "bert", 32)
    cached = build_cache(setting, tmp_path / "cache", states=states)
    batch, wanted = collate(setting.data, range(8)), setting.learner.wanted_of_teacher
    online, offline = setting.teacher(batch, wanted), cached(batch, wanted)
    for layer in wanted.hidden:
        exact = online.hidden[layer][batch.real]
        scale = exact.abs() if states == "bf16" else exact.abs().amax(dim=-1, keepdim=True)
        error = (offline.hidden[layer][batch.real] - exact).abs()
        assert bool((error <= 1.01 * largest * scale).all())
        assert float(error.max()) > 0
    for layer in wanted.attention:
        error = (offline.attention[layer] - online.attention[layer]).abs().amax(dim=(1, 3))[batch.real]
        assert float(error.max()) < 2e-3


def language(weights=None):
    only = weights or Weights(hard=0.5, alpha=0.7, beta=0, gamma=0, delta=0, temperature=1.5)
    return family_setting.Setting("llama", only)


def test_the_likeliest_tokens_with_the_rest_as_one_are_kept_in_half_precision(tmp_path):
    setting = language()
    cached = build_cache(setting, tmp_path / "cache", top_k=8, logs="fp16")
    batch = collate(setting.data, range(len(setting.data)))
    wanted = setting.learner.wanted_of_teacher
    kept = cached(batch, wanted).tokens.select(batch.predicted).block(slice(None), 1.5)
    dense = setting.teacher(batch, wanted).tokens.select(batch.predicted)
    log = (dense.head.logits(dense.features) / 1.5).log_softmax(dim=1)
    torch.testing.assert_close(kept.logs[:, :-1], log.gather(1, kept.entries), atol=0, rtol=2e-3)
    assert bool((kept.entries.sort(dim=1).values == log.topk(8, dim=1).indices.sort(dim=1).values).all())
    torch.testing.assert_close(kept.logs.exp().sum(dim=1), torch.ones(len(log)))
    row = cached.index.read(cached.index.keys[0], ["entries", "logs:1.5"])
    assert (row["entries"].dtype, row["logs:1.5"].dtype) == (torch.uint16, torch.float16)
    facts = cached.index.facts
    bytes_a_prediction = 8 * 2 + 9 * 2
    assert facts.bytes / facts.predictions == pytest.approx(bytes_a_prediction, rel=0.6)  # and headers, of so few rows
    assert facts.mean_tails["1.5"] == pytest.approx(float(kept.logs[:, -1].exp().mean()), rel=1e-2)


def test_only_positions_that_are_predicted_are_kept(tmp_path):
    setting = language()
    short = {
        **setting.data.columns,
        "targets": [[-100] * (len(row) - 2) + row[-2:] for row in setting.data.columns["targets"]],
    }
    setting.data = replace(setting.data, columns=short)
    cached = build_cache(setting, tmp_path / "cache", top_k=4)
    predicted = sum(target != -100 for row in short["targets"] for target in row)
    assert cached.index.facts.predictions == predicted
    online, _ = parts(setting, setting.teacher, batches_of(setting, range(len(setting.data))))
    offline, _ = parts(setting, cached, batches_of(setting, range(len(setting.data))))
    assert 0 < offline["soft"] <= online["soft"] + 1e-6  # joining entries only lowers a divergence


def test_a_row_that_is_not_there_is_named(tmp_path):
    setting = classifier_setting.Setting("bert", "bert", 32)
    cached = begin_cache(setting, tmp_path / "cache")
    fill(setting, cached, [0, 1, 2])
    with pytest.raises(RunError, match="row 6 of train is not in the cache"):
        cached(collate(setting.data, [1, 6]), setting.learner.wanted_of_teacher)


def test_what_is_not_kept_is_refused_with_the_term_and_the_words_that_keep_it(tmp_path):
    setting = language()
    cached = build_cache(setting, tmp_path / "cache", top_k=4)
    check_teacher(setting.objective, cached, setting.learner.plan)
    other = build_language_objective(
        Weights(alpha=0.7, beta=0, gamma=0, delta=0, temperature=2.0), setting.learner.plan
    )
    with pytest.raises(UsageError, match=r"term '(hard|soft)' asks for tokens:2.*--keep tokens:2"):
        check_teacher(other, cached, setting.learner.plan)
    features = build_language_objective(Weights(alpha=0, beta=1, gamma=0, delta=0), setting.learner.plan)
    with pytest.raises(UsageError, match=r"term 'cosine' asks for hidden:decoder.1, hidden:decoder.3"):
        check_teacher(features, cached, setting.learner.plan)
    cooling = {"temperature": {"to": 1.0}}
    moving = Weights(alpha=0.7, beta=0, gamma=0, delta=0, temperature=1.5, schedule=cooling)
    with pytest.raises(UsageError, match="a temperature that changes during training"):
        check_teacher(build_language_objective(moving, setting.learner.plan), cached, setting.learner.plan)


class Says:
    """A teacher whose distribution is the same at every position."""

    def __init__(self, probabilities):
        self.head = LMHead(torch.tensor(probabilities).log()[:, None])

    def __call__(self, batch, wanted):
        return Activations(tokens=DenseTokens(torch.ones(*batch.real.shape, 1), self.head))


def test_the_fewest_tokens_are_chosen_that_leave_no_more_than_asked_to_the_rest():
    few = [0.3 / 16] * 16
    teacher = Says([0.5 / 8] * 8 + few + [0.2 / 40] * 40)
    batches = batches_of(language(), [0, 1])
    positions = sum(int(batch.predicted.sum()) for batch in batches)
    for tail, k, mass in ((0.6, 8, 0.5), (0.4, 16, 0.35), (0.3, 32, 0.16), (0.01, 63, 0.005)):
        found = choose_top_k(teacher, batches, [1.0], tail, torch.device("cpu"))
        assert found[0] == k
        assert found[1] == pytest.approx(mass, abs=1e-6)
        assert found[2] == positions
    warm = choose_top_k(teacher, batches, [1.0, 8.0], 0.5, torch.device("cpu"))
    assert warm[0] > 8, "a warmer distribution leaves more to the rest"


@pytest.mark.parametrize(("kind", "kept"), [("llama", "queries"), ("gemma2", "map"), ("t5", "map")])
def test_maps_of_long_texts_are_kept_as_queries_and_keys_where_these_make_them(kind, kept, tmp_path):
    setting = family_setting.Setting(kind, Weights(hard=1.0, alpha=0, beta=0, gamma=0, delta=1))
    cached = build_cache(setting, tmp_path / "cache")
    longest = int(setting.data.lengths.argmax())
    batch, wanted = collate(setting.data, [longest], width=40), setting.learner.wanted_of_teacher
    layer = max(layer for layer in wanted.attention if layer.stack in ("encoder", "decoder"))
    (key,) = row_keys(batch)
    arrays = cached.index.read(key, [f"{part}:{layer}" for part in ("map", "queries", "keys")])
    assert int(setting.data.lengths[longest]) > 16, "longer than queries and keys are wide"
    assert f"{kept}:{layer}" in [name for name, lines in arrays.items() if len(lines)]
    online, offline = (
        teacher(batch, wanted).attention[layer][:, :, batch.real[0]] for teacher in (setting.teacher, cached)
    )
    torch.testing.assert_close(offline, online, atol=1e-5, rtol=1e-4)
