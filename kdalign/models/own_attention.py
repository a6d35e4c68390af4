"""Capture attention that is a family's own code: DeBERTa's and XLNet's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdalign.models.attention import AttentionKeeper

Hooks = Callable[[nn.Module, AttentionKeeper], list[RemovableHandle]]
"""Register hooks on an attention module that hand what it computes to a keeper."""


def _deberta(module: nn.Module, keeper: AttentionKeeper) -> list[RemovableHandle]:
    """Capture DeBERTa's attention: the projections' first outputs are of the text, the next of relative positions."""
    heads = int(vars(module)["num_attention_heads"])

    def part(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if keeper.wants_parts:
                keeper.keep_parts(**{name: output.view(*output.shape[:-1], heads, -1).transpose(1, 2)})

        return keep

    return [
        *_own_map(module, keeper),
        module.get_submodule("query_proj").register_forward_hook(part("queries")),
        module.get_submodule("key_proj").register_forward_hook(part("keys")),
        module.get_submodule("value_proj").register_forward_hook(part("values")),
    ]


def _xlnet(module: nn.Module, keeper: AttentionKeeper) -> list[RemovableHandle]:
    """Capture XLNet's content stream: queries, keys and values from its bare matrices (width, heads, head width)."""

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if keeper.wants_parts:
            content = args[0] if args else kwargs["h"]
            names = {"queries": "q", "keys": "k", "values": "v"}
            maps = {ours: module.get_parameter(theirs) for ours, theirs in names.items()}
            keeper.keep_parts(**{name: torch.einsum("ibh,hnd->bnid", content, each) for name, each in maps.items()})

    return [*_own_map(module, keeper), module.register_forward_pre_hook(keep, with_kwargs=True)]


def _own_map(module: nn.Module, keeper: AttentionKeeper) -> list[RemovableHandle]:
    """Capture the map that a family's own attention hands to its dropout, the first input of that dropout."""

    def begin(_module: nn.Module, _args: Any) -> None:
        keeper.begin()

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if keeper.wants_map:
            keeper.keep_map(args[0])

    dropout = module.get_submodule("dropout")
    return [module.register_forward_pre_hook(begin), dropout.register_forward_pre_hook(keep)]


OWN_ATTENTION: Mapping[str, Hooks] = {
    "deberta-v2": _deberta,
    "xlnet": _xlnet,
}
"""How to capture the attention of model types, by hooks on one attention module."""
