"""Devices: check the one that the user names, choose the best otherwise, and decide on bfloat16 and determinism."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType

from kdalign.environment import keep_heap
from kdalign.errors import UsageError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")


def check_device(device: str, trackers: tuple[str, ...] = ()) -> None:
    """Refuse a device that this machine lacks, and trackers that are unknown or not installed.

    Raises:
        UsageError: the line says what is accepted.
    """
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    _check_launcher()
    here = torch.accelerator.current_accelerator(check_available=True)
    if device not in ("auto", "cpu") and (here is None or here.type != device):
        raise UsageError(f"no {device} device here (found: {here.type if here else 'cpu only'})")
    known = sorted(str(name) for name in LoggerType if name != "all")
    installed = [str(name) for name in get_available_trackers()]
    for tracker in trackers:
        if tracker not in known:
            raise unknown("tracker", tracker, known)
        if tracker not in installed:
            raise UsageError(f"tracker {tracker!r} is not installed: pip install {tracker}")


_WRAPPERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallel dimensions",
}
"""What accelerate's configuration file may ask for, by the variable with which its launcher tells."""


def _check_launcher() -> None:
    """Refuse a launcher's configuration by which accelerate would wrap models in its own way.

    Raises:
        UsageError: what it asks for, and what kdalign has in its place.
    """
    for variable, name in _WRAPPERS.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UsageError(
                f"accelerate's configuration asks for {name}, which kdalign does not train with: take a configuration "
                f"for plain data parallelism (torchrun, or accelerate launch --multi_gpu), and train.sharding=fsdp2 to "
                f"shard models over the ranks"
            )


LONGEST_WAIT = timedelta(days=1)
"""How long a rank waits for another: the first one alone reads weights, asks servers, scores texts and writes files.

By torch's own limit (NCCL's is ten minutes) the others would end the run. That a process has ended shows without it:
its launcher ends the others.
"""


def make_accelerator(device: str, trackers: tuple[str, ...] = (), folder: Path | None = None) -> Accelerator:
    """Make the accelerator for a device (``auto``, ``cpu``, ``cuda``, ``mps``).

    Raises:
        UsageError: this machine lacks the device, or a tracker is unknown or not installed.
    """
    check_device(device, trackers)
    keep_heap()
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    accelerator = Accelerator(
        cpu=cpu,
        # Explicit, because accelerate's environment variables would otherwise divide the loss or wrap the forward.
        mixed_precision="no",
        gradient_accumulation_steps=1,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
        log_with=list(trackers) or None,
        project_dir=str(folder) if folder else None,
    )
    if accelerator.num_processes > 1:
        atexit.register(_leave_ranks)
    return accelerator


def _leave_ranks() -> None:
    """Leave the group of ranks as a process ends: one that ends inside it is at times aborted with gloo's threads."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to train in bfloat16: as the recipe says, or if the hardware multiplies it faster than float32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def deterministic_on_cpu(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms on the CPU, where they cost nothing; on other devices as the user set them."""
    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    fill = options.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        options.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        options.fill_uninitialized_memory = fill
