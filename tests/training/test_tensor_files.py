"""Tensors in the files of several ranks, read by any number of others."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdalign.training.tensor_files import TensorFiles, load_weights, named_tensors, opened_files, read_tensors

WHOLE = torch.arange(10.0).view(5, 2)


@pytest.fixture
def files(tmp_path):
    """Five rows on four ranks: two, two, one and none; a number that the first rank alone has."""
    parts = {0: WHOLE[:2], 1: WHOLE[2:4], 2: WHOLE[4:], 3: WHOLE[5:]}
    for rank, rows in parts.items():
        more = {"count": torch.tensor(7.0)} if rank == 0 else {}
        save_file({"weight": rows.contiguous(), **more}, tmp_path / f"model-{rank:05d}-of-00004.safetensors")
    return sorted(tmp_path.glob("model-*"))


def test_rows_of_a_tensor_are_read_across_files(files):
    with opened_files(files) as stored:
        assert isinstance(stored, TensorFiles)
        assert sorted(stored.names) == ["count", "weight"]
        assert (stored.shape("weight"), stored.shape("count")) == ((5, 2), ())
        assert torch.equal(stored.read("weight"), WHOLE)
        assert stored.read("count") == 7
        for first in range(6):
            for last in range(first, 6):
                assert torch.equal(stored.read_rows("weight", slice(first, last)), WHOLE[first:last])


def test_a_module_that_is_not_sharded_reads_the_files_of_ranks_and_refuses_those_of_another(files):
    module = nn.Module()
    module.weight, module.alias = nn.Parameter(torch.zeros(5, 2)), None
    module.alias = module.weight
    module.register_buffer("count", torch.zeros(()))
    assert [names for names, _ in named_tensors(module)] == [["weight", "alias"], ["count"]]
    names = [file.name for file in files]
    assert read_tensors(files[0].parent, names, module, torch.device("cpu")) == {}
    assert torch.equal(module.weight, WHOLE)
    assert module.count == 7
    module.more = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match="'more' is missing"):
        read_tensors(files[0].parent, names, module, torch.device("cpu"))
    del module.more
    del module.count
    with pytest.raises(RuntimeError, match="unknown tensors: count"):
        read_tensors(files[0].parent, names, module, torch.device("cpu"))
    with pytest.raises(RuntimeError):
        load_weights(files[0], module)
