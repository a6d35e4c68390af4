"""What a process asks of the system, and gives back."""

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from kdalign import environment
from kdalign.environment import available_cores, peak_memory, rank, reset_peak_memory, set_thread_defaults, world_size
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


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "6400000 100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "what"}, 16),
    ],
)
def test_a_container_with_a_quota_has_as_many_cores_as_it_pays_for(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_cores(tmp_path) == cores


def test_threads_are_as_many_as_the_cores_that_may_be_used_and_do_not_wait_awake(monkeypatch):
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that what is set here is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(environment, "available_cores", lambda: 4)
    set_thread_defaults()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"]) == ("4", str(environment.SPINS))


def test_the_users_own_settings_of_threads_win(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(environment, "available_cores", lambda: 4)
    set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("accepted", "asked"),
    [
        (2**31, [(-3, 2**30), (-1, 2**31 - 1)]),
        (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]),
        (0, [(-3, 2**30), (-3, 2**25)]),
    ],
    ids=["any", "older ones", "none"],
)
def test_a_glibc_that_refuses_a_threshold_keeps_adapting_its_own(monkeypatch, accepted, asked):
    calls = []

    def mallopt(parameter, value):
        calls.append((parameter, value))
        return int(parameter == -1 or value <= accepted)

    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "_mallopt", mallopt)
    environment.keep_heap()
    assert calls == asked
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    environment.keep_heap()
    assert calls == asked


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these parameters")
def test_freed_buffers_are_kept_for_the_next_ones_until_they_are_given_back():
    """Without ``keep_heap`` each buffer of 64 MB is faulted in again, 16,384 pages of 4 kB."""
    script = """
import resource, torch
from kdalign.environment import keep_heap
keep_heap()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in (22, 23, 24, 24, 24, 24, 24, 24, 24):
    torch.ones(2**size)
before = faults()
for _ in range(5):
    torch.ones(2**24)
print(faults() - before)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 16_384


def test_the_peak_of_memory_is_known_where_the_system_has_no_line_for_it(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_: "Name:\tpython\nVmRSS:\t1 kB\n")
    assert peak_memory("cpu") > 10_000_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be measured anew on Linux alone")
def test_the_peak_of_memory_is_measured_anew():
    with mmap.mmap(-1, 300_000_000) as pages:  # given back at its end, whatever the heap keeps
        for start in range(0, 300_000_000, mmap.PAGESIZE):
            pages[start] = 1
    before = peak_memory("cpu")
    reset_peak_memory("cpu")
    after = peak_memory("cpu")
    assert before - after > 200_000_000
    assert after > 10_000_000
