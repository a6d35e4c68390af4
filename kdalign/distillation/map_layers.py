"""The story of a plan: which teacher layer would teach which student layer, by shape or by what both make of texts."""

from dataclasses import dataclass

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import CALIBRATION_TOKENS, UNTRAINED, measure_layer_map
from kdalign.alignment.layer_maps import is_measured_map
from kdalign.alignment.plan import Plan
from kdalign.data.batches import TokenizedSplit, sample_batches, teacher_inputs
from kdalign.data.dual_tokenization import Tokenizers, tokenize_labelled_dual
from kdalign.data.tasks import ClassificationTask, find_task, load_examples, load_texts
from kdalign.data.tokenization import tokenize_labelled, tokenize_pairs
from kdalign.distillation.prepare import shape_plan
from kdalign.errors import UsageError
from kdalign.models import checkpoint_files, loading, student, student_spec
from kdalign.models.architecture import describe, layout_of
from kdalign.models.capture import check_read
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.from_scratch import build_from_scratch, parse_scratch_spec, scratch_config
from kdalign.models.tokenizer import load_tokenizer, same_tokenizer
from kdalign.observer import NullObserver, Observer

LENGTH = 128


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts for both models to read.

    Attributes:
        task: whose texts.
        folder: their folder; None for the hub.
        dataset: a hub data set.
        config: its configuration.
        examples: so many, drawn at random from train.
        max_length: longest input in tokens; 128 or the models' positions when left out.
    """

    task: str
    folder: str | None = None
    dataset: str | None = None
    config: str | None = None
    examples: int = 512
    max_length: int | None = None


def plan_layers(
    teacher: str,
    student_name: str,
    choice: str = "auto",
    init: str = "uniform",
    revision: str | None = None,
    reading: CalibrationTexts | None = None,
    observer: Observer | None = None,
) -> Plan:
    """The plan between two models: from their configurations alone, or by similarity where there is text to read.

    Raises:
        UsageError: a model, layer choice, map or text that is not there.
    """
    theirs = checkpoint_files.find_checkpoint(teacher, revision, weights=reading is not None)
    plan = shape_plan(theirs, student_name, choice, init)
    if reading is None:
        if is_measured_map(choice):
            raise UsageError(f"--map {choice!r} is measured on text: give --task and --data")
        return plan
    observer = observer or NullObserver()
    theirs_too = load_tokenizer(theirs)
    made = student_spec.is_cut(student_name) or student_name.startswith("new:")
    own = None if made else checkpoint_files.find_checkpoint(student_name)
    tokenizer = theirs_too if own is None else load_tokenizer(own)
    most = min(checkpoint_files.max_positions(each.config) for each in (theirs, own or theirs))
    max_length = reading.max_length if reading.max_length is not None else min(LENGTH, most)
    for each in (theirs, own or theirs):
        checkpoint_files.check_length(each, max_length)
    encoded, source = _read(reading, (tokenizer, theirs_too), theirs.config, max_length)
    big = check_read(loading.load_any(theirs))
    small, trained = _student(theirs, big, own, student_name, init, tokenizer, encoded)
    if not trained:
        observer.announce(UNTRAINED)
    return measure_layer_map(plan, big, small, encoded, tokenizer.all_special_ids, source, 0)


def _read(
    reading: CalibrationTexts, tokenizers: Tokenizers, config: PretrainedConfig, max_length: int
) -> tuple[TokenizedSplit, str]:
    task = find_task(reading.task, reading.folder, reading.dataset, reading.config)
    examples = load_examples(task, task.train) if isinstance(task, ClassificationTask) else load_texts(task, task.train)
    if reading.examples < len(examples):
        rows = np.random.default_rng(0).permutation(len(examples))[: reading.examples]
        examples = examples.take(sorted(rows.tolist()))
    family, across = layout_of(config).family, not same_tokenizer(*tokenizers)
    if family != "seq2seq" and across:
        return tokenize_labelled_dual(examples, tokenizers, max_length, family == "causal"), task.name
    if family != "seq2seq":
        return tokenize_labelled(examples, tokenizers[0], max_length), task.name
    if across:
        raise UsageError("encoder-decoders with two tokenizers cannot be compared (accepted: the same one)")
    if len(examples.texts) != 2:
        raise UsageError(
            f"an encoder-decoder reads pairs: task {reading.task!r} has one text (accepted: translation:A-B)"
        )
    return tokenize_pairs(examples, tokenizers[0], int(config.decoder_start_token_id), max_length), task.name


def _student(
    teacher: Checkpoint,
    big: PreTrainedModel,
    own: Checkpoint | None,
    name: str,
    init: str,
    tokenizer: PreTrainedTokenizerBase,
    encoded: TokenizedSplit,
) -> tuple[PreTrainedModel, bool]:
    """The student, and whether its weights come from anywhere."""
    if own is not None:
        return check_read(loading.load_any(own)), True
    if name.startswith("new:"):
        return build_from_scratch(scratch_config(parse_scratch_spec(name), tokenizer), 0), False
    theirs = describe(teacher.config)
    cut = student_spec.parse_cut(name, theirs)
    assert cut is not None, "what is no checkpoint and not new is cut"
    start = student_spec.starting_layers(init, cut.layers, theirs)
    texts = teacher_inputs(sample_batches(encoded, 0, CALIBRATION_TOKENS))
    return student.build_student(big, cut, start, "pca", texts, 0), start is not None
