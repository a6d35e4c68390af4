"""Peak figures of devices: published figures of common GPUs, or those of this machine, measured."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import torch

from kdalign.errors import UsageError, unknown

MATRIX = 2048
"""Rows and columns of the matrices whose product is timed."""
BANDWIDTH_FLOATS = 2**26
"""Numbers of each of the three vectors of a sum, 256 MiB: no cache holds them."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Hardware:
    """Peak rates and memory of one rank's device.

    Attributes:
        name: as in ``--device-name``, or a description.
        flops: floating-point operations a second of matrix products.
        memory: bytes.
        bandwidth: bytes a second between the device and its memory; None if unknown.
        link: bytes a second that it sends to its neighbours in one machine; None if unknown.
        accelerator: false for a CPU, whose memory also holds Python and its libraries.
        measured: true if operations and bandwidth were measured here.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float | None
    link: float | None
    accelerator: bool = True
    measured: bool = False


def _gpu(name: str, teraflops: float, gigabytes: float, bandwidth: float, link: float) -> Hardware:
    return Hardware(name, teraflops * 1e12, round(gigabytes * 1e9), bandwidth * 1e9, link * 1e9)


# From the makers' data sheets: dense bfloat16 products (half of what they print "with sparsity") in 10^12 operations a
# second, memory in GB, its bandwidth in GB/s, and the link in GB/s in one direction (half of what they print, the sum
# of both): NVLink, AMD's Infinity Fabric, or PCIe.
_GPUS = (
    _gpu("b200", 2250, 180, 8000, 900),  # NVIDIA DGX B200 data sheet, an eighth of its 1,440 GB and 64 TB/s
    _gpu("h200", 989.4, 141, 4800, 450),  # NVIDIA H200 data sheet (SXM), peak as H100
    _gpu("h100", 989.4, 80, 3350, 450),  # NVIDIA H100 data sheet and architecture white paper (SXM5)
    _gpu("h100-pcie", 756, 80, 2000, 64),  # NVIDIA H100 data sheet (PCIe Gen5 x16, without an NVLink bridge)
    _gpu("a100", 312, 80, 2039, 300),  # NVIDIA A100 data sheet (80 GB SXM)
    _gpu("a100-40gb", 312, 40, 1555, 300),  # NVIDIA A100 data sheet (40 GB SXM)
    _gpu("l40s", 362.05, 48, 864, 32),  # NVIDIA L40S data sheet (PCIe Gen4 x16)
    _gpu("l4", 121, 24, 300, 32),  # NVIDIA L4 data sheet (PCIe Gen4 x16)
    _gpu("a10", 125, 24, 600, 32),  # NVIDIA A10 data sheet (PCIe Gen4 x16)
    _gpu("mi300x", 1307.4, 192, 5300, 448),  # AMD Instinct MI300X data sheet
)
GPUS: Mapping[str, Hardware] = {each.name: each for each in _GPUS}
"""Published figures of GPUs by the name that ``--device-name`` takes."""
NETWORK = 400e9
"""Bytes a second that a machine sends to others: eight network adapters of 400 Gbit/s, as NVIDIA's DGX H100 has (its
data sheet). A ring over several machines leaves each once, and rings are spread over the adapters; so no rank in it
sends faster."""
GPUS_A_MACHINE = 8
"""Most GPUs that are linked in one machine."""


def find_gpu(name: str) -> Hardware:
    """Return a GPU's published figures.

    Raises:
        UsageError: an unknown name, with the known ones.
    """
    if name.lower() not in GPUS:
        raise unknown("--device-name", name, [*GPUS, "or --peak-tflops and --memory-gb of another"])
    return GPUS[name.lower()]


def describe_hardware(
    name: str | None = None,
    teraflops: float | None = None,
    gigabytes: float | None = None,
    bandwidth: float | None = None,
    link: float | None = None,
) -> Hardware | None:
    """Describe a device by the name of a GPU, by figures, or by both, which win over the name's; None without any.

    Args:
        name: as ``GPUS`` has it.
        teraflops: 10^12 operations a second.
        gigabytes: memory in 10^9 bytes.
        bandwidth: of the memory, 10^9 bytes a second.
        link: to other ranks, 10^9 bytes a second.

    Raises:
        UsageError: an unknown name, or figures that lack the peak or the memory.
    """
    if name is None and (teraflops is None or gigabytes is None):
        if any(given is not None for given in (teraflops, gigabytes, bandwidth, link)):
            raise UsageError(
                "figures replace those of a --device-name; another device needs both --peak-tflops and --memory-gb"
            )
        return None
    base = Hardware("the device given", 0, 0, None, None) if name is None else find_gpu(name)
    return Hardware(
        name=base.name,
        flops=base.flops if teraflops is None else teraflops * 1e12,
        memory=base.memory if gigabytes is None else round(gigabytes * 1e9),
        bandwidth=base.bandwidth if bandwidth is None else bandwidth * 1e9,
        link=base.link if link is None else link * 1e9,
    )


def measure_hardware(device: torch.device, precision: str, ranks: int = 1) -> Hardware:
    """Measure this machine: its products in a precision, and its memory's bandwidth.

    Ranks on a CPU share its cores and its memory, so each has its part of both; a GPU is one rank's.

    Args:
        device: kind of device.
        precision: fp32 or bf16.
        ranks: processes that train together.
    """
    if device.type == "cpu":
        flops, bandwidth = peak_flops(precision, "cpu") / ranks, measure_bandwidth("cpu") / ranks
        memory = psutil.virtual_memory().total // ranks
        return Hardware("this machine", flops, memory, bandwidth, None, accelerator=False, measured=True)
    memory = torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else 0
    flops, bandwidth = peak_flops(precision, device.type), measure_bandwidth(device.type)
    return Hardware("this machine", flops, memory, bandwidth, None, measured=True)


def peak_flops(precision: str, device: str, rounds: int = 7) -> float:
    """Return the floating-point operations a second of a large matrix product, the median of some rounds."""
    size, dtype = MATRIX * (4 if device == "cuda" else 1), getattr(torch, PRECISIONS[precision])
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return product_flops(size) / _median_seconds(lambda: one @ other, device, rounds)


def product_flops(size: int) -> int:
    """Return the operations of a product of two square matrices: a multiplication and an addition for each term."""
    return 2 * size**3


def measure_bandwidth(device: str, rounds: int = 5) -> float:
    """Return the bytes a second that a sum of two vectors reads and writes, the median of some rounds."""
    one, other, total = (torch.ones(BANDWIDTH_FLOATS, device=device) for _ in range(3))
    return 3 * 4 * BANDWIDTH_FLOATS / _median_seconds(lambda: torch.add(one, other, out=total), device, rounds)


def _median_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])  # the first one warms up
