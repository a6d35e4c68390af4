"""Sizes of a narrower student: a copy of its teacher's configuration, and the sizes that its family can have."""

import copy
from dataclasses import dataclass

from transformers import PretrainedConfig

from kdalign.errors import UsageError
from kdalign.models.architecture import Stack, describe, layout_of
from kdalign.models.pruning_layouts import FAMILIES


@dataclass(frozen=True)
class WidthSpec:
    """Sizes of a narrower student's layers; None leaves the teacher's.

    Attributes:
        width: width of the residual stream.
        heads: attention heads.
        kv_heads: heads of keys and values.
        feed_forward: inner width of the feed-forward network.
    """

    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    feed_forward: int | None = None


def prune_config(config: PretrainedConfig, wanted: WidthSpec) -> PretrainedConfig:
    """Copy a teacher's configuration, with a narrower student's sizes.

    A head's width stays the teacher's. So where heads and width are tied (BERT), a width alone takes heads with it:
    384 with 12 heads becomes 192 with 6. Elsewhere a width alone leaves the heads as they are.

    Raises:
        UsageError: a size that the family cannot have, or that is more than the teacher's; what is accepted.
    """
    if config.model_type not in FAMILIES:
        raise UsageError(f"model type {config.model_type!r} cannot be narrowed (accepted: {', '.join(FAMILIES)})")
    family, (stack,) = FAMILIES[config.model_type], describe(config).stacks
    for name, size in vars(wanted).items():
        if size is not None and not 1 <= size <= vars(stack)[name]:
            raise UsageError(f"a student of {name}={size} (accepted: 1 to {vars(stack)[name]}, its teacher's)")
    width = wanted.width or stack.width
    heads, kv_heads = (_free_heads if family.free else _tied_heads)(config.model_type, stack, wanted, width)
    changed, names = copy.deepcopy(config), layout_of(config).stacks[0]
    setattr(changed, names.width, width)
    setattr(changed, names.heads, heads)
    setattr(changed, names.feed_forward, wanted.feed_forward or stack.feed_forward)
    if family.free:
        changed.num_key_value_heads, changed.head_dim = kv_heads, stack.head_width
    if config.model_type == "electra" and config.embedding_size == stack.width:
        changed.embedding_size = width
    elif config.model_type == "electra" and config.embedding_size == width:
        raise UsageError(f"a student of width={width} loses electra's map from embeddings as wide (accepted: another)")
    return changed


def _tied_heads(model_type: str, stack: Stack, wanted: WidthSpec, width: int) -> tuple[int, int]:
    """Return attention heads, and heads of keys and values, of a family in which heads and width are tied."""
    heads, rest = divmod(width, stack.head_width)
    if rest or (wanted.heads or heads) != heads:
        given = f"width={width}" + (f" and heads={wanted.heads}" if wanted.heads else "")
        raise UsageError(
            f"a {model_type} student of {given} (accepted: width = {stack.head_width} x heads, as its "
            f"teacher's {stack.width} = {stack.head_width} x {stack.heads})"
        )
    if (wanted.kv_heads or heads) != heads:
        raise UsageError(
            f"a {model_type} student of heads={heads} and kv_heads={wanted.kv_heads} (accepted: as many of each)"
        )
    return heads, heads


def _free_heads(model_type: str, stack: Stack, wanted: WidthSpec, width: int) -> tuple[int, int]:
    """Return attention heads, and heads of keys and values, of a family in which heads and width are independent."""
    heads = wanted.heads or stack.heads
    each_its_own = stack.kv_heads == stack.heads
    kv_heads = wanted.kv_heads or (heads if each_its_own else stack.kv_heads)
    # A head that goes takes its own keys and values with it.
    if heads % kv_heads or (stack.kv_heads % kv_heads and not (each_its_own and kv_heads == heads)):
        raise UsageError(
            f"a {model_type} student of heads={heads} and kv_heads={kv_heads} "
            f"(accepted: kv_heads that divide heads and the teacher's {stack.kv_heads})"
        )
    if width % heads and stack.width % stack.heads == 0:
        # Transformers refuses to save such a Llama, though it runs.
        raise UsageError(
            f"a {model_type} student of width={width} and heads={heads} (accepted: a width that heads divide, "
            f"such as width={max(heads, width - width % heads)}, or other heads)"
        )
    return heads, kv_heads
