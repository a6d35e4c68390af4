"""Distill a classifier by TextBrewer's GeneralDistiller.

Variants: ``padded`` pads every row to 128 tokens, in float32, as its examples do; ``dynamic`` pads to the longest of
a random batch; ``tuned`` trains in bfloat16 on batches of similar length, by what a user can do from outside.
"""

from functools import partial

import textbrewer
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.peers.encoder import BATCH, CLIP, HARD, SOFT, TEMPERATURE, Data, Pair, accuracy_of, make_optimizer
from benchmarks.peers.meter import Counts, Job, Meter


def adapt(batch, outputs):
    """Name a model's outputs as TextBrewer does."""
    return {
        "logits": outputs.logits,
        "losses": outputs.loss,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def matches(pair: Pair) -> list[dict[str, object]]:
    """Return the terms of the layers; hidden states count from the embeddings, attention maps do not."""
    weight, found = 1 / len(pair.layers), []
    for ours, theirs in pair.layers:
        for loss in ("cos", "hidden_mse"):
            found.append(
                {"layer_T": theirs + 1, "layer_S": ours + 1, "feature": "hidden", "loss": loss, "weight": weight}
            )
        found.append(
            {"layer_T": theirs, "layer_S": ours, "feature": "attention", "loss": "attention_mse", "weight": weight}
        )
    return found


class Distiller(textbrewer.GeneralDistiller):
    """Distiller whose forwards are in bfloat16; autocast around the whole of training would keep its first weights."""

    def train_on_batch(self, batch, args):
        """Return the loss of a batch, as the library does."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().train_on_batch(batch, args)


def main() -> None:
    """Train, and tell what was measured."""
    job = Job.read()
    torch.manual_seed(job.seed)
    data, pair, tuned = Data(job), Pair.load(job), job.variant == "tuned"
    rows = data.rows("train")
    by_length = LengthGroupedSampler(BATCH, lengths=[len(row["input_ids"]) for row in rows]) if tuned else None
    loader = DataLoader(
        rows, batch_size=BATCH, shuffle=not tuned, sampler=by_length, drop_last=True,
        collate_fn=partial(data.collate, to="max_length" if job.variant == "padded" else "longest"),
    )  # fmt: skip
    distiller = (Distiller if tuned else textbrewer.GeneralDistiller)(
        train_config=textbrewer.TrainingConfig(output_dir=job.scratch, device="cpu", ckpt_steps=10**6),
        distill_config=textbrewer.DistillationConfig(
            temperature=TEMPERATURE, hard_label_weight=HARD, kd_loss_weight=SOFT * TEMPERATURE**2,
            intermediate_matches=matches(pair),
        ),
        model_T=pair.teacher, model_S=pair.student, adaptor_T=adapt, adaptor_S=adapt,
    )  # fmt: skip
    meter = Meter(job, Counts(pair.student), accuracy_of(job, pair.student))
    with distiller:
        meter.run(
            lambda: distiller.train(
                make_optimizer(pair.student), loader, num_steps=10**6, max_grad_norm=CLIP,
                output_hidden_states=True, output_attentions=True,
            )
        )  # fmt: skip
    meter.tell("bf16" if tuned else "fp32")


if __name__ == "__main__":
    main()
