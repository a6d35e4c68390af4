"""Checks of a recipe against its models and task, before weights load."""

import importlib.util
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from kdalign.data.chat_templates import check_template
from kdalign.data.dual_tokenization import check_spans
from kdalign.data.epochs import fewest_rows
from kdalign.data.media.readers import ImageReader
from kdalign.data.tasks import ClassificationTask, LanguageTask
from kdalign.distillation.speech_checks import check_text_teacher, features_alone
from kdalign.environment import world_size
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.models import checkpoint_files, loading
from kdalign.models.architecture import describe, layout_of, meta_model
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.grids import layer_grids
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.inputs import padded_length
from kdalign.models.modes import batch_norms
from kdalign.models.sharding import check_divisible, check_sharding
from kdalign.models.student_source import CheckpointStudent, ScratchStudent, StudentSource
from kdalign.models.tokenizer import TokenizerPair
from kdalign.objective.losses import LEAST_GROUP
from kdalign.recipe import AugmentSettings, Recipe
from kdalign.training.optimizer import check_optimizer


@dataclass(frozen=True)
class Finding:
    """The result of one check before a run.

    Attributes:
        what: name of the check, which ``--allow`` takes.
        said: the result in words.
        mend: what can be done about it; empty if nothing is wrong.
        allowed: True if the recipe lets it through.
    """

    what: str
    said: str
    mend: str = ""
    allowed: bool = False


NOTEWORTHY = (
    *("stream", "teachers", "modalities", "labels", "classes", "inputs", "tied weights", "leak", "learning rate"),
    *("no effect", "cache folder", "vocabulary", "unshared tokens", "beginnings", "templates"),
    *("batch norm", "kept statistics"),
)
"""Findings that are announced before a run begins, in addition to those that were let through."""
UNSHARED = (
    "`soft` compares the tokens of both vocabularies one by one and all others as one; it leaves out the distance "
    "between the others, which a teacher that computes in every step adds, so that it is smaller than in such a run"
)
"""Difference of a kept teacher of another tokenizer from a computed one."""


def join_by_name(said: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Join sentences of one name, so that none replaces another."""
    joined: dict[str, str] = {}
    for name, sentence in said:
        joined[name] = f"{joined[name]}; {sentence}" if joined.get(name) else sentence
    return joined


def settle(findings: Iterable[Finding], allow: Collection[str]) -> Iterator[Finding]:
    """Yield findings, each marked if it is let through.

    Raises:
        UsageError: the first finding that is wrong and not allowed, with its mend.
    """
    for finding in findings:
        allowed = bool(finding.mend) and finding.what in allow
        if finding.mend and not allowed:
            raise UsageError(f"{finding.said}: {finding.mend}, or let it through by --allow {finding.what}")
        yield replace(finding, allowed=allowed)


def shards(recipe: Recipe) -> bool:
    """Return whether a run's models are sharded: the recipe asks for it, and there are several ranks."""
    return recipe.train.sharding != "none" and world_size() > 1


def check_task(recipe: Recipe, adapter: TaskAdapter, teacher: Checkpoint | None) -> None:
    """Refuse settings that do not go with the kind of task.

    Raises:
        UsageError: the setting, and what is accepted.
    """
    name = adapter.task.name
    if recipe.train.lora is not None and importlib.util.find_spec("peft") is None:
        raise UsageError("--lora needs a package: pip install 'kdalign[lora]'")
    check_optimizer(recipe.train)
    if shards(recipe):
        check_sharding()
    if not isinstance(adapter.task, ClassificationTask):
        _check_settings_of_labels(recipe, adapter)
    _check_augmentation(recipe.data.augment, bool(recipe.objective.built.masked_lm), adapter)
    trained = (recipe.tokenizer or "").startswith("train:")
    if isinstance(adapter.task, LanguageTask) and adapter.task.kind == "chat" and trained:
        raise UsageError(
            f"task {name!r} needs a chat template, which a tokenizer trained on the text lacks (accepted: --tokenizer "
            f"FOLDER of a saved one whose chat_template is set)"
        )
    if adapter.head is HeadKind.NONE:
        _check_embedding_task(recipe, name, teacher)


_NOUNS = {"text": "texts", "audio": "sounds", "image": "images"}


def _check_augmentation(augment: AugmentSettings, masked_lm: bool, adapter: TaskAdapter) -> None:
    """Refuse changes of texts where images are read, and of images where texts are."""
    modality = adapter.task.modality
    if masked_lm and modality != "text":
        raise UsageError(f"objective.masked_lm masks words, and task {adapter.task.name!r} reads {_NOUNS[modality]}")
    if augment.by != "none" and (augment.by == "crop") != (modality == "image"):
        accepted = {"image": "crop", "text": "masked-lm, spans, cutoff"}.get(modality, "none")
        raise UsageError(
            f"data.augment.by={augment.by} does not change what task {adapter.task.name!r} reads (accepted: {accepted})"
        )


def _check_settings_of_labels(recipe: Recipe, adapter: TaskAdapter) -> None:
    """Refuse settings that are for tasks of classes or scores."""
    name = adapter.task.name
    if recipe.data.unlabelled is not None:
        raise UsageError(
            f"--unlabelled is for tasks of classes or scores; task {name!r} needs no labels: "
            f"add the texts to its split {adapter.task.train!r}"
        )
    if recipe.objective.built.masked_lm:
        reason = "predicts tokens anyway" if adapter.head is not HeadKind.NONE else "gives embeddings"
        raise UsageError(f"objective.masked_lm is for tasks of classes or scores, and task {name!r} {reason}")
    if recipe.data.augment.by != "none":
        raise UsageError(f"data.augment is for tasks of classes or scores, not for task {name!r}")


def _check_embedding_task(recipe: Recipe, name: str, teacher: Checkpoint | None) -> None:
    """Refuse settings by which no embeddings can be learned."""
    if teacher is None:
        raise UsageError(f"task {name!r} learns from a teacher's embeddings: give --teacher")
    if recipe.train.batch_tokens is not None:
        raise UsageError(f"task {name!r} compares the texts of a batch with one another: it takes --batch-size")
    if recipe.objective.built.hard > 0:
        raise UsageError(f"task {name!r} has no labels: it takes --hard 0")
    size = recipe.train.micro_batch or -(-recipe.train.batch_size // world_size())
    if size < LEAST_GROUP:
        raise UsageError(
            f"task {name!r} compares the texts of a micro-batch with one another: {size} are too few "
            f"(accepted: {LEAST_GROUP} or more)"
        )


def check_models(recipe: Recipe, adapter: TaskAdapter, student: StudentSource, teachers: Sequence[Checkpoint]) -> None:
    """Refuse a teacher or a student that cannot do the task, or not with the other.

    Raises:
        UsageError: the model, and what is accepted.
    """
    check_text_teacher(recipe, adapter, teachers)
    for teacher in teachers:
        _check_teacher(recipe, adapter, teacher)
    if isinstance(student, CheckpointStudent):
        _check_own_weights(recipe, adapter, student)
    elif isinstance(student, ScratchStudent):
        _check_from_scratch(recipe, adapter, student)
    elif student.pretrained and not needs_finetuning(adapter, student.teacher):
        raise UsageError(
            f"init_from=pretrained is for a teacher that is fine-tuned first, not {student.teacher.name!r}"
        )


def needs_finetuning(adapter: TaskAdapter, teacher: Checkpoint) -> bool:
    """Return whether a teacher must be fine-tuned first, as it has no head for the task."""
    return adapter.head is HeadKind.CLASSIFIER and not teacher.has_classifier


def _check_teacher(recipe: Recipe, adapter: TaskAdapter, teacher: Checkpoint) -> None:
    if features_alone(adapter, teacher):
        loading.check_weights(teacher, head_of(teacher.config))
        return
    adapter.check(teacher)
    checkpoint_files.check_length(teacher, recipe.data.max_length)
    loading.check_weights(teacher, adapter.head, fresh_head=needs_finetuning(adapter, teacher))
    if needs_finetuning(adapter, teacher) and not recipe.finetune_teacher:
        raise UsageError(
            f"teacher {teacher.name!r} has no classification head, so it cannot teach {adapter.task.name!r}; "
            f"allow fine-tuning it first, or give a fine-tuned one"
        )


def _check_own_weights(recipe: Recipe, adapter: TaskAdapter, student: CheckpointStudent) -> None:
    own = student.checkpoint
    checkpoint_files.check_length(own, recipe.data.max_length)
    loading.check_weights(own, adapter.head, fresh_head=not adapter.has_head(own))


def _check_from_scratch(recipe: Recipe, adapter: TaskAdapter, student: ScratchStudent) -> None:
    if adapter.head in (HeadKind.CLASSIFIER, HeadKind.NONE) and adapter.task.modality == "text":
        raise UsageError(
            f"task {adapter.task.name!r} cannot be learned from scratch: give --student a checkpoint, or layers=N of a "
            "teacher; a task such as lm takes new:TYPE"
        )
    teacher = student.teacher
    answers = teacher is not None and not features_alone(adapter, teacher)
    if teacher is not None and answers and student.family != layout_of(teacher.config).family:
        theirs = layout_of(teacher.config).family
        raise UsageError(
            f"--student {student.name!r} is a {student.family} model, teacher {teacher.name!r} a {theirs} one"
        )
    checkpoint_files.check_positions(student.name, student.positions, recipe.data.max_length)


def check_tokenizers(
    recipe: Recipe, adapter: TaskAdapter, student: StudentSource, tokenizers: TokenizerPair, others: bool
) -> None:
    """Refuse tokenizers that cannot read the task, or not together.

    Args:
        recipe: the run's.
        adapter: the task's adapter.
        student: the run's.
        tokenizers: of student and first teacher.
        others: true if another teacher reads other tokens than the student.

    Raises:
        UsageError: the tokenizer, and what it lacks.
    """
    ours, theirs, teacher = tokenizers.student, tokenizers.teacher, student.teacher
    named = [(theirs, teacher.name)] if theirs is not None and teacher is not None else []
    if ours is not None:
        if isinstance(adapter.task, LanguageTask) and adapter.task.kind == "chat":
            check_template(ours)
            if tokenizers.differ and theirs is not None and teacher is not None:
                check_template(theirs, f"the tokenizer of teacher {teacher.name!r}")
        if recipe.objective.built.masked_lm and ours.mask_token_id is None:
            raise UsageError("objective.masked_lm needs a mask token, which the student's tokenizer lacks")
        named += [(ours, recipe.tokenizer or student.name)] if ours is not theirs else []
    for tokenizer, name in named:
        adapter.check_tokenizer(tokenizer, name, scored=False)
    if tokenizers.differ:
        adapter.check_dual()
        for tokenizer, name in named:
            check_spans(tokenizer, name)
    else:
        _check_decoder_starts(adapter, student)
        for checkpoint in filter(None, (teacher, student.checkpoint)):
            adapter.check_packing(checkpoint)
    _check_corruption(recipe.data.augment, tokenizers, tokenizers.differ or others)


def _check_decoder_starts(adapter: TaskAdapter, student: StudentSource) -> None:
    """Refuse an encoder-decoder that begins targets by another token than its teacher, whose tokens it reads."""
    own, teacher = student.checkpoint, student.teacher
    if adapter.head is not HeadKind.SEQ2SEQ or own is None or teacher is None or features_alone(adapter, teacher):
        return
    ours, theirs = (int(model.config.decoder_start_token_id) for model in (own, teacher))
    if ours != theirs:
        raise UsageError(
            f"targets of teacher {teacher.name!r} begin with token {theirs} and those of student {own.name!r} "
            f"with {ours}: they cannot read the same"
        )


def _check_corruption(augment: AugmentSettings, tokenizers: TokenizerPair, differ: bool) -> None:
    """Refuse changes to tokens that these tokenizers do not allow."""
    if not augment.corrupts or augment.by == "crop":
        return
    setting = f"data.augment.by={augment.by}"
    if differ:
        raise UsageError(f"{setting} changes tokens, and teacher and student read different ones (accepted: masked-lm)")
    if augment.by == "spans" and tokenizers.student is not None and tokenizers.student.mask_token_id is None:
        raise UsageError(f"{setting} needs a mask token, which the tokenizer lacks (accepted: cutoff)")


def check_configs(
    recipe: Recipe, student: StudentSource, config: PretrainedConfig, teachers: Sequence[Checkpoint]
) -> None:
    """Refuse models that cannot be divided among ranks, or whose texts are padded otherwise where padding is read.

    Args:
        recipe: the run's.
        student: its student.
        config: the student's configuration.
        teachers: its teachers, which read the student's tokens.

    Raises:
        UsageError: the model, or both lengths.
    """
    if recipe.train.sharding != "none":
        for each in (config, *(teacher.config for teacher in teachers)):
            check_divisible(each)
    ours = padded_length(config)
    for teacher in teachers:
        theirs = padded_length(teacher.config)
        if ours != theirs:
            said = [f"padded to {length} tokens that it reads" if length else "not padded" for length in (theirs, ours)]
            raise UsageError(
                f"texts of teacher {teacher.name!r} ({teacher.config.model_type}) are {said[0]}, and those of student "
                f"{student.name!r} ({config.model_type}) {said[1]} (accepted: texts of one length)"
            )


def check_on_policy(
    recipe: Recipe, adapter: TaskAdapter, tokenizers: TokenizerPair, configs: Sequence[PretrainedConfig]
) -> None:
    """Refuse models that cannot continue texts, or not for each other to read.

    Args:
        recipe: the run's.
        adapter: the task's adapter.
        tokenizers: of student and teacher.
        configs: the models' configurations.

    Raises:
        UsageError: the model or the setting, and what is accepted.
    """
    settings = recipe.on_policy
    if not settings.share:
        return
    if adapter.task.modality != "text":
        raise UsageError(
            f"--on-policy is for tasks of text, and task {adapter.task.name!r} reads {_NOUNS[adapter.task.modality]}"
        )
    if adapter.head not in (HeadKind.CAUSAL, HeadKind.SEQ2SEQ):
        family = layout_of(configs[0]).family
        raise UsageError(
            f"--on-policy continues texts from left to right, which a {family} model does not (accepted: causal models "
            f"and encoder-decoders)"
        )
    if tokenizers.differ:
        raise UsageError(
            "--on-policy with a teacher of another tokenizer is not supported: a text that the student writes may be "
            "cut into other tokens than its tokenizer gives, so that places do not match (accepted: the same tokenizer)"
        )
    for config in configs:
        positions = checkpoint_files.max_positions(config)
        if settings.max_new_tokens > positions:
            raise UsageError(
                f"on_policy.max_new_tokens={settings.max_new_tokens} is more than the {positions} positions of the "
                f"{config.model_type} model"
            )


def check_streaming(recipe: Recipe, adapter: TaskAdapter, teachers: Sequence[Checkpoint]) -> None:
    """Refuse what needs all rows of a training split that is read as a stream.

    Raises:
        UsageError: a teacher that must first be fine-tuned, or a task that is scored on that split.
    """
    task = adapter.task
    if recipe.data.streaming and task.train in task.evaluation:
        raise UsageError(
            f"task {task.name!r} is scored on {task.train!r}, too, which data.streaming=true never holds: leave it out "
            f"of the task's evaluation"
        )
    lacking = next((each for each in teachers if needs_finetuning(adapter, each)), None)
    if recipe.data.streaming and lacking is not None:
        raise UsageError(
            f"teacher {lacking.name!r} has no classification head and would be fine-tuned on all rows of train, which "
            f"data.streaming=true never holds: give a fine-tuned one"
        )


def check_lone_rows(
    recipe: Recipe, student: StudentSource, config: PretrainedConfig, tokenizers: TokenizerPair, rows: int
) -> None:
    """Refuse micro-batches in which batch norm would see a single value of each channel, which has no variance.

    Args:
        recipe: the run's.
        student: the run's.
        config: the student's.
        tokenizers: with what prepares images for it.
        rows: number of training examples.

    Raises:
        UsageError: the steps' rows, and what is accepted.
    """
    reader, train, ranks = tokenizers.media, recipe.train, world_size()
    if not student.untrained or not isinstance(reader, ImageReader) or not batch_norms(meta_model(config)):
        return
    last = layer_grids(config, reader.size)[-1]
    steps = {min(rows, train.batch_size), rows % train.batch_size or train.batch_size}
    fewest = 1 if train.batch_tokens else min(fewest_rows(step, ranks, train.micro_batch) for step in steps)
    if last.rows * last.columns > 1 or fewest > 1:
        return
    each = "train.batch_tokens" if train.batch_tokens else " or ".join(map(str, sorted(steps))) + " rows"
    raise UsageError(
        f"--student {student.name!r}: steps of {each}, train.micro_batch={train.micro_batch or 'none'} and processes: "
        f"{ranks} leave a row alone, of which the last stage has one value a channel, and batch norm needs several "
        f"(accepted: a train.batch_size and train.micro_batch that leave no row alone, a larger image, or fewer stages)"
    )


def check_lora(recipe: Recipe, student: StudentSource, config: PretrainedConfig) -> None:
    """Refuse adapters of a higher rank than the student's weights have, and with a vocabulary that must be learned.

    Args:
        recipe: the run's.
        student: the run's.
        config: the student's.

    Raises:
        UsageError: the option, and what is accepted.
    """
    rank = recipe.train.lora
    if rank is None:
        return
    if recipe.tokenizer is not None and student.teacher is not None:
        raise UsageError("--lora leaves embeddings as they are, and a vocabulary of its own (--tokenizer) learns them")
    width = max(stack.width for stack in describe(config).stacks)
    if rank > width:
        raise UsageError(
            f"--lora {rank} is more than the student's width {width}: no adapter has a higher rank (8 to 64 are usual)"
        )
