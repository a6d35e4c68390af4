"""Distill a language model by TRL: ``gkd`` by its GKDTrainer, ``distillation`` by its DistillationTrainer.

Rows of random tokens are predicted whole, with forward KL in bfloat16. The DistillationTrainer writes its own texts;
here it is given the rows in their place, so that both do the same work.
"""

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

from benchmarks.on_policy import Pair, rows_of, trl_steps
from benchmarks.peers.meter import Job, Meter
from benchmarks.settings import PAIR_SHAPE


class OnGivenRows(DistillationTrainer):
    """A DistillationTrainer whose texts are not generated."""

    def _prepare_inputs(self, generation_batch):
        return generation_batch


def distillation_loop(job: Job, pair: Pair):
    """Return the loop of the DistillationTrainer."""
    ids = torch.tensor(rows_of(pair))
    batch = {
        "prompt_ids": ids[:, :1], "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids[:, 1:], "completion_mask": torch.ones_like(ids[:, 1:]),
    }  # fmt: skip
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        for folder, dtype in ((pair.teacher, torch.bfloat16), (pair.student, torch.float32))
    )
    options = DistillationConfig(
        output_dir=f"{job.scratch}/trl", beta=0.0, temperature=1.0, bf16=True, use_cpu=True, learning_rate=1e-5,
        per_device_train_batch_size=pair.rows, gradient_checkpointing=False, max_steps=10**6, report_to=[],
        save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = OnGivenRows(
        student, teacher, options, train_dataset=Dataset.from_dict({"prompt": ["a"] * pair.rows}),
        processing_class=AutoTokenizer.from_pretrained(pair.teacher),
    )  # fmt: skip
    trainer.data_collator = lambda _: dict(batch)
    return trainer.train


def main() -> None:
    """Train, and tell what was measured."""
    job = Job.read()
    pair = Pair(job.teacher, job.student, *PAIR_SHAPE)
    meter = Meter(job, lambda: (meter.steps * pair.rows, meter.steps * pair.rows * pair.length))
    if job.variant == "distillation":
        meter.run(distillation_loop(job, pair))
    else:
        with trl_steps(pair, "off-policy", 0) as step:

            def loop() -> None:
                while True:
                    step()

            meter.run(loop)
    meter.tell("bf16")


if __name__ == "__main__":
    main()
