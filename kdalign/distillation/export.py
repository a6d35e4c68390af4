"""What comes after training: the student is exported, and scored as it was exported; the record completes the run."""

import inspect
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel

from kdalign.alignment.calibration import SIMILARITY_TOKENS
from kdalign.alignment.projections import Projections
from kdalign.data.batches import sample_batches
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenization import fingerprint, with_token_types
from kdalign.distillation.load import LoadedModels
from kdalign.distillation.prepare import PreparedRun, resume_command
from kdalign.distillation.tokenize import TokenizedRun
from kdalign.environment import environment
from kdalign.errors import NotFinite, RunError, UsageError, cause_of
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.evaluation.samples import Prompt, complete
from kdalign.files import atomic_file, write_json, write_text, writing
from kdalign.models import checkpoint_files, lora
from kdalign.models.architecture import count_parameters
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.sentence_transformers import sentence_modules
from kdalign.observer import Observer
from kdalign.runs.folder import RunFolder
from kdalign.runs.model_card import model_card
from kdalign.runs.record import CARD, SCHEMA, ModelRecord, RunRecord, read_record
from kdalign.training.checkpoint import TrainState
from kdalign.training.diagnostics import layer_attention
from kdalign.training.task_trainer import TrainTask
from kdalign.version import __version__

_MACHINE = ("memory", "disk")
"""Checks that say nothing of the run itself, unless they were let through."""
Export = Callable[[PreTrainedModel, Path], None]
"""Writes a trained model's weights and configuration into a folder."""


def export_student(
    loaded: LoadedModels,
    course: TrainTask,
    progress: TrainState,
    accelerator: Accelerator,
    observer: Observer,
    begun: float,
    export: Export | None = None,
    facts: Mapping[str, object] | None = None,
) -> RunRecord:
    """Export the student and score what was exported; its record, which completes the run.

    Args:
        loaded: the two models, trained.
        course: that was taken.
        progress: what was spent on it.
        accelerator: device and ranks.
        observer: who watches.
        begun: when the run began, as ``time.perf_counter``.
        export: how the model is written; as one file where left out.
        facts: further ones of the training.
    """
    opened, taught, learner = loaded.opened, loaded.taught, course.learner
    run, recipe, texts, adapter, folder = opened.run, opened.recipe, opened.texts, opened.run.adapter, opened.run.folder
    if progress.plan and accelerator.is_main_process:
        folder.write_plan(progress.plan)
    attended = {}
    if learner.plan is not None and learner.attends and course.teacher is not None:
        few = sample_batches(texts.train, recipe.train.seed, SIMILARITY_TOKENS)
        attended = layer_attention(learner.plan, learner, course.teacher, few, accelerator.device)
        for stack, rows in attended.items():
            observer.announce(f"attention of {stack} layers to the teacher's: {_shares_text(rows)}")
    # What was exported is what is scored.
    if accelerator.is_main_process:
        model = loaded.student if recipe.train.lora is None else lora.merge_adapters(loaded.student)
        _name_labels(model, adapter)
        with writing(folder.student):
            _export(model, folder.student, export or _whole)
            if adapter.head is HeadKind.NONE:
                write_sentence_modules(
                    folder.student, int(model.config.hidden_size), adapter.max_length, _normalises(run)
                )
            classes = adapter.head in (HeadKind.CLASSIFIER, HeadKind.NONE)
            if classes and "token_type_ids" in inspect.signature(model.forward).parameters:
                with_token_types(opened.tokenizer)
            opened.tokenizer.save_pretrained(folder.student)
        _export_projections(learner.projections, folder)
        checkpoint = checkpoint_files.find_checkpoint(str(folder.student))
        exported = adapter.load_model(checkpoint, fresh_head=False, seed=0).to(accelerator.device)
        scores = _scores_or_way_on(run, exported, texts, loaded.answers, loaded.comparable)
        latencies, flops, timed = loaded.latencies, loaded.flops, loaded.timed
        teacher_facts = None
        if taught is not None and run.teacher is not None:
            teacher_facts = _facts(
                run.teacher, taught.model, taught.head, run.teacher.name, latencies[0], flops[0], timed
            )
        record = RunRecord(
            schema=SCHEMA,
            version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            task=adapter.task.name,
            metrics=adapter.metrics,
            recipe=recipe.model_dump(mode="json"),
            student=_facts(checkpoint, exported, "trained", loaded.source, latencies[-1], flops[-1], timed),
            teacher=teacher_facts,
            data=_data_facts(run, texts) | {"tokenizer": fingerprint(opened.tokenizer)},
            scores=scores,
            training=_training_facts(progress, run, accelerator)
            | ({"layer_attention": attended} if attended else {})
            | dict(facts or {}),
            environment=environment(accelerator.device),
            seconds=time.perf_counter() - begun,
            samples=_samples(loaded.prompts, complete(exported, opened.tokenizer, loaded.prompts), loaded.taught_says),
        )
        try:
            write_text(folder.student / CARD, model_card(record, folder.path))
        except UsageError as error:  # it can be made later; the training cannot
            observer.announce(f"no model card was written: {error}; `kdalign card {folder.path}` tries again")
        folder.write_record(record)
    accelerator.wait_for_everyone()
    return read_record(folder.path)


def _export(model: PreTrainedModel, folder: Path, export: Export) -> None:
    """Write a student, its settings for writing as they are: Transformers refuses to save some that it reads."""
    settings = model.generation_config if model.can_generate() else None
    if settings is not None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    try:
        export(model, folder)
    finally:
        if settings is not None:
            model.generation_config = settings
    if settings is not None:
        write_json(folder / "generation_config.json", settings.to_diff_dict())


def write_sentence_modules(folder: Path, width: int, max_length: int, normalise: bool) -> None:
    """Say to sentence-transformers how a student's tokens become one vector: by their mean.

    Args:
        folder: of the student.
        width: of a vector.
        max_length: longest input in tokens.
        normalise: whether vectors are brought to length 1, which cosines do not see.
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
    """Whether the teacher's vectors have length 1, or the student's own where it has no teacher."""
    first = run.teacher or run.student
    return first is not None and "Normalize" in sentence_modules(first)


def _name_labels(model: PreTrainedModel, adapter: TaskAdapter) -> None:
    """Give a classifier's outputs the task's names, and say what its head was trained for."""
    if isinstance(adapter.task, ClassificationTask):
        model.config.problem_type = "regression" if adapter.task.regression else "single_label_classification"
    order = adapter.output_order(model)
    if order is not None and isinstance(adapter.task, ClassificationTask) and not adapter.task.regression:
        model.config.id2label = dict(zip(order, adapter.task.labels, strict=True))
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}


def _whole(model: PreTrainedModel, folder: Path) -> None:
    """Write a student as a stock Transformers checkpoint."""
    model.save_pretrained(folder)


def _export_projections(projections: Projections, folder: RunFolder) -> None:
    if projections.state_dict():
        with atomic_file(folder.projections) as temporary:
            weights = {name: value.detach().cpu().contiguous() for name, value in projections.state_dict().items()}
            save_file(weights, temporary)


def _scores_or_way_on(
    run: PreparedRun, exported: PreTrainedModel, texts: TokenizedRun, answers: Mapping[str, Any], comparable: bool
) -> dict[str, object]:
    """The scores of both models; what keeps them from being taken costs no training.

    Raises:
        RunError: the student's answers are no numbers, and it is not left as if it could be used; or a metric raised,
            which leaves the exported student and the checkpoint from which the same run is scored again.
    """
    folder = run.folder
    try:
        return _final_scores(run, exported, texts, answers, comparable)
    except NotFinite as error:
        shutil.rmtree(folder.student)
        raise RunError(f"the student has diverged: {error}; it was not exported, and has no score") from None
    except Exception as error:  # a metric of the user's own may raise anything, and so may a library
        raise RunError(
            f"the student is trained, and exported in {str(folder.student)!r}, but could not be scored: "
            f"{cause_of(error)}; once that is mended, `{resume_command([run], folder)}` scores it"
        ) from error


def _final_scores(
    run: PreparedRun, exported: PreTrainedModel, texts: TokenizedRun, answers: Mapping[str, Any], comparable: bool
) -> dict[str, object]:
    """Score both models on every reported split, and keep the predictions."""
    scores: dict[str, object] = {}
    for split, encoded in texts.reported.items():
        ours, theirs = run.adapter.predict(exported, encoded), answers.get(split)
        run.adapter.write_predictions(run.folder.predictions(split), ours, encoded, theirs if comparable else None)
        of_teacher = [] if theirs is None else run.adapter.score(theirs, texts.reported_to_teacher[split])
        scores[split] = {
            "student": [score.to_json() for score in run.adapter.score(ours, encoded)],
            "teacher": [score.to_json() for score in of_teacher],
            "agreement": run.adapter.agreement(ours, theirs).to_json() if comparable else None,
            "calibration": {
                who: found.to_json()
                for who, answer, read in (
                    ("student", ours, encoded),
                    ("teacher", theirs, texts.reported_to_teacher.get(split)),
                )
                if answer is not None and read is not None
                if (found := run.adapter.calibration(answer, read)) is not None
            },
        }
    return scores


def _shares_text(rows: Sequence[Sequence[float]]) -> str:
    """Each student layer with the teacher layers that have most of its attention, such as ``0: 61 % 1, 30 % 0``."""
    found = []
    for number, row in enumerate(rows):
        most = sorted(range(len(row)), key=lambda layer: -row[layer])[:3]
        found.append(f"{number}: " + ", ".join(f"{100 * row[layer]:.0f} % {layer}" for layer in most))
    return "; ".join(found)


def _samples(prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> list[dict[str, str]]:
    found = [{"prompt": prompt.text, "student": said} for prompt, said in zip(prompts, ours, strict=True)]
    return [each | {"teacher": said} for each, said in zip(found, theirs, strict=True)] if theirs else found


def _facts(
    checkpoint: Checkpoint, model: PreTrainedModel, head: str, source: str, latency: float, flops: int, tokens: int
) -> ModelRecord:
    return ModelRecord(
        source=source,
        revision=checkpoint.hash,
        parameters=count_parameters(model),
        megabytes=checkpoint_files.weights_megabytes(checkpoint),
        head=head,
        latency_ms=latency,
        flops=flops,
        tokens=tokens,
    )


def _data_facts(run: PreparedRun, texts: TokenizedRun) -> dict[str, object]:
    facts: dict[str, object] = {
        "source": str(run.task.source),
        "train": {
            "n": len(run.train),
            "tokens": int(texts.labelled.lengths.sum()),
            "truncated": texts.labelled.truncated,
            "fingerprint": run.train.fingerprint(),
        },
        "watched": {"n": len(run.watched), "from": run.watched_word},
        "reported": {
            split: {
                "n": len(run.reported[split]),
                "truncated": e.truncated,
                "fingerprint": run.reported[split].fingerprint(),
            }
            for split, e in texts.reported.items()
        },
    }
    if run.unlabelled is not None and texts.unlabelled is not None:
        facts["unlabelled"] = {
            "source": run.unlabelled.source,
            "n": len(run.unlabelled.examples),
            "an_epoch": run.unlabelled.an_epoch,
            "tokens": int(texts.unlabelled.lengths.sum()),
            "truncated": texts.unlabelled.truncated,
            "fingerprint": run.unlabelled.examples.fingerprint(),
            "left_out": dict(run.unlabelled.dropped),
        }
    if run.augmenting is not None:
        copies = texts.copies
        facts["augmented"] = {
            "model": run.augmenting.name,
            "revision": run.augmenting.hash,
            "n": len(copies) if copies is not None else 0,
            "tokens": int(copies.lengths.sum()) if copies is not None else 0,
        }
    facts["checks"] = {each.what: each.said for each in run.checks if each.allowed or each.what not in _MACHINE}
    return facts if texts.across is None else facts | {"tokenizers": texts.across.facts}


def _training_facts(progress: TrainState, run: PreparedRun, accelerator: Accelerator) -> dict[str, object]:
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
