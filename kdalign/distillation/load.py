"""Load the teacher and the student of a run, or build the student, and measure both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import CALIBRATION_TOKENS
from kdalign.data.batches import TokenizedSplit, sample_batches, teacher_inputs
from kdalign.data.tasks import ClassificationTask
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.tokenize import OpenedRun, with_augmentation
from kdalign.errors import NotFinite, RunError
from kdalign.evaluation.samples import Prompt, complete, retokenize_prompts
from kdalign.models import checkpoint_files, lora
from kdalign.models.architecture import count_parameters
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.profiling import flops_of, latencies_ms
from kdalign.models.student_source import CutStudent, StudentInputs
from kdalign.observer import Observer
from kdalign.recipe import Recipe
from kdalign.training.finetuning import FinetuneJob

LATENCY_TOKENS = 128


SHOWN = 100
"""Most characters of a sample that are shown while training; the history and the record keep all."""


@dataclass
class LoadedModels:
    """A run's two models in memory, as they are before the first step, with the teacher's answers and both costs.

    Attributes:
        opened: the run, its texts tokenized.
        student: the model that is trained, on the device.
        source: origin of the student, for the record.
        teacher: the teacher; None without one.
        answers: the teacher's answers on the reported splits.
        watched_answers: the teacher's answers on the monitored slice of train.
        latencies: milliseconds of a forward: the teacher's first, if there is one.
        flops: floating-point operations of a forward, in the same order.
        timed: tokens of such a forward.
        prompts: texts for samples.
        teacher_samples: the teacher's continuations of them.
    """

    opened: OpenedRun
    student: PreTrainedModel
    source: str
    teacher: "LoadedTeacher | None"
    answers: Mapping[str, Any]
    watched_answers: Any
    latencies: Sequence[float]
    flops: Sequence[int]
    timed: int
    prompts: Sequence[Prompt]
    teacher_samples: Sequence[str]

    @property
    def comparable(self) -> bool:
        """True if student and teacher answer the same questions."""
        return self.watched_answers is not None and not (
            self.opened.texts.across is not None and self.opened.run.adapter.predicts_tokens
        )


def load(opened: OpenedRun, accelerator: Accelerator, observer: Observer) -> LoadedModels:
    """Load both models, fine-tuning the teacher first if it has no head; score the teacher and measure both."""
    run, recipe, tokenizer, adapter = opened.run, opened.recipe, opened.tokenizer, opened.run.adapter
    if run.augmenting is not None:
        texts = with_augmentation(run, opened.texts, tokenizer, accelerator, observer)
        opened = replace(opened, texts=texts)
    texts, main = opened.texts, accelerator.is_main_process
    # The teacher is scored in float32, before it may be rounded for speed.
    taught = load_teacher(run, recipe, accelerator, opened.bf16, observer)
    answers: dict[str, Any] = {}
    watched_answers = None
    if taught is not None and main:
        taught.model.to(accelerator.device)
        try:
            answers = {split: adapter.predict(taught.model, e) for split, e in texts.reported_to_teacher.items()}
            watched_answers = adapter.predict(taught.model, texts.watched_by_teacher)
        except NotFinite as error:
            name = run.teacher.name if run.teacher is not None else "the teacher"
            raise RunError(f"teacher {name!r} gives NaN: {error}; nothing can be learned from it") from None
    big = taught.model if taught is not None else None
    student_model = load_student(run, tokenizer, big, texts.train)
    student_model.to(accelerator.device)
    pair = [*([taught.model] if taught is not None else []), student_model]
    timed = min(LATENCY_TOKENS, *(checkpoint_files.max_positions(model.config) for model in pair))
    flops = [flops_of(model, timed) for model in pair] if main else [0] * len(pair)
    if big is not None and main:
        observer.announce(_compared(student_model, big, flops, timed))
    prompts = adapter.sample_prompts(run.splits.watched, tokenizer, recipe.train.samples)
    teacher_samples: list[str] = []
    if taught is not None and main and run.tokenizers.teacher is not None:
        asked = prompts if texts.across is None else _prompts_of_teacher(run, prompts, run.tokenizers.teacher)
        teacher_samples = complete(taught.model, run.tokenizers.teacher, asked)
    for prompt, saying in zip(prompts, teacher_samples, strict=False):
        observer.announce(f"teacher's sample: {preview(prompt.text)} → {preview(saying)}")
    latencies = latencies_ms(pair, timed) if main else [0.0] * len(pair)
    if recipe.train.lora is not None:
        student_model = lora.add_adapters(student_model, recipe.train.lora, recipe.train.seed)
    return LoadedModels(
        opened=opened,
        student=student_model,
        source=_student_origin(run, tokenizer),
        teacher=taught,
        answers=answers,
        watched_answers=watched_answers,
        latencies=latencies,
        flops=flops,
        timed=timed,
        prompts=prompts,
        teacher_samples=teacher_samples,
    )


def _prompts_of_teacher(
    run: PreparedRun, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> Sequence[Prompt]:
    """Return the student's prompts as the teacher reads them: in its own template, or the same beginnings of texts."""
    own = run.adapter.sample_prompts(run.splits.watched, tokenizer, len(prompts))
    same = [prompt.text for prompt in own] == [prompt.text for prompt in prompts]
    return own if same else retokenize_prompts(prompts, tokenizer)


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in float32.

    Attributes:
        model: the model.
        head: origin of its head.
        weights: fingerprint of its weights, after fine-tuning.
    """

    model: PreTrainedModel
    head: str
    weights: str


def load_teacher(
    run: PreparedRun, recipe: Recipe, accelerator: Accelerator, bf16: bool, observer: Observer
) -> LoadedTeacher | None:
    """Load the teacher, fine-tuning it first if it has no head; None without a teacher."""
    if run.teacher is None or run.tokenizers.teacher is None:
        return None
    if run.finetunes:
        assert isinstance(run.task, ClassificationTask), "only classifiers are fine-tuned first"
        encoded = run.adapter.tokenize(run.splits.train, run.tokenizers.teacher, run.teacher.config, scored=False)
        ranks, device = accelerator.num_processes, accelerator.device.type
        job = FinetuneJob(run.teacher, run.task, encoded, recipe.finetune, ranks, device, bf16)
        model, head = job.run(run.tokenizers.teacher, accelerator, observer)
        return LoadedTeacher(model, head, checkpoint_files.find_checkpoint(str(job.path)).hash)
    return LoadedTeacher(run.adapter.load_model(run.teacher, fresh_head=False, seed=0), "its own", run.teacher.hash)


def load_student(
    run: PreparedRun,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | None,
    encoded: TokenizedSplit,
) -> PreTrainedModel:
    """Load or build the student in float32, as it is before its first step.

    Args:
        run: what the student is.
        tokenizer: the student's.
        teacher: the teacher in memory, in float32; None without one.
        encoded: training texts, of which the teacher reads a few if it is made narrower.
    """
    adapter, seed = run.adapter, run.recipe.train.seed

    def load_with_head(checkpoint: Checkpoint) -> PreTrainedModel:
        return adapter.load_model(checkpoint, fresh_head=not adapter.has_head(checkpoint), seed=seed)

    texts = teacher_inputs(sample_batches(encoded, seed, CALIBRATION_TOKENS))
    tokenizers = run.tokenizers.with_student(tokenizer)
    return run.student.build(StudentInputs(load_with_head, tokenizers, texts, seed, teacher))


def _student_origin(run: PreparedRun, tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe where the student came from, for the record."""
    own = run.student.checkpoint
    if own is not None:
        return f"{run.student} ({'its own' if run.adapter.has_head(own) else 'a new'} head)"
    transferred = isinstance(run.student, CutStudent) and run.tokenizers.differ
    return f"{run.student}{f', with {len(tokenizer):,} entries made of its own' if transferred else ''}"


def _compared(small: PreTrainedModel, big: PreTrainedModel, flops: Sequence[int], length: int) -> str:
    """Compare a student's size and cost with its teacher's; the teacher's FLOPs come first."""
    ours, theirs = (count_parameters(model) for model in (small, big))
    theirs_cost, ours_cost = flops
    return (
        f"student: {ours / 1e6:.2f} M parameters, {100 * ours / theirs:.0f} % of the teacher's; "
        f"{ours_cost / 1e9:.2f} GFLOPs for {length} tokens, {100 * ours_cost / theirs_cost:.0f} %"
    )


def preview(text: str) -> str:
    """Return the beginning of a text on one line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"
