"""Capture activations of named layers during one forward: hidden states and attention, nothing else.

Hidden states are taken by hooks on the layers themselves, never from ``output_hidden_states`` (whose last entry
carries the final norm in many families). Attention stays on SDPA everywhere; for the named layers the map is
computed again from queries and keys, before dropout. Families with attention of their own hand their map to a dropout,
where it is captured. A language model stops before its vocabulary: the features that it would multiply with the
vocabulary's weights are kept instead, for losses that are computed block by block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdalign.data.media.grid import Grid, grid_in
from kdalign.data.token_matching import TokenAlignment
from kdalign.models.architecture import CROSS, Layer, attention_modules, blocks, layout_of
from kdalign.models.attention import ATTENTION, AttentionKeeper, keepers
from kdalign.models.grids import grid_of, move_to_grid
from kdalign.models.heads import HeadKind, head_of_class
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import AttentionLayout
from kdalign.models.lm_head import LMHead, vocabulary_head
from kdalign.models.mixtures import ClassMixture
from kdalign.models.modes import in_mode
from kdalign.models.own_attention import OWN_ATTENTION
from kdalign.models.sharding import is_sharded
from kdalign.models.token_targets import TokenTargets


class Signal(StrEnum):
    """Activations that a term needs."""

    LOGITS = "logits"
    TOKENS = "tokens"
    """Distributions over the next token, of a language model."""
    PAIRS = "pairs"
    """A dual encoder's embeddings of images and of texts."""
    FEATURES = "features"
    """The last features, which an embedding is the mean of."""
    HIDDEN = "hidden"
    ATTENTION = "attention"
    CROSS = "cross"
    EMBEDDINGS = "embeddings"
    RELATIONS = "relations"
    LAYERS = "layers"
    """Hidden states without projection."""
    AGAIN = "again"
    """The student's hidden states of a second forward pass, with other dropout."""
    FILLED = "filled"
    """The student's features of a masked copy of the texts, by a forward pass of its own."""
    TEACHER_ATTENTION = "teacher attention"
    """The teacher's attention alone."""


@dataclass
class Activations:
    """Activations of one forward, by layer.

    Attributes:
        logits: (batch, classes), or (batch, frames, entries) of a model that labels frames; empty for a language model.
        features: (batch, time, width), a language model's input to its vocabulary, or the last ones of a model
            without a head; empty for a classifier.
        head: a language model's vocabulary.
        tokens: a teacher's distributions over the next token at its student's positions; None for a classifier.
        hidden: (batch, time, width), a layer's output.
        embeddings: (batch, time, width), what a stack's first layer reads, by stack.
        attention: (batch, heads, time, keys), probabilities over keys before dropout.
        queries: (batch, heads, time, head width), positions turned in where the family does so, at the scale at which
            scores are their products with keys over the square root of the head width (DeBERTa's and XLNet's, whose
            scores have further parts, as they are projected).
        keys: the same, (batch, kv heads, keys, head width).
        values: the same as keys.
        projected: (batch, time, width), by pair, the student's features as they are compared, projected or not.
        targets: (batch, time, width), by pair, the teacher's features that they are compared with.
        mixed: (batch, teacher heads, time, keys), the student's attention maps as many as the teacher's, by pair.
        maps: (batch, teacher heads, time, keys), the teacher's attention maps that they are compared with, by pair.
        matchings: for each teacher, the alignment by which it was moved to its student's positions; None if it reads
            the same tokens.
        filled: (masked tokens, width), the student's last features of them, by a forward of its own on masked rows.
        words: (entries, width), the student's input embeddings, if masked tokens are to be predicted.
        image_features: (batch, width), a dual encoder's embeddings of images, of length 1; empty for others.
        text_features: (batch, width), those of texts.
        scale: a dual encoder's factor of cosines.
        bias: what it adds to them then, if it learned that (SigLIP); empty for others.
        again: (batch, time, width), by pair, ``projected`` by a second forward, with other dropout.
        shares: (batch, teacher layers), how much a student layer attends to each of its teacher layers, by the mixture
            of them, if it attends.
        mixture: several teachers' distributions over classes; None for one teacher, or one for each row.
        embeddings_of: for each of several teachers its weight and its last features.
        blank: entry of a frame without a label, of a model that labels frames.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    head: LMHead | None = None
    tokens: TokenTargets | None = None
    hidden: dict[Layer, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[Layer, Tensor] = field(default_factory=dict)
    queries: dict[Layer, Tensor] = field(default_factory=dict)
    keys: dict[Layer, Tensor] = field(default_factory=dict)
    values: dict[Layer, Tensor] = field(default_factory=dict)
    projected: dict[tuple[Layer, Layer], Tensor] = field(default_factory=dict)
    targets: dict[tuple[Layer, Layer], Tensor] = field(default_factory=dict)
    mixed: dict[tuple[Layer, Layer], Tensor] = field(default_factory=dict)
    maps: dict[tuple[Layer, Layer], Tensor] = field(default_factory=dict)
    again: dict[tuple[Layer, Layer], Tensor] = field(default_factory=dict)
    shares: dict[Layer, Tensor] = field(default_factory=dict)
    filled: Tensor = field(default_factory=lambda: torch.empty(0))
    image_features: Tensor = field(default_factory=lambda: torch.empty(0))
    text_features: Tensor = field(default_factory=lambda: torch.empty(0))
    scale: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: Tensor = field(default_factory=lambda: torch.empty(0))
    words: Tensor = field(default_factory=lambda: torch.empty(0))
    matchings: tuple[TokenAlignment | None, ...] = (None,)
    mixture: ClassMixture | None = None
    embeddings_of: tuple[tuple[float, Tensor], ...] = ()
    blank: int = 0

    def logits_at(self, temperature: float, before: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return logits over classes that give a teacher's distribution once they are softened at a temperature.

        Those of several teachers depend on it: the mixture is one of softened distributions.

        Args:
            temperature: temperature at which they will be softened.
            before: change of each teacher's logits first, such as standardising them.
        """
        if self.mixture is not None:
            return self.mixture.logits_at(temperature, before)
        return self.logits if before is None else before(self.logits)

    def on_grid(self, grid: Grid, class_tokens: int, image: tuple[int, int]) -> "Activations":
        """Move the features of layers that see an image to a grid.

        Args:
            grid: the wanted grid.
            class_tokens: positions before the patches.
            image: height and width of the image.
        """

        def moved(states: Tensor) -> Tensor:
            return move_to_grid(states, grid_of(states.size(1), class_tokens, image), grid)

        return replace(
            self,
            hidden={layer: moved(kept) if layer.stack == "vision" else kept for layer, kept in self.hidden.items()},
            embeddings={name: moved(kept) if name == "vision" else kept for name, kept in self.embeddings.items()},
        )

    def first_positions(self, count: int) -> "Activations":
        """Keep at most this many positions of the features of an encoder."""

        def kept(states: Tensor, stack: str) -> Tensor:
            return states[:, :count] if stack == "encoder" else states

        return replace(
            self,
            hidden={layer: kept(states, layer.stack) for layer, states in self.hidden.items()},
            embeddings={stack: kept(states, stack) for stack, states in self.embeddings.items()},
        )

    def averaged(self, counted: Bool[Tensor, "batch time"]) -> "Activations":
        """Average features over counted positions, to (batch, 1, width): 0 in a row without any."""
        return replace(self, hidden={layer: pooled(kept, counted)[:, None] for layer, kept in self.hidden.items()})

    def moved(self, matching: TokenAlignment) -> "Activations":
        """Move a teacher's activations to its student's positions; features and logits stay."""

        def at(kept: dict[Layer, Tensor]) -> dict[Layer, Tensor]:
            return {layer: matching.of_stack(layer.stack).align_features(states) for layer, states in kept.items()}

        def align_maps(layer: Layer, maps: Tensor) -> Tensor:
            queries = matching.of_stack(layer.stack)
            return queries.align_maps(maps, keys=matching if layer.stack == CROSS else queries)

        return replace(
            self,
            hidden=at(self.hidden),
            embeddings={name: matching.of_stack(name).align_features(kept) for name, kept in self.embeddings.items()},
            queries=at(self.queries),
            keys=at(self.keys),
            values=at(self.values),
            attention={layer: align_maps(layer, kept) for layer, kept in self.attention.items()},
            matchings=(matching,),
        )


@dataclass(frozen=True)
class CaptureSpec:
    """Activations of a forward to keep.

    Attributes:
        hidden: layers whose outputs to keep.
        attention: layers whose maps to keep.
        embeddings: stacks whose first inputs to keep.
        relations: layers whose queries, keys and values to keep.
        answers: False if nobody reads logits, tokens or last features, so that the forward may end after the deepest of
            these layers.
    """

    hidden: frozenset[Layer] = frozenset()
    attention: frozenset[Layer] = frozenset()
    embeddings: frozenset[str] = frozenset()
    relations: frozenset[Layer] = frozenset()
    answers: bool = True

    @property
    def layers(self) -> frozenset[Layer]:
        """The layers that must run for it; a stack's first one reads its first inputs."""
        attending = {
            Layer("decoder", number) if stack == CROSS else Layer(stack, number)
            for stack, number in self.attention | self.relations
        }
        return self.hidden | attending | {Layer(stack, 0) for stack in self.embeddings}


class _Keeper:
    """Keeper of one attention module's activations; a module that several layers share is called once for each."""

    def __init__(self, layers: Sequence[Layer], wanted: CaptureSpec, signals: Activations) -> None:
        self._layers, self._wanted, self._signals = layers, wanted, signals
        self._calls, self._layer = 0, Layer("", 0)

    def begin(self) -> None:
        """Begin the module's next layer."""
        self._layer = self._layers[self._calls]
        self._calls += 1

    def again(self) -> "_Keeper":
        """Return a keeper for a second computation of the layers from here on, whose activations nobody reads."""
        return _Keeper(self._layers[self._calls :], self._wanted, Activations())

    @property
    def wants_map(self) -> bool:
        return self._layer in self._wanted.attention

    @property
    def wants_parts(self) -> bool:
        return self._layer in self._wanted.relations

    def keep_map(self, probabilities: Tensor) -> None:
        self._signals.attention.setdefault(self._layer, probabilities)

    def keep_parts(self, **parts: Tensor) -> None:
        """Keep queries, keys or values of a forward's first call, which is the attention over the text."""
        for name, value in parts.items():
            vars(self._signals)[name].setdefault(self._layer, value)


def enable_capture(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model's attention maps be captured, if its family allows it."""
    if layout_of(model.config).attention is AttentionLayout.INTERFACE:
        model.set_attn_implementation(ATTENTION)
    return model


@contextmanager
def inference_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into eval mode without gradients, and restore its mode afterwards."""
    with in_mode(model, training=False), torch.inference_mode():
        yield


@contextmanager
def capture(model: PreTrainedModel, wanted: CaptureSpec) -> Iterator[Activations]:
    """Capture the specified activations of the forwards inside; the caller sets ``logits``."""
    signals = Activations()
    layout, layers = layout_of(model.config), blocks(model)
    handles = [
        _hook(block, [layer for layer in layers if layers[layer] is block], wanted, signals, layout.time_first)
        for block in dict.fromkeys(layers[layer] for layer in layers if layer in wanted.hidden)
    ]
    handles += [
        _hook_input(block, layer.stack, signals, layout.time_first)
        for layer, block in layers.items()
        if layer.number == 0 and layer.stack in wanted.embeddings
    ]
    attention = attention_modules(model)
    watched = {module for layer, module in attention.items() if layer in wanted.attention | wanted.relations}
    keepers_of = {
        module: _Keeper([layer for layer in attention if attention[layer] is module], wanted, signals)
        for module in watched
    }
    try:
        with keep_attention(model, keepers_of):
            yield signals
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def keep_attention(model: PreTrainedModel, own: Mapping[nn.Module, AttentionKeeper]) -> Iterator[None]:
    """Hand each attention module's activations to its keeper in the forwards inside."""
    hooks = OWN_ATTENTION.get(model.config.model_type)
    handles = [handle for module, keeper in own.items() if hooks is not None for handle in hooks(module, keeper)]
    keepers.update(own)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in own:
            keepers.pop(module, None)


def forward(
    model: PreTrainedModel, inputs: dict[str, Tensor], wanted: CaptureSpec, order: Tensor | None
) -> Activations:
    """Run one forward and return logits or features with the specified activations.

    Args:
        model: a model with the attention named ``ATTENTION``, if its family allows it.
        inputs: a batch's inputs, of which its forward takes those that it accepts.
        wanted: the layers to keep.
        order: for each of the task's labels, the number of the classifier's output that stands for it; None for a
            language model or a model without a head.
    """
    read = accepted_inputs(model, inputs)
    with capture(model, wanted) as signals:
        if not wanted.answers:
            _run_layers(model, read, wanted.layers)
        elif order is not None:
            signals.logits = model(**read).logits.index_select(-1, order)
        elif head_of_class(type(model).__name__) is HeadKind.DUAL:
            output = model(**read)
            signals.image_features, signals.text_features = output.image_embeds, output.text_embeds
            signals.scale = model.logit_scale.exp()
            signals.bias = getattr(model, "logit_bias", signals.bias)
        elif head_of_class(type(model).__name__) is HeadKind.NONE:
            signals.features = model(**read).last_hidden_state
        elif head_of_class(type(model).__name__) is HeadKind.CTC:
            signals.logits, signals.blank = model(**read).logits, int(model.config.pad_token_id)
        else:
            signals.features, signals.head = _before_vocabulary(model, read)
    return on_common_grid(signals, model, inputs)


def on_common_grid(signals: Activations, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Activations:
    """Move a model's features of images to the grid that a batch asks for, if it does.

    Of sounds, the positions of an encoder that pads them further than the batch does are left out.
    """
    grid = grid_in(inputs)
    if grid is None:
        sounds = layout_of(model.config).modality == "audio" and "attention_mask" in inputs
        return signals.first_positions(inputs["attention_mask"].size(-1)) if sounds else signals
    height, width = inputs["pixel_values"].shape[-2:]
    return signals.on_grid(grid, layout_of(model.config).class_tokens, (height, width))


class _LayersDone(Exception):
    """The deepest layer that is read has run."""


def _run_layers(model: PreTrainedModel, inputs: dict[str, Tensor], wanted: frozenset[Layer]) -> None:
    """Run a forward up to the deepest of these layers; an encoder-decoder's encoder runs before its decoder."""
    layers = blocks(model)
    deepest = max((number for number, layer in enumerate(layers) if layer in wanted), default=None)
    if deepest is None:
        return
    block = list(layers.values())[deepest]
    before = [each for each in list(layers.values())[:deepest] if each is block]  # of layers that share a module

    def end(*_: Any) -> None:
        if not before:
            raise _LayersDone
        before.pop()

    handle = block.register_forward_hook(end)  # runs after those that capture
    try:
        model(**inputs)
    except _LayersDone:
        pass
    finally:
        handle.remove()


def pooled(
    features: Float[Tensor, "batch time width"], real: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch width"]:
    """Average a text's features over its real tokens, to 0 without any.

    Reimers & Gurevych 2019, arXiv:1908.10084, section 3.
    """
    weights = real[..., None].to(torch.float32)
    return (features.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def _before_vocabulary(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, LMHead]:
    """Capture a language model's features before its vocabulary, whose map is given no row to compute."""
    kept: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        kept.append(args[0])
        return args[0][:, :0]

    def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output[:, :0]

    module, _ = vocabulary_head(model)
    linear = isinstance(module, nn.Linear)
    handle = module.register_forward_pre_hook(before) if linear else module.register_forward_hook(after)
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    (features,) = kept
    if is_sharded(model):
        # No logit, hence nothing; but by its output a sharded model learns that a backward begins.
        features = features + output[0].sum()
    return features, vocabulary_head(model)[1]  # a sharded model's are gathered by now


def _hook(
    block: nn.Module, layers: Sequence[Layer], wanted: CaptureSpec, signals: Activations, turned: bool
) -> torch.utils.hooks.RemovableHandle:
    following = iter(layers)

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        layer = next(following)
        if layer in wanted.hidden:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden  # a convolution's map
            signals.hidden[layer] = hidden.transpose(0, 1) if turned else hidden

    return block.register_forward_hook(keep)


def _hook_input(block: nn.Module, stack: str, signals: Activations, turned: bool) -> torch.utils.hooks.RemovableHandle:
    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        signals.embeddings.setdefault(stack, hidden.transpose(0, 1) if turned else hidden)

    return block.register_forward_pre_hook(keep, with_kwargs=True)
