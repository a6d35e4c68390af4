"""Plan which teacher layer would teach which student layer, by shape or by similarity on texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.alignment.calibration import CALIBRATION_TOKENS, UNTRAINED, measure_layer_map
from kdalign.alignment.layer_maps import is_measured_map
from kdalign.alignment.plan import Plan
from kdalign.alignment.propose import PlanOptions, propose
from kdalign.data.batches import teacher_inputs
from kdalign.data.dual_tokenization import tokenize_labelled_dual, tokenize_labelled_several
from kdalign.data.epochs import sample_batches
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import AnyTask, ClassificationTask, find_task, load_examples, load_texts
from kdalign.data.tokenization import tokenize_labelled, tokenize_pairs
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.distillation.prepare import find_grid
from kdalign.distillation.several_teachers import find_readers
from kdalign.distillation.speech_checks import check_pooled
from kdalign.errors import UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.models import checkpoint_files, loading
from kdalign.models.architecture import describe, join_teachers, layout_of, vocabulary_size
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.media_reader import check_modality
from kdalign.models.read_check import check_read
from kdalign.models.student_source import StudentInputs, StudentOptions, StudentSource, find_student
from kdalign.models.teaching import reads_transcripts
from kdalign.models.tokenizer import TokenizerPair
from kdalign.observer import NullObserver, Observer

LENGTH = 128


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts on which the layers of both models are compared.

    Attributes:
        task: the task that the texts are of.
        folder: their folder; None for the hub.
        dataset: a data set on the hub.
        config: its configuration.
        examples: number of examples, drawn at random from train.
        max_length: longest input in tokens; 128 or the models' positions if None.
    """

    task: str
    folder: str | None = None
    dataset: str | None = None
    config: str | None = None
    examples: int = 512
    max_length: int | None = None


def plan_layers(
    teacher: str | tuple[str, ...],
    student_name: str,
    choice: str = "auto",
    init: str = "uniform",
    revision: str | None = None,
    reading: CalibrationTexts | None = None,
    observer: Observer | None = None,
) -> Plan:
    """Plan the layer map between two models: from their configurations alone, or by similarity on texts.

    Args:
        teacher: hub id or folder, or several.
        student_name: the student, as in ``--student``.
        choice: the map, as in ``--map``.
        init: teacher layers that a cut student starts from, as in ``--init``.
        revision: the teacher's revision on the hub.
        reading: texts to measure similarity on; None to plan by shape.
        observer: receives a warning if the student is untrained.

    Raises:
        UsageError: a missing model or text, or an unknown choice of layers or map.
    """
    names = (teacher,) if isinstance(teacher, str) else teacher
    if revision is not None and len(names) > 1:
        raise UsageError("--revision is for one teacher: give folders of several")
    teachers = [checkpoint_files.find_checkpoint(name, revision, weights=reading is not None) for name in names]
    theirs, families = teachers[0], [layout_of(each.config).family for each in teachers]
    if len(set(families)) > 1:
        named = ", ".join(f"{each.name!r} ({family})" for each, family in zip(teachers, families, strict=True))
        raise UsageError(f"teachers of several families do not teach together: {named} (accepted: one family)")
    student = find_student(StudentOptions(student_name, init=init), theirs, weights=reading is not None)
    plan = shape_plan(teachers, student, choice)
    if reading is None:
        if is_measured_map(choice):
            raise UsageError(f"--map {choice!r} is measured on text: give --task and --data")
        return plan
    observer = observer or NullObserver()
    tokenizers = student.tokenizers()
    positions = {each.name: checkpoint_files.max_positions(each.config) for each in teachers}
    positions[student_name] = student.positions
    max_length = reading.max_length if reading.max_length is not None else min(LENGTH, *positions.values())
    for name, longest in positions.items():
        checkpoint_files.check_positions(name, longest, max_length)
    task = find_task(reading.task, reading.folder, reading.dataset, reading.config)
    for checkpoint in filter(None, (*teachers, student.checkpoint)):
        check_modality(checkpoint.name, checkpoint.config.model_type, task)
    readers = find_readers(teachers, tokenizers, layout_of(theirs.config).family not in ("masked", "vision"))
    ours = student.config(tokenizers)
    encoded = _read(reading, task, tokenizers, readers, ours, theirs.config, max_length)
    if encoded.media is not None:
        grid = find_grid(ours, teachers, tokenizers)
        encoded = replace(encoded, media=encoded.media.for_both(tokenizers.reads_apart, grid))
    big, *more = (check_read(loading.load_any(each)) for each in teachers)
    texts = teacher_inputs(sample_batches(encoded, 0, CALIBRATION_TOKENS))
    small = student.build(StudentInputs(loading.load_any, tokenizers, texts, 0, big, lambda config: config))
    if student.checkpoint is not None:
        check_read(small)
    if student.untrained:
        observer.announce(UNTRAINED)
    return measure_layer_map(plan, [big, *more], small, encoded, tokenizers.special_ids, task.name, 0)


def shape_plan(teachers: Sequence[Checkpoint], student: StudentSource, choice: str) -> Plan:
    """Propose the plan between teachers and a student by their shapes alone, before any tokenizer is read.

    Raises:
        UsageError: a map that is no choice, or none for features that are averaged over time.
    """
    entries = TokenizerPair(None, None, vocabulary_size(teachers[0].config), differ=False)
    plan = propose(
        join_teachers([describe(each.config) for each in teachers]),
        describe(student.config(entries)),
        choice,
        student.copied,
        PlanOptions(pooled=reads_transcripts(teachers[0].config, student.modality)),
    )
    check_pooled(plan)
    return plan


def _read(
    reading: CalibrationTexts,
    task: AnyTask,
    tokenizers: TokenizerPair,
    readers: Sequence[PreTrainedTokenizerBase | None],
    ours: PretrainedConfig,
    config: PretrainedConfig,
    max_length: int,
) -> TokenizedSplit:
    """Read some rows of train as the student, with the first configuration, and the teacher read them."""
    examples = load_examples(task, task.train) if isinstance(task, ClassificationTask) else load_texts(task, task.train)
    if reading.examples < len(examples):
        rows = np.random.default_rng(0).permutation(len(examples))[: reading.examples]
        examples = examples.take(sorted(rows.tolist()))
    family = layout_of(config).family
    if tokenizers.media is not None:
        reader = InputReader(tokenizers.student, ours, tokenizers.media)
        adapter = adapter_for(task, layout_of(ours).family, max_length, "the student")
        return adapter.tokenize(examples, reader, scored=False)
    if readers:
        return tokenize_labelled_several(examples, tokenizers.student, readers, max_length)
    if family != "seq2seq" and tokenizers.differ:
        both = tokenizers.student, tokenizers.teacher
        return tokenize_labelled_dual(examples, both, max_length, family == "causal")
    if family != "seq2seq":
        return tokenize_labelled(examples, tokenizers.student, max_length)
    if tokenizers.differ:
        raise UsageError("encoder-decoders with two tokenizers cannot be compared (accepted: the same one)")
    if len(examples.texts) != 2:
        raise UsageError(
            f"an encoder-decoder reads pairs: task {reading.task!r} has one text (accepted: translation:A-B)"
        )
    return tokenize_pairs(examples, tokenizers.student, int(config.decoder_start_token_id), max_length)
