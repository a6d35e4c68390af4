"""Predictions before training: the teachers' on the monitored slice and the reported splits, and the new student's.

They are kept in kdalign's cache by the model's weights and the tokens that it read, so that the arms and seeds of an
ablation, and a second run, ask each model once. Ranks share what is computed; the first one reads and writes the cache.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation.checks import Finding
from kdalign.distillation.several_teachers import mixing_of
from kdalign.distillation.teacher_cache import config_fingerprint
from kdalign.distillation.teacher_checks import check_scored_teacher
from kdalign.distillation.tokenize import OpenedRun
from kdalign.environment import machine
from kdalign.errors import NotFinite, RunError
from kdalign.evaluation.adapters.base import AnyPredictions, TaskAdapter
from kdalign.evaluation.ensembles import predict_ensemble
from kdalign.evaluation.samples import Prompt, continue_prompts, decode_samples, sample_settings
from kdalign.metrics.arrays import Array
from kdalign.models.mixtures import Mixing
from kdalign.models.sharding import shapes_of, shard_from_first_rank
from kdalign.ranks import on_first_rank
from kdalign.result_cache import Arrays, find_result
from kdalign.runs.prediction_table import Predictions, TokenPredictions
from kdalign.runs.written_texts import WrittenTexts

_KINDS = {"logits": Predictions, "nll": TokenPredictions, "letters": WrittenTexts}
"""Types of predictions by their first field."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in float32.

    Attributes:
        model: the model.
        head: origin of its head.
        weights: fingerprint of its weights, after fine-tuning.
        shapes: the model without storage, if it is sharded, by which it is sharded at another precision.
    """

    model: PreTrainedModel
    head: str
    weights: str
    shapes: PreTrainedModel | None = None

    def shared(self, device: torch.device) -> "LoadedTeacher":
        """Share the model out, which the first rank has whole and the others as shapes."""
        shapes = shapes_of(self.model.requires_grad_(False))
        return replace(self, model=shard_from_first_rank(self.model, device), shapes=shapes)


@dataclass(frozen=True)
class TeacherAnswers:
    """Teachers' answers, on every rank.

    Attributes:
        reported: answers on the reported splits, those of several teachers as one.
        watched: answers on the monitored slice of train.
        each: of several teachers each one's answers, by split.
        findings: results of the checks of the scored teachers.
        read: number of splits whose answers were in the cache.
    """

    reported: Mapping[str, AnyPredictions] = field(default_factory=dict)
    watched: AnyPredictions = None
    each: Sequence[Mapping[str, AnyPredictions]] = ()
    findings: Sequence[Finding] = ()
    read: int = 0


def score_teachers(opened: OpenedRun, teachers: Sequence[LoadedTeacher], device: torch.device) -> TeacherAnswers:
    """Predict the monitored slice of train by the teachers, check them by it, and predict the reported splits.

    Raises:
        RefusedRun: what is wrong with the teachers, with its mend.
        RunError: a teacher gives NaN.
    """
    run, texts, asked = opened.run, opened.texts, _Asked(opened.run.adapter, teachers, device)
    try:
        if len(teachers) == 1:
            watched = asked.alone(texts.watched_by_teacher)
            findings = check_scored_teacher(opened, watched, asked.alone)
            answers = {split: asked.alone(encoded) for split, encoded in texts.reported_to_teacher.items()}
            return TeacherAnswers(answers, watched, findings=findings, read=asked.read)
        mixing = mixing_of(run.recipe)
        watched, *_ = asked.together([read.watched for read in texts.read_by], mixing)
        findings = check_scored_teacher(opened, watched)
        said = {
            split: asked.together([read.reported[split] for read in texts.read_by], mixing) for split in texts.reported
        }
    except NotFinite as error:
        names = " or ".join(repr(teacher.name) for teacher in run.teachers)
        raise RunError(f"teacher {names} gives NaN: {error}; nothing can be learned from it") from None
    each = [{split: own[1 + number] for split, own in said.items()} for number in range(len(teachers))]
    return TeacherAnswers({split: own[0] for split, own in said.items()}, watched, each, findings, asked.read)


class _Asked:
    """Predictions of loaded teachers, read from the cache where they are known.

    Attributes:
        read: number of splits that were read.
    """

    def __init__(self, adapter: TaskAdapter, teachers: Sequence[LoadedTeacher], device: torch.device) -> None:
        self._adapter = adapter
        self._models = [teacher.model.to(device) for teacher in teachers]
        self._by = [describe_predictor(adapter, teacher.model, teacher.weights) for teacher in teachers]
        self.read = 0

    def alone(self, encoded: TokenizedSplit) -> AnyPredictions:
        """Predict a split by the only teacher."""
        [model] = self._models
        return self._keep([encoded], "alone", lambda: [self._adapter.predict(model, encoded)])[0]

    def together(self, encoded: Sequence[TokenizedSplit], mixing: Mixing) -> list[AnyPredictions]:
        """Predict a split by all teachers as one, and by each."""

        def predict() -> list[AnyPredictions]:
            mixture, each = predict_ensemble(self._adapter, self._models, encoded, mixing)
            return [mixture, *each]

        return self._keep(encoded, str(mixing), predict)

    def _keep(
        self, encoded: Sequence[TokenizedSplit], way: str, compute: Callable[[], list[AnyPredictions]]
    ) -> list[AnyPredictions]:
        found, known = keep_predictions(self._by, encoded, self._models[0].device, way, compute)
        self.read += known
        return found


def predict_untrained(
    adapter: TaskAdapter, student: PreTrainedModel, weights: str, encoded: TokenizedSplit
) -> tuple[AnyPredictions, bool]:
    """Predict a split by a student before its first step, and tell whether a run that started alike had done so."""
    by = [describe_predictor(adapter, student, weights)]
    compute = partial(adapter.predict, student, encoded)
    found, known = keep_predictions(by, [encoded], student.device, "alone", lambda: [compute()])
    return found[0], known


def keep_samples(
    model: PreTrainedModel, weights: str, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> tuple[list[str], bool]:
    """Return a model's completions of prompts and whether they were read from the cache; else compute and keep them.

    Args:
        model: the model.
        weights: a hash of its weights.
        tokenizer: the model's.
        prompts: what is completed.
    """
    if not prompts:
        return [], False
    settings = sample_settings(model, tokenizer)
    content = {
        "machine": machine(model.device),
        "weights": weights,
        "config": config_fingerprint(model.config),
        "type": str(model.dtype),
        "attention": str(model.config._attn_implementation),
        "settings": [settings.to_dict(), model.generation_config.to_dict()],  # the second fills gaps of the first
        "prompts": [prompt.ids for prompt in prompts],
    }

    def compute() -> dict[str, Array]:
        rows = continue_prompts(model, tokenizer, prompts)
        return {
            "tokens": np.array([token for row in rows for token in row], dtype=np.int64),
            "sizes": np.array(list(map(len, rows))),
        }

    kept, known = _keep("samples", content, compute)
    rows = np.split(kept["tokens"], np.cumsum(kept["sizes"])[:-1])
    return decode_samples(tokenizer, [row.tolist() for row in rows]), known


def keep_predictions(
    by: Sequence[Mapping[str, object]],
    encoded: Sequence[TokenizedSplit],
    device: torch.device,
    way: str,
    compute: Callable[[], list[AnyPredictions]],
) -> tuple[list[AnyPredictions], bool]:
    """Return predictions and whether they were read from the cache; else compute and keep them.

    Args:
        by: each model, by ``describe_predictor``.
        encoded: what each model reads.
        device: device of the models.
        way: how several models are combined.
        compute: computes the predictions.
    """
    tokens = [each.fingerprint() for each in encoded]
    content = {"machine": machine(device), "by": by, "way": way, "tokens": tokens}
    arrays, known = _keep("predictions", content, lambda: _as_arrays(compute()))
    return _as_predictions(arrays), known


def _keep(kind: str, content: Mapping[str, object], compute: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """Return a result and whether the first rank has read it from the cache; else all compute it, and it writes it."""

    def read() -> Arrays | None:
        known = kept.read()
        return None if known is None else {name: np.asarray(values) for name, values in known.items()}

    kept = find_result(kind, content)
    known = on_first_rank(read)
    if known is not None:
        return known, True
    result = compute()
    on_first_rank(lambda: kept.write(result))
    return result, False


def describe_predictor(adapter: TaskAdapter, model: PreTrainedModel, weights: str) -> dict[str, object]:
    """Everything but tokens and machine that decides a model's predictions.

    Args:
        adapter: the task's.
        model: the model.
        weights: a hash of its weights.
    """
    task = adapter.task
    return {
        "adapter": type(adapter).__name__,
        "scores": isinstance(task, ClassificationTask) and task.regression,
        "order": adapter.output_order(model),
        "weights": weights,
        "config": config_fingerprint(model.config),
        "type": str(model.dtype),
        "attention": str(model.config._attn_implementation),
    }


def hash_weights(model: PreTrainedModel) -> str:
    """Hash a model's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        plain = values.detach().cpu().contiguous()
        digest.update(repr((name, plain.dtype, tuple(plain.shape))).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_arrays(predictions: Sequence[AnyPredictions]) -> dict[str, Array]:
    return {
        f"{number}/{name}": np.ascontiguousarray(values)
        for number, each in enumerate(predictions)
        for name, values in vars(each).items()
    }


def _as_predictions(arrays: Mapping[str, Array]) -> list[AnyPredictions]:
    fields: dict[int, dict[str, Any]] = {}
    for name, values in arrays.items():
        number, _, own = name.partition("/")
        fields.setdefault(int(number), {})[own] = values
    return [_KINDS[next(kind for kind in _KINDS if kind in own)](**own) for _, own in sorted(fields.items())]
