r"""Prune a model's width: a narrower student of its teacher's own weights, before any training.

Every layer reads the residual stream x and adds to it, so one basis P, (width, narrower width) with orthonormal
columns, serves the whole model: what reads the stream becomes :math:`W P`, what writes it :math:`P^\top W`, embeddings
:math:`E P`. SliceGPT (Ashkboos et al. 2024, arXiv:2401.15024, section 3) gives each layer a basis of its own, at the
price of a matrix on every residual connection, which a stock model does not have. Attention heads, feed-forward neurons
and, if wanted, channels are kept by their importance on a few texts (Minitron, Muralidharan et al. 2024,
arXiv:2407.14679, section 2.2).
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdalign.errors import UsageError, unknown
from kdalign.models.architecture import Stack, describe, new_model
from kdalign.models.capture import inference_mode
from kdalign.models.heads import auto_class, head_of_class
from kdalign.models.inputs import accepted_inputs
from kdalign.models.pruning_layouts import FAMILIES, Axis
from kdalign.models.pruning_sizes import WidthSpec, prune_config

METHODS = ("pca", "svd", "importance", "random")
"""Methods to narrow the residual stream: its main directions, the word embeddings', its largest channels; or random
weights."""


def prune_width(
    model: PreTrainedModel, wanted: WidthSpec, by: str, batches: Iterable[Mapping[str, Tensor]], seed: int = 0
) -> PreTrainedModel:
    """Prune a teacher's width: a student of the same class in float32; other dimensions are copied bit for bit.

    Args:
        model: the teacher; it reads the batches in eval mode, twice if the width changes.
        wanted: the student's sizes.
        by: one of ``METHODS``, for the width. Heads and neurons are kept by their importance, except by ``random``.
        batches: a model's inputs for a few real texts, with ``attention_mask``; padding never counts.
        seed: seed of ``random``.

    Raises:
        UsageError: sizes that the family cannot have, an unknown method, or ``svd`` of embeddings of another width.
    """
    if by not in METHODS:
        raise unknown("way of narrowing", by, METHODS)
    config = prune_config(model.config, wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = new_model(auto_class(head_of_class(type(model).__name__), config.model_type), config)
    if by == "random":
        return student
    (old,), (new,) = describe(model.config).stacks, describe(config).stacks
    words = model.get_input_embeddings().weight
    if by == "svd" and words.size(1) != old.width:
        raise UsageError("by=svd with embeddings narrower than the layers (accepted: pca, importance, random)")
    texts = [{name: value.to(model.device) for name, value in batch.items()} for batch in batches if new != old]
    assert texts or new == old, "what is kept is measured on texts"
    with torch.no_grad():
        seen = _measure(model, old, texts)
        kept = {place: _kept(scores, place.axis, old, new) for place, scores in seen.importance.items()}
        basis = None if new.width == old.width else _basis(by, seen, words, new.width)
        cut = _Cut(model, old, new, seen.means, kept, basis, _folded(model))
        norms = {} if basis is None else _fitted_norms(cut, student, texts)
        for name, parameter in student.named_parameters():  # tied parameters once
            path, _, kind = name.rpartition(".")
            value = norms[path][kind] if path in norms else cut.parameter(path, kind)
            assert value.shape == parameter.shape, f"{name}: {value.shape} is not {parameter.shape}"
            parameter.copy_(value)
    return student


class _Place(NamedTuple):
    """Units kept together: heads or neurons of one layer (named by its prefix), or a classification head's units."""

    prefix: str
    axis: Axis

    @classmethod
    def of(cls, prefix: str, axis: Axis) -> "_Place":
        return cls("" if axis is Axis.POOLED else prefix, Axis.HEADS if axis is Axis.KV_HEADS else axis)


@dataclass(frozen=True)
class _Seen:
    """Statistics of a teacher on a few texts, in float64.

    Attributes:
        importance: L2 norm of each head's or neuron's part of the linear map's output, summed over tokens.
        means: (into), mean input of each linear map, by name.
        channels: (width), absolute outputs of norms, summed over tokens and norms.
        moment: (width, width), second moment of the residual stream (around its mean for LayerNorms), summed.
    """

    importance: Mapping[_Place, Tensor]
    means: Mapping[str, Tensor]
    channels: Tensor
    moment: Tensor


def _watch(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    watchers: Mapping[str, Callable[[Tensor, Tensor], None]],
) -> None:
    """Run a model over texts; each watcher gets its module's input and output at real tokens, (tokens, width)."""
    real = torch.empty(0)

    def hook(watcher: Callable[[Tensor, Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def see(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # A classification head gets one vector a text, (batch, width).
            watcher(*(each[real].double() if each.ndim == 3 else each.double() for each in (args[0], output)))

        return see

    handles = [model.get_submodule(name).register_forward_hook(hook(each)) for name, each in watchers.items()]
    try:
        with inference_mode(model):
            for batch in batches:
                real = batch["attention_mask"].bool()
                model(**accepted_inputs(model, batch))
    finally:
        for handle in handles:
            handle.remove()


class _Mean:
    """Mean input of a linear map."""

    def __init__(self, weight: Float[Tensor, "out into"]) -> None:
        self._total, self.rows = weight.new_zeros(weight.size(1), dtype=torch.double), 0

    def __call__(self, x: Float[Tensor, "rows into"], _output: Tensor) -> None:
        self._total += x.sum(dim=0)
        self.rows += len(x)

    @property
    def value(self) -> Tensor:
        return self._total / max(self.rows, 1)


class _Importance(_Mean):
    r"""Mean input, and the contribution of each head or neuron g to the output: the sum of :math:`\|W_g x_g\|`."""

    def __init__(self, weight: Float[Tensor, "out into"], groups: int) -> None:
        super().__init__(weight)
        parts = weight.double().view(len(weight), groups, -1)
        self._gram = torch.einsum("ogi,ogj->gij", parts, parts)
        self.scores = torch.zeros_like(self._gram[:, 0, 0])

    def __call__(self, x: Float[Tensor, "rows into"], output: Tensor) -> None:
        super().__call__(x, output)
        parts = x.view(len(x), len(self._gram), -1)
        squares = (torch.einsum("rgi,gij->rgj", parts, self._gram) * parts).sum(dim=2)
        self.scores += squares.clamp(min=0).sqrt().sum(dim=0)


class _Stream:
    """Residual stream at one norm: its output (``after``), or its input."""

    def __init__(self, moment: Float[Tensor, "width width"], after: bool) -> None:
        self._moment, self._after, self._scale, self._rows = moment, after, 0.0, 0
        self._total, self.channels = torch.zeros_like(moment[0]), torch.zeros_like(moment[0])

    def __call__(self, x: Float[Tensor, "rows width"], output: Float[Tensor, "rows width"]) -> None:
        stream = output if self._after else x
        if not self._rows:  # scaled by its first batch, so that all norms can add to one matrix
            apart = stream - stream.mean(dim=0) if self._after else stream
            self._scale = max(float(apart.square().sum(dim=1).mean()), 1e-12)
        self._moment += stream.T @ stream / self._scale
        self._total += stream.sum(dim=0)
        self._rows += len(stream)
        self.channels += output.abs().sum(dim=0)

    def centre(self) -> None:
        """Subtract the mean from the moment if biases can stand for it; RMSNorm families have none."""
        if self._after and self._rows:
            self._moment -= torch.outer(self._total, self._total) / (self._rows * self._scale)


def _measure(model: PreTrainedModel, stack: Stack, batches: Sequence[Mapping[str, Tensor]]) -> _Seen:
    family, folded = FAMILIES[model.config.model_type], _folded(model)
    groups = {Axis.HEADS: stack.heads, Axis.INNER: stack.feed_forward, Axis.POOLED: stack.width}
    readers: dict[str, _Mean] = {}
    importance: dict[_Place, _Importance] = {}
    for name, module in model.named_modules():
        found = family.linear(name)
        if found is None or not isinstance(module, nn.Linear):
            continue
        prefix, linear = found
        if linear.into in groups:
            readers[name] = importance[_Place.of(prefix, linear.into)] = _Importance(module.weight, groups[linear.into])
        elif module.bias is not None:
            readers[name] = _Mean(module.weight)
    moment = torch.zeros(stack.width, stack.width, dtype=torch.double, device=model.device)
    streams = {name: _Stream(moment, family.after) for name in _norms(model, stack.width) if folded.get(name, True)}
    _watch(model, batches, {**readers, **streams})
    for stream in streams.values():
        stream.centre()
    return _Seen(
        importance={place: each.scores for place, each in importance.items()},
        means={name: each.value for name, each in readers.items()},
        channels=torch.stack([stream.channels for stream in streams.values()]).sum(dim=0),
        moment=moment,
    )


def _norms(model: PreTrainedModel, width: int) -> list[str]:
    """Find the norms of the residual stream: not those of queries, keys, or embeddings of another width."""
    family = FAMILIES[model.config.model_type]
    names = [name for name, _ in model.named_modules() if family.is_norm(name)]
    return [name for name in names if model.get_parameter(f"{name}.weight").numel() == width]


def _folded(model: PreTrainedModel) -> dict[str, bool]:
    """Find the norms whose gain is folded into a linear map next to them, and whether that map reads their output.

    A vocabulary that is tied to the embeddings takes no gain; its parameter has the embeddings' name.
    """
    family, found = FAMILIES[model.config.model_type], {}
    for name, _ in model.named_parameters():
        linear = family.linear(name.removesuffix(".weight"))
        if linear and linear[1].norm:
            found[linear[0] + linear[1].norm] = linear[1].into is Axis.WIDTH
    return found


def _kept(scores: Float[Tensor, " all"], axis: Axis, old: Stack, new: Stack) -> Int[Tensor, " kept"]:
    """Return the numbers, in order, of the heads or neurons with the highest scores.

    If several heads share keys and values, the same number is kept of each group that will share them.
    """
    if axis is not Axis.HEADS:
        return scores.topk(new.feed_forward if axis is Axis.INNER else new.width).indices.sort().values
    shares = 1 if _own_keys(old, new) else new.kv_heads
    scores = scores.view(shares, -1)
    best = scores.topk(new.heads // shares, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(shares, device=best.device)[:, None] * scores.size(1)).flatten()


def _own_keys(old: Stack, new: Stack) -> bool:
    """Return whether each head has keys and values of its own, and keeps them."""
    return old.heads == old.kv_heads and new.heads == new.kv_heads


def _basis(
    by: str, seen: _Seen, words: Float[Tensor, "words embedding"], width: int
) -> Float[Tensor, "width narrower"]:
    """Return the directions of the residual stream to keep, orthonormal.

    Main directions are rotated within their span to be as near as possible to the largest channels (Schönemann 1966),
    because a norm's gain and a head's nonlinearity work by channels.
    """
    channels = torch.eye(len(seen.channels), dtype=torch.double, device=words.device)
    channels = channels[:, seen.channels.topk(width).indices.sort().values]
    if by == "importance":
        return channels
    moment = seen.moment if by == "pca" else words.double().T @ words.double()
    main: Tensor = torch.linalg.eigh(moment)[1].flip(1)[:, :width]
    left, _, right = torch.linalg.svd(main.T @ channels)
    turned: Tensor = main @ left @ right
    return turned


@dataclass(frozen=True)
class _Cut:
    """Map from each weight of a teacher to its student's."""

    teacher: PreTrainedModel
    old: Stack
    new: Stack
    means: Mapping[str, Tensor]
    kept: Mapping[_Place, Tensor]
    basis: Float[Tensor, "width narrower"] | None
    folded: Mapping[str, bool]

    def parameter(self, path: str, kind: str) -> Tensor:
        """Return the student's weight or bias of a module, in float64."""
        own: Tensor = self.teacher.get_parameter(f"{path}.{kind}").double()
        found = FAMILIES[self.teacher.config.model_type].linear(path)
        if found is None:
            return own
        prefix, linear = found
        weight = own if kind == "weight" else self.teacher.get_parameter(f"{path}.weight").double()
        norm, bias = prefix + linear.norm, own
        if self.basis is not None and self.folded.get(norm) is True:
            weight = weight * self.gain(norm)
        elif self.basis is not None and norm in self.folded:
            weight, bias = weight * self.gain(norm)[:, None], (bias.T * self.gain(norm)).T
        narrowed: Tensor = self._along(self._along(weight, linear.out, prefix).T, linear.into, prefix).T
        if kind == "weight":
            return self.word_scale * narrowed if path.endswith("embed_tokens") else narrowed
        mean = self.means.get(path)
        if mean is None or narrowed.size(1) == weight.size(1) or norm in self.folded:
            return self._along(bias, linear.out, prefix)
        # The part of the mean input that is lost goes into the bias, so that the mean output stays the same.
        return self._along(bias + weight @ mean, linear.out, prefix) - narrowed @ self._along(mean, linear.into, prefix)

    @property
    def word_scale(self) -> float:
        """Return the factor by which words must grow, if a model multiplies them with the square root of its width."""
        scaled = FAMILIES[self.teacher.config.model_type].scaled
        return math.sqrt(self.old.width / self.new.width) if scaled else 1.0

    def gain(self, norm: str) -> Float[Tensor, " width"]:
        """Return a norm's gain of each channel."""
        gain: Tensor = self.teacher.get_parameter(f"{norm}.weight").double()
        return gain + 1 if FAMILIES[self.teacher.config.model_type].scaled else gain

    def _along(self, weight: Float[Tensor, "all *rest"], axis: Axis, prefix: str) -> Float[Tensor, "kept *rest"]:
        """Narrow the first dimension of a weight."""
        place = _Place.of(prefix, axis)
        if axis in (Axis.WIDTH, Axis.EMBEDDING):
            # ELECTRA's embeddings may be narrower than its stream, and stay so.
            return weight if self.basis is None or len(weight) != len(self.basis) else self.basis.T @ weight
        if axis in (Axis.INNER, Axis.POOLED):  # nothing reads the pooler of a model without a head
            return weight[self.kept[place]] if place in self.kept else weight[: self.new.width]
        if axis is Axis.HEADS or (axis is Axis.KV_HEADS and _own_keys(self.old, self.new)):
            heads: Tensor = weight.reshape(self.old.heads, -1, *weight.shape[1:])[self.kept[place]]
            return heads.flatten(0, 1)
        if axis is Axis.KV_HEADS and self.new.kv_heads != self.old.kv_heads:
            # The mean of those that become one (Ainslie et al. 2023, arXiv:2305.13245, section 2.1).
            parts: Tensor = weight.reshape(self.new.kv_heads, -1, self.old.head_width, *weight.shape[1:])
            return parts.mean(dim=1).flatten(0, 1)
        return weight


class _Fit:
    """Least squares from one norm's narrower input, normed without gain, to its target output, by channel."""

    def __init__(self, cut: _Cut, name: str, narrower: nn.Module) -> None:
        assert cut.basis is not None
        family = FAMILIES[cut.teacher.config.model_type]
        wide = cut.teacher.get_submodule(name)
        self._basis, self._reads = cut.basis, cut.folded.get(name)
        self._gain = cut.gain(name) if self._reads is False else torch.ones_like(cut.basis[:, 0])
        self._wide, self._narrower = (_plain(each, family.scaled, wide) for each in (wide, narrower))
        # A tied vocabulary has the scale of the words.
        self._scale = 1 / cut.word_scale if name == "model.norm" and self._reads is None else 1.0
        self._affine, self._offset = isinstance(wide, nn.LayerNorm), float(family.scaled)
        self._sums = cut.basis.new_zeros(4, cut.basis.size(1))
        self._rows = 0

    def __call__(self, x: Float[Tensor, "rows width"], output: Float[Tensor, "rows width"]) -> None:
        given = self._narrower((x * self._gain) @ self._basis)
        wanted = (self._wide(x) if self._reads else output * self._scale) @ self._basis
        self._sums += torch.stack([given, wanted, given.square(), given * wanted]).sum(dim=1)
        self._rows += len(x)

    def solved(self) -> dict[str, Tensor]:
        given, wanted, squares, products = self._sums / max(self._rows, 1)
        if self._affine:
            squares, products = squares - given.square(), products - given * wanted
        gain = torch.where(squares > 0, products / squares, 1.0)
        bias = {"bias": wanted - gain * given} if self._affine else {}
        return {"weight": gain - self._offset, **bias}


def _plain(norm: nn.Module, scaled: bool, wide: nn.Module) -> nn.Module:
    """Return a norm without gain and bias, in float64, on the device of the wide one."""
    plain = copy.deepcopy(norm).to(next(wide.parameters()).device, torch.float64)
    plain.load_state_dict(
        {
            name: torch.full_like(value, float(name == "weight" and not scaled))
            for name, value in plain.state_dict().items()
        }
    )
    return plain


def _fitted_norms(
    cut: _Cut, student: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Fit weight and bias of every norm of the residual stream."""
    fits = {name: _Fit(cut, name, student.get_submodule(name)) for name in _norms(cut.teacher, cut.old.width)}
    _watch(cut.teacher, batches, fits)
    return {name: fit.solved() for name, fit in fits.items()}
