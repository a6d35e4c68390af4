"""What comes before training: a run's texts, its two models, the plan between them and the learner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import (
    CALIBRATION_TOKENS,
    SIMILARITY_TOKENS,
    UNTRAINED,
    as_read_by_teacher,
    calibrate,
    mapped,
    some,
    start_projections,
)
from kdalign.alignment.plan import Plan, layers_text, read_plan
from kdalign.alignment.projections import Projections
from kdalign.data.batches import Encoded
from kdalign.data.tasks import Task
from kdalign.data.tokenization import corrupted
from kdalign.distillation.preflight import NOTEWORTHY
from kdalign.distillation.prepare import Prepared
from kdalign.distillation.tokenize import Texts, announce, config_of, read_texts, tokenizer_of, with_copies
from kdalign.errors import NotFinite, RunError, UsageError
from kdalign.evaluation.samples import Prompt, continued, reworded
from kdalign.models import loading, student
from kdalign.models.architecture import count_parameters
from kdalign.models.from_scratch import new_model
from kdalign.models.profiling import flops_of, latencies_ms
from kdalign.models.teacher import Teacher
from kdalign.objective.balancing import BALANCES, Balance
from kdalign.objective.checks import check_steps, parts_of
from kdalign.objective.objective import Objective
from kdalign.objective.terms import MaskedTokens
from kdalign.observer import Observer
from kdalign.recipe import Objective as Weights
from kdalign.recipe import Recipe
from kdalign.training.finetuning import finetuned
from kdalign.training.learner import Learner
from kdalign.training.loop import total_steps, use_bf16
from kdalign.training.task_trainer import Course, Remapping, Stage, Watched

LATENCY_TOKENS = 128
SHOWN = 100
"""Characters of a sample that are shown while training; the history and the record keep all."""


@dataclass(frozen=True)
class Opened:
    """A run whose texts are read.

    Attributes:
        recipe: with the precision that is trained in.
        config: of the student, or of the teacher that it is cut from.
    """

    run: Prepared
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    texts: Texts

    @property
    def bf16(self) -> bool:
        """Whether it is trained in bfloat16."""
        return self.recipe.train.precision == "bf16"


def opened(run: Prepared, accelerator: Accelerator) -> Opened:
    """Texts to tokens; what cannot be encoded is refused before anything is written.

    Raises:
        UsageError: a text that cannot be encoded, or fewer steps than stages.
    """
    precision = "bf16" if use_bf16(run.recipe.train.precision, accelerator.device) else "fp32"
    recipe = run.recipe.with_changes(train={**run.recipe.train.model_dump(), "precision": precision})
    tokenizer = tokenizer_of(run)
    config = config_of(run, tokenizer)
    texts = read_texts(run, tokenizer, config)
    if not recipe.multi_task.together:
        check_steps(total_steps(recipe.train, texts.train), recipe, run.plan)
    return Opened(run, recipe, tokenizer, config, texts)


def begin_folder(opened: Opened, accelerator: Accelerator, observer: Observer, resume: bool) -> Observer:
    """Begin the run's folder and say what will be done; the observer, who writes into its log from now on."""
    run, recipe, folder = opened.run, opened.recipe, opened.run.folder
    if accelerator.is_main_process:
        folder.begin(recipe.dump(), run.inputs, keep=resume)
    accelerator.wait_for_everyone()
    observer = observer.into(folder.log) if accelerator.is_main_process else observer
    who = (
        f"{run.teacher.name} teaches {recipe.student}" if run.teacher is not None else f"{recipe.student} learns alone"
    )
    observer.announce(f"{who} on {run.task.name}; run folder {folder.path}")
    if run.task.found:
        observer.announce(f"worked out from the data: {run.task.found}")
    announce(run, opened.texts, opened.tokenizer, observer)
    for finding in run.checks:
        if finding.allowed or finding.what in NOTEWORTHY:
            observer.announce(f"{finding.what}: {finding.said}{' (allowed)' if finding.allowed else ''}")
    return observer


@dataclass
class Models:
    """A run's two models in memory, as they are before the first step, and what was measured of them.

    Attributes:
        student: the whole of what is trained, on the device.
        source: where the student came from.
        taught: None without a teacher.
        answers: the teacher's on the reported splits, and on the slice of train that is watched.
        latencies: of teacher and student.
        flops: likewise.
        timed: the tokens of such a forward.
        prompts: that are continued.
        taught_says: what the teacher says after them.
    """

    opened: Opened
    student: PreTrainedModel
    source: str
    taught: "Taught | None"
    answers: Mapping[str, Any]
    watched_answers: Any
    latencies: Sequence[float]
    flops: Sequence[int]
    timed: int
    prompts: Sequence[Prompt]
    taught_says: Sequence[str]

    @property
    def comparable(self) -> bool:
        """Whether student and teacher answer the same questions."""
        return self.taught is not None and not (
            self.opened.texts.across is not None and self.opened.run.work.token_by_token
        )


def load(opened: Opened, accelerator: Accelerator, observer: Observer) -> Models:
    """Load both models, the teacher fine-tuned first where it has no head; score the teacher and measure both."""
    run, recipe, tokenizer, work = opened.run, opened.recipe, opened.tokenizer, opened.run.work
    if run.augmenting is not None:
        texts = with_copies(run, opened.texts, tokenizer, opened.config, accelerator, observer)
        opened = replace(opened, texts=texts)
    texts, main = opened.texts, accelerator.is_main_process
    # The teacher is scored in float32, before it may be rounded for speed.
    taught = load_teacher(run, recipe, accelerator, opened.bf16, observer)
    answers: dict[str, Any] = {}
    watched_answers = None
    if taught is not None and main:
        taught.model.to(accelerator.device)
        try:
            answers = {split: work.answer(taught.model, e) for split, e in texts.reported_to_teacher.items()}
            watched_answers = work.answer(taught.model, texts.watched_by_teacher)
        except NotFinite as error:
            name = run.teacher.name if run.teacher is not None else "the teacher"
            raise RunError(f"teacher {name!r} gives NaN: {error}; nothing can be learnt from it") from None
    big = taught.model if taught is not None else None
    student_model, student_source = load_student(run, opened.config, big, tokenizer, texts.train)
    student_model.to(accelerator.device)
    pair = [*([taught.model] if taught is not None else []), student_model]
    timed = min(LATENCY_TOKENS, *(loading.positions(model.config) for model in pair))
    flops = [flops_of(model, timed) for model in pair] if main else [0] * len(pair)
    if big is not None and main:
        observer.announce(_compared(student_model, big, flops, timed))
    prompts = work.prompts(run.watched, tokenizer, recipe.train.samples)
    taught_says: list[str] = []
    if taught is not None and main and run.teacher_tokenizer is not None:
        asked = prompts if texts.across is None else reworded(prompts, run.teacher_tokenizer)
        taught_says = continued(taught.model, run.teacher_tokenizer, asked)
    for prompt, saying in zip(prompts, taught_says, strict=False):
        observer.announce(f"teacher's sample: {_shown(prompt.text)} → {_shown(saying)}")
    latencies = latencies_ms(pair, timed) if main else [0.0] * len(pair)
    if recipe.train.lora is not None:
        student_model = student.adapted(student_model, recipe.train.lora, recipe.train.seed)
    return Models(
        opened,
        student_model,
        student_source,
        taught,
        answers,
        watched_answers,
        latencies,
        flops,
        timed,
        prompts,
        taught_says,
    )


def course_of(loaded: Models, accelerator: Accelerator, observer: Observer, resume: bool) -> Course:
    """What aligns the two models, and what is minimised; the learner follows the plan."""
    opened, taught = loaded.opened, loaded.taught
    student_model = student.freeze(loaded.student, opened.recipe.train.freeze)
    run, recipe, tokenizer, texts, work = opened.run, opened.recipe, opened.tokenizer, opened.texts, opened.run.work
    encoded, watched = texts.train, texts.watched
    student_order = work.order(student_model)
    teacher = None
    if taught is not None:
        rounded = torch.bfloat16 if opened.bf16 else torch.float32
        teacher = Teacher(taught.model, work.order(taught.model), rounded, accelerator.device)
    plan = None
    if teacher is not None:
        plan = _calibrated(run, teacher, student_model, encoded, tokenizer, accelerator, resume)
        observer.announce(f"map: {plan.chosen}")
        if plan.choice and _untrained(run):
            observer.announce(UNTRAINED)
    shared = texts.across.shared if texts.across is not None else None
    dtype = torch.bfloat16 if opened.bf16 else None
    filling = None
    if recipe.objective.built.masked_lm:
        observer.announce("masked_lm: a step costs about one more forward and backward of the student, on masked rows")
        filling = filling_term(student_model, recipe.train.seed, dtype)

    def minimised(part: Weights, plan: Plan | None) -> Objective:
        return work.objective(part, plan, dtype, shared).with_masked_lm(part.built.masked_lm, filling)

    stages = [Stage(begins, minimised(weights, by)) for begins, weights, by in parts_of(recipe, plan)]
    objective = stages[0].objective
    shapes = plan.projections if plan is not None and objective.uses_hidden else ()
    mixes = plan.mixes if plan is not None and objective.compared_maps else ()
    projections = Projections(shapes, recipe.train.seed, mixes)
    if plan is not None and teacher is not None and shapes and plan.style.start != "random":
        few = some(encoded, recipe.train.seed, SIMILARITY_TOKENS)
        start_projections(projections, plan, teacher.model, student_model, few, accelerator.device)
    learner = Learner(
        student.with_dropout(student_model, recipe.train.dropout),
        projections,
        plan,
        objective,
        student_order,
        opened.bf16,
        [term for stage in stages for term in stage.objective.modules.values()],
        _balance(recipe, stages),
    )

    def evaluate(model: PreTrainedModel) -> Watched:
        found = work.answer(model, watched)
        scores = work.scores(found, watched, interval=False)
        if loaded.comparable:
            scores.append(work.agreement(found, loaded.watched_answers, interval=False))
        first = scores[0]
        said = continued(model, tokenizer, loaded.prompts)
        if said:  # one is enough for the eye; the history keeps all
            observer.announce(f"sample: {_shown(loaded.prompts[0].text)} → {_shown(said[0])}")
        return Watched(
            first.value if first.value is None or first.higher_is_better else -first.value,
            {score.metric: score.value for score in scores} | ({"samples": said} if said else {}),
            {score.metric: score.reason for score in scores if score.value is None},
        )

    remapping = None
    if plan is not None and teacher is not None and recipe.align.remap_every is not None:
        remapping = Remapping(
            recipe.align.remap_every,
            partial(_mapped_again, plan, teacher, encoded, tokenizer.all_special_ids, recipe.train.seed),
            lambda found: minimised(recipe.objective, found),
        )
    rows = corrupted(encoded, recipe.data.augment, tokenizer, filling is not None)
    return Course(work.task.name, learner, teacher, stages, rows, run.folder, evaluate, remapping)


@dataclass(frozen=True)
class Taught:
    """A teacher in float32, and where its head came from."""

    model: PreTrainedModel
    head: str


def load_teacher(
    run: Prepared, recipe: Recipe, accelerator: Accelerator, bf16: bool, observer: Observer
) -> Taught | None:
    """The teacher, fine-tuned first where it has no head; None where there is none."""
    if run.teacher is None or run.teacher_tokenizer is None:
        return None
    if run.finetunes:
        assert isinstance(run.task, Task), "only classifiers are fine-tuned first"
        settings, tokenizer = recipe.finetune, run.teacher_tokenizer
        encoded = run.work.encode(run.train, tokenizer, run.teacher.config, scored=False)
        return Taught(*finetuned(run.teacher, run.task, encoded, settings, tokenizer, accelerator, bf16, observer))
    return Taught(run.work.load(run.teacher, fresh_head=False, seed=0), "its own")


def load_student(
    run: Prepared,
    config: PretrainedConfig,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded,
) -> tuple[PreTrainedModel, str]:
    """The student in float32 before its first step, and where it came from."""
    seed = run.recipe.train.seed
    if run.cut is not None:
        assert teacher is not None, "a student is cut out of a teacher"
        assert run.teacher is not None, "a student is cut out of a teacher"
        texts = as_read_by_teacher(some(encoded, seed, CALIBRATION_TOKENS))
        before = run.recipe.init_from == "pretrained"
        origin = run.work.load(run.teacher, fresh_head=True, seed=seed) if before else teacher
        model = student.made(origin, run.cut, run.cut_from, run.recipe.narrow_by, texts, seed)
        source = f"{run.recipe.student} at random"
        if not _untrained(run) and run.cut_from is not None:
            source = f"layers {layers_text(run.cut_from)} of {run.teacher.name}{' before fine-tuning' * before}"
            source += f", narrowed by {run.recipe.narrow_by}" if run.cut.narrows else ""
        if run.across and run.teacher_tokenizer is not None:
            model = student.with_vocabulary(model, tokenizer, run.teacher_tokenizer)
            source += f", with {len(tokenizer):,} entries made of its own"
        return model, source
    if run.new is not None:
        return new_model(config, seed), run.recipe.student
    own = run.student
    assert own is not None, "a student is cut, a checkpoint or new"
    keeps_head = run.work.keeps_head(own)
    model = run.work.load(own, fresh_head=not keeps_head, seed=seed)
    return model, f"{own.name} ({'its own' if keeps_head else 'a new'} head)"


def filling_term(student_model: PreTrainedModel, seed: int, dtype: torch.dtype | None) -> MaskedTokens:
    """The head by which a student fills in masked tokens beside."""
    entries, inner = student_model.get_input_embeddings().weight.shape
    return MaskedTokens(int(student_model.config.hidden_size), (entries, inner), seed, dtype=dtype)


def _balance(recipe: Recipe, stages: Sequence[Stage]) -> Balance | None:
    """What the recipe balances terms by, those of all stages; None where their weights stay."""
    if recipe.objective.balance == "static":
        return None
    return BALANCES[recipe.objective.balance](list(dict.fromkeys(n for stage in stages for n in stage.objective.names)))


def _compared(small: PreTrainedModel, big: PreTrainedModel, flops: Sequence[int], length: int) -> str:
    """Size and cost of a student beside its teacher's; the teacher's FLOPs come first."""
    ours, theirs = (count_parameters(model) for model in (small, big))
    theirs_cost, ours_cost = flops
    return (
        f"student: {ours / 1e6:.2f} M parameters, {100 * ours / theirs:.0f} % of the teacher's; "
        f"{ours_cost / 1e9:.2f} GFLOPs for {length} tokens, {100 * ours_cost / theirs_cost:.0f} %"
    )


def _untrained(run: Prepared) -> bool:
    """Whether a student's layers start at random."""
    drawn = run.cut is not None and (run.cut_from is None or (run.cut.narrows and run.recipe.narrow_by == "random"))
    return run.new is not None or drawn


def _calibrated(
    run: Prepared,
    teacher: Teacher,
    student_model: PreTrainedModel,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    resume: bool,
) -> Plan:
    """The plan as it is trained with: kept from before on resume, else measured on a few training examples."""
    plan, seed = run.plan, run.recipe.train.seed
    assert plan is not None, "a teacher comes with a plan"
    if resume and run.folder.plan_kept:
        kept = read_plan(run.folder.plan)
        if not kept.calibrated or (not plan.choice and kept.maps != plan.maps):  # of a run without hashes
            raise UsageError(f"{str(run.folder.plan)!r} is not the plan of this run: start again with --overwrite")
        return kept
    if plan.choice and not plan.similarities:
        special = tokenizer.all_special_ids
        plan = mapped(plan, teacher.model, student_model, encoded, special, str(run.task.name), seed)
    if not plan.calibrated:
        batches, again = some(encoded, seed, CALIBRATION_TOKENS), run.recipe.align.remap_every is not None
        plan = calibrate(plan, teacher, batches, accelerator.device, every=again)
    if accelerator.is_main_process:
        run.folder.write_plan(plan.to_json())
    accelerator.wait_for_everyone()
    return plan


def _mapped_again(
    plan: Plan, teacher: Teacher, encoded: Encoded, special: Sequence[int], seed: int, student_model: PreTrainedModel
) -> Plan:
    """The plan for a student on its way; the teacher's statistics stay."""
    found = mapped(plan, teacher.model, student_model, encoded, special, "training text", seed)
    return found.with_statistics(plan.statistics)


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"
