"""Checkpoints: weights, optimizer state and a step number; all else of a run's state is a function of the step."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from kdalign.errors import UsageError
from kdalign.files import whole_file, write_json
from kdalign.runs import RunFolder

KEPT = 2
"""Checkpoints that are kept, the newest."""


@dataclass
class Progress:
    """What a checkpoint remembers beside weights and optimizer state.

    Attributes:
        plan: the plan that is followed, as JSON, where it is measured again on the way; else empty.
        courses: by task, what of all this was spent on it, where several are trained together; else empty.
    """

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    plan: str = ""
    courses: dict[str, "Progress"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.courses = {  # as read from JSON, or copied by asdict
            name: Progress(**spent) if isinstance(spent, dict) else spent for name, spent in self.courses.items()
        }

    def add(self, examples: int, tokens: int, seconds: float, parts: dict[str, float]) -> None:
        """Count one step."""
        self.step += 1
        self.examples += examples
        self.tokens += tokens
        self.seconds += seconds
        self.parts = parts

    def of(self, course: str) -> "Progress":
        """What was spent on a task of several."""
        return self.courses.setdefault(course, Progress())

    @property
    def speed(self) -> dict[str, float]:
        """Examples and real tokens a second of training."""
        seconds = max(self.seconds, 1e-9)
        return {"samples_per_second": self.examples / seconds, "tokens_per_second": self.tokens / seconds}


def save_weights(file: Path, module: nn.Module) -> None:
    """Write a module's tensors whole, tied ones once."""
    with whole_file(file) as temporary:
        save_model(module, str(temporary), force_contiguous=True)


def load_weights(file: Path, module: nn.Module) -> None:
    """Read back what ``save_weights`` wrote."""
    load_model(module, str(file))


def save_checkpoint(folder: RunFolder, module: nn.Module, optimizer: torch.optim.AdamW, progress: Progress) -> None:
    """Write a checkpoint whole, then drop older ones."""
    final = folder.checkpoints / f"step-{progress.step}"
    if final.exists():
        return
    draft = folder.checkpoints / f".step-{progress.step}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_weights(draft / "model.safetensors", module)
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    save_file(moments, draft / "optimizer.safetensors")
    write_json(draft / "progress.json", asdict(progress))
    draft.replace(final)
    for old in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: RunFolder, module: nn.Module, optimizer: torch.optim.AdamW, accelerator: Accelerator
) -> Progress:
    """Go on from the newest checkpoint; from the start where there is none."""
    found = _checkpoints(folder)
    progress = Progress()
    if found:
        newest = found[-1]
        try:
            load_weights(newest / "model.safetensors", module)
            moments = load_file(newest / "optimizer.safetensors", device=str(accelerator.device))
        except (SafetensorError, RuntimeError) as error:
            raise UsageError(
                f"checkpoint {str(newest)!r} is damaged ({str(error).splitlines()[0]}): remove it to go on from the "
                f"one before, or give --overwrite"
            ) from None
        for name, parameter in module.named_parameters():
            state = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
            if state:
                # The step counter of a fused optimizer lives beside the parameter.
                optimizer.state[parameter] = state
        progress = Progress(**json.loads((newest / "progress.json").read_text(encoding="utf-8")))
    accelerator.wait_for_everyone()
    return progress


def _checkpoints(folder: RunFolder) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = folder.checkpoints.glob("step-*/progress.json")
    return sorted((file.parent for file in found), key=lambda path: int(path.name.removeprefix("step-")))
