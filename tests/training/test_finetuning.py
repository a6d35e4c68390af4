"""The cache of fine-tuned teachers."""

from types import SimpleNamespace

import numpy as np
import pytest

from kdalign.data.tasks import find_task
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.recipe import FinetuneSettings
from kdalign.training.finetuning import FinetuneJob


@pytest.mark.parametrize(
    ("ranks", "device", "bf16", "key"), [(2, "cuda", True, "ad987bde02d0ff22"), (1, "cpu", False, "a2867f623c5f793c")]
)
def test_teachers_that_are_in_caches_are_found_again(ranks, device, bf16, key):
    config = SimpleNamespace(to_dict=lambda: {"model_type": "bert", "hidden_size": 16})
    checkpoint = Checkpoint("org/teacher", "/models/teacher", config, None, "0123456789abcdef")
    encoded = TokenizedSplit({"input_ids": [[2, 5, 3], [2, 7, 8, 3]]}, np.array([0, 1]), {"input_ids": 0})
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=1e-4, weight_decay=0.01, warmup=0.1, seed=3)
    job = FinetuneJob(checkpoint, find_task("sst2"), encoded, settings, ranks, device, bf16)
    assert job.key == key
    assert job.path.parts[-2:] == ("teachers", key)
