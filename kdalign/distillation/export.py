"""After training: export the student, score it as it was exported, and write the record that completes the run."""

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel

from kdalign.alignment.calibration import SIMILARITY_TOKENS
from kdalign.alignment.projections import Projections
from kdalign.data.epochs import sample_batches
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenization import fingerprint, with_token_types
from kdalign.distillation.load import LoadedModels
from kdalign.distillation.prepare import PreparedRun, resume_command
from kdalign.distillation.run_facts import data_facts, describe_stream, memory_facts, training_facts
from kdalign.environment import environment
from kdalign.errors import NotFinite, RunError, UsageError, cause_of
from kdalign.evaluation.adapters.base import AnyPredictions, TaskAdapter
from kdalign.evaluation.samples import complete
from kdalign.files import apply_umask, atomic_file, size_text, write_json, write_text, writing
from kdalign.models import checkpoint_files, lora
from kdalign.models.architecture import count_parameters
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.layouts import modality_of
from kdalign.models.sentence_transformers import sentence_modules
from kdalign.models.sharding import is_sharded, load_on_first_rank, make_whole, shard_from_first_rank
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.runs.folder import RunFolder
from kdalign.runs.model_card import model_card
from kdalign.runs.record import CARD, SCHEMA, ModelRecord, RunRecord, read_record
from kdalign.runs.seal import digest_of
from kdalign.teachers.cached import CachedTeacher
from kdalign.training.checkpoint import TrainState
from kdalign.training.diagnostics import layer_attention
from kdalign.training.learner import Learner
from kdalign.training.task_trainer import TrainTask
from kdalign.version import __version__

Export = Callable[[PreTrainedModel, Path], None]
"""Writes a trained model's weights and configuration into a folder."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export: how weights are written, and further facts for the record.

    Attributes:
        export: writes the model; by default as one file.
        facts: further facts of its training.
    """

    export: Export = lambda model, folder: model.save_pretrained(folder)
    facts: Mapping[str, object] = field(default_factory=dict)


def export_student(
    loaded: LoadedModels,
    task: TrainTask,
    progress: TrainState,
    accelerator: Accelerator,
    observer: Observer,
    options: ExportOptions | None = None,
) -> RunRecord:
    """Export the student, score what was exported, and write the record that completes the run.

    Args:
        loaded: the two models, trained.
        task: what was trained.
        progress: what was spent on it.
        accelerator: device and ranks.
        observer: receives progress.
        options: how the model is written, and further facts.

    Raises:
        RunError: the student could not be scored.
    """
    run, folder, learner = loaded.opened.run, loaded.opened.run.folder, task.learner
    options, watch, device = options or ExportOptions(), loaded.watch, accelerator.device
    watch.begin("exporting")
    if progress.plan and accelerator.is_main_process:
        folder.write_plan(progress.plan)
    attention = _attention_to_layers(loaded, task, accelerator, observer)
    make_whole(learner.student, keep=accelerator.is_main_process)
    checkpoint = on_first_rank(partial(_write_student, loaded, learner, options.export))
    load, shared = partial(run.adapter.load_model, checkpoint, fresh_head=False, seed=0), is_sharded(learner.student)
    exported = shard_from_first_rank(load_on_first_rank(load), device) if shared else load().to(device)
    watch.begin("scoring the student")
    scores = score_exported(loaded, exported)
    watch.begin("writing samples")
    samples = _samples(loaded, exported)
    if accelerator.is_main_process:
        training = training_facts(progress, run, accelerator)
        training |= ({"layer_attention": attention} if attention else {}) | dict(options.facts)
        training |= {"cache": task.teacher.facts} if isinstance(task.teacher, CachedTeacher) else {}
        record = build_record(loaded, checkpoint, exported, scores, training)
        memory = memory_facts(run, device)
        record = replace(record, environment=environment(device), samples=samples, memory=memory)
        record = replace(record, seconds=watch.total, phases=watch.phases)
        try:
            write_text(folder.student / CARD, model_card(record, folder.path))
        except UsageError as error:  # it can be made later; the training cannot
            observer.announce(f"no model card was written: {error}; `kdalign card {folder.path}` tries again")
        folder.write_record(record)
        if "stream" in training:
            observer.announce(describe_stream(training["stream"]))
        observer.announce(f"time: {watch}")
        if "peak" in memory:
            said = f" (predicted {size_text(memory['predicted'])})" if "predicted" in memory else ""
            observer.announce(f"memory: {size_text(memory['peak'])} at most{said}")
    accelerator.wait_for_everyone()
    return read_record(folder.path)


def _attention_to_layers(
    loaded: LoadedModels, task: TrainTask, accelerator: Accelerator, observer: Observer
) -> dict[str, list[list[float]]]:
    """For each stack, how much its layers attend to the teacher's; empty if the map has no attention."""
    learner = task.learner
    if learner.plan is None or not learner.attends or task.teacher is None:
        return {}
    few = sample_batches(loaded.opened.texts.train, loaded.opened.recipe.train.seed, SIMILARITY_TOKENS)
    attention = layer_attention(learner.plan, learner, task.teacher, few, accelerator.device)
    for stack, rows in attention.items():
        observer.announce(f"attention of {stack} layers to the teacher's: {_format_shares(rows)}")
    return attention


def _write_student(loaded: LoadedModels, learner: Learner, export: Export) -> Checkpoint:
    """Write the student with its tokenizer as a stock checkpoint, and its projections next to it."""
    opened, adapter, folder = loaded.opened, loaded.opened.run.adapter, loaded.opened.run.folder
    model = loaded.student if opened.recipe.train.lora is None else lora.merge_adapters(loaded.student)
    _name_labels(model, adapter)
    with writing(folder.student):
        _export(model, folder.student, export)
        if adapter.head is HeadKind.NONE:
            width, normalise = int(model.config.hidden_size), _normalises(opened.run)
            write_sentence_modules(folder.student, width, adapter.max_length, normalise)
        classes = adapter.head in (HeadKind.CLASSIFIER, HeadKind.NONE)
        if classes and "token_type_ids" in inspect.signature(model.forward).parameters:
            with_token_types(opened.tokenizer)
        InputReader(opened.tokenizer, model.config, opened.run.tokenizers.media).save(folder.student)
    _export_projections(learner.projections, folder)
    return checkpoint_files.find_checkpoint(str(folder.student))


def build_record(
    loaded: LoadedModels,
    checkpoint: Checkpoint,
    exported: PreTrainedModel,
    scores: Mapping[str, object],
    training: Mapping[str, Any],
) -> RunRecord:
    """The record of a run, without what is measured last: environment, seconds and samples.

    Args:
        loaded: the two models, and what was measured before training.
        checkpoint: checkpoint of the exported student.
        exported: the student as it was loaded again.
        scores: scores of both models, by split.
        training: facts of the training.
    """
    opened, run = loaded.opened, loaded.opened.run
    teachers = [
        _model_record(loaded, teacher, taught.model, taught.head, teacher.name, number)
        for number, (teacher, taught) in enumerate(zip(run.teachers, loaded.teachers, strict=True))
    ]
    return RunRecord(
        schema=SCHEMA,
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task=opened.run.adapter.task.name,
        metrics=opened.run.adapter.metrics,
        recipe=opened.recipe.model_dump(mode="json"),
        student=_model_record(loaded, checkpoint, exported, "trained", loaded.source, -1),
        teacher=joint_record(teachers) if teachers else None,
        teachers=teachers if len(teachers) > 1 else [],
        data=data_facts(opened.run, opened.texts, training.get("stream", {}))
        | {"tokenizer": fingerprint(opened.tokenizer)},
        scores=dict(scores),
        training=dict(training),
        environment={},
        seconds=0.0,
    )


def joint_record(teachers: Sequence[ModelRecord]) -> ModelRecord:
    """Join the records of several teachers, whose sizes and costs add up; that of one stays as it is."""
    if len(teachers) == 1:
        return teachers[0]
    latencies = [each.latency_ms for each in teachers if each.latency_ms is not None]
    flops = [each.flops for each in teachers if each.flops is not None]
    return ModelRecord(
        source=" and ".join(each.source for each in teachers),
        revision=digest_of(" ".join(each.revision for each in teachers))[:16],
        parameters=sum(each.parameters for each in teachers),
        megabytes=sum(each.megabytes for each in teachers),
        head=", ".join(dict.fromkeys(each.head for each in teachers)),
        latency_ms=sum(latencies) if len(latencies) == len(teachers) else None,
        flops=sum(flops) if len(flops) == len(teachers) else None,
        tokens=teachers[0].tokens,
        modality=teachers[0].modality,
    )


def _export(model: PreTrainedModel, folder: Path, export: Export) -> None:
    """Write a student with its generation settings unchanged: Transformers refuses to save some that it reads."""
    settings = model.generation_config if model.can_generate() else None
    if settings is not None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    try:
        export(model, folder)
    finally:
        if settings is not None:
            model.generation_config = settings
    for weights in folder.glob("*.safetensors"):
        apply_umask(weights)
    if settings is not None:
        write_json(folder / "generation_config.json", settings.to_diff_dict())


def write_sentence_modules(folder: Path, width: int, max_length: int, normalise: bool) -> None:
    """Write how a student's tokens become one vector, for sentence-transformers: by their mean.

    Args:
        folder: the student's folder.
        width: width of a vector.
        max_length: longest input in tokens.
        normalise: true to scale vectors to length 1, which cosines do not see.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling, "include_prompt": True}
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})


def _normalises(run: PreparedRun) -> bool:
    """Return whether the teacher's vectors have length 1, or the student's own if there is no teacher."""
    first = run.teacher or run.student.checkpoint
    return first is not None and "Normalize" in sentence_modules(first)


def _name_labels(model: PreTrainedModel, adapter: TaskAdapter) -> None:
    """Name a classifier's outputs as the task does, and set what its head was trained for."""
    if isinstance(adapter.task, ClassificationTask):
        model.config.problem_type = "regression" if adapter.task.regression else "single_label_classification"
    order = adapter.output_order(model)
    if order is not None and isinstance(adapter.task, ClassificationTask) and not adapter.task.regression:
        model.config.id2label = dict(zip(order, adapter.task.labels, strict=True))
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}


def _export_projections(projections: Projections, folder: RunFolder) -> None:
    if projections.state_dict():
        with atomic_file(folder.projections) as temporary:
            weights = {name: value.detach().cpu().contiguous() for name, value in projections.state_dict().items()}
            save_file(weights, temporary)


def score_exported(loaded: LoadedModels, exported: PreTrainedModel) -> dict[str, object]:
    """Score both models on every reported split, and save the student's predictions; ranks share what it reads.

    Raises:
        RunError: the student's predictions are not finite, and it is removed so that it is not used; or a metric
            raised, which leaves the exported student and the checkpoint from which the same run is scored again.
    """
    run, folder = loaded.opened.run, loaded.opened.run.folder
    try:
        return {split: _score_split(loaded, exported, split) for split in loaded.opened.texts.reported}
    except NotFinite as error:
        on_first_rank(lambda: shutil.rmtree(folder.student))
        raise RunError(f"the student has diverged: {error}; it was not exported, and has no score") from None
    except Exception as error:  # a metric of the user's own may raise anything, and so may a library
        raise RunError(
            f"the student is trained, and exported in {str(folder.student)!r}, but could not be scored: "
            f"{cause_of(error)}; once that is mended, `{resume_command([run], folder)}` scores it"
        ) from error


def _score_split(loaded: LoadedModels, exported: PreTrainedModel, split: str) -> dict[str, object]:
    ours = loaded.opened.run.adapter.predict(exported, loaded.opened.texts.reported[split])
    return on_first_rank(lambda: _scores_of_split(loaded, ours, split))


def _scores_of_split(loaded: LoadedModels, ours: AnyPredictions, split: str) -> dict[str, object]:
    run, texts = loaded.opened.run, loaded.opened.texts
    adapter, encoded, theirs = run.adapter, texts.reported[split], loaded.answers.get(split)
    comparable = loaded.comparable
    adapter.write_predictions(run.folder.predictions(split), ours, encoded, theirs if comparable else None)
    read_by_teacher = texts.reported_to_teacher.get(split)
    teacher_scores = [] if theirs is None else adapter.score(theirs, texts.reported_to_teacher[split])
    return {
        "student": [score.to_json() for score in adapter.score(ours, encoded)],
        "teacher": [score.to_json() for score in teacher_scores],
        **({"teachers": _scores_of_each(loaded, split)} if loaded.answers_of else {}),
        "agreement": adapter.agreement(ours, theirs).to_json() if comparable else None,
        "calibration": {
            who: calibration.to_json()
            for who, predictions, read in (("student", ours, encoded), ("teacher", theirs, read_by_teacher))
            if predictions is not None and read is not None
            if (calibration := adapter.calibration(predictions, read)) is not None
        },
    }


def _scores_of_each(loaded: LoadedModels, split: str) -> list[list[dict[str, Any]]]:
    """Each of several teachers' scores on a split."""
    adapter, read = loaded.opened.run.adapter, loaded.opened.texts.reported_to_teacher[split]
    return [[score.to_json() for score in adapter.score(answers[split], read)] for answers in loaded.answers_of]


def _format_shares(rows: Sequence[Sequence[float]]) -> str:
    """Each student layer with the teacher layers that it attends to most, such as ``0: 61 % 1, 30 % 0``."""
    lines = []
    for number, row in enumerate(rows):
        most = sorted(range(len(row)), key=lambda layer: -row[layer])[:3]
        lines.append(f"{number}: " + ", ".join(f"{100 * row[layer]:.0f} % {layer}" for layer in most))
    return "; ".join(lines)


def _samples(loaded: LoadedModels, exported: PreTrainedModel) -> list[dict[str, str]]:
    """Each prompt with what the exported student and the teacher write after it."""
    prompts, theirs = loaded.prompts, loaded.teacher_samples
    ours = complete(exported, loaded.opened.tokenizer, prompts)
    samples = [{"prompt": prompt.text, "student": text} for prompt, text in zip(prompts, ours, strict=True)]
    return [sample | {"teacher": text} for sample, text in zip(samples, theirs, strict=True)] if theirs else samples


def _model_record(
    loaded: LoadedModels, checkpoint: Checkpoint, model: PreTrainedModel, head: str, source: str, index: int
) -> ModelRecord:
    """One model's record; ``index`` is its number among the models that were measured."""
    return ModelRecord(
        source=source,
        revision=checkpoint.hash,
        parameters=count_parameters(model),
        megabytes=checkpoint_files.weights_megabytes(checkpoint),
        head=head,
        latency_ms=loaded.costs.latencies[index],
        flops=loaded.costs.flops[index],
        tokens=loaded.costs.tokens,
        modality=modality_of(model.config.model_type),
    )
