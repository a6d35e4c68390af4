"""Signs of collapse on hand-made texts, and when they are announced."""

import pytest
import torch

from kdalign.errors import RunError
from kdalign.models.lm_head import LMHead
from kdalign.models.token_targets import DenseTokens, TopTokens, label_log_probabilities, top_tokens
from kdalign.observer import NullObserver
from kdalign.training.on_policy import SampleReport
from kdalign.training.sample_alarms import FIRST, IN_A_ROW, SampleWatch, TextMeasures, find_alarms, measure_texts

HEALTHY = TextMeasures(length=20.0, ended=0.9, repeated=0.02, distinct=0.8, likelihood=-2.0)
DATA = TextMeasures(length=22.0, ended=1.0, repeated=0.01, distinct=0.9, likelihood=-1.5)
BEGAN = {"length": 21.0, "likelihood": -2.5}


def changed(**values):
    return TextMeasures(**{**HEALTHY.known(), **values})


def names(now, data=DATA, first=BEGAN):
    return [alarm.name for alarm in find_alarms(now, data, first)]


def test_texts_are_measured_by_hand():
    loop = [5, 6, 5, 6, 5, 6, 5, 6]  # 5 runs of four tokens, 2 of them different; 7 pairs, 2 of them different
    plain = [1, 2, 3, 4, 2]  # 2 runs and 4 pairs, all different
    found = measure_texts([loop, plain], [False, True])
    assert found == TextMeasures(length=6.5, ended=0.5, repeated=3 / 7, distinct=6 / 11)
    assert measure_texts([[2]], [True]) == TextMeasures(1.0, 1.0, 0.0, 1.0)


def test_healthy_samples_raise_no_alarm():
    assert names(HEALTHY) == []
    assert names(HEALTHY, first={}) == []


@pytest.mark.parametrize(
    ("now", "name"),
    [
        (changed(ended=0.0, length=128.0), "endless"),
        (changed(length=10.4), "short"),
        (changed(repeated=0.51), "repeated"),
        (changed(likelihood=-4.01), "fallen"),
        (changed(outside=0.6), "outside"),
    ],
)
def test_each_sign_of_collapse_is_seen(now, name):
    assert names(now) == [name]
    (alarm,) = find_alarms(now, DATA, BEGAN)
    assert alarm.said
    assert alarm.mend


def test_what_the_data_does_is_no_alarm():
    endless = TextMeasures(length=128.0, ended=0.1, repeated=0.3, distinct=0.5, likelihood=-2.0)
    assert names(changed(ended=0.0, length=128.0, repeated=0.55), endless, {"length": 128.0}) == []
    # Samples that were long at first may become as short as the data is.
    assert names(HEALTHY, DATA, {"length": 128.0}) == []
    # A student that begins far from its teacher is told so, unless it comes closer.
    assert names(changed(likelihood=-4.6), DATA, {}) == ["unlikely"]
    assert names(changed(likelihood=-4.4), DATA, {}) == []
    assert names(changed(likelihood=-6.6), DATA, {"likelihood": -7.0}) == ["unlikely"]
    assert names(changed(likelihood=-6.4), DATA, {"likelihood": -7.0}) == []


def watched(measures, patience=None, state=None):
    """The alarms of each step, those that were announced, and the state."""
    found, told, state = [], [], {} if state is None else state
    for now in measures:
        watch = SampleWatch(state, patience)
        alarms, new = watch.add(now, DATA)
        found.append([alarm.name for alarm in alarms])
        told += [alarm.name for alarm in new]
    return found, told, watch


def test_an_alarm_is_announced_once_after_some_steps_in_a_row():
    broken = changed(repeated=0.9)
    found, told, watch = watched([broken] * (IN_A_ROW - 1) + [HEALTHY] + [broken] * (2 * IN_A_ROW), patience=50)
    assert found == [["repeated"]] * (IN_A_ROW - 1) + [[]] + [["repeated"]] * (2 * IN_A_ROW)
    assert told == ["repeated"]
    assert not watch.is_patience_exhausted


def test_patience_counts_steps_in_a_row_with_any_alarm():
    steps = [changed(repeated=0.9), changed(ended=0.0), changed(repeated=0.9)]
    assert watched(steps, patience=3)[2].is_patience_exhausted
    assert not watched(steps, patience=4)[2].is_patience_exhausted
    assert not watched([*steps, HEALTHY], patience=3)[2].is_patience_exhausted
    assert not watched(steps)[2].is_patience_exhausted


def test_the_alarms_of_the_steps_that_patience_counts_are_counted_by_name():
    steps = [changed(repeated=0.9), HEALTHY, changed(ended=0.0), changed(repeated=0.9), changed(repeated=0.9)]
    watch = watched(steps, patience=3)[2]
    assert list(watch.counts.items()) == [("repeated", 2), ("endless", 1)]
    with pytest.raises(
        RunError, match=r"3 on-policy steps in a row .*: repeated 2, endless 1; at step 9 samples are loops"
    ):
        SampleReport({}, find_alarms(steps[-1], DATA, {}), [], 3, watch.counts).announce(NullObserver(), 9)


def test_later_samples_are_compared_with_the_mean_of_the_first():
    lengths = [40.0, 44.0, 42.0, 41.0, 43.0]  # mean 42
    assert len(lengths) == FIRST
    first = [changed(length=length, likelihood=-2.0) for length in lengths]
    found, _, _ = watched([*first, changed(length=11.1), changed(length=10.9), changed(likelihood=-3.6)])
    assert found[FIRST:] == [[], ["short"], ["fallen"]], "half of the data's 22, and 1.5 nats below -2"
    alone, _, _ = watched([changed(length=10.9)])
    assert alone == [[]], "there is nothing to compare with yet"


def test_a_watch_that_goes_on_from_its_state_is_the_same():
    steps = [changed(length=20.0 + number, repeated=0.9 * (number % 3 > 0)) for number in range(12)]
    whole = watched(steps)
    state = {}
    begun = watched(steps[:7], state=state)
    rest = watched(steps[7:], state=dict(state))
    assert begun[0] + rest[0] == whole[0]
    assert begun[1] + rest[1] == whole[1]
    assert rest[2].state == whole[2].state


def test_log_probabilities_of_labels_dense_and_by_top_entries():
    logs = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]))
    dense = DenseTokens(logs, LMHead(torch.eye(4)))
    labels = torch.tensor([1, 0])
    found, outside = label_log_probabilities(dense, labels, 1)
    torch.testing.assert_close(found.exp(), torch.tensor([0.3, 0.1]))
    assert outside is None
    top = top_tokens(dense, 2, (1.0,), 8)
    found, outside = label_log_probabilities(top, labels, 1)
    torch.testing.assert_close(found.exp(), torch.tensor([0.3, 0.3]))  # 0.1 and 0.2 are together outside of 0.4 and 0.3
    assert outside.tolist() == [False, True]
    warm = top_tokens(dense, 2, (2.0,), 8)
    assert isinstance(warm, TopTokens)
    found, _ = label_log_probabilities(warm, labels, 1)
    roots = torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt()
    torch.testing.assert_close(found[0].exp(), roots[1] / roots.sum())
