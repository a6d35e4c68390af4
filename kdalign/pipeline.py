"""The story of a run: prepare, load, plan, train, evaluate, record."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign import models, student
from kdalign.alignment import Plan, read_plan
from kdalign.architecture import count_parameters
from kdalign.batches import Encoded, encode, in_order
from kdalign.checkpoints import Progress
from kdalign.environment import environment
from kdalign.errors import Interrupted
from kdalign.evaluation import Predictions, agreement, predict, score_all, write_predictions
from kdalign.files import whole_file, write_text
from kdalign.finetuning import finetuned
from kdalign.models import Checkpoint
from kdalign.objective import build_objective
from kdalign.observer import Observer, Silent
from kdalign.preparation import Prepared, claim, prepare, shape_plan, split_by_task
from kdalign.profiling import Profile, latencies_ms, profile
from kdalign.projection import Projections
from kdalign.recipe import Recipe
from kdalign.runs import SCHEMA, ModelRecord, RunFolder, RunRecord, read_record
from kdalign.tasks import Examples, Task
from kdalign.teachers import Teacher, calibrate
from kdalign.training import Learner, make_accelerator, start_trackers, train, use_bf16
from kdalign.version import __version__

CALIBRATION_EXAMPLES = 512
LATENCY_TOKENS = 128


def distill(
    recipe: Recipe, observer: Observer | None = None, *, resume: bool = False, overwrite: bool = False
) -> list[RunRecord]:
    """Distill one student per task of the recipe; returns each run's record.

    Args:
        recipe: what to do; several tasks lie in folders below ``out``, named after the task.
        observer: who watches.
        resume: go on where a run of this recipe stopped; finished tasks are kept.
        overwrite: put the new run in an old one's place.

    Raises:
        UsageError: the recipe cannot be carried out; nothing was written.
        RunError: training failed.
        Interrupted: a signal arrived; ``resume`` goes on.
    """
    observer = observer or Silent()
    runs = prepare_all(recipe, resume=resume, overwrite=overwrite)
    group = RunFolder(runs[0].folder.path.parent) if len(runs) > 1 else None
    accelerator = make_accelerator(recipe.train.device, recipe.train.trackers, runs[0].folder.path)
    if group is not None and accelerator.is_main_process:
        write_text(group.recipe, recipe.dump())
    records = []
    for run in runs:
        if resume and run.folder.complete:
            observer.announce(f"{run.task.name} is finished already: {run.folder.path}")
            records.append(read_record(run.folder.path))
        else:
            try:
                records.append(_distill_one(run, accelerator, observer, resume))
            except Interrupted as stop:
                line = f"{stop}; go on with: kdalign distill --out {(group or run.folder).path} --resume"
                raise Interrupted(line, stop.signal) from None
    accelerator.end_training()
    return records


def prepare_all(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> list[Prepared]:
    """Check a recipe's runs, one a task, without writing anything; this is all that a dry run does.

    Raises:
        UsageError: the first thing that is wrong.
    """
    runs = [prepare(one) for one in split_by_task(recipe)]
    if len(runs) > 1:
        group = RunFolder(runs[0].folder.path.parent)
        claim(group, recipe.with_changes(out=str(group.path)), resume, overwrite)
    for run in runs:
        claim(run.folder, run.recipe, resume, overwrite or (len(runs) > 1 and not resume), run.inputs)
    return runs


def plan_layers(
    teacher: str, student_name: str, choice: str = "auto", init: str = "uniform", revision: str | None = None
) -> Plan:
    """The shape plan between two models, from their configurations.

    Raises:
        UsageError: a model, layer choice or map that is not there.
    """
    theirs = models.locate(teacher, revision)
    return shape_plan(theirs, student_name, choice, init)


def profile_models(
    names: Sequence[str],
    lengths: tuple[int, ...],
    batch_size: int = 32,
    device: str = "auto",
    weights: bool = True,
    revision: str | None = None,
) -> list[Profile]:
    """Profile models one after another; measured where ``weights`` are loaded.

    Raises:
        UsageError: a model that is not there, or a length beyond its positions.
    """
    checkpoints = [models.locate(name, revision if number == 0 else None) for number, name in enumerate(names)]
    place = make_accelerator(device).device
    profiles = []
    for checkpoint in checkpoints:
        model = models.load_as_it_is(checkpoint).to(place) if weights else None
        profiles.append(profile(checkpoint, lengths, batch_size, model, str(place)))
    return profiles


def _distill_one(run: Prepared, accelerator: Accelerator, observer: Observer, resume: bool) -> RunRecord:
    begun = time.perf_counter()
    folder, task, main = run.folder, run.task, accelerator.is_main_process
    bf16 = use_bf16(run.recipe.train.precision, accelerator.device)
    recipe = run.recipe.with_changes(train={**run.recipe.train.model_dump(), "precision": "bf16" if bf16 else "fp32"})
    if main:
        folder.begin(recipe.dump(), run.inputs, keep=resume)
    accelerator.wait_for_everyone()
    observer = observer.into(folder.log) if main else observer
    observer.announce(f"{run.teacher.name} teaches {recipe.student} on {task.name}; run folder {folder.path}")
    if task.found:
        observer.announce(f"worked out from the data: {task.found}")

    # Texts to tokens.
    tokenizer = models.load_tokenizer(run.teacher)
    encoded = _encode(run.train, tokenizer, recipe.data.max_length, observer)
    watched = _encode(run.watched, tokenizer, recipe.data.max_length, Silent())
    reported = {split: _encode(e, tokenizer, recipe.data.max_length, observer) for split, e in run.reported.items()}

    # The two models. The teacher is scored in float32, before it may be rounded for speed.
    teacher_model, teacher_head = _load_teacher(run, recipe, encoded, tokenizer, accelerator, bf16, observer)
    order = _order(teacher_model, task)
    teacher_model.to(accelerator.device)
    answers = {split: predict(teacher_model, order, e, task) for split, e in reported.items()} if main else {}
    watched_answers = predict(teacher_model, order, watched, task) if main else None
    student_model, student_source = _load_student(run, recipe, teacher_model)
    student_model.to(accelerator.device)
    timed = min(LATENCY_TOKENS, *(models.positions(model.config) for model in (teacher_model, student_model)))
    latencies = latencies_ms([teacher_model, student_model], timed) if main else [0.0, 0.0]
    student_order = _order(student_model, task)
    teacher = Teacher(teacher_model, order, torch.bfloat16 if bf16 else torch.float32, accelerator.device)

    # What aligns them, and what is minimised.
    plan = _calibrated(run, teacher, encoded, accelerator, resume)
    objective = build_objective(recipe.objective, plan, task.regression)
    projections = Projections(plan.projections if objective.uses_hidden else (), recipe.train.seed)
    learner = Learner(
        student.with_dropout(student_model, recipe.train.dropout), projections, plan, objective, student_order, bf16
    )

    def evaluate(model: PreTrainedModel) -> tuple[float, dict[str, float | None]]:
        found = predict(model, student_order, watched, task)
        assert run.watched.labels is not None
        assert watched_answers is not None
        scores = score_all(task, found.values, run.watched.labels, task.metrics, interval=False)
        first = scores[0]
        scores.append(agreement(task, found.values, watched_answers.values, interval=False))
        deciding = float("-inf") if first.value is None else first.value if first.higher_is_better else -first.value
        return deciding, {score.metric: score.value for score in scores}

    start_trackers(accelerator, recipe)
    progress = train(
        learner,
        teacher if objective.needs_teacher else None,
        objective,
        encoded,
        recipe.train,
        accelerator,
        folder,
        observer,
        evaluate,
        f"distilling {task.name}",
        resume,
    )
    for tracker in accelerator.trackers:
        tracker.finish()

    # What was exported is what is scored.
    if main:
        _export(student_model, tokenizer, projections, task, folder)
        checkpoint = models.locate(str(folder.student))
        exported = models.load_classifier(checkpoint, task, fresh_head=False, seed=0).to(accelerator.device)
        folder.write_record(
            RunRecord(
                schema=SCHEMA,
                version=__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                task=task.name,
                metrics=task.metrics,
                recipe=recipe.model_dump(mode="json"),
                student=_facts(checkpoint, exported, "trained", student_source, latencies[1]),
                teacher=_facts(run.teacher, teacher_model, teacher_head, run.teacher.name, latencies[0]),
                data=_data_facts(run, encoded, reported),
                scores=_final_scores(run, exported, reported, answers),
                training=_training_facts(progress, run, accelerator),
                environment=environment(accelerator.device),
                seconds=time.perf_counter() - begun,
            )
        )
    accelerator.wait_for_everyone()
    return read_record(folder.path)


def _encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int, observer: Observer) -> Encoded:
    encoded = encode(examples, tokenizer, max_length)
    if encoded.truncated:
        observer.announce(
            f"{examples.split}: {encoded.truncated:,} of {len(encoded):,} examples are longer than {max_length} tokens "
            f"and were cut (--max-length)"
        )
    return encoded


def _load_teacher(
    run: Prepared,
    recipe: Recipe,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    bf16: bool,
    observer: Observer,
) -> tuple[PreTrainedModel, str]:
    """The teacher in float32, fine-tuned first where it has no head, and where its head came from."""
    if run.finetunes:
        return finetuned(run.teacher, run.task, encoded, recipe.finetune, tokenizer, accelerator, bf16, observer)
    return models.load_classifier(run.teacher, run.task, fresh_head=False, seed=0), "its own"


def _load_student(run: Prepared, recipe: Recipe, teacher: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """The student in float32 before its first step, and where it came from."""
    if run.cut_to is not None:
        if run.cut_from is None:
            return student.at_random(teacher, run.cut_to, recipe.train.seed), f"{run.cut_to} layers at random"
        return student.cut(teacher, run.cut_from), f"layers {' '.join(map(str, run.cut_from))} of {run.teacher.name}"
    own = run.student
    assert own is not None, "a student is cut or a checkpoint"
    keeps_head = own.has_classifier and models.output_order(own.config, run.task) is not None
    model = models.load_classifier(own, run.task, fresh_head=not keeps_head, seed=recipe.train.seed)
    return model, f"{own.name} ({'its own' if keeps_head else 'a new'} head)"


def _order(model: PreTrainedModel, task: Task) -> tuple[int, ...]:
    order = models.output_order(model.config, task)
    assert order is not None, "heads were checked, or are fresh"
    return order


def _calibrated(run: Prepared, teacher: Teacher, encoded: Encoded, accelerator: Accelerator, resume: bool) -> Plan:
    """The plan with the teacher's statistics: kept from before on resume, else measured on a few training examples."""
    if resume and run.folder.plan.is_file():
        return read_plan(run.folder.plan)
    plan = run.plan
    if not plan.calibrated:
        rows = np.random.default_rng([run.recipe.train.seed, 2]).permutation(len(encoded))[:CALIBRATION_EXAMPLES]
        batches = (batch for _, batch in in_order(encoded.take(rows.tolist()), 64))
        plan = calibrate(plan, teacher, batches, accelerator.device)
    if accelerator.is_main_process:
        write_text(run.folder.plan, plan.to_json())
    accelerator.wait_for_everyone()
    return plan


def _export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, projections: Projections, task: Task, folder: RunFolder
) -> None:
    """Write the student as a stock Transformers checkpoint with the task's label names, and the projections beside."""
    order = _order(model, task)
    if not task.regression:
        model.config.id2label = dict(zip(order, task.labels, strict=True))
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}
    model.save_pretrained(folder.student)
    tokenizer.save_pretrained(folder.student)
    if projections.maps:
        with whole_file(folder.projections) as temporary:
            save_file({name: value.detach().cpu() for name, value in projections.state_dict().items()}, temporary)


def _final_scores(
    run: Prepared, exported: PreTrainedModel, reported: Mapping[str, Encoded], answers: Mapping[str, Predictions]
) -> dict[str, object]:
    """Score both models on every reported split, and keep the predictions."""
    scores: dict[str, object] = {}
    for split, encoded in reported.items():
        labels = run.reported[split].labels
        assert labels is not None, "reported splits have labels"
        ours, theirs = predict(exported, _order(exported, run.task), encoded, run.task), answers[split]
        write_predictions(run.folder.predictions(split), run.task, ours, labels, theirs.values)
        scores[split] = {
            "student": [s.to_json() for s in score_all(run.task, ours.values, labels, run.task.metrics)],
            "teacher": [s.to_json() for s in score_all(run.task, theirs.values, labels, run.task.metrics)],
            "agreement": agreement(run.task, ours.values, theirs.values).to_json(),
        }
    return scores


def _facts(checkpoint: Checkpoint, model: PreTrainedModel, head: str, source: str, latency: float) -> ModelRecord:
    return ModelRecord(
        source=source,
        revision=checkpoint.hash,
        parameters=count_parameters(model),
        megabytes=models.weights_megabytes(checkpoint),
        head=head,
        latency_ms=latency,
    )


def _data_facts(run: Prepared, encoded: Encoded, reported: Mapping[str, Encoded]) -> dict[str, object]:
    return {
        "source": str(run.task.source),
        "train": {"n": len(encoded), "truncated": encoded.truncated, "fingerprint": run.train.fingerprint()},
        "watched": {"n": len(run.watched), "from": run.watched_word},
        "reported": {
            split: {"n": len(e), "truncated": e.truncated, "fingerprint": run.reported[split].fingerprint()}
            for split, e in reported.items()
        },
    }


def _training_facts(progress: Progress, run: Prepared, accelerator: Accelerator) -> dict[str, object]:
    best = run.recipe.train.select == "best"
    return {
        "ranks": accelerator.num_processes,
        "steps": progress.step,
        "exported_step": progress.best_step if best else progress.step,
        "examples": progress.examples,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        **progress.speed,
        "terms": progress.parts,
    }
