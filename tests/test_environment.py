"""What a process asks of the system, and gives back."""

import platform
import subprocess
import sys

import pytest

from kdalign.environment import rank, world_size
from kdalign.errors import UsageError

KEPT = """
import torch
from kdalign.environment import trim_heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

before = resident()
pieces = [torch.ones(25_000) for _ in range(4000)]  # 100 kB each: 400 MB, from the heap
last = pieces[-1]
del pieces
freed = resident()
trim_heap()
print(before, freed, resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory in gaps")
def test_freed_memory_below_a_tensor_in_use_goes_back_to_the_system():
    found = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    before, freed, after = map(float, found.stdout.split())
    assert freed - before > 300, "the gap is kept at first, else there is nothing to give back"
    assert after - before < 50


@pytest.mark.parametrize(("given", "number"), [(None, 0), ("", 0), ("0", 0), ("3", 3)])
def test_the_rank_is_what_the_launcher_sets_or_zero(monkeypatch, given, number):
    monkeypatch.delenv("RANK", raising=False)
    if given is not None:
        monkeypatch.setenv("RANK", given)
    assert rank() == number


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "²"])
def test_a_number_of_processes_that_is_none_is_refused_in_one_line(monkeypatch, given):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", given)
    with pytest.raises(UsageError, match=r"WORLD_SIZE is .* a number is expected"):
        world_size()
