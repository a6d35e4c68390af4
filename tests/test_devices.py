"""Work of the first rank, which the others wait for."""

from types import SimpleNamespace

import pytest

from kdalign import devices
from kdalign.devices import check_device, on_first_rank
from kdalign.errors import RefusedRun, RunError, UsageError

FIRST, SECOND = SimpleNamespace(is_main_process=True), SimpleNamespace(is_main_process=False)


def fail(error):
    raise error


def test_the_first_rank_works_and_the_others_get_nothing():
    assert on_first_rank(FIRST, lambda: 5) == 5
    assert on_first_rank(SECOND, lambda: fail(AssertionError("another rank works"))) is None


@pytest.mark.parametrize("error", [RefusedRun, UsageError])
def test_what_fails_on_the_first_rank_fails_on_all_with_its_line(monkeypatch, error):
    sent = []
    monkeypatch.setattr(devices, "broadcast_object_list", lambda values: sent.append(values) or values)
    with pytest.raises(error, match="no good"):
        on_first_rank(FIRST, lambda: fail(error("no good")))
    monkeypatch.setattr(devices, "broadcast_object_list", lambda values: sent[0])
    with pytest.raises(RunError, match="no good"):
        on_first_rank(SECOND, lambda: 5)


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")]
)
def test_a_launcher_that_would_wrap_models_in_its_own_way_is_refused(monkeypatch, variable, name):
    monkeypatch.setenv(variable, "false")
    check_device("cpu")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"asks for {name}, which kdalign does not train with: .*train.sharding=fsdp2"):
        check_device("cpu")
