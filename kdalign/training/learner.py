"""All that is trained, in one module: the student, and the projections of its activations to its teacher's shapes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdalign.alignment.plan import Plan, cross_attention_layer
from kdalign.alignment.projections import Projections
from kdalign.data.media.grid import grid_in
from kdalign.data.tokenized_split import IGNORED, MASKED
from kdalign.models.architecture import Layer, split_stack
from kdalign.models.capture import Activations, CaptureSpec, enable_capture, forward, pooled
from kdalign.models.fused_layers import fused_layers
from kdalign.models.inputs import accepted_inputs
from kdalign.models.modes import keep_statistics
from kdalign.models.recomputation import recompute_layers
from kdalign.objective.balancing import LossBalancer
from kdalign.objective.objective import Objective
from kdalign.objective.terms import Signal


class Learner(nn.Module):
    """The student, its projections, and terms that learn or remember, for DDP, the optimizer and checkpoints to see.

    Its forward returns the student's activations, features already at the teacher's width and maps at its heads,
    together with the teacher's that they are compared with.

    Attributes:
        recomputes: true for activation checkpointing of the student's layers.
        keeps_statistics: true if the student's batch norms normalise by their running statistics in training mode,
            too: then no row's output depends on the rows that are read with it.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        projections: Projections,
        plan: Plan | None,
        objectives: Sequence[Objective],
        order: tuple[int, ...] | None,
        bf16: bool,
        balance: LossBalancer | None = None,
    ) -> None:
        """Register every module, and follow the first objective.

        Args:
            student: the student, in float32.
            projections: maps from the student's width and heads to the teacher's.
            plan: which layers are compared; None without a teacher.
            objectives: what is minimised, one after the other.
            order: number of the student's output for each class of the task; None without classes.
            bf16: true to run the forward in bfloat16.
            balance: learns or measures the terms' weights; None if they stay.
        """
        super().__init__()
        self.balance = balance
        self.terms = nn.ModuleList(term for objective in objectives for term in objective.modules.values())
        self.student = enable_capture(student)
        self.projections = projections
        self.register_buffer("_order", None if order is None else torch.tensor(order), persistent=False)
        self.bf16, self.recomputes, self.keeps_statistics = bf16, False, False
        self.follow(plan, objectives[0])

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all that is trained; batch norms may keep their statistics."""
        super().train(mode)
        if self.keeps_statistics:
            keep_statistics(self.student)
        return self

    @property
    def order(self) -> Tensor | None:
        """Number of the student's output for each class of the task; None without classes."""
        return self._buffers["_order"]

    @property
    def attends(self) -> bool:
        """True if student layers attend to several teacher layers under the current objective."""
        return bool(self._attends)

    def follow(self, plan: Plan | None, objective: Objective) -> None:
        """Return from now on the activations that this objective compares under this plan."""
        self.plan = plan
        pairs = plan.pairs if plan is not None else ()
        self._pairs = [pair[:2] for pair in pairs] if Signal.HIDDEN in objective.needs else []
        self._maps = objective.compared_maps
        self._fills = Signal.FILLED in objective.needs
        self._again = Signal.AGAIN in objective.needs
        self._side = plan.style.side if plan is not None else "student"
        wanted = objective.wanted([student for student, _, _ in pairs])
        of_teacher = objective.wanted(plan.teaching if plan is not None else (), of_teacher=True)
        self._attends: dict[tuple[Layer, Layer], tuple[Layer, ...]] = {}
        if plan is not None and plan.attended and (self._pairs or self._maps):
            self._attends = {(ours, mean): plan.attended_by(ours, mean) for ours, mean, _ in pairs}
            wanted, of_teacher = (
                _with_hidden(wanted, list(self._attends)),
                replace(of_teacher, hidden=frozenset(plan.teaching)),
            )
        self._wanted, self.wanted_of_teacher = wanted, of_teacher

    def forward(self, inputs: dict[str, Tensor], taught: Activations | None = None) -> Activations:
        """The student's activations on a batch, together with the teacher's that they are compared with."""
        with recompute_layers(self.student) if self.recomputes else fused_layers(self.student):
            return self._read(inputs, taught)

    def _read(self, inputs: dict[str, Tensor], taught: Activations | None) -> Activations:
        with torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.bf16):
            signals = self._capture(inputs, self._wanted)
            if self._fills:
                body = self.student.base_model
                masked = {**inputs, "input_ids": inputs[MASKED + "input_ids"]}
                features = body(**accepted_inputs(body, masked)).last_hidden_state
                signals.filled = features[inputs[MASKED + "targets"] != IGNORED]
                signals.words = body.get_input_embeddings().weight
        if self._attends:
            assert taught is not None, "attention to layers needs a teacher"
            taught = self._blend(signals, taught, inputs)
        with torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.bf16):
            for pair in self._pairs:
                assert taught is not None, "features need a teacher's"
                ours, theirs = signals.hidden[pair[0]], taught.hidden[pair[1]]
                if self._side == "student":
                    ours = self.projections(ours, *pair)
                else:
                    theirs = self.projections(theirs, *pair)
                signals.projected[pair], signals.targets[pair] = ours, theirs
            if self._again:
                seen = self._capture(inputs, CaptureSpec(self._wanted.hidden))
                for pair in self._pairs:
                    view = seen.hidden[pair[0]]
                    signals.again[pair] = self.projections(view, *pair) if self._side == "student" else view
            for pair in self._maps:
                assert taught is not None, "maps need a teacher's"
                signals.mixed[pair] = self.projections.mixed(signals.attention[pair[0]], *pair)
                signals.maps[pair] = taught.attention[pair[1]]
        return signals

    def _capture(self, inputs: dict[str, Tensor], wanted: CaptureSpec) -> Activations:
        """Run the student once; where only averages of features are compared, average them over real positions."""
        signals = forward(self.student, inputs, wanted, self.order)
        if self.plan is None or not self.plan.pooled:
            return signals
        return signals.averaged(inputs["attention_mask"].bool())

    def _blend(self, signals: Activations, taught: Activations, inputs: dict[str, Tensor]) -> Activations:
        r"""Blend the teacher's layers into a weighted mean for each student layer that attends to them.

        .. math:: \tilde h_s = \sum_t \alpha_{st} h_t, \quad
            \alpha_{st} = \mathrm{softmax}_t \big( n(\bar h_s) \cdot n(\bar h_t) / \sqrt{d} \big)

        for each row (one text, or several packed into it), with :math:`\bar h` the mean over all its tokens, later ones
        included, and n a layer norm without weights, without which the largest layers would get all attention. After
        ALP-KD, Passban et al. 2021, arXiv:2012.14022, section 3. Attention maps are blended by the same shares.
        """
        hidden, attention = dict(taught.hidden), dict(taught.attention)
        for (ours, mean), layers in self._attends.items():
            real = _real(inputs, ours)
            matching = taught.matchings[split_stack(mean.stack)[0]]
            if matching is not None:
                real = real & matching.of_stack(ours.stack).compared
            asking = _unit(pooled(self.projections(signals.hidden[ours].float(), ours, mean), real))
            offered = torch.stack([_unit(pooled(taught.hidden[layer], real)) for layer in layers], dim=1)
            scores = torch.einsum("bd,btd->bt", asking, offered) / asking.size(-1) ** 0.5
            shares = signals.shares[mean] = scores.softmax(dim=-1)
            hidden[mean] = _mean([taught.hidden[layer] for layer in layers], shares)
            for key in (lambda layer: layer, cross_attention_layer):
                maps = [taught.attention[key(layer)] for layer in layers if key(layer) in taught.attention]
                if maps:
                    attention[key(mean)] = _mean(maps, shares)
        return replace(taught, hidden=hidden, attention=attention)


def _with_hidden(wanted: CaptureSpec, pairs: list[tuple[Layer, Layer]]) -> CaptureSpec:
    return replace(wanted, hidden=wanted.hidden | frozenset(ours for ours, _ in pairs))


def _real(inputs: dict[str, Tensor], layer: Layer) -> Tensor:
    """(batch, time): the real positions of a layer's stack; of packed rows only the last has padding."""
    grid = grid_in(inputs)
    if grid is not None and layer.stack == "vision":
        images = inputs["pixel_values"]
        return torch.ones(len(images), grid.positions, dtype=torch.bool, device=images.device)
    reads_target = layer.stack == "decoder" and "decoder_attention_mask" in inputs
    mask = inputs["decoder_attention_mask" if reads_target else "attention_mask"].bool()
    return mask if mask.ndim == 2 else mask[:, 0].diagonal(dim1=-2, dim2=-1)


def _unit(pooled_features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    return F.layer_norm(pooled_features.float(), pooled_features.shape[-1:])


def _mean(parts: list[Tensor], shares: Float[Tensor, "batch layers"]) -> Tensor:
    """Weighted mean of tensors of shape (batch, ...), by each text's shares."""
    return torch.einsum("bt,bt...->b...", shares, torch.stack([part.float() for part in parts], dim=1))
