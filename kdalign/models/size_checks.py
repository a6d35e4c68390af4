"""Refuse the sizes of a configuration that no model can have."""

from typing import TYPE_CHECKING

from kdalign.errors import UsageError, library_errors
from kdalign.models.architecture import layout_of, stack_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from kdalign.models.layouts import StackLayout

_LARGEST = 10**8
"""Largest size: entries of a vocabulary, features of a layer."""
_LONGEST = 2 * 10**7
"""Most positions, as buffers of that length are allocated."""


def check_sizes(config: "PretrainedConfig") -> None:
    """Refuse sizes that no model can have.

    Raises:
        UsageError: the field, and what is accepted.
    """
    must: dict[str, str] = {"vocab_size": ""} if layout_of(config).modality != "image" else {}
    may = dict.fromkeys(("num_key_value_heads", "head_dim", "d_kv"), "")
    for stack in layout_of(config).stacks:
        if stack.config:
            _check_part(stack_config(config, stack), stack)
            continue
        if stack.widths:
            given = getattr(config, stack.widths, None)
            for width in given if isinstance(given, list | tuple) and given else [given]:
                _check_size(stack.widths, width)
            continue
        must |= dict.fromkeys((stack.layers, stack.width, stack.heads), stack.name)
        may |= {stack.feed_forward: stack.name}
    for field in (*must, *may):
        with library_errors(f"{field} differs from layer to layer in its configuration, which kdalign cannot read"):
            value = getattr(config, field, None)
        if value is None and field in may:
            continue
        _check_size(field, value)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > _LONGEST:
        raise UsageError(f"max_position_embeddings is {positions:,} (accepted: at most {_LONGEST:,})")
    tied = getattr(config, "tie_word_embeddings", False)  # a model with a single embedding table has no such field
    if not isinstance(tied, bool):
        raise UsageError(f"tie_word_embeddings is {tied!r} (accepted: true or false)")


def _check_part(config: "PretrainedConfig", stack: "StackLayout") -> None:
    """Refuse sizes that no part of a model can have."""
    for field in (stack.layers, stack.width, stack.heads, stack.feed_forward):
        _check_size(f"{stack.config}.{field}", getattr(config, field, None))


def _check_size(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise UsageError(f"{field} is {value!r} in its configuration (accepted: a whole number, 1 to {_LARGEST:,})")
