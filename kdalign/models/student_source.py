"""Where a student comes from: cut out of its teacher, built from scratch, or a checkpoint of its own.

``find_student`` decides it once, from the recipe's words; everything else asks the student that it returns.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.media.rows import Modality
from kdalign.data.tokenizer_training import (
    CHARACTERS,
    MOST_CHARACTERS,
    check_vocabulary_size,
    requested_vocabulary_size,
)
from kdalign.data.transcript_reader import TranscriptReader
from kdalign.errors import UsageError
from kdalign.models import student_spec
from kdalign.models.architecture import describe, layout_of, with_tokenizer
from kdalign.models.checkpoint_files import UNBOUNDED, Checkpoint, find_checkpoint, max_positions
from kdalign.models.from_scratch import (
    ScratchSpec,
    build_from_scratch,
    parse_scratch_spec,
    scratch_config,
    shape_config,
)
from kdalign.models.layer_selection import layers_text
from kdalign.models.layouts import LAYOUTS
from kdalign.models.media_reader import load_media_reader, new_media_reader
from kdalign.models.new_image_models import ImageSpec
from kdalign.models.new_speech_models import SpeechSpec
from kdalign.models.student import build_student, transfer_vocabulary
from kdalign.models.student_spec import CutSpec
from kdalign.models.teaching import reads_transcripts, teaches_features_alone
from kdalign.models.tokenizer import (
    TokenizerPair,
    load_tokenizer,
    load_tokenizer_named,
    pair_tokenizers,
    textless_tokenizer,
)
from kdalign.recipe import PRETRAINED, Recipe


@dataclass(frozen=True)
class StudentOptions:
    """A recipe's keys for its student, as written there.

    Attributes:
        student: ``layers=3``, ``layers=half,width=192``, ``new:bert,layers=4``, a hub id or a folder.
        revision: revision of a checkpoint on the hub.
        tokenizer: hub id, folder or ``train:SIZE``; None for the teacher's tokenizer, or a checkpoint's own.
        init: teacher layers to copy: a selection's name, numbers such as ``1 3 5``, or ``random``.
        init_from: ``pretrained`` copies layers of the teacher as it was before it was fine-tuned.
        narrow_by: method of width pruning.
    """

    student: str
    revision: str | None = None
    tokenizer: str | None = None
    init: str = "uniform"
    init_from: str = "fine-tuned"
    narrow_by: str = "pca"

    @classmethod
    def of(cls, recipe: Recipe) -> "StudentOptions":
        """Take a recipe's keys."""
        return cls(
            recipe.student,
            recipe.student_revision,
            recipe.tokenizer,
            recipe.init,
            recipe.init_from,
            recipe.narrow_by,
        )


@dataclass(frozen=True)
class StudentInputs:
    """Inputs from which a student is built.

    Attributes:
        load: loads a checkpoint in float32, with the head for the task.
        tokenizers: tokenizers of student and teacher; none is still to be trained.
        texts: the teacher's inputs for a few texts, on which a narrower student's parts are chosen.
        seed: seed of all random weights.
        teacher: the teacher in memory, in float32; None to load it if the student is cut out of it.
        with_head: gives a new model's configuration the head for the task.
    """

    load: Callable[[Checkpoint], PreTrainedModel]
    tokenizers: TokenizerPair
    texts: Iterable[Mapping[str, Tensor]]
    seed: int
    teacher: PreTrainedModel | None
    with_head: Callable[[PretrainedConfig], PretrainedConfig]


@dataclass(frozen=True)
class CutStudent:
    """A student cut out of its teacher: some of its layers, narrower if wanted.

    Attributes:
        name: as in ``--student``.
        teacher: the model that it is cut out of.
        spec: number of layers of each stack, and their sizes.
        copied: for each stack, the teacher layers that are copied; None for random weights.
        narrow_by: method of width pruning.
        pretrained: True if the teacher's layers are copied as they were before it was fine-tuned.
        tokenizer_name: hub id, folder or ``train:SIZE``; None for the teacher's tokenizer.
    """

    name: str
    teacher: Checkpoint
    spec: CutSpec
    copied: Mapping[str, tuple[int, ...]] | None
    narrow_by: str
    pretrained: bool
    tokenizer_name: str | None
    checkpoint: ClassVar[None] = None

    @property
    def family(self) -> str:
        """Family of the model, such as ``masked``."""
        return layout_of(self.teacher.config).family

    @property
    def modality(self) -> Modality:
        """What the model reads."""
        return layout_of(self.teacher.config).modality

    @property
    def positions(self) -> int:
        """Longest input in tokens."""
        return max_positions(self.teacher.config)

    @property
    def untrained(self) -> bool:
        """True if its layers start from random weights."""
        return self.copied is None or (self.spec.narrows and self.narrow_by == "random")

    @property
    def runs_teacher(self) -> bool:
        """True if the teacher reads texts to choose the parts that a narrower student keeps."""
        return self.copied is not None and self.spec.narrows

    def tokenizers(self) -> TokenizerPair:
        """Load the student's and the teacher's tokenizer.

        Raises:
            UsageError: one is missing, or the student cannot have it.
        """
        theirs, media = load_tokenizer(self.teacher), load_media_reader(self.teacher)
        if self.tokenizer_name is None:
            return pair_tokenizers(theirs, theirs).with_media(media, media)
        pair = pair_tokenizers(_own_tokenizer(self.tokenizer_name, self.family), theirs).with_media(media, media)
        self.config(pair)
        return pair

    def config(self, tokenizers: TokenizerPair) -> PretrainedConfig:
        """Return the teacher's configuration with fewer layers, narrower, and with the student's vocabulary.

        Raises:
            UsageError: sizes or a tokenizer that the family cannot have.
        """
        config = self.spec.config(self.teacher.config)
        if not tokenizers.differ:
            return config
        if tokenizers.student is None:
            config.vocab_size = tokenizers.size
            if (config.pad_token_id or 0) >= tokenizers.size:
                config.pad_token_id = 0  # as in every tokenizer that is trained here
            return config
        return with_tokenizer(config, tokenizers.student)

    def build(self, inputs: StudentInputs) -> PreTrainedModel:
        """Build the student out of its teacher's weights, in float32."""
        origin = inputs.load(self.teacher) if self.pretrained or inputs.teacher is None else inputs.teacher
        model = build_student(origin, self.spec, self.copied, self.narrow_by, inputs.texts, inputs.seed)
        tokenizers = inputs.tokenizers
        if tokenizers.differ:
            model = transfer_vocabulary(model, tokenizers.student, tokenizers.teacher)
        return model

    def __str__(self) -> str:
        if self.untrained or self.copied is None:
            return f"{self.name} at random"
        before = " before fine-tuning" if self.pretrained else ""
        narrowed = f", narrowed by {self.narrow_by}" if self.spec.narrows else ""
        return f"layers {layers_text(self.copied)} of {self.teacher.name}{before}{narrowed}"


@dataclass(frozen=True)
class ScratchStudent:
    """A student built from scratch, every weight random.

    Attributes:
        name: as in ``--student``.
        teacher: None for a student that is trained alone.
        spec: model type and sizes.
        tokenizer_name: hub id, folder or ``train:SIZE``; None for the teacher's tokenizer.
    """

    name: str
    teacher: Checkpoint | None
    spec: ScratchSpec | ImageSpec | SpeechSpec
    tokenizer_name: str | None
    checkpoint: ClassVar[None] = None
    copied: ClassVar[None] = None
    untrained: ClassVar[bool] = True

    @property
    def family(self) -> str:
        """Family of the model, such as ``masked``."""
        return LAYOUTS[self.spec.model_type].family

    @property
    def modality(self) -> Modality:
        """What the model reads."""
        return LAYOUTS[self.spec.model_type].modality

    @property
    def positions(self) -> int:
        """Longest input in tokens."""
        if isinstance(self.spec, ImageSpec) and self.spec.reads_text:
            return self.spec.one("positions")
        return self.spec.positions if isinstance(self.spec, ScratchSpec) else UNBOUNDED

    def tokenizers(self) -> TokenizerPair:
        """Load the student's tokenizer and, if there is a teacher, the teacher's.

        Raises:
            UsageError: one is missing, or nothing says which the student has.
        """
        teacher = self.teacher
        theirs = _tokenizer_of_teacher(teacher, self)
        media = load_media_reader(teacher) if teacher is not None else None
        pair = self._tokenizers(theirs)
        if isinstance(self.spec, ScratchSpec):
            return pair
        pair = pair.with_media(new_media_reader(self.config(pair), media), media)
        return replace(pair, transcripts=_transcript_reader(teacher, self))

    def _tokenizers(self, theirs: PreTrainedTokenizerBase | None) -> TokenizerPair:
        if isinstance(self.spec, ImageSpec) and not self.spec.reads_text:
            return pair_tokenizers(textless_tokenizer(), theirs)
        if self.tokenizer_name is not None:
            return pair_tokenizers(_own_tokenizer(self.tokenizer_name, self.family), theirs)
        if theirs is not None:
            return pair_tokenizers(theirs, theirs)
        example = CHARACTERS if isinstance(self.spec, SpeechSpec) else "train:8000"
        raise UsageError(f"--student {self.name!r} needs --tokenizer: a hub id, a folder, or {example}")

    def config(self, tokenizers: TokenizerPair) -> PretrainedConfig:
        """Return the configuration for the student's vocabulary and special tokens.

        If the tokenizer is still to be trained, the number of its entries stands for it, and its special tokens are 0.

        Raises:
            UsageError: a tokenizer without a special token that the model needs.
        """
        if isinstance(self.spec, ImageSpec):
            return self.spec.config(tokenizers.student, tokenizers.size)
        if isinstance(self.spec, SpeechSpec):
            blank = 0 if tokenizers.student is None else int(tokenizers.student.pad_token_id)
            return self.spec.config(tokenizers.size, blank)
        if tokenizers.student is None:
            return shape_config(self.spec, tokenizers.size)
        config = scratch_config(self.spec, tokenizers.student)
        if self.teacher is not None and config.is_encoder_decoder:  # both read the same targets
            config.decoder_start_token_id = self.teacher.config.decoder_start_token_id
        return config

    def build(self, inputs: StudentInputs) -> PreTrainedModel:
        """Build the student with random weights, in float32."""
        return build_from_scratch(inputs.with_head(self.config(inputs.tokenizers)), inputs.seed)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CheckpointStudent:
    """A student that is a checkpoint of its own.

    Attributes:
        checkpoint: the model.
        teacher: None for a student that is trained alone.
    """

    checkpoint: Checkpoint
    teacher: Checkpoint | None
    copied: ClassVar[None] = None
    untrained: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As in ``--student``."""
        return self.checkpoint.name

    @property
    def family(self) -> str:
        """Family of the model, such as ``masked``."""
        return layout_of(self.checkpoint.config).family

    @property
    def modality(self) -> Modality:
        """What the model reads."""
        return layout_of(self.checkpoint.config).modality

    @property
    def positions(self) -> int:
        """Longest input in tokens."""
        return max_positions(self.checkpoint.config)

    def tokenizers(self) -> TokenizerPair:
        """Load the student's tokenizer and, if there is a teacher, the teacher's.

        Raises:
            UsageError: one is missing.
        """
        theirs = _tokenizer_of_teacher(self.teacher, self)
        media = load_media_reader(self.teacher) if self.teacher is not None else None
        own = load_media_reader(self.checkpoint)
        pair = pair_tokenizers(load_tokenizer(self.checkpoint), theirs).with_media(own, media)
        return replace(pair, transcripts=_transcript_reader(self.teacher, self))

    def config(self, tokenizers: TokenizerPair) -> PretrainedConfig:
        """Return the checkpoint's configuration, whatever the tokenizers."""
        return self.checkpoint.config

    def build(self, inputs: StudentInputs) -> PreTrainedModel:
        """Load the checkpoint, in float32."""
        return inputs.load(self.checkpoint)

    def __str__(self) -> str:
        return self.name


StudentSource = CutStudent | ScratchStudent | CheckpointStudent


def find_student(options: StudentOptions, teacher: Checkpoint | None, *, weights: bool = True) -> StudentSource:
    """Decide from a recipe's words where its student comes from.

    Args:
        options: the recipe's keys for the student.
        teacher: None for a student that is trained alone.
        weights: False if only a checkpoint's configuration is needed.

    Raises:
        UsageError: a student that cannot be cut, built or found, or an option for another kind of student.
    """
    name = options.student
    if name.startswith("new:"):
        spec = parse_scratch_spec(name)
        _check_options(options, cut=None, own=False)
        if isinstance(spec, ImageSpec) and not spec.reads_text and options.tokenizer is not None:
            raise UsageError(f"--tokenizer is for models of text, and {name!r} reads images")
        return ScratchStudent(name, teacher, spec, options.tokenizer)
    cut = student_spec.parse_cut(name, describe(teacher.config)) if teacher is not None else None
    if teacher is None or cut is None:
        if student_spec.is_cut(name):
            raise UsageError(f"--student {name!r} is cut out of a teacher; without one, give a model or new:TYPE")
        _check_options(options, cut=None, own=True)
        return CheckpointStudent(find_checkpoint(name, options.revision, weights=weights), teacher)
    _check_options(options, cut=cut, own=False)
    _check_media(options, cut, teacher)
    cut.config(teacher.config)
    copied = student_spec.starting_layers(options.init, cut.layers, describe(teacher.config))
    if copied is not None:
        student_spec.check_cut(teacher.config, copied)
    pretrained = options.init_from == PRETRAINED
    return CutStudent(name, teacher, cut, copied, options.narrow_by, pretrained, options.tokenizer)


def _check_media(options: StudentOptions, cut: CutSpec, teacher: Checkpoint) -> None:
    """Refuse to cut stages out of a pyramid, and another tokenizer for a model that reads sounds or images."""
    layout, model_type = layout_of(teacher.config), teacher.config.model_type
    whole = all(cut.layers[stack.name] == stack.layers for stack in describe(teacher.config).stacks)
    if layout.staged and not (whole and not cut.narrows):
        sizes = "depths=1-1-1-1" if model_type == "swin" else "depths=1-1-1-1,widths=32-64-128-256"
        raise UsageError(
            f"--student {options.student!r}: the stages of a {model_type} model have widths and grids of their own, so "
            f"none can be left out or narrowed (accepted: a checkpoint, or such as new:{model_type},{sizes})"
        )
    if layout.modality != "text" and options.tokenizer is not None:
        reads = "sounds" if layout.modality == "audio" else "images"
        raise UsageError(
            f"--tokenizer is for models of text, and {teacher.name!r} reads {reads} (accepted: the teacher's)"
        )


def _check_options(options: StudentOptions, *, cut: CutSpec | None, own: bool) -> None:
    """Refuse options for another kind of student.

    Args:
        options: the recipe's keys for the student.
        cut: None for a student that is not cut out of its teacher.
        own: True for a checkpoint of its own.
    """
    if options.revision is not None and not own:
        made = "cut out of the teacher" if cut is not None else "built from scratch"
        raise UsageError(f"student_revision is for a student on the hub; {options.student!r} is {made}")
    if options.narrow_by != "pca" and (cut is None or not cut.narrows):
        raise UsageError(
            f"narrow_by={options.narrow_by} is for a student narrower than its teacher, such as layers=half,width=192"
        )
    if options.init == "random" and cut is None:
        raise UsageError("--init random is for a student cut out of the teacher (layers=N)")
    if options.init_from == PRETRAINED and (cut is None or options.init == "random"):
        raise UsageError("init_from=pretrained is for a student that copies layers of its teacher (layers=N)")
    if options.tokenizer is not None and own:
        raise UsageError("--tokenizer is for students that are cut or new; a checkpoint brings its own")


def _tokenizer_of_teacher(teacher: Checkpoint | None, student: StudentSource) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a student's teacher; None without one, or if it teaches features alone."""
    if teacher is None or teaches_features_alone(teacher.config, student.family, student.modality):
        return None
    return load_tokenizer(teacher)


def _transcript_reader(teacher: Checkpoint | None, student: StudentSource) -> TranscriptReader | None:
    """Return how a teacher of text reads the transcripts of what its student hears; None for other teachers."""
    if teacher is None or not reads_transcripts(teacher.config, student.modality):
        return None
    return TranscriptReader(load_tokenizer(teacher), max_positions(teacher.config))


def _own_tokenizer(name: str, family: str) -> PreTrainedTokenizerBase | int:
    """Load a tokenizer by name; for ``train:SIZE``, return the number of its entries.

    Raises:
        UsageError: no such tokenizer, or a size without room for all bytes and the family's special tokens.
    """
    if name == CHARACTERS and family == "ctc":
        return MOST_CHARACTERS
    size = requested_vocabulary_size(name)
    if size is None:
        return load_tokenizer_named(name, family)
    check_vocabulary_size(size, family)
    return size
