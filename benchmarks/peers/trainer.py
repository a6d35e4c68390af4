"""Distill a classifier by Transformers' Trainer, with its loss overridden.

Variants: ``dynamic`` pads to the longest of a random batch, in float32; ``tuned`` trains in bfloat16 on batches of
similar length.
"""

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from benchmarks.peers.encoder import BATCH, CLIP, DECAY, RATE, Data, Pair, accuracy_of, joint_loss
from benchmarks.peers.meter import Counts, Job, Meter


def main() -> None:
    """Train, and tell what was measured."""
    job = Job.read()
    data, pair, tuned = Data(job), Pair.load(job), job.variant == "tuned"

    class Distiller(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=tuned):  # the student's is Trainer's
                theirs = pair.teacher(**inputs, output_hidden_states=True, output_attentions=True)
            ours = model(**inputs, output_hidden_states=True, output_attentions=True)
            loss = joint_loss(ours, theirs, inputs["attention_mask"], labels, pair.layers)
            return (loss, ours) if return_outputs else loss

    options = TrainingArguments(
        output_dir=f"{job.scratch}/trainer", per_device_train_batch_size=BATCH, max_steps=10**6, learning_rate=RATE,
        weight_decay=DECAY, seed=job.seed, max_grad_norm=CLIP, lr_scheduler_type="constant", use_cpu=True, bf16=tuned,
        train_sampling_strategy="group_by_length" if tuned else "random",
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Distiller(
        pair.student, options, train_dataset=Dataset.from_list(data.rows("train")),
        data_collator=DataCollatorWithPadding(data.tokenizer),
    )  # fmt: skip
    meter = Meter(job, Counts(pair.student), accuracy_of(job, pair.student))
    meter.run(trainer.train)
    meter.tell("bf16" if tuned else "fp32")


if __name__ == "__main__":
    main()
