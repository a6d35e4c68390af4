"""What a machine can do, and what a process took of it: peak of matrix products, memory bandwidth, time, memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from kdalign.environment import busy_seconds, peak_memory

MATRIX = 2048
"""Rows and columns of the matrices whose product is timed."""
BANDWIDTH_FLOATS = 2**26
"""Numbers of each of the three vectors of a sum, 256 MiB: no cache holds them."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def peak_flops(precision: str, rounds: int = 7) -> float:
    """Return the floating-point operations a second of a large matrix product, the median of some rounds."""
    import torch

    size, dtype = MATRIX * (4 if device() == "cuda" else 1), getattr(torch, PRECISIONS[precision])
    one, other = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    return product_flops(size) / _median_seconds(lambda: one @ other, rounds)


def product_flops(size: int) -> int:
    """Return the operations of a product of two square matrices: a multiplication and an addition for each term."""
    return 2 * size**3


def bandwidth(rounds: int = 5) -> float:
    """Return the bytes a second that a sum of two vectors reads and writes, the median of some rounds."""
    import torch

    one, other, total = (torch.ones(BANDWIDTH_FLOATS, device=device()) for _ in range(3))
    return 3 * 4 * BANDWIDTH_FLOATS / _median_seconds(lambda: torch.add(one, other, out=total), rounds)


def _median_seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])  # the first one warms up


def share_of_peak(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Return the share of the peak of matrix products that work on these tokens takes, between 0 and 1."""
    return tokens_per_second * flops_per_token / peak


def peak_gib() -> float:
    """Return the most memory that this process has had, in GiB, or its tensors on a GPU."""
    return (peak_memory(device()) or 0) / 2**30


def device() -> str:
    """Return the device that is measured: a GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Wait until the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Moment:
    """Clocks at one moment, in seconds: the wall's, this process's processor time, and that of all processes."""

    wall: float
    own: float
    all: float

    @classmethod
    def now(cls) -> "Moment":
        """Read the clocks."""
        return cls(time.perf_counter(), time.process_time(), busy_seconds())

    def other_cores(self, end: "Moment") -> float:
        """Return how many cores other processes kept busy from this moment to a later one."""
        others = (end.all - self.all) - (end.own - self.own)
        return max(0.0, others / max(end.wall - self.wall, 1e-9))
