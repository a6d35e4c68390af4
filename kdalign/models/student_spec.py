"""Parse the size of a student that is cut out of its teacher, such as ``layers=3,width=192``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from transformers import PretrainedConfig

from kdalign.errors import UsageError, unknown
from kdalign.models.architecture import Architecture, Layer, Stack, blocks, meta_model, with_layers
from kdalign.models.layer_selection import choose_layers
from kdalign.models.pruning_sizes import WidthSpec, prune_config


@dataclass(frozen=True)
class CutSpec:
    """Number of layers of each stack, and their sizes, that a student keeps of its teacher."""

    layers: Mapping[str, int]
    narrowing: WidthSpec = field(default_factory=WidthSpec)

    @property
    def narrows(self) -> bool:
        """True if any size is given."""
        return self.narrowing != WidthSpec()

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the student's configuration.

        Raises:
            UsageError: a size that the family cannot have.
        """
        config = with_layers(teacher, {stack: range(number) for stack, number in self.layers.items()})
        return prune_config(config, self.narrowing) if self.narrows else config


_SIZES = tuple(size.name for size in fields(WidthSpec))


def is_cut(student: str) -> bool:
    """Return whether a student is cut out of its teacher, such as ``layers=3`` or ``layers=half,width=192``."""
    return student.partition("=")[0] in ("layers", *_SIZES) and "=" in student


def parse_cut(student: str, teacher: Architecture) -> CutSpec | None:
    """Parse ``--student``; None for a checkpoint or a student from scratch.

    ``layers=3`` and ``layers=half`` cut every stack, ``layers=encoder:4,decoder:2`` one by one; ``width``, ``heads``,
    ``kv_heads`` and ``feed_forward`` make the layers narrower.

    Raises:
        UsageError: not a number of layers that the teacher has, or an unknown size.
    """
    if not is_cut(student):
        if re.fullmatch(r"layers?\s*[=:]?\s*\w*", student):
            raise UsageError(f"--student {student!r}; did you mean 'layers=N', N of the teacher's, or 'layers=half'?")
        return None
    given: dict[str, str] = {}
    for part in re.split(r",(?=\w+=)", student):
        key, _, value = part.partition("=")
        if key not in ("layers", *_SIZES):
            raise unknown(f"part of --student {student!r}:", key, ("layers", *_SIZES))
        if key in given:
            raise UsageError(f"--student {student!r} gives {key} twice")
        given[key] = value
    for key in _SIZES:
        if key in given and not re.fullmatch("[1-9][0-9]{0,6}", given[key]):
            raise UsageError(f"--student {student!r}: {key} is a whole number from 1 to 9999999")
    wanted = given.pop("layers", "")
    words = {stack.name: wanted or str(stack.layers) for stack in teacher.stacks}
    if ":" in wanted:
        parts = [part.partition(":")[::2] for part in wanted.split(",")]
        chosen = dict(parts)
        if set(chosen) != set(words) or len(chosen) < len(parts):
            raise UsageError(f"--student {student!r}: name every stack once ({', '.join(words)})")
        words = chosen
    layers = {stack.name: _number(student, words[stack.name], stack) for stack in teacher.stacks}
    return CutSpec(layers, WidthSpec(**{key: int(value) for key, value in given.items()}))


def _number(student: str, word: str, stack: Stack) -> int:
    if word == "half":
        return max(1, stack.layers // 2)
    if not re.fullmatch(r"[0-9]{1,9}", word) or not 1 <= int(word) <= stack.layers:
        raise UsageError(
            f"--student {student!r}: accepted are layers=1 to layers={stack.layers} ({stack.name}), or layers=half"
        )
    return int(word)


def starting_layers(init: str, layers: Mapping[str, int], teacher: Architecture) -> dict[str, tuple[int, ...]] | None:
    """Choose the teacher layers that a cut student starts from, by stack; None for ``random``."""
    if init == "random":
        return None
    return {
        name: choose_layers(init, number, teacher.stack(name).layers, ("random",)) for name, number in layers.items()
    }


def check_cut(config: PretrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
    """Refuse to move a layer to a position where the family's layers have other parts, before weights load.

    ModernBERT's first layer has no norm before its attention; some mixtures of experts begin with layers of another
    kind. The relative positions of T5's first layers stay with the first.

    Raises:
        UsageError: the layer, and what is accepted.
    """
    source, target = blocks(meta_model(config)), blocks(meta_model(with_layers(config, layers)))
    for (stack, place), block in target.items():
        moved = Layer(stack, layers[stack][place])
        ours, theirs = (
            {name for name, _ in each.named_parameters() if "relative_attention_bias" not in name}
            for each in (block, source[moved])
        )
        if ours != theirs:
            differs = sorted(ours ^ theirs)[0]
            raise UsageError(
                f"layer {moved} of {config.model_type} cannot become the student's layer {place}: they differ in "
                f"{differs!r}; start from others, such as --init first or --init skip"
            )
