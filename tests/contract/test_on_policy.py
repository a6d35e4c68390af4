"""The numerical contract on steps that train on the student's own texts: what is compared, and how a step is split."""

import pytest
import torch
import torch.nn.functional as F

from kdalign.data.epochs import micro_batches
from kdalign.data.tokenized_split import IGNORED
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from support.on_policy_setting import LEFT_TO_RIGHT, OnPolicySetting

EVERY = pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
ROWS = [0, 1, 2, 3, 4]


def sampled(setting, size=None, ranks=1, step=3):
    """Micro-batches of samples of each rank, and the samples."""
    every, texts = [], []
    for rank in range(ranks):
        batches = micro_batches(setting.data, ROWS, rank, ranks, size)
        made, samples = setting.on_policy.draw(setting.learner.student, setting.data, batches, step)
        every += made
        texts += samples
    return every, texts


def gradient(setting, batches):
    setting.objective = setting.objective.on_samples(None)
    return setting.gradient(batches, count_units(batches))


@EVERY
def test_the_split_of_a_step_and_its_ranks_change_neither_samples_nor_gradient(kind):
    setting = OnPolicySetting(kind)
    whole, texts = sampled(setting)
    ones, same = sampled(setting, size=1)
    ranks, shared = sampled(setting, size=2, ranks=2)
    assert same == texts
    assert sorted(shared) == sorted(texts)
    assert len({tuple(text) for text in texts}) == len(ROWS)
    expected = gradient(setting, whole)
    assert max(float(each.abs().max()) for each in expected.values()) > 1e-3
    for batches in (ones, ranks):
        for name, found in gradient(setting, batches).items():
            torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@EVERY
def test_samples_differ_by_step_and_by_seed_and_in_nothing_else(kind):
    setting = OnPolicySetting(kind)
    torch.manual_seed(9)
    setting.learner.train()
    again = sampled(setting)[1]
    assert again == sampled(OnPolicySetting(kind))[1]
    assert again != sampled(setting, step=4)[1]


@EVERY
def test_every_sampled_token_and_its_end_is_compared_with_the_teacher_and_no_label_counts(kind):
    free = OnPolicySetting(kind)
    first = sampled(free)[1]
    ends = {first[0][2], first[1][4]}  # tokens that these samples hold end them now
    setting = OnPolicySetting(kind, ends=ends)
    (batch,), texts = sampled(setting)
    assert min(map(len, texts)) < max(map(len, texts)), "some end, some reach the limit"
    objective = setting.objective.on_samples(None)
    setting.objective = objective
    parts = setting.breakdown(batch, count_units([batch])).parts
    assert "hard" not in parts
    assert "soft" in parts
    total = 0.0
    for row, text in enumerate(texts):
        prompt = setting.on_policy.continuations(setting.data, [ROWS[row]])[0].prompt
        logs = []
        for model in (setting.teacher.model, setting.learner.student):
            with torch.no_grad():
                if kind == "t5":
                    start = int(model.config.decoder_start_token_id)
                    logits = model(
                        input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *text[:-1]]])
                    ).logits[0]
                else:
                    logits = model(input_ids=torch.tensor([[*prompt, *text[:-1]]])).logits[0, len(prompt) - 1 :]
            logs.append(F.log_softmax(logits.double(), dim=-1))
        assert len(logs[0]) == len(text)
        total += float(F.kl_div(logs[1], logs[0], reduction="sum", log_target=True))
        targets = batch.targets[row][batch.targets[row] != IGNORED].tolist()
        assert targets == text
    count = sum(map(len, texts))
    assert float(parts["soft"]) == pytest.approx(total / count, rel=1e-4)


def test_a_divergence_of_its_own_counts_on_samples_alone():
    setting = OnPolicySetting("llama")
    (batch,), _ = sampled(setting)
    values = {}
    for kind in (None, "forward", "reverse", "js", "skew"):
        objective = setting.objective.on_samples(kind)
        assert setting.objective.vocabulary.divergence == "forward"
        taught = setting.teacher(batch, setting.learner.wanted_of_teacher)
        view = TermInputs(setting.learner(batch.inputs, taught), taught, batch)
        values[kind] = float(objective(view, count_units([batch])).parts["soft"])
    assert values[None] == values["forward"]
    assert len({round(value, 5) for value in values.values()}) == 4


def test_a_stand_in_of_a_rank_without_rows_stays_as_it_is_and_counts_nothing():
    setting = OnPolicySetting("llama")
    shares = [micro_batches(setting.data, ROWS[:1], rank, 2, None) for rank in range(2)]
    drawn = [setting.on_policy.draw(setting.learner.student, setting.data, share, 3) for share in shares]
    assert drawn[1] == (shares[1], [])
    both = [batch for made, _ in drawn for batch in made]
    alone = gradient(setting, drawn[0][0])
    for name, found in gradient(setting, both).items():
        torch.testing.assert_close(found, alone[name], atol=1e-6, rtol=1e-5, msg=name)
