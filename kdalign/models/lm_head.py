"""Language-model head: the map from features to the vocabulary, and scores in blocks of rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdalign.errors import NotFinite


@dataclass(frozen=True)
class LMHead:
    r"""Linear map from features to logits, and what a model does to them: :math:`c \tanh(z / c)` with a softcap c."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, "vocabulary"] | None = None
    softcap: float | None = None

    def logits(self, features: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocabulary"]:
        """Compute logits in at least float32; the product itself is in the weight's precision."""
        plain = F.linear(features.to(self.weight.dtype), self.weight, self.bias)
        plain = plain.to(wide_dtype(plain.dtype))
        return plain if self.softcap is None else self.softcap * torch.tanh(plain / self.softcap)

    def detached(self, dtype: torch.dtype, entries: int | None = None) -> "LMHead":
        """Detach the map from its graph, in another precision, for the first entries; copied only for precision."""
        bias = None if self.bias is None else self.bias.detach()[:entries].to(dtype)
        return replace(self, weight=self.weight.detach()[:entries].to(dtype), bias=bias)


def vocabulary_head(model: PreTrainedModel) -> tuple[nn.Module, LMHead]:
    """Find the map from features to the vocabulary: the module whose input, or output if it is not linear, it takes."""
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if model.config.model_type == "deberta-v2" and not model.config.legacy:
        head = model.get_submodule("lm_predictions.lm_head")  # multiplies with the embeddings, no module of its own
        return head.get_submodule("LayerNorm"), LMHead(model.get_input_embeddings().weight, head.get_parameter("bias"))
    linear = model.get_output_embeddings()
    assert isinstance(linear, nn.Linear), f"{model.config.model_type} maps to its vocabulary by a linear layer"
    bias = linear.bias
    extra = dict(model.named_buffers()).get("final_logits_bias")  # BART and Marian add a constant
    if extra is not None:
        bias = extra[0] if bias is None else bias + extra[0]
    return linear, LMHead(linear.weight, bias, softcap)


def block_rows(vocabulary: int, device: torch.device) -> int:
    """Return the default number of rows of a block.

    CPU: 16 MiB of float32 logits, 85 rows of 49,152, within a tenth of the fastest size: at 21 rows the whole took
    half as long again, at 42 a quarter; and glibc gives back every buffer above 32 MiB and faults it in again, which
    made softmax three times as slow. Elsewhere 256 MiB: each block walks through the whole of the weight's gradient,
    which takes 1,000 rows or so of products to outweigh.
    """
    return max(1, (2**22 if device.type == "cpu" else 2**26) // vocabulary)


def vocabulary_scores(
    features: Float[Tensor, "n width"], head: LMHead, labels: Int[Tensor, "n"], rows: int | None = None
) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
    """Compute each row's negative log-likelihood of its label, in nats, and its most probable entry, without a graph.

    An entry that a model never gives may have a logit of -inf; a row needs one that is finite, and none above. Under
    autocast the products are in its precision.

    Raises:
        NotFinite: rows whose logits are NaN, infinite, or all -inf.
    """
    if torch.is_autocast_enabled(features.device.type):
        head = head.detached(torch.get_autocast_dtype(features.device.type))
    nll = torch.empty(len(labels), dtype=wide_dtype(head.weight.dtype), device=features.device)
    best, top = torch.empty_like(labels), torch.empty_like(nll)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        for block in row_blocks(len(labels), rows or block_rows(len(head.weight), features.device)):
            logits = head.logits(features[block])
            nll[block] = F.cross_entropy(logits, labels[block], reduction="none")
            top[block], best[block] = logits.max(dim=-1)  # on CPU a third of argmax's time; NaN is above all
    bad = int((~top.isfinite()).sum())
    if bad:
        raise NotFinite(f"{bad:,} of {len(labels):,} tokens that are asked for have logits that are NaN or infinite")
    return nll, best


def row_blocks(n: int, rows: int) -> Iterator[slice]:
    """Return slices of at most `rows` rows that cover `n` rows."""
    return (slice(start, start + rows) for start in range(0, n, rows))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision, at least float32."""
    return torch.promote_types(dtype, torch.float32)
