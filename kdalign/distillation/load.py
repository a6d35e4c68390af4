"""Load the teacher and the student of a run, or build the student, and measure both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import CALIBRATION_TOKENS
from kdalign.data.batches import teacher_inputs
from kdalign.data.epochs import sample_batches
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation.checks import Finding, needs_finetuning, shards
from kdalign.distillation.costs import ForwardCosts, measure_costs
from kdalign.distillation.encode_once import encode_once
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.speech_checks import features_alone
from kdalign.distillation.teacher_answers import LoadedTeacher, TeacherAnswers, keep_samples, score_teachers
from kdalign.distillation.tokenize import OpenedRun, with_augmentation
from kdalign.evaluation.samples import Prompt, retokenize_prompts
from kdalign.models import checkpoint_files, lora
from kdalign.models.architecture import count_parameters
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.layouts import modality_of
from kdalign.models.loading import load_any
from kdalign.models.read_check import check_read
from kdalign.models.sharding import load_on_first_rank
from kdalign.models.student_source import CutStudent, StudentInputs
from kdalign.models.weight_checks import check_finite
from kdalign.observer import Observer
from kdalign.recipe import Recipe
from kdalign.stopwatch import Stopwatch
from kdalign.training.finetuning import FinetuneJob

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
        costs: of a forward of each model.
        prompts: texts for samples.
        teacher_samples: the teacher's continuations of them.
        findings: results of the checks of the loaded teachers.
        watch: seconds of the run by phase.
    """

    opened: OpenedRun
    student: PreTrainedModel
    source: str
    teachers: tuple[LoadedTeacher, ...]
    answers: Mapping[str, Any]
    answers_of: Sequence[Mapping[str, Any]]
    watched_answers: Any
    costs: ForwardCosts
    prompts: Sequence[Prompt]
    teacher_samples: Sequence[str]
    findings: Sequence[Finding]
    watch: Stopwatch

    @property
    def teacher(self) -> LoadedTeacher | None:
        """The teacher, of several the first; None without one."""
        return self.teachers[0] if self.teachers else None

    @property
    def comparable(self) -> bool:
        """True if student and teacher answer the same questions."""
        return self.watched_answers is not None and not (
            self.opened.texts.across is not None and self.opened.run.adapter.predicts_tokens
        )


def load(opened: OpenedRun, accelerator: Accelerator, observer: Observer, watch: Stopwatch) -> LoadedModels:
    """Load both models, fine-tuning the teacher first if it has no head; score the teacher and measure both."""
    watch.begin("loading")
    run, recipe, tokenizer, adapter = opened.run, opened.recipe, opened.tokenizer, opened.run.adapter
    if run.augmenting is not None:
        texts = with_augmentation(run, opened.texts, tokenizer, accelerator, observer)
        opened = replace(opened, texts=texts)
    main = accelerator.is_main_process
    # The teacher is scored in float32, before it may be rounded for speed.
    if any(needs_finetuning(adapter, teacher) for teacher in run.teachers):
        watch.begin("fine-tuning the teacher")
    in_shards = shards(recipe) and run.loads_in_shards
    student_model = None
    if in_shards:
        teachers, student_model = _load_in_shards(opened, accelerator, observer)
    else:
        teachers = load_teachers(run, recipe, accelerator, opened.bf16, observer)
    opened = _encode_shared(opened, teachers, accelerator, observer, watch)
    texts = opened.texts
    watch.begin("scoring the teacher")
    answers = teachers and not any(features_alone(adapter, teacher) for teacher in run.teachers)
    said = score_teachers(opened, teachers, accelerator.device) if answers else TeacherAnswers()
    for finding in said.findings:
        observer.announce(f"{finding.what}: {finding.said}{' (allowed)' if finding.allowed else ''}")
    watch.begin("loading")
    if student_model is None:
        student_model = load_student(run, tokenizer, teachers[0].model if teachers else None, texts.train)
        student_model.to(accelerator.device)
    models = [*(each.model for each in teachers), student_model]
    watch.begin("measuring speed")
    costs = measure_costs(models, wanted=recipe.train.profile and main and not in_shards)
    read = [f"the teacher's answers on {said.read} splits"] * bool(said.read) + ["FLOPs and latency"] * costs.known
    if read:
        observer.announce(f"from kdalign's cache: {', '.join(read)}")
    if costs.busy:
        observer.announce("latency was measured beside other work on this machine: it is not kept for other runs")
    if teachers and main:
        observer.announce(_compared(models, costs))
    watch.begin("writing samples")
    prompts = adapter.sample_prompts(run.splits.watched, opened.reader, recipe.train.samples)
    teacher_samples = _sample_teacher(opened, teachers[0], prompts, observer) if len(teachers) == 1 else []
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
        costs=costs,
        prompts=prompts,
        teacher_samples=teacher_samples,
        findings=said.findings,
        watch=watch,
    )


def _encode_shared(
    opened: OpenedRun,
    teachers: Sequence[LoadedTeacher],
    accelerator: Accelerator,
    observer: Observer,
    watch: Stopwatch,
) -> OpenedRun:
    """Encode sounds once if the models share an encoder, which is whole on this rank."""
    if not opened.run.shares_encoder or shards(opened.recipe):
        return opened
    watch.begin("encoding")
    return encode_once(opened, teachers[0].model, accelerator, observer)


def _load_in_shards(
    opened: OpenedRun, accelerator: Accelerator, observer: Observer
) -> tuple[tuple[LoadedTeacher, ...], PreTrainedModel]:
    """Load the models on the first rank and their shapes on the others, and share out the teachers.

    The student is not shared yet: the first rank has it in its host's memory until it is trained.
    """
    run = opened.run

    def load_both() -> tuple[tuple[LoadedTeacher, ...], PreTrainedModel]:
        teachers = load_teachers(run, opened.recipe, accelerator, opened.bf16, observer)
        big = teachers[0].model if teachers else None
        return teachers, load_student(run, opened.tokenizer, big, opened.texts.train)

    teachers, student_model = load_on_first_rank(load_both)
    return tuple(teacher.shared(accelerator.device) for teacher in teachers), student_model


def _sample_teacher(
    opened: OpenedRun, teacher: LoadedTeacher, prompts: Sequence[Prompt], observer: Observer
) -> Sequence[str]:
    """Let the teacher complete the prompts, each read by its own tokenizer, and announce what it writes."""
    run, tokenizer = opened.run, opened.run.tokenizers.teacher
    if tokenizer is None:
        return []
    asked = prompts if opened.texts.across is None else _prompts_of_teacher(run, prompts, tokenizer)
    samples, known = keep_samples(teacher.model, teacher.weights, tokenizer, asked)
    if known:
        observer.announce("from kdalign's cache: the teacher's samples")
    for prompt, saying in zip(prompts, samples, strict=False):
        observer.announce(f"teacher's sample: {preview(prompt.text)} → {preview(saying)}")
    return samples


def _prompts_of_teacher(
    run: PreparedRun, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> Sequence[Prompt]:
    """Return the student's prompts as the teacher reads them: in its own template, or the same beginnings of texts."""
    own = run.adapter.sample_prompts(run.splits.watched, run.reader_of(0), len(prompts))
    same = [prompt.text for prompt in own] == [prompt.text for prompt in prompts]
    return own if same else retokenize_prompts(prompts, tokenizer)


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
        reader = run.reader_of(number)
        encoded = run.adapter.tokenize(run.splits.train, reader, scored=False)
        ranks, device = accelerator.num_processes, accelerator.device.type
        job = FinetuneJob(teacher, run.task, encoded, recipe.finetune, ranks, device, bf16)
        model, head = job.run(reader, accelerator, observer)
        return LoadedTeacher(model, head, checkpoint_files.find_checkpoint(str(job.path)).hash)
    if run.tokenizers.transcripts is not None:  # of text, whatever its head
        return LoadedTeacher(check_read(check_finite(load_any(teacher), teacher)), "its own", teacher.hash)
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
    return run.student.build(StudentInputs(load_with_head, tokenizers, texts, seed, teacher, adapter.with_head))


def _student_origin(run: PreparedRun, tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe where the student came from, for the record."""
    own = run.student.checkpoint
    if own is not None:
        return f"{run.student} ({'its own' if run.adapter.has_head(own) else 'a new'} head)"
    transferred = isinstance(run.student, CutStudent) and run.tokenizers.differ
    return f"{run.student}{f', with {len(tokenizer):,} entries made of its own' if transferred else ''}"


def _compared(models: Sequence[PreTrainedModel], costs: ForwardCosts) -> str:
    """Compare the size and cost of a student, which comes last, with those of its teacher or of all its teachers."""
    *sizes, ours = (count_parameters(model) for model in models)
    whose = "the teacher's" if len(models) == 2 else "its teachers' together"
    line = f"student: {ours / 1e6:.2f} M parameters, {100 * ours / sum(sizes):.0f} % of {whose}"
    counted = [flops for flops in costs.flops if flops is not None]
    if len(counted) < len(models) or len({modality_of(model.config.model_type) for model in models}) > 1:
        return line  # of tokens and of frames there is no share
    *theirs, own = counted
    return f"{line}; {own / 1e9:.2f} GFLOPs for {costs.tokens} tokens, {100 * own / sum(theirs):.0f} %"


def preview(text: str) -> str:
    """Return the beginning of a text on one line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"
