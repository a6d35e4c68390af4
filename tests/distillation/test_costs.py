"""Costs of a forward: counted and timed once a machine, and only if they are wanted."""

import math

import pytest
import torch
from transformers import BertConfig, BertModel

from kdalign.distillation import costs
from kdalign.distillation.costs import measure_costs
from kdalign.models import profiling
from kdalign.models.flop_count import flops_of
from kdalign.models.profiling import latencies_ms


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch):
    monkeypatch.setattr(costs, "MOST_OTHERS", math.inf)


def bert(layers, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    return BertModel(BertConfig(num_hidden_layers=layers, max_position_embeddings=64, **sizes)).eval()


def test_costs_are_those_of_each_model_at_the_longest_text_that_all_can_read():
    models = [bert(2), bert(1)]
    found = measure_costs(models)
    assert found.tokens == 64
    assert found.flops == [flops_of(model, 64) for model in models]
    assert all(latency > 0 for latency in found.latencies)


def test_models_of_the_same_shapes_are_measured_once_whatever_their_weights():
    first = measure_costs([bert(2), bert(1)])
    again = measure_costs([bert(2, seed=1), bert(1, seed=2)])
    assert (first.known, again.known) == (False, True)
    assert (again.latencies, again.flops) == (first.latencies, first.flops)


def test_models_that_ran_by_themselves_say_nothing_of_the_same_model_in_turns_with_another():
    measure_costs([bert(2)])
    assert not measure_costs([bert(2), bert(1)]).known


def test_what_is_measured_beside_other_work_is_not_kept_for_other_runs(monkeypatch):
    monkeypatch.setattr(costs, "MOST_OTHERS", -math.inf)
    first, again = measure_costs([bert(1)]), measure_costs([bert(1)])
    assert (first.busy, first.known, again.known) == (True, False, False)


def test_nothing_is_measured_where_nothing_is_wanted():
    found = measure_costs([bert(2), bert(1)], wanted=False)
    assert (found.latencies, found.flops) == ([None, None], [None, None])


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("seconds", "turns"), [(0.001, 25), (0.3, 7), (10.0, 5)])
def test_slow_models_are_timed_less_often(monkeypatch, seconds, turns):
    """A clock that only a forward moves: 25 turns of a fast model, 2 seconds of a slow one, 5 turns at least."""
    clock, forwards, model = [0.0], [], bert(1)
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: clock[0])

    def run(*_):
        forwards.append(None)
        clock[0] += seconds

    model.register_forward_hook(run)
    assert latencies_ms([model], length=8) == pytest.approx([1e3 * seconds])
    warm = 5 if seconds < 0.1 else 2
    assert len(forwards) == warm + turns
