"""Distill a classifier by torchdistill's DistillationBox.

Variants: ``dynamic`` pads to the longest of a random batch, in float32; ``tuned`` trains in bfloat16 on batches of
similar length.
"""

import torch
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import DistillationBox
from torchdistill.datasets.registry import register_collate_func
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.peers.encoder import BATCH, CLIP, DECAY, RATE, Data, Pair, accuracy_of, joint_loss
from benchmarks.peers.meter import Counts, Job, Meter


class JointLoss(torch.nn.Module):
    """The five terms, from the outputs that the box has kept of both models."""

    def __init__(self, layers) -> None:
        """Compare these layers."""
        super().__init__()
        self.layers = layers

    def forward(self, ours, theirs, targets):
        """Return the loss; the targets hold the mask, too, which the box gives to no loss."""
        return joint_loss(ours["."]["output"], theirs["."]["output"], *targets, self.layers)


def main() -> None:
    """Train, and tell what was measured."""
    job = Job.read()
    torch.manual_seed(job.seed)
    data, pair, tuned = Data(job), Pair.load(job), job.variant == "tuned"
    for model in (pair.teacher, pair.student):
        model.config.output_hidden_states = model.config.output_attentions = True
    rows = data.rows("train")
    lengths = [len(row["input_ids"]) for row in rows]

    @register_collate_func(key="pad")
    def collate(chosen):
        batch = data.collate(chosen)
        return batch, (batch["attention_mask"], batch.pop("labels"))

    sampler = (lambda _: LengthGroupedSampler(BATCH, lengths=lengths)) if tuned else RandomSampler
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "requires_supp": False,
            "sampler": {"class_or_func": sampler},
            "collate_fn": "pad",
            "kwargs": {"batch_size": BATCH, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only_as_kwargs", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only_as_kwargs"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": RATE, "weight_decay": DECAY}, "max_grad_norm": CLIP},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"joint": {"criterion": JointLoss(pair.layers), "weight": 1.0}}},
        },
    }
    box = DistillationBox(pair.teacher, pair.student, {"train": rows}, config, torch.device("cpu"), None, False, 1)

    def loop() -> None:
        epoch = 0
        while True:
            box.pre_epoch_process(epoch=epoch)
            for batch, targets in box.train_data_loader:
                with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
                    loss = box.forward_process(batch, targets, None)
                box.post_forward_process(loss=loss)
            epoch += 1

    meter = Meter(job, Counts(pair.student), accuracy_of(job, pair.student))
    meter.run(loop)
    meter.tell("bf16" if tuned else "fp32")


if __name__ == "__main__":
    main()
