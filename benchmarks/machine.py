"""What a machine can do, and what a process took of it: peak of matrix products, memory bandwidth, time, memory."""

import time
from dataclasses import dataclass

from kdalign.environment import busy_seconds, peak_memory


def peak_flops(precision: str) -> float:
    """Return the floating-point operations a second of a large matrix product on the device that is measured."""
    from kdalign.models import hardware

    return hardware.peak_flops(precision, device())


def bandwidth() -> float:
    """Return the bytes a second that a sum of two vectors reads and writes on the device that is measured."""
    from kdalign.models import hardware

    return hardware.measure_bandwidth(device())


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
