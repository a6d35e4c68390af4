"""What comes before training: a run's texts, its two models, the plan between them and the learner."""

from collections.abc import Sequence
from functools import partial

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import (
    CALIBRATION_TOKENS,
    SIMILARITY_TOKENS,
    UNTRAINED,
    calibrate,
    measure_layer_map,
    start_projections,
)
from kdalign.alignment.plan import Plan, read_plan
from kdalign.alignment.projections import Projections
from kdalign.data.batches import TokenizedSplit, sample_batches
from kdalign.data.corruption import with_corruption
from kdalign.distillation.load import LoadedModels, preview, starts_untrained
from kdalign.distillation.prepare import PreparedRun
from kdalign.errors import UsageError
from kdalign.evaluation.samples import complete
from kdalign.models import student
from kdalign.models.teacher import Teacher
from kdalign.objective.balancing import BALANCES, LossBalancer
from kdalign.objective.build import build_objective
from kdalign.objective.objective import Objective
from kdalign.objective.stages import stages_of
from kdalign.objective.terms import MaskedTokens
from kdalign.observer import Observer
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import Recipe
from kdalign.training.learner import Learner
from kdalign.training.task_trainer import Remapping, Stage, TrainTask, WatchedScores


def build_task(loaded: LoadedModels, accelerator: Accelerator, observer: Observer, resume: bool) -> TrainTask:
    """What aligns the two models, and what is minimised; the learner follows the plan."""
    opened, taught = loaded.opened, loaded.taught
    student_model = student.freeze(loaded.student, opened.recipe.train.freeze)
    run, recipe, tokenizer, texts, adapter = (
        opened.run,
        opened.recipe,
        opened.tokenizer,
        opened.texts,
        opened.run.adapter,
    )
    encoded, watched = texts.train, texts.watched
    student_order = adapter.output_order(student_model)
    teacher = None
    if taught is not None:
        rounded = torch.bfloat16 if opened.bf16 else torch.float32
        teacher = Teacher(taught.model, adapter.output_order(taught.model), rounded, accelerator.device)
    plan = None
    if teacher is not None:
        plan = _calibrated(run, teacher, student_model, encoded, tokenizer, accelerator, resume)
        observer.announce(f"map: {plan.chosen}")
        if plan.choice and starts_untrained(run):
            observer.announce(UNTRAINED)
    shared = texts.across.shared if texts.across is not None else None
    dtype = torch.bfloat16 if opened.bf16 else None
    filling = None
    if recipe.objective.built.masked_lm:
        observer.announce("masked_lm: a step costs about one more forward and backward of the student, on masked rows")
        filling = masked_lm_term(student_model, recipe.train.seed, dtype)

    def minimised(part: Weights, plan: Plan | None) -> Objective:
        return build_objective(adapter.task, part, plan, dtype, shared).with_masked_lm(part.built.masked_lm, filling)

    stages = [Stage(begins, minimised(weights, by)) for begins, weights, by in stages_of(recipe, plan)]
    objective = stages[0].objective
    shapes = plan.projections if plan is not None and objective.uses_hidden else ()
    mixes = plan.mixes if plan is not None and objective.compared_maps else ()
    projections = Projections(shapes, recipe.train.seed, mixes)
    if plan is not None and teacher is not None and shapes and plan.style.start != "random":
        few = sample_batches(encoded, recipe.train.seed, SIMILARITY_TOKENS)
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

    def evaluate(model: PreTrainedModel) -> WatchedScores:
        found = adapter.predict(model, watched)
        scores = adapter.score(found, watched, interval=False)
        if loaded.comparable:
            scores.append(adapter.agreement(found, loaded.watched_answers, interval=False))
        first = scores[0]
        said = complete(model, tokenizer, loaded.prompts)
        if said:  # one is enough for the eye; the history keeps all
            observer.announce(f"sample: {preview(loaded.prompts[0].text)} → {preview(said[0])}")
        return WatchedScores(
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
    rows = with_corruption(encoded, recipe.data.augment, tokenizer, filling is not None)
    return TrainTask(adapter.task.name, learner, teacher, stages, rows, run.folder, evaluate, remapping)


def masked_lm_term(student_model: PreTrainedModel, seed: int, dtype: torch.dtype | None) -> MaskedTokens:
    """The head by which a student fills in masked tokens beside."""
    entries, inner = student_model.get_input_embeddings().weight.shape
    return MaskedTokens(int(student_model.config.hidden_size), (entries, inner), seed, dtype=dtype)


def _balance(recipe: Recipe, stages: Sequence[Stage]) -> LossBalancer | None:
    """What the recipe balances terms by, those of all stages; None where their weights stay."""
    if recipe.objective.balance == "static":
        return None
    return BALANCES[recipe.objective.balance](list(dict.fromkeys(n for stage in stages for n in stage.objective.names)))


def _calibrated(
    run: PreparedRun,
    teacher: Teacher,
    student_model: PreTrainedModel,
    encoded: TokenizedSplit,
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
        plan = measure_layer_map(plan, teacher.model, student_model, encoded, special, str(run.task.name), seed)
    if not plan.calibrated:
        batches, again = sample_batches(encoded, seed, CALIBRATION_TOKENS), run.recipe.align.remap_every is not None
        plan = calibrate(plan, teacher, batches, accelerator.device, every=again)
    if accelerator.is_main_process:
        run.folder.write_plan(plan.to_json())
    accelerator.wait_for_everyone()
    return plan


def _mapped_again(
    plan: Plan,
    teacher: Teacher,
    encoded: TokenizedSplit,
    special: Sequence[int],
    seed: int,
    student_model: PreTrainedModel,
) -> Plan:
    """The plan for a student on its way; the teacher's statistics stay."""
    found = measure_layer_map(plan, teacher.model, student_model, encoded, special, "training text", seed)
    return found.with_statistics(plan.statistics)
