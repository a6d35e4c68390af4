"""Attention masks of packed documents and of permutations."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def document_mask(
    document: Int[Tensor, "batch time"], real: Bool[Tensor, "batch time"]
) -> Bool[Tensor, "batch 1 time time"]:
    """Mask of packed documents: a position attends to the past of its own document (padding: to itself)."""
    same = (document[:, :, None] == document[:, None, :]) & (real[:, :, None] == real[:, None, :])
    return same.tril()[:, None]


def permutation_masks(order: Int[Tensor, "batch time"], real: Bool[Tensor, "batch time"]) -> dict[str, Tensor]:
    """XLNet's masks: a position sees those before it in the order, and every position is predicted."""
    hidden = (order[:, None, :] >= order[:, :, None]) | ~real[:, None, :]
    mapping = torch.eye(order.size(1)).expand(len(order), -1, -1)
    return {"perm_mask": hidden.float(), "target_mapping": mapping}
