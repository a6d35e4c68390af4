"""Devices that a run is refused."""

import pytest

from kdalign.devices import check_device
from kdalign.errors import UsageError


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")]
)
def test_a_launcher_that_would_wrap_models_in_its_own_way_is_refused(monkeypatch, variable, name):
    monkeypatch.setenv(variable, "false")
    check_device("cpu")
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"asks for {name}, which kdalign does not train with: .*train.sharding=fsdp2"):
        check_device("cpu")
