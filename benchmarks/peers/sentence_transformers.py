"""Distill an encoder's embeddings by sentence-transformers, as its documentation does.

The teacher encodes the texts before, and a mean squared error to its embeddings is minimised; the time of encoding is
part of each row's. Variants: ``documented`` in float32; ``tuned`` with both models in bfloat16 on batches of similar
length.
"""

import time

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MSELoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.peers.encoder import BATCH, CLIP, DECAY, LENGTH, RATE, Data
from benchmarks.peers.meter import Counts, Job, Meter


def load(folder: str) -> SentenceTransformer:
    """Load an encoder whose embedding is the mean over tokens."""
    body = Transformer(folder, max_seq_length=LENGTH, model_kwargs={"dtype": torch.float32})
    return SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu")


def group_by_length(dataset: Dataset, batch_size: int, drop_last: bool, **_: object) -> DefaultBatchSampler:
    """Return batches of texts of similar length."""
    lengths = [len(text) for text in dataset["sentence"]]
    return DefaultBatchSampler(LengthGroupedSampler(batch_size, lengths=lengths), batch_size, drop_last)


def main() -> None:
    """Train, and tell what was measured."""
    job = Job.read()
    tuned = job.variant == "tuned"
    texts = Data(job).table("train")["sentence"].tolist()
    teacher, student = load(job.teacher), load(job.student)
    with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
        begun, worked = time.perf_counter(), time.process_time()
        labels = teacher.encode(texts, batch_size=BATCH, show_progress_bar=False).tolist()
        encoding = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - worked}
    options = SentenceTransformerTrainingArguments(
        output_dir=f"{job.scratch}/sentence-transformers", per_device_train_batch_size=BATCH, max_steps=10**6,
        learning_rate=RATE, weight_decay=DECAY, max_grad_norm=CLIP, lr_scheduler_type="constant", seed=job.seed,
        use_cpu=True, bf16=tuned, report_to=[], save_strategy="no", disable_tqdm=True,
        **({"batch_sampler": group_by_length} if tuned else {}),
    )  # fmt: skip
    dataset = Dataset.from_dict({"sentence": texts, "label": labels})
    trainer = SentenceTransformerTrainer(student, options, train_dataset=dataset, loss=MSELoss(student))
    meter = Meter(job, Counts(student[0]))
    meter.run(trainer.train)
    assert meter.speed is not None
    for clock, spent in encoding.items():
        meter.speed[clock] += spent * meter.speed["samples"] / len(texts)
    meter.tell("bf16" if tuned else "fp32")


if __name__ == "__main__":
    main()
