"""What the student of a run is: cut out of the teacher, from scratch, or a checkpoint."""

from collections.abc import Mapping

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.tokenizer_training import check_vocabulary_size, requested_vocabulary_size
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.models import student_spec
from kdalign.models.architecture import Architecture, describe, layout_of, with_tokenizer
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.from_scratch import ScratchSpec, parse_scratch_spec, scratch_config
from kdalign.models.layouts import LAYOUTS
from kdalign.models.student_spec import CutSpec
from kdalign.models.tokenizer import load_tokenizer, load_tokenizer_named
from kdalign.recipe import Recipe


def type_of(new: ScratchSpec | None) -> str:
    """The model type of a student built from scratch."""
    assert new is not None, "a student is cut, a checkpoint or new"
    return new.model_type


def own_tokenizer(
    recipe: Recipe,
    adapter: TaskAdapter,
    teacher: Checkpoint | None,
    own: Checkpoint | None,
    theirs: PreTrainedTokenizerBase | None,
) -> PreTrainedTokenizerBase | None:
    """The student's tokenizer: its own, one that was asked for, or its teacher's; None where it is to be trained."""
    if own is not None:
        if recipe.tokenizer is not None:
            raise UsageError("--tokenizer is for students that are cut or new; a checkpoint brings its own")
        return load_tokenizer(own)
    if recipe.tokenizer is None:
        return theirs
    if recipe.train.lora is not None and teacher is not None:
        raise UsageError("--lora leaves embeddings as they are, and a vocabulary of its own (--tokenizer) learns them")
    family = _family(recipe, teacher)
    size = requested_vocabulary_size(recipe.tokenizer)
    if size is not None:
        check_vocabulary_size(size, family)
        return None
    found = load_tokenizer_named(recipe.tokenizer, family)
    if teacher is not None and not recipe.student.startswith("new:"):
        with_tokenizer(teacher.config, found)
    return found


def _family(recipe: Recipe, teacher: Checkpoint | None) -> str:
    """Of a student that is cut or new."""
    if teacher is not None:
        return layout_of(teacher.config).family
    return LAYOUTS[parse_scratch_spec(recipe.student).model_type].family


def cut_spec(teacher: Checkpoint, name: str, init: str) -> tuple[CutSpec | None, Mapping[str, tuple[int, ...]] | None]:
    """What a student keeps of its teacher, and the layers that it starts from, checked; None for what is no cut."""
    theirs = describe(teacher.config)
    cut = student_spec.parse_cut(name, theirs)
    if cut is None:
        return None, None
    cut.config(teacher.config)
    start = student_spec.starting_layers(init, cut.layers, theirs)
    if start is not None:
        student_spec.check_cut(teacher.config, start)
    return cut, start


def student_architecture(
    teacher: Checkpoint,
    own: Checkpoint | None,
    new: ScratchSpec | None,
    cut: CutSpec | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Architecture:
    """The student's."""
    return describe(student_config(teacher, own, new, cut, tokenizer))


def student_config(
    teacher: Checkpoint | None,
    own: Checkpoint | None,
    new: ScratchSpec | None,
    cut: CutSpec | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PretrainedConfig:
    """The student's configuration: cut out of the teacher's, new, or a checkpoint's own.

    ``tokenizer`` is a new student's, or one that a cut student gets in place of its teacher's.
    """
    if cut is not None:
        assert teacher is not None, "a student is cut out of a teacher"
        config = cut.config(teacher.config)
        return config if tokenizer is None else with_tokenizer(config, tokenizer)
    if new is not None:
        assert tokenizer is not None, "a new student has a tokenizer, or stands in with its teacher's"
        return scratch_config(new, tokenizer)
    assert own is not None, "a student is cut, a checkpoint or new"
    return own.config
