"""Build what a run trains: the plan between its two models, the objective of each stage, and the learner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

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
from kdalign.data.corruption import with_corruption
from kdalign.data.epochs import sample_batches
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation.checks import shards
from kdalign.distillation.load import LoadedModels, preview
from kdalign.distillation.streamed import StreamedTexts
from kdalign.distillation.teacher_answers import hash_weights, keep_samples, predict_untrained
from kdalign.distillation.teacher_checks import compare_with_start, settle_loaded
from kdalign.distillation.teacher_source import computed_teacher, product_dtype, training_teacher
from kdalign.distillation.tokenize import OpenedRun
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import AnyPredictions
from kdalign.evaluation.samples import complete
from kdalign.models import student
from kdalign.models.architecture import vocabulary_size
from kdalign.models.checkpoint_files import max_positions
from kdalign.models.generation_settings import end_tokens
from kdalign.models.sampling import Sampling
from kdalign.models.sharding import is_sharded, shard, shard_from_first_rank
from kdalign.objective.balancing import BALANCES, LossBalancer
from kdalign.objective.build import build_objective
from kdalign.objective.objective import Objective
from kdalign.objective.stages import stages_of
from kdalign.objective.terms import MaskedTokens
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import Recipe
from kdalign.teachers.base import Teacher
from kdalign.teachers.cached import CachedTeacher
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.served import ServedTeacher
from kdalign.training.learner import Learner
from kdalign.training.on_policy import OnPolicy
from kdalign.training.task_trainer import Remapping, Stage, TrainTask, WatchedScores

ObjectiveFactory = Callable[[Weights, Plan | None], Objective]
"""Builds what is minimised from weights and a plan."""


def build_task(
    loaded: LoadedModels, accelerator: Accelerator, observer: Observer, resume: bool, served: Teacher | None = None
) -> TrainTask:
    """Build what a run trains: plan, objectives, learner, and how the student is evaluated during training.

    Args:
        loaded: the models in memory.
        accelerator: device and ranks.
        observer: receives progress.
        resume: continue a run that stopped.
        served: the teacher, if it is not in memory.
    """
    opened = loaded.opened
    run, recipe, texts, tokenizer = opened.run, opened.recipe, opened.texts, opened.tokenizer
    model = student.freeze(loaded.student, recipe.train.freeze)
    computed = computed_teacher(loaded, accelerator)
    if shards(recipe):
        share = shard_from_first_rank if run.loads_in_shards else shard
        share(model, accelerator.device)
        observer.announce(f"sharding: {accelerator.num_processes} ranks share the student's weights")
    plan = None
    if computed is not None:
        plan = build_plan(loaded, computed, model, accelerator, resume)
        observer.announce(f"map: {plan.chosen}")
        if plan.choice and run.student.untrained:
            observer.announce(UNTRAINED)
    masked_lm = None
    if recipe.objective.built.masked_lm:
        observer.announce("masked_lm: a step costs about one more forward and backward of the student, on masked rows")
        masked_lm = masked_lm_term(model, recipe.train.seed, product_dtype(opened))
    objective_of = partial(_objective, opened, masked_lm)
    stages = build_stages(recipe, plan, objective_of)
    objectives = [stage.objective for stage in stages]
    teacher = training_teacher(loaded, computed, served, objectives, plan, accelerator, observer)
    learner = build_learner(loaded, model, plan, stages, accelerator.device)
    if is_sharded(model):
        observer.announce("the history has no gradient norms by term, since ranks share the student's weights")
    if isinstance(computed, ComputedTeacher) and teacher is not computed:
        computed.release()
    corrupted = partial(with_corruption, augment=recipe.data.augment, tokenizer=tokenizer, masked=masked_lm is not None)
    stream = StreamedTexts(opened, corrupted) if recipe.data.streaming else None
    return TrainTask(
        name=run.adapter.task.name,
        learner=learner,
        teacher=teacher,
        stages=stages,
        encoded=_without_teacher(corrupted(texts.train), teacher) if stream is None else stream.first.encoded,
        folder=run.folder,
        evaluate=Evaluator(loaded, observer),
        check_start=StartCheck(loaded, observer) if loaded.watched_answers is not None else None,
        remapping=_remapping(loaded, plan, objective_of),
        on_policy=_on_policy(opened, model, teacher, observer),
        stream=stream,
    )


def _without_teacher(encoded: TokenizedSplit, teacher: Teacher | None) -> TokenizedSplit:
    """Rows whose sounds or images nobody prepares for a teacher that reads its outputs from a cache."""
    if encoded.media is None or not isinstance(teacher, CachedTeacher):
        return encoded
    return replace(encoded, media=replace(encoded.media, teacher=None))


def _on_policy(
    opened: OpenedRun, model: PreTrainedModel, teacher: Teacher | None, observer: Observer
) -> OnPolicy | None:
    """The steps on the student's own texts; None if there are none."""
    recipe, settings = opened.recipe, opened.recipe.on_policy
    if not settings.share:
        return None
    configs = [model.config, *(teacher.config for teacher in opened.run.teachers)]
    sampling = Sampling(
        settings.max_new_tokens,
        settings.temperature,
        settings.top_p,
        frozenset(end_tokens(model.generation_config, opened.tokenizer)),
        min(map(vocabulary_size, configs)),
        min(max_positions(config) for config in configs),
    )
    observer.announce(f"on-policy: {settings}")
    mark = teacher.mark_returned if isinstance(teacher, ServedTeacher) else None
    return OnPolicy(settings, sampling, recipe.train.seed, recipe.data.max_length, product_dtype(opened), mark)


def build_plan(
    loaded: LoadedModels, teacher: Teacher, model: PreTrainedModel, accelerator: Accelerator, resume: bool
) -> Plan:
    """The plan to train with: on resume the saved one, else measured on a few training examples and saved.

    Raises:
        UsageError: the saved plan is of another run.
    """
    opened = loaded.opened
    # To measure layers, each teacher reads all rows of the sample, whoever teaches them.
    run, encoded = opened.run, replace(opened.texts.train, taught_by=None)
    plan, seed, variances = run.plan, run.recipe.train.seed, run.recipe.objective.uses_variances
    assert plan is not None, "a teacher comes with a plan"
    if resume and run.folder.plan_kept:
        saved = read_plan(run.folder.plan)
        complete = saved.calibrated or (saved.measured and not variances)
        if not complete or (not plan.choice and saved.maps != plan.maps):  # of a run without hashes
            raise UsageError(f"{str(run.folder.plan)!r} is not the plan of this run: start again with --overwrite")
        return saved
    if plan.choice and not plan.similarities:
        special = opened.tokenizer.all_special_ids
        models = [each.model for each in loaded.teachers]
        plan = measure_layer_map(plan, models, model, encoded, special, str(run.task.name), seed)
    if variances and not plan.calibrated:
        # An average is one of an example, however long that is.
        few = int(encoded.lengths.sum()) if plan.pooled else CALIBRATION_TOKENS
        batches, remaps = sample_batches(encoded, seed, few), run.recipe.align.remap_every is not None
        plan = calibrate(plan, teacher, batches, accelerator.device, every=remaps)
    if accelerator.is_main_process:
        run.folder.write_plan(plan.to_json())
    accelerator.wait_for_everyone()
    return plan


def masked_lm_term(student_model: PreTrainedModel, seed: int, dtype: torch.dtype | None) -> MaskedTokens:
    """The head by which a student predicts masked tokens, next to what else it learns."""
    entries, inner = student_model.get_input_embeddings().weight.shape
    return MaskedTokens(int(student_model.config.hidden_size), (entries, inner), seed, dtype=dtype)


def _objective(opened: OpenedRun, masked_lm: MaskedTokens | None, weights: Weights, plan: Plan | None) -> Objective:
    across = opened.texts.across
    shared = across.shared if across is not None else None
    objective = build_objective(opened.run.adapter.task, weights, plan, product_dtype(opened), shared)
    return objective.with_masked_lm(weights.built.masked_lm, masked_lm)


def build_stages(recipe: Recipe, plan: Plan | None, objective_of: ObjectiveFactory) -> list[Stage]:
    """The stages of a recipe, each with its objective."""
    return [Stage(after, objective_of(weights, part)) for after, weights, part in stages_of(recipe, plan)]


def build_learner(
    loaded: LoadedModels,
    model: PreTrainedModel,
    plan: Plan | None,
    stages: Sequence[Stage],
    device: torch.device,
) -> Learner:
    """The learner of a run, its projections at random or started from both models' features on a few examples.

    Args:
        loaded: recipe, training text and teachers.
        model: the student.
        plan: layers to compare; None without a teacher.
        stages: objectives; the learner starts with the first one's activations.
        device: device of all models.
    """
    opened = loaded.opened
    recipe, objective = opened.recipe, stages[0].objective
    shapes = plan.projections if plan is not None and objective.uses_hidden else ()
    mixes = plan.mixes if plan is not None and objective.compared_maps else ()
    projections = Projections(shapes, recipe.train.seed, mixes)
    if plan is not None and shapes and plan.style.start != "random":
        few = sample_batches(opened.texts.train, recipe.train.seed, SIMILARITY_TOKENS)
        start_projections(projections, plan, [each.model for each in loaded.teachers], model, few, device)
    learner = Learner(
        student.with_dropout(model, recipe.train.dropout),
        projections,
        plan,
        [stage.objective for stage in stages],
        opened.run.adapter.output_order(model),
        opened.bf16,
        _balance(recipe, stages),
    )
    learner.recomputes = recipe.train.gradient_checkpointing
    learner.keeps_statistics = not opened.run.student.untrained
    return learner


def _balance(recipe: Recipe, stages: Sequence[Stage]) -> LossBalancer | None:
    """The recipe's balancer of the terms of all stages; None if weights are static."""
    if recipe.objective.balance == "static":
        return None
    return BALANCES[recipe.objective.balance](list(dict.fromkeys(n for stage in stages for n in stage.objective.names)))


@dataclass(frozen=True)
class Evaluator:
    """Scores a student on the monitored texts during training, and shows one sample of what it writes.

    Ranks share what the student reads and writes, and the first one computes the scores. These are in the precision of
    training, or exact, in float32, as those of the teacher and the exported student are.
    """

    loaded: LoadedModels
    observer: Observer

    def __call__(self, model: PreTrainedModel, *, exact: bool) -> WatchedScores:
        """Score a student; a language model also continues the sample prompts."""
        self.loaded.watch.begin("monitoring")
        loaded, adapter = self.loaded, self.loaded.opened.run.adapter
        watched, tokenizer = loaded.opened.texts.watched, loaded.opened.tokenizer
        if exact and not is_sharded(model):  # of whose ranks all must compute, or none
            weights = hash_weights(model)
            predictions, known = predict_untrained(adapter, model, weights, watched)
            samples, read = keep_samples(model, weights, tokenizer, loaded.prompts)
            if known or read:
                found = ["answers on the monitored texts"] * known + ["samples"] * read
                self.observer.announce(f"from kdalign's cache: the new student's {' and '.join(found)}")
        else:
            bf16 = loaded.opened.bf16 and not exact
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                predictions = adapter.predict(model, watched)
            samples = complete(model, tokenizer, loaded.prompts)
        scores = on_first_rank(lambda: self._score(predictions, samples))
        loaded.watch.begin("training")
        return scores

    def _score(self, predictions: AnyPredictions, samples: Sequence[str]) -> WatchedScores:
        loaded, adapter = self.loaded, self.loaded.opened.run.adapter
        scores = adapter.score(predictions, loaded.opened.texts.watched, interval=False)
        if loaded.comparable:
            scores.append(adapter.agreement(predictions, loaded.watched_answers, interval=False))
        first = scores[0]
        if samples:  # one is enough for the eye; the history keeps all
            self.observer.announce(f"sample: {preview(loaded.prompts[0].text)} → {preview(samples[0])}")
        return WatchedScores(
            first.value if first.value is None or first.higher_is_better else -first.value,
            {score.metric: score.value for score in scores} | ({"samples": samples} if samples else {}),
            {score.metric: score.reason for score in scores if score.value is None},
            predictions,
        )


@dataclass(frozen=True)
class StartCheck:
    """Compares the student before its first step with its teacher, and keeps what was found in the history."""

    loaded: LoadedModels
    observer: Observer

    def __call__(self, scores: WatchedScores) -> None:
        """Announce both scores.

        Raises:
            RefusedRun: the student is better than its teacher, and that is not allowed.
        """
        loaded, run = self.loaded, self.loaded.opened.run
        line, found = compare_with_start(loaded.opened, scores.predictions, loaded.watched_answers)
        if line:
            self.observer.announce(line)
        findings = settle_loaded(found, run)
        for finding in findings:
            self.observer.announce(f"{finding.what}: {finding.said} (allowed)")
        for finding in (*loaded.findings, *findings):
            run.folder.append_history({"kind": "finding", "step": 0, "what": finding.what, "said": finding.said})


def _remapping(loaded: LoadedModels, plan: Plan | None, objective_of: ObjectiveFactory) -> Remapping | None:
    """Settings for measuring the layer map again during training; the teacher's statistics are not measured again."""
    opened = loaded.opened
    recipe = opened.recipe
    if plan is None or recipe.align.remap_every is None:
        return None

    def measure(model: PreTrainedModel) -> Plan:
        encoded, special = opened.texts.train, opened.tokenizer.all_special_ids
        seed, text = recipe.train.seed, "training text"
        models = [each.model for each in loaded.teachers]
        measured = measure_layer_map(plan, models, model, encoded, special, text, seed)
        return measured.with_statistics(plan.statistics)

    return Remapping(recipe.align.remap_every, measure, partial(objective_of, recipe.objective))
