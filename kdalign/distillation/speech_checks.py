"""Checks of teachers of speech models: frames that correspond, and teachers that teach features alone."""

from collections.abc import Iterator, Sequence

from kdalign.alignment.plan import Plan
from kdalign.data.media.readers import AudioReader
from kdalign.data.media.waves import WaveReader
from kdalign.data.tasks import AnyTask
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.models.architecture import layout_of
from kdalign.models.capture import Signal
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.student_spec import is_cut
from kdalign.models.teaching import reads_transcripts, teaches_features_alone
from kdalign.models.tokenizer import TokenizerPair
from kdalign.objective.objective import Objective
from kdalign.objective.terms import Unit
from kdalign.recipe import Recipe
from kdalign.recipe.terms import KEYS_OF_TERMS, TERM_FACTS

_ATTENTION = frozenset({Signal.ATTENTION, Signal.TEACHER_ATTENTION, Signal.RELATIONS})
_AT_POSITIONS = _ATTENTION | {Signal.CROSS, Signal.EMBEDDINGS}
"""Signals that are compared position by position."""


def features_alone(adapter: TaskAdapter, teacher: Checkpoint) -> bool:
    """Return whether a teacher of another family or modality than its student's teaches features alone."""
    family = "ctc" if adapter.head is HeadKind.CTC else ""
    return teaches_features_alone(teacher.config, family, adapter.task.modality)


def check_features_alone(adapter: TaskAdapter, teachers: Sequence[Checkpoint], objective: Objective) -> None:
    """Refuse terms that compare more than features with a teacher of another family or modality.

    Raises:
        UsageError: the teacher, and the weights to set.
    """
    for teacher in teachers:
        if not features_alone(adapter, teacher):
            continue
        family = layout_of(teacher.config).family
        if reads_transcripts(teacher.config, adapter.task.modality):
            _check_averages(teacher, objective)
        elif objective.compares_answers:
            raise UsageError(
                f"teacher {teacher.name!r} is a {family} model, whose answers are not labels of frames: it teaches a "
                f"ctc student features alone: give --alpha 0, and no term of answers"
            )
        elif objective.needs & _ATTENTION:
            raise UsageError(
                f"teacher {teacher.name!r} is a {family} model, which attends to other positions than a ctc student: "
                f"give --delta 0 and objective.relations=0"
            )


def _check_averages(teacher: Checkpoint, objective: Objective) -> None:
    """Refuse terms that compare more than averages of features with a teacher of text."""
    mends = ", ".join(dict.fromkeys(_mends(objective)))
    if mends:
        raise UsageError(
            f"teacher {teacher.name!r} reads transcripts and its student hears them: no position of one is one of the "
            f"other, so that averages of features alone are compared: give {mends}"
        )


def _mends(objective: Objective) -> Iterator[str]:
    """Say how to leave out each part that compares answers or positions."""
    for name in objective.names:
        base = name.partition(" ")[0]
        facts, term = TERM_FACTS.get(base), objective.terms.get(name, (0.0, None))[1]
        at_positions = term is not None and (term.needs & _AT_POSITIONS or term.unit is Unit.TOKEN_GROUP)
        if facts is None or facts.compares == "answers" or at_positions:
            key = KEYS_OF_TERMS.get(base)
            flag = {"alpha": "--alpha 0", "delta": "--delta 0"}.get(key or "", f"--set objective.{key}=0")
            yield flag if key is not None else f"no term {base!r}"


def check_frames(tokenizers: TokenizerPair) -> None:
    """Refuse two models of sounds whose positions are not the same parts of a sound.

    Raises:
        UsageError: samples of a position, and the rates.
    """
    ours, theirs = tokenizers.media, tokenizers.teacher_media
    if not isinstance(ours, WaveReader) or not isinstance(theirs, AudioReader):
        return
    (our_step, their_step), (our_rate, their_rate) = (ours.stride, theirs.stride), (ours.rate, theirs.rate)
    same = our_step * their_rate == their_step * our_rate
    if not same or (isinstance(theirs, WaveReader) and ours.convolutions != theirs.convolutions):
        raise UsageError(
            f"the student's frames have {our_step} samples at {our_rate:,} Hz, the teacher's {their_step} at "
            f"{their_rate:,} Hz, by other convolutions: they cannot be compared one by one"
        )


def check_student_of_text(recipe: Recipe, task: AnyTask, teachers: Sequence[Checkpoint]) -> None:
    """Refuse to cut a student of sounds out of a teacher of text.

    Raises:
        UsageError: the student, and what is accepted.
    """
    if teachers and is_cut(recipe.student) and reads_transcripts(teachers[0].config, task.modality):
        raise UsageError(
            f"--student {recipe.student!r} is cut out of teacher {teachers[0].name!r}, which reads text and hears no "
            f"sounds (accepted: a speech model's checkpoint, or such as new:wav2vec2,layers=4 with --tokenizer "
            f"train:chars)"
        )


def check_text_teacher(recipe: Recipe, adapter: TaskAdapter, teachers: Sequence[Checkpoint]) -> None:
    """Refuse what a teacher of text that reads transcripts cannot do.

    Raises:
        UsageError: the setting, and what is accepted.
    """
    reading = [each for each in teachers if reads_transcripts(each.config, adapter.task.modality)]
    if not reading:
        return
    name = reading[0].name
    if len(teachers) > 1:
        raise UsageError(
            f"teacher {name!r} reads transcripts, which it does alone, not beside other teachers (accepted: one "
            f"--teacher; distill from one after the other, with the first student as --student of the second run)"
        )
    if layout_of(reading[0].config).family == "seq2seq":
        raise UsageError(
            f"teacher {name!r} is an encoder-decoder, which reads pairs of texts, and a transcript is one (accepted: "
            f"an encoder such as BERT or MiniLM, or a causal model)"
        )
    if recipe.cache.folder is not None:
        raise UsageError(
            f"--cache keeps features at the student's positions, and teacher {name!r} reads transcripts, which it does "
            f"in every step (accepted: no --cache)"
        )
    if "encoder" in recipe.train.freeze:
        raise UsageError(
            f"train.freeze=encoder leaves what hears as it is, and teacher {name!r} teaches nothing else (accepted: "
            f"other parts, or none)"
        )


def check_pooled(plan: Plan) -> None:
    """Refuse a plan whose averaged features would have to be compared before training or layer by layer.

    Raises:
        UsageError: the setting, and what is accepted.
    """
    if plan.pooled and (plan.choice or plan.attended):
        raise UsageError(
            f"map {plan.choice or 'learned'!r} compares layers at their positions, and features of sounds and "
            f"transcripts are averages over time (accepted: uniform and other maps by depth, or pairs)"
        )
    if plan.pooled and plan.style.start != "random":
        raise UsageError(
            f"align.start={plan.style.start} fits a projection to features at their positions, and those of sounds and "
            f"transcripts are averages over time (accepted: random)"
        )
