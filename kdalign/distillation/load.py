"""Load the teacher and the student of a run, or build the student, and measure both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import CALIBRATION_TOKENS
from kdalign.data.batches import TokenizedSplit, teacher_inputs
from kdalign.data.epochs import sample_batches
from kdalign.data.tasks import ClassificationTask
from kdalign.devices import on_first_rank
from kdalign.distillation.checks import Finding, needs_finetuning
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.several_teachers import mixing_of
from kdalign.distillation.teacher_checks import check_scored_teacher
from kdalign.distillation.tokenize import OpenedRun, with_augmentation
from kdalign.errors import NotFinite, RunError
from kdalign.evaluation.ensembles import predict_ensemble
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
    """A run's models in memory, as they are before the first step, with the teacher's answers and all costs.

    Attributes:
        opened: the run, its texts tokenized.
        student: the model that is trained, on the device.
        source: origin of the student, for the record.
        teachers: the teachers; none without one.
        answers: the teacher's answers on the reported splits, those of several as one.
        answers_of: of several teachers each one's answers, by split.
        watched_answers: the teacher's answers on the monitored slice of train.
        latencies: milliseconds of a forward: the teachers' first, then the student's.
        flops: floating-point operations of a forward, in the same order.
        timed: tokens of such a forward.
        prompts: texts for samples.
        teacher_samples: the teacher's continuations of them.
        findings: results of the checks of the loaded teachers, on the first rank.
    """

    opened: OpenedRun
    student: PreTrainedModel
    source: str
    teachers: "tuple[LoadedTeacher, ...]"
    answers: Mapping[str, Any]
    answers_of: Sequence[Mapping[str, Any]]
    watched_answers: Any
    latencies: Sequence[float]
    flops: Sequence[int]
    timed: int
    prompts: Sequence[Prompt]
    teacher_samples: Sequence[str]
    findings: Sequence[Finding]

    @property
    def teacher(self) -> "LoadedTeacher | None":
        """The teacher, of several the first; None without one."""
        return self.teachers[0] if self.teachers else None

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
    teachers = load_teachers(run, recipe, accelerator, opened.bf16, observer)
    score = partial(_answers, opened, teachers, accelerator)
    said = (on_first_rank(accelerator, score) if teachers else None) or _Answers()
    for finding in said.findings:
        observer.announce(f"{finding.what}: {finding.said}{' (allowed)' if finding.allowed else ''}")
    taught = teachers[0] if teachers else None
    big = taught.model if taught is not None else None
    student_model = load_student(run, tokenizer, big, texts.train)
    student_model.to(accelerator.device)
    models = [*(each.model for each in teachers), student_model]
    timed = min(LATENCY_TOKENS, *(checkpoint_files.max_positions(model.config) for model in models))
    flops = [flops_of(model, timed) for model in models] if main else [0] * len(models)
    if teachers and main:
        observer.announce(_compared(models, flops, timed))
    prompts = adapter.sample_prompts(run.splits.watched, tokenizer, recipe.train.samples)
    teacher_samples: list[str] = []
    if taught is not None and len(teachers) == 1 and main and run.tokenizers.teacher is not None:
        asked = prompts if texts.across is None else _prompts_of_teacher(run, prompts, run.tokenizers.teacher)
        teacher_samples = complete(taught.model, run.tokenizers.teacher, asked)
    for prompt, saying in zip(prompts, teacher_samples, strict=False):
        observer.announce(f"teacher's sample: {preview(prompt.text)} → {preview(saying)}")
    latencies = latencies_ms(models, timed) if main else [0.0] * len(models)
    if recipe.train.lora is not None:
        student_model = lora.add_adapters(student_model, recipe.train.lora, recipe.train.seed)
    return LoadedModels(
        opened=opened,
        student=student_model,
        source=_student_origin(run, tokenizer),
        teachers=teachers,
        answers=said.reported,
        answers_of=said.each,
        watched_answers=said.watched,
        latencies=latencies,
        flops=flops,
        timed=timed,
        prompts=prompts,
        teacher_samples=teacher_samples,
        findings=said.findings,
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


@dataclass(frozen=True)
class _Answers:
    """The teacher's answers, those of several as one and each one's; none but on the first rank."""

    reported: Mapping[str, Any] = field(default_factory=dict)
    watched: Any = None
    each: Sequence[Mapping[str, Any]] = ()
    findings: Sequence[Finding] = ()


def _answers(opened: OpenedRun, teachers: Sequence[LoadedTeacher], accelerator: Accelerator) -> _Answers:
    """Predict the monitored slice of train by the teachers, check them by it, and predict the reported splits.

    Raises:
        RefusedRun: what is wrong with the teachers, with its mend.
        RunError: a teacher gives NaN.
    """
    run, texts, models = opened.run, opened.texts, [teacher.model.to(accelerator.device) for teacher in teachers]
    predict = run.adapter.predict
    try:
        if len(models) == 1:
            watched = predict(models[0], texts.watched_by_teacher)
            findings = check_scored_teacher(opened, watched, models[0])
            answers = {split: predict(models[0], e) for split, e in texts.reported_to_teacher.items()}
            return _Answers(answers, watched, findings=findings)
        mixing = mixing_of(run.recipe)
        watched, _ = predict_ensemble(run.adapter, models, [read.watched for read in texts.read_by], mixing)
        findings = check_scored_teacher(opened, watched)
        said = {
            split: predict_ensemble(run.adapter, models, [read.reported[split] for read in texts.read_by], mixing)
            for split in texts.reported
        }
    except NotFinite as error:
        names = " or ".join(repr(teacher.name) for teacher in run.teachers)
        raise RunError(f"teacher {names} gives NaN: {error}; nothing can be learned from it") from None
    each = [{split: own[number] for split, (_, own) in said.items()} for number in range(len(models))]
    return _Answers({split: mixture for split, (mixture, _) in said.items()}, watched, each, findings)


def load_teachers(
    run: PreparedRun, recipe: Recipe, accelerator: Accelerator, bf16: bool, observer: Observer
) -> tuple[LoadedTeacher, ...]:
    """Load the teachers, fine-tuning each first that has no head; none without a teacher."""
    return tuple(_load_teacher(run, number, recipe, accelerator, bf16, observer) for number in range(len(run.teachers)))


def _load_teacher(
    run: PreparedRun, number: int, recipe: Recipe, accelerator: Accelerator, bf16: bool, observer: Observer
) -> LoadedTeacher:
    teacher = run.teachers[number]
    if needs_finetuning(run.adapter, teacher):
        assert isinstance(run.task, ClassificationTask), "only classifiers are fine-tuned first"
        tokenizer = run.tokenizer_of(number)
        encoded = run.adapter.tokenize(run.splits.train, tokenizer, teacher.config, scored=False)
        ranks, device = accelerator.num_processes, accelerator.device.type
        job = FinetuneJob(teacher, run.task, encoded, recipe.finetune, ranks, device, bf16)
        model, head = job.run(tokenizer, accelerator, observer)
        return LoadedTeacher(model, head, checkpoint_files.find_checkpoint(str(job.path)).hash)
    return LoadedTeacher(run.adapter.load_model(teacher, fresh_head=False, seed=0), "its own", teacher.hash)


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


def _compared(models: Sequence[PreTrainedModel], flops: Sequence[int], length: int) -> str:
    """Compare the size and cost of a student, which comes last, with those of its teacher or of all its teachers."""
    *sizes, ours = (count_parameters(model) for model in models)
    *costs, ours_cost = flops
    theirs, theirs_cost = sum(sizes), sum(costs)
    whose = "the teacher's" if len(models) == 2 else "its teachers' together"
    return (
        f"student: {ours / 1e6:.2f} M parameters, {100 * ours / theirs:.0f} % of {whose}; "
        f"{ours_cost / 1e9:.2f} GFLOPs for {length} tokens, {100 * ours_cost / theirs_cost:.0f} %"
    )


def preview(text: str) -> str:
    """Return the beginning of a text on one line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"
