"""Compare a finished run's teacher and student: similarity of their layers, and their attention on one text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.calibration import SIMILARITY_TOKENS, measure_similarities
from kdalign.alignment.plan import Plan, read_plan
from kdalign.data.epochs import in_order, sample_batches
from kdalign.data.input_reader import InputReader
from kdalign.data.media.readers import AudioReader, ImageReader, MediaReader
from kdalign.data.media.rows import NOUNS, MediaRows, Modality
from kdalign.data.tasks import ClassificationTask, Examples
from kdalign.data.tokenization import tokenize_labelled, tokenize_pairs
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.devices import make_accelerator
from kdalign.distillation.load import load_student, load_teachers
from kdalign.distillation.prepare import PreparedRun, prepare
from kdalign.distillation.tokenize import tokenize_run
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import confidences
from kdalign.models import checkpoint_files
from kdalign.models.architecture import Layer, layout_of, split_stack
from kdalign.models.capture import CaptureSpec, capture, enable_capture, inference_mode
from kdalign.models.grids import grid_of
from kdalign.models.heads import HeadKind
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import AttentionLayout
from kdalign.models.tokenizer import load_tokenizer
from kdalign.observer import NullObserver, Observer
from kdalign.runs.disagreements import Disagreements
from kdalign.runs.finished import FinishedRun

Matrices = Mapping[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True)
class LoadedPair:
    """A run's models in memory, in float32, with their texts.

    Attributes:
        teacher: the teacher, of several the first.
        teachers: all teachers.
        start: the student as it was before its first step.
        encoded: the training texts, in the tokens of both models.
    """

    run: FinishedRun
    prepared: PreparedRun
    plan: Plan
    teacher: PreTrainedModel
    student: PreTrainedModel
    start: PreTrainedModel
    teacher_tokenizer: PreTrainedTokenizerBase
    student_tokenizer: PreTrainedTokenizerBase
    encoded: TokenizedSplit
    teachers: tuple[PreTrainedModel, ...]


@dataclass(frozen=True)
class LayerSimilarity:
    """CKA of every student layer with every teacher layer, (student layers, teacher layers), by the teacher's stack.

    Attributes:
        before: similarity at the start of training.
        after: similarity of the exported student.
        pairs: (student layer, teacher layer) of the plan, by stack.
        tokens: number of tokens that both models read.
    """

    before: Matrices
    after: Matrices
    pairs: Mapping[str, tuple[tuple[int, int], ...]]
    tokens: int


@dataclass(frozen=True)
class AttentionView:
    """Attention of both models on one example, and their predictions.

    Attributes:
        texts: the text, or the two of a pair; a sound or an image is named.
        maps: names of each pair of layers, and the attention of student and teacher, (heads, tokens, tokens).
        student_tokens: decoded tokens, or places in the sound or image.
        teacher_tokens: likewise.
        answers: the class that student and teacher predict, each with its probability; empty without classes.
    """

    texts: tuple[str, ...]
    maps: tuple[tuple[str, str, Array, Array], ...]
    student_tokens: tuple[str, ...]
    teacher_tokens: tuple[str, ...]
    answers: tuple[tuple[str, float], ...] = ()
    modality: Modality = "text"


def load_pair(run: FinishedRun, device: str = "auto", observer: Observer | None = None) -> LoadedPair:
    """Load a run's teacher and student; the student's start is built again from the recipe.

    Raises:
        UsageError: the run has no teacher; or teacher, student or data have changed or are missing.
    """
    if not run.recipe.loads_teacher:
        made = "by a teacher behind an API, which shows none" if run.recipe.has_teacher else "without a teacher"
        raise UsageError(f"run {run.name!r} was trained {made}: there is nothing to compare its layers with")
    accelerator = make_accelerator(device)
    prepared = prepare(run.recipe)
    if prepared.tokenizers.teacher is None:
        raise UsageError(
            f"run {run.name!r} has a teacher of features alone, which reads otherwise than its student: there are no "
            f"positions and answers of both to look at"
        )
    _check_inputs(run, prepared)
    exported = checkpoint_files.find_checkpoint(str(run.folder.student))
    tokenizer = load_tokenizer(exported)
    bf16 = run.recipe.train.precision == "bf16"  # part of the key of a fine-tuned teacher
    taught = load_teachers(prepared, prepared.recipe, accelerator, bf16, observer or NullObserver())
    encoded = tokenize_run(prepared, tokenizer).train
    start = load_student(prepared, tokenizer, taught[0].model, encoded)
    student = prepared.adapter.load_model(exported, fresh_head=False, seed=0)
    device = accelerator.device
    return LoadedPair(
        run=run,
        prepared=prepared,
        plan=read_plan(run.folder.plan),
        teacher=taught[0].model.to(device),
        student=student.to(device),
        start=start.to(device),
        teacher_tokenizer=prepared.tokenizers.teacher,
        student_tokenizer=tokenizer,
        encoded=encoded,
        teachers=tuple(each.model.to(device) for each in taught),
    )


def _check_inputs(run: FinishedRun, prepared: PreparedRun) -> None:
    """Refuse models and texts that have changed since the run."""
    before = run.folder.read_inputs()
    for name, value in prepared.inputs.items():
        if before.get(name, value) != value:
            raise UsageError(f"run {run.name!r} read another {name} ({before[name]} then, {value} now)")


def layer_similarity(pair: LoadedPair) -> LayerSimilarity:
    """Measure CKA between the layers of teacher and student before and after training, on the same training texts.

    Raises:
        UsageError: too few tokens.
    """
    batches = list(sample_batches(pair.encoded, pair.prepared.recipe.train.seed, SIMILARITY_TOKENS))
    special = pair.student_tokenizer.all_special_ids
    by_stack, tokens = [], 0
    for student in (pair.start, pair.student):
        matrices, tokens = measure_similarities(
            pair.plan, pair.teachers, student, batches, special, pair.teacher.device
        )
        by_stack.append({stack: tuple(map(tuple, rows.tolist())) for stack, rows in matrices.items()})
    before, after = by_stack
    pairs = {layer_map.teacher_stack: layer_map.pairs for layer_map in pair.plan.maps}
    return LayerSimilarity(before, after, pairs, tokens)


def find_example(pair: LoadedPair, texts: Sequence[str], differing: Disagreements | None) -> Examples:
    """Return the example of the given texts, or the one on which the models disagree most; else the first reported.

    Raises:
        UsageError: the wrong number of texts, or texts for models of sounds or images.
    """
    task, wanted = pair.prepared.adapter.task, _texts_read(pair)
    if texts and task.modality != "text":
        raise UsageError(f"--text is for models of text; task {task.name!r} has {NOUNS[task.modality]}s")
    if texts and len(texts) != wanted:
        raise UsageError(f"task {task.name!r} takes {wanted} --text an example, given {len(texts)}")
    farthest = differing.examples[0] if differing is not None and differing.examples else None
    first = next(iter(pair.prepared.splits.reported.values()))
    if task.modality != "text":  # its rows are those of the first split, of which differences are read
        return first.take([0 if farthest is None else farthest.row])
    if not texts and farthest is not None and farthest.texts:
        texts = farthest.texts
    return Examples("text", tuple((text,) for text in texts or [column[0] for column in first.texts[:wanted]]), None)


def attention_on(pair: LoadedPair, example: Examples, head: int | None = None, most: int = 4) -> AttentionView:
    """Run student and (first) teacher on one example; return the attention of a few pairs of layers.

    Stages of image models have no maps.

    Args:
        pair: the models.
        example: one row.
        head: number of the attention head to show; None for all.
        most: largest number of layer pairs, spread over the plan's.

    Raises:
        UsageError: an unknown head, or a family that does not return attention.
    """
    adapter, plan = pair.prepared.adapter, pair.plan
    staged = [layout_of(model.config).staged for model in (pair.student, pair.teacher)]
    for model, stages in zip((pair.student, pair.teacher), staged, strict=True):
        closed = layout_of(model.config).attention is AttentionLayout.CLOSED
        if closed and (head is not None or not stages):
            raise UsageError(f"attention of {model.config.model_type} is not available: the model does not return it")
    heads = min(stack.heads for both in plan.stacks for stack in both)
    if head is not None and head >= heads:
        raise UsageError(f"--head {head}: the smaller model has {heads} attention heads (accepted: 0 to {heads - 1})")
    pairs = {
        Layer(layer_map.student_stack, ours): Layer(layer_map.teacher_stack, theirs)
        for layer_map in plan.maps
        for ours, theirs in layer_map.pairs  # of several teacher layers the last
        if not plan.student.reads_target(layer_map.student_stack) and not split_stack(layer_map.teacher_stack)[0]
    }
    numbers = np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int))
    chosen = [] if any(staged) else [list(pairs.items())[number] for number in numbers]
    readers = pair.prepared.tokenizers
    our_reader = InputReader(pair.student_tokenizer, pair.student.config, readers.media)
    their_reader = InputReader(pair.teacher_tokenizer, pair.teacher.config, readers.teacher_media)
    ours = _read(adapter, pair.student, our_reader, example, [student for student, _ in chosen])
    theirs = _read(adapter, pair.teacher, their_reader, example, [teacher for _, teacher in chosen])
    return AttentionView(
        texts=tuple(column.name(0) if isinstance(column, MediaRows) else column[0] for column in example.texts),
        maps=tuple(
            (str(student.number), str(teacher.number), ours.maps[student], theirs.maps[teacher])
            for student, teacher in chosen
        ),
        student_tokens=ours.tokens,
        teacher_tokens=theirs.tokens,
        answers=tuple(answer for answer in (ours.answer, theirs.answer) if answer is not None),
        modality=adapter.task.modality,
    )


def _texts_read(pair: LoadedPair) -> int:
    """Number of texts that the models read of an example: two of a pair, or of a source and its target."""
    adapter = pair.prepared.adapter
    paired = isinstance(adapter.task, ClassificationTask) or adapter.head is HeadKind.SEQ2SEQ
    return len(pair.prepared.splits.train.texts) if paired else 1


@dataclass(frozen=True)
class _Reading:
    """One model's tokens, attention and prediction on a text."""

    tokens: tuple[str, ...]
    maps: Mapping[Layer, Array]
    answer: tuple[str, float] | None


def _read(
    adapter: TaskAdapter,
    model: PreTrainedModel,
    reader: InputReader,
    examples: Examples,
    layers: Sequence[Layer],
) -> _Reading:
    tokenizer = reader.tokenizer
    if reader.media is not None:
        encoded = adapter.tokenize(examples, reader, scored=True)
    elif adapter.head is HeadKind.SEQ2SEQ:
        encoded = tokenize_pairs(examples, tokenizer, int(model.config.decoder_start_token_id), adapter.max_length)
    else:
        encoded = tokenize_labelled(examples, tokenizer, adapter.max_length)
    ((_, batch),) = in_order(encoded, 1)
    inputs = batch.to(model.device).inputs
    order = adapter.output_order(model)
    answers = isinstance(adapter.task, ClassificationTask) and not adapter.task.regression and order is not None
    asked = model if answers else model.base_model  # logits over a vocabulary are not needed
    with inference_mode(model), capture(enable_capture(model), CaptureSpec(attention=frozenset(layers))) as signals:
        output = asked(**accepted_inputs(asked, inputs))
    answer = None
    if answers and order is not None and isinstance(adapter.task, ClassificationTask):
        logits = output.logits[:, list(order)].float().cpu().numpy()
        answer = adapter.task.labels[int(logits.argmax())], float(confidences(logits)[0])
    maps = {layer: kept[0].float().cpu().numpy() for layer, kept in signals.attention.items()}
    if reader.media is not None:
        positions = next((kept.shape[-1] for kept in maps.values()), 0)
        return _Reading(_places(reader.media, positions, layout_of(model.config).class_tokens), maps, answer)
    ids = inputs["input_ids"][0].tolist()
    words = tuple(tokenizer.decode([number]).strip() or str(tokenizer.convert_ids_to_tokens(number)) for number in ids)
    return _Reading(words, maps, answer)


def _places(media: MediaReader, positions: int, class_tokens: int) -> tuple[str, ...]:
    """Name positions: of an image by row and column of its patches, of a sound by seconds."""
    if isinstance(media, AudioReader):
        return tuple(f"{number * media.stride / media.rate:.2f} s" for number in range(positions))
    if not positions or not isinstance(media, ImageReader):
        return ()
    grid = grid_of(positions, class_tokens, media.size)
    cells = [f"{row},{column}" for row in range(grid.rows) for column in range(grid.columns)]
    return (*["class"] * class_tokens, *cells)
