"""Teacher whose weights are loaded: a frozen model in eval mode, outside the student's parameters."""

import torch
from transformers import PreTrainedModel

from kdalign.data.batches import Batch
from kdalign.models.architecture import layout_of
from kdalign.models.capture import Activations, CaptureSpec, enable_capture, forward
from kdalign.models.layouts import AttentionLayout
from kdalign.models.lm_head import vocabulary_head
from kdalign.models.loading import round_weights
from kdalign.models.sharding import end_forward, gather_head, is_sharded, shard, shard_as
from kdalign.models.token_targets import DenseTokens
from kdalign.teachers.base import TermRequest


class ComputedTeacher:
    """Frozen model that computes whatever a term needs.

    Attributes:
        model: the model, in bfloat16 or float32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        order: tuple[int, ...] | None,
        dtype: torch.dtype,
        device: torch.device,
        sharded: bool = False,
        shapes: PreTrainedModel | None = None,
    ) -> None:
        """Freeze the model, and move it to its device and precision.

        Args:
            model: the model, in float32.
            order: number of its output for each class of the task; None without classes.
            dtype: precision of its matrix products.
            device: device of training.
            sharded: keep a part of it on each rank; then every rank must call it equally often.
            shapes: the model without storage, if it is sharded already: a copy is sharded at the precision.
        """
        # A family's own attention may mix weights with positions in float32: its products are rounded instead.
        self._rounds = dtype == torch.bfloat16 and layout_of(model.config).attention is not AttentionLayout.INTERFACE
        weights = torch.float32 if self._rounds else dtype
        given = model if shapes is None else shapes
        self.model = round_weights(enable_capture(given), weights).eval().requires_grad_(False)
        if shapes is not None:
            self.model = shard_as(self.model, model, device)
        else:
            self.model = shard(self.model, device) if sharded else self.model.to(device)
        self._order = order

    def __call__(self, batch: Batch, wanted: CaptureSpec) -> Activations:
        """Run one forward without gradients: activations at the student's positions, logits in the task's order."""
        device, inputs, matching = self.model.device, batch.teacher_inputs, batch.matching
        order = None if self._order is None else torch.tensor(self._order, device=device)
        with torch.no_grad():
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=self._rounds):
                    signals = forward(self.model, inputs, wanted, order)
            finally:
                end_forward(self.model)
            if signals.head is not None and is_sharded(self.model):
                signals.head = gather_head(vocabulary_head(self.model)[1])
            if signals.head is not None:
                features = signals.features
                features = features if matching is None else matching.align_predictions(features)
                signals.tokens = DenseTokens(features, signals.head)
            if batch.told is not None:
                return signals.averaged(batch.told)
            return signals if matching is None else signals.moved(matching)

    def release(self) -> None:
        """Give back the memory of the weights; their shapes stay."""
        self.model.to("meta")
        self.model.tie_weights()

    def refusal(self, request: TermRequest) -> None:
        """Return None: it computes everything that its family has, which the checks of terms know."""
        return
