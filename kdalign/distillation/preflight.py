"""Check a run before any weights load: tokens, labels, inputs, lengths, attention, dropout, leaks, memory and disk.

A finding with a mend is an error, which ``--allow`` lets through by its name; the others are for the reader.
"""

import inspect
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.alignment.propose import POOLED
from kdalign.data.media.readers import ImageReader
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tasks.holdout import count_leaks
from kdalign.data.tasks.segments import first_place
from kdalign.distillation.checks import Finding, settle
from kdalign.distillation.memory import training_device
from kdalign.distillation.prepare import PreparedRun, teacher_role, whose
from kdalign.distillation.several_teachers import row_teachers
from kdalign.distillation.token_checks import token_findings
from kdalign.environment import cache_folder, ranks_here, world_size
from kdalign.errors import UsageError, cause_of
from kdalign.files import check_writable, size_text
from kdalign.models import checkpoint_files, loading
from kdalign.models.architecture import describe, layout_of, meta_model
from kdalign.models.heads import HeadKind
from kdalign.models.layouts import AttentionLayout
from kdalign.models.modes import batch_norms
from kdalign.models.student_source import CutStudent
from kdalign.recipe import DataSettings, Recipe
from kdalign.result_cache import release_pages
from kdalign.training.memory import MemoryPrediction
from kdalign.training.optimizer import MOMENT_BYTES

SMALLER = (
    "take a smaller train.micro_batch, a shorter data.max_length, train.gradient_checkpointing=true, "
    "train.optimizer_state=bf16 or 8bit, a smaller model, or another machine"
)
"""What can be done about too little memory."""
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "dropout_rate"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "embedding_dropout", "mlp_dropout"),
)


def preflight(run: PreparedRun) -> tuple[Finding, ...]:
    """Run all checks.

    Raises:
        UsageError: the first finding that is wrong and not allowed, with its mend.
    """
    return tuple(settle(_findings(run), run.recipe.allow))


def _findings(run: PreparedRun) -> Iterator[Finding]:
    student, tokenizers = run.student.config(run.tokenizers), run.tokenizers
    theirs = run.teacher.config if run.teacher is not None else None
    both = [(teacher_role(number), teacher.config) for number, teacher in enumerate(run.teachers)]
    both.append(("student", student))
    yield from _stream(run)
    if len(run.teachers) > 1:
        yield _combined(run)
    yield from _modalities(run)
    known = tokenizers.teacher is not None or tokenizers.differ
    if theirs is not None and known and run.adapter.task.modality != "image":
        yield Finding("tokenizers", _tokenizers(run))
    answering = run.teachers if tokenizers.teacher is not None else ()
    for number, teacher in enumerate(answering[: max(1, len(run.readers))]):
        yield from _special_tokens(teacher_role(number), teacher.config, run.tokenizer_of(number))
    if tokenizers.student is not None:
        yield from _special_tokens("student", student, tokenizers.student)
    yield from token_findings(run, student)
    if run.adapter.head is HeadKind.CLASSIFIER and isinstance(run.task, ClassificationTask):
        yield from _labels(run, run.task)
        yield from _classes(run, run.task)
    if run.adapter.head in (HeadKind.CLASSIFIER, HeadKind.NONE):
        yield from _inputs(both)
    yield _lengths(run, both)
    yield Finding("attention", "; ".join(f"{word}: {_attention(config)}" for word, config in both))
    yield Finding("dropout", _dropout(run, student))
    yield from _batch_norm(run, student)
    if theirs is not None and tokenizers.transcripts is None and describe(theirs).tied != describe(student).tied:
        tied = "teacher" if describe(theirs).tied else "student"
        yield Finding("tied weights", f"the {tied}'s vocabulary alone is tied to its embeddings")
    yield from _rates(run)
    idle = _without_effect(run)
    if idle:
        yield Finding("no effect", "; ".join(idle))
    yield from _leaks(run)
    if run.memory is not None:
        yield _memory(run.memory, training_device(run.recipe))
    yield from _room(run, student)
    yield from _cache()


def _stream(run: PreparedRun) -> Iterator[Finding]:
    """Say what a run sees of a stream before it trains."""
    held = run.recipe.data.held_rows
    if held is None:
        return
    said = f"train is read {held:,} rows at a time, which are shuffled among themselves"
    rows = first_place(run.task, run.splits.train).rows
    seen = f"checks, leaks, memory, calibration and monitored texts see the first {rows:,} rows alone"
    yield Finding("stream", f"{said}; {seen if rows == held else f'it has {rows:,} rows'}")


def _tokenizers(run: PreparedRun) -> str:
    if run.readers:
        apart = [teacher_role(number) for number, each in enumerate(run.readers) if each is not None]
        return f"other than the student's: {', '.join(apart)}; positions are matched by the characters of their tokens"
    if run.tokenizers.differ:
        return "two; positions are matched by the characters of their tokens"
    return "one: every token has the same number"


def _modalities(run: PreparedRun) -> Iterator[Finding]:
    """Say how a teacher of text and a student of sounds are compared, and what they are not compared by."""
    if run.tokenizers.transcripts is None or run.plan is None or run.teacher is None:
        return
    ours, theirs = run.plan.maps[0].student_stack, run.plan.maps[0].teacher_stack
    yield Finding(
        "modalities",
        f"{run.teacher.name} reads the transcripts of train and the student hears the sounds; {POOLED}: of the "
        f"student's {ours} over its real positions, of the teacher's {theirs} over the transcript's tokens; the "
        f"teacher writes no transcripts, so that there is neither agreement nor a retained share",
    )


def _combined(run: PreparedRun) -> Finding:
    """Describe the combination of several teachers' answers, and name models that are given twice."""
    recipe = run.recipe
    names = [teacher.name for teacher in run.teachers]
    ways = {
        "confidence": "mixed in each row by how certain each is",
        "weights": f"mixed by weights {', '.join(f'{share:.3g}' for share in recipe.teacher_shares)}",
    }
    way = ways.get("weights" if recipe.teachers.weights else recipe.teachers.combine, "mixed equally")
    if recipe.teachers.by is not None:
        taught_by = row_teachers(recipe, run.splits.train)
        assert taught_by is not None, "checked: train has the column"
        counts = ", ".join(f"{name} {int((taught_by == number).sum()):,} rows" for number, name in enumerate(names))
        way = f"one for each row by column {recipe.teachers.by}: {counts}"
    seen: dict[str, str] = {}
    for teacher in run.teachers:
        if teacher.hash in seen:
            way += f"; {seen[teacher.hash]} and {teacher.name} have the same weights"
        seen.setdefault(teacher.hash, teacher.name)
    return Finding(
        "teachers", f"{' and '.join(names)}, {way}; retained and agreement are relative to the teachers combined"
    )


def _lengths(run: PreparedRun, both: Sequence[tuple[str, PretrainedConfig]]) -> Finding:
    if run.grid is not None:
        readers = {"student": run.tokenizers.media, "teacher": run.tokenizers.teacher_media}
        sizes = [
            f"{word} {' x '.join(map(str, reader.size))} pixels"
            for word, reader in readers.items()
            if isinstance(reader, ImageReader)
        ]
        return Finding("images", f"{', '.join(sizes)}; features are compared at {run.grid}")
    longest = {word: checkpoint_files.max_positions(config) for word, config in both}
    said = ", ".join(
        f"{word} {'any' if positions >= checkpoint_files.UNBOUNDED else positions}"
        for word, positions in longest.items()
    )
    return Finding("lengths", f"{run.adapter.max_length} tokens of positions: {said}")


def _special_tokens(word: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Find a padding, start or end token that differs between configuration and tokenizer."""
    for role in ("pad", "bos", "eos"):
        named, given = config.to_dict().get(f"{role}_token_id"), getattr(tokenizer, f"{role}_token_id")
        accepted = named if isinstance(named, list) else [named]
        if role == "pad" and layout_of(config).family == "causal":
            continue  # padding is masked by length, whatever token it holds
        if named is not None and given is not None and given not in accepted:
            yield Finding(
                "special-tokens",
                f"{whose(word)} {role} token is {named} in its configuration and {given} in its tokenizer",
                f"set {role}_token_id in config.json",
            )


def _labels(run: PreparedRun, task: ClassificationTask) -> Iterator[Finding]:
    """Find classifier outputs in another order than the task's labels, or for several labels a text."""
    if task.regression:
        return
    models = [(teacher_role(number), teacher) for number, teacher in enumerate(run.teachers)]
    for word, checkpoint in (*models, ("student", run.student.checkpoint)):
        if checkpoint is not None and checkpoint.has_classifier:
            if loading.has_several_labels(checkpoint.config):
                yield Finding(
                    "labels",
                    f"the {word}'s head is for several labels of a text at once; its outputs are taken for one choice "
                    "(softmax), and the student is exported for one label a text",
                )
            order = loading.output_order(checkpoint.config, task)
            if order is not None and order != tuple(range(len(order))):
                outputs = [f"{label} is output {number}" for label, number in zip(task.labels, order, strict=True)]
                yield Finding("labels", f"the {word}'s are matched by name: {', '.join(outputs)}")


def _classes(run: PreparedRun, task: ClassificationTask) -> Iterator[Finding]:
    """Find training labels that are all the same, or that lack classes of the task."""
    if run.splits.train.labels is None or not len(run.splits.train):
        return
    there, n = _distinct(run.splits.train.labels), len(run.splits.train)
    if task.regression:
        if len(there) == 1 and n > 1:
            yield Finding("classes", f"warning: all {n:,} scores of train are {there[0]:g}; labels teach nothing else")
        return
    missing = [repr(label) for number, label in enumerate(task.labels) if number not in there]
    if len(there) == 1:
        only = task.labels[int(there[0])]
        yield Finding(
            "classes", f"warning: all {n:,} training examples are of the class {only!r}; labels teach no other"
        )
    elif missing:
        yield Finding("classes", f"warning: no training example is of {', '.join(missing[:_MOST_NAMES])}")


_MOST_NAMES = 5


def _distinct(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the different labels, sorted; a sort of all would copy them."""
    parts = [np.unique(labels[start : start + _PART]) for start in range(0, len(labels), _PART)]
    release_pages(labels)
    return np.unique(np.concatenate(parts))


_PART = 1 << 20


def _inputs(both: Sequence[tuple[str, PretrainedConfig]]) -> Iterator[Finding]:
    """Find token types that only one of the models reads."""
    reads = {
        word: "token_type_ids" in inspect.signature(meta_model(config).forward).parameters for word, config in both
    }
    if len(set(reads.values())) > 1:
        which = next(word for word, does in reads.items() if does)
        yield Finding("inputs", f"token types reach the {which} alone; the other model has none")


def _attention(config: PretrainedConfig) -> str:
    return {
        AttentionLayout.INTERFACE: "SDPA, maps again in mapped layers",
        AttentionLayout.OWN: f"{config.model_type}'s own, eager",
        AttentionLayout.CLOSED: "its own, eager; maps cannot be taken",
    }[layout_of(config).attention]


def _dropout(run: PreparedRun, config: PretrainedConfig) -> str:
    if run.recipe.train.dropout is not None:
        return f"the student's is set to {run.recipe.train.dropout:g} everywhere; the teacher has none"
    own = config.to_dict()
    values = {value for name in _DROPOUTS if isinstance(value := own.get(name), int | float)}
    shown = ", ".join(f"{value:g}" for value in sorted(values)) or "none"
    return f"the student's own ({shown}); the teacher has none"


def _batch_norm(run: PreparedRun, config: PretrainedConfig) -> Iterator[Finding]:
    """Say by which means and variances the student's batch norms normalise, if it has any."""
    if not batch_norms(meta_model(config)):
        return
    if not run.student.untrained:
        said = "batch norm normalises by the means and variances that the student starts with, which stay as they are"
        yield Finding("kept statistics", said)
        return
    size, ranks = run.recipe.train.micro_batch, world_size()
    said = (
        f"sees each micro-batch: another train.micro_batch ({'none' if size is None else size} here) or number of "
        f"processes ({ranks} here) gives other numbers"
    )
    yield Finding("batch norm", said + "; the first process's running statistics are exported" * (ranks > 1))


_HIGHEST_RATE = 1.0
"""Highest useful rate of AdamW, whose steps are about as long as its rate, while weights are well below 1."""


def _rates(run: PreparedRun) -> Iterator[Finding]:
    """Find learning rates at which nothing is learned."""
    rates = {"train.lr": run.recipe.train.lr, **({"finetune.lr": run.recipe.finetune.lr} if run.finetunes else {})}
    for key, rate in rates.items():
        if rate > _HIGHEST_RATE:
            said = f"{key}={rate:g} is far above what AdamW learns with (1e-5 to 1e-2): expect useless weights"
            yield Finding("learning rate", said)


def _without_effect(run: PreparedRun) -> list[str]:
    """List settings of the recipe that have no effect on this run."""
    recipe, found = run.recipe, []
    plain = Recipe(teacher=recipe.teacher, data=DataSettings(task=recipe.data.task))
    objective, train = recipe.objective, recipe.train
    if not isinstance(run.student, CutStudent) and recipe.init != plain.init:
        found.append(f"init={recipe.init} is for a student that is cut out of its teacher")
    if run.teacher is None and recipe.revision is not None:
        found.append("revision is for a teacher, and there is none")
    if not recipe.has_served_teacher and recipe.served != plain.served:
        found.append("served is for a teacher behind an API, openai:NAME")
    if train.sharding != plain.train.sharding and world_size() == 1:
        found.append(f"train.sharding={train.sharding} is for several ranks, and this is one process")
    if train.holdout != plain.train.holdout and not train.holds_out:
        found.append("train.holdout is for select: best and patience")
    if recipe.finetune != plain.finetune and not run.finetunes:
        found.append("finetune is for a teacher without a head for the task")
    if recipe.on_policy != plain.on_policy and not recipe.on_policy.share:
        found.append("on_policy is for steps on the student's own texts, and on_policy.share is 0")
    if recipe.align != plain.align and not objective.built.aligning:
        found.append("align is for terms that compare layers, and all of them have the weight 0")
    softened = objective.built.alpha or {"dkd", "dist"} & objective.built.further.keys()
    if objective.temperature != plain.objective.temperature and not softened:
        found.append("objective.temperature softens alpha, dkd and dist, and all of them have the weight 0")
    images_alone = run.task.modality == "image" and run.student.family != "dual"
    return found + _idle_data_settings(recipe.data, plain.data, images_alone)


def _idle_data_settings(data: DataSettings, plain: DataSettings, images_alone: bool) -> list[str]:
    found = []
    if images_alone and data.max_length != plain.max_length:
        found.append("data.max_length is for texts, and images have a size of their own")
    if data.limit_seed is not None and data.limit is None and data.unlabelled_limit is None:
        found.append("data.limit_seed is for data.limit, which is not given")
    if data.stream_rows != plain.stream_rows and not data.streaming:
        found.append("data.stream_rows is for data.streaming=true")
    return found


def _leaks(run: PreparedRun) -> Iterator[Finding]:
    """Count texts of reported splits that are in the task's own training text; they are announced, not refused."""
    counts = count_leaks(list(run.splits.reported.values()), run.splits.train)
    for (split, examples), seen in zip(run.splits.reported.items(), counts, strict=True):
        if seen:
            rows, train = _ROWS.get(run.task.modality, ("texts", "the training text"))
            yield Finding("leak", f"{seen:,} of the {len(examples):,} {rows} of {split} are in {train}, too")


_ROWS = {"image": ("images", "train"), "audio": ("sounds with their transcripts", "train")}
"""Words for a split's rows, and for those of train, where they are no texts."""


def _memory(memory: MemoryPrediction, device: torch.device) -> Finding:
    """Compare what a run needs of memory, beside what this process has already, with what is free.

    Ranks on one machine share what is free there; on GPUs each has one of its own.
    """
    cuda = device.type == "cuda"
    ranks = 1 if cuda else ranks_here()
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available // ranks
    said = f"{memory}; {size_text(free)} free{f' for each of {ranks} ranks' if ranks > 1 else ''}"
    if memory.needed <= free:
        return Finding("memory", said)
    return Finding("memory", f"memory does not suffice: {said}", SMALLER)


def _room(run: PreparedRun, student: PretrainedConfig) -> Iterator[Finding]:
    """Compare disk for the student and its checkpoints with what is free."""
    ours = describe(student).parameters
    moments = MOMENT_BYTES[run.recipe.train.optimizer_state] if run.recipe.train.lora is None else 0
    # The student, the best one so far, and the checkpoints that are kept while the next one is written.
    disk = (4 + 4 * (run.recipe.train.select == "best") + (run.recipe.train.keep + 1) * (4 + moments)) * ours
    place = run.folder.path.absolute()
    while not place.exists():
        place = place.parent
    free_disk = shutil.disk_usage(place).free
    said = f"{size_text(disk)} for student and checkpoints; {size_text(free_disk)} free"
    if disk <= free_disk:
        yield Finding("disk", said)
    else:
        yield Finding("disk", f"disk does not suffice: {said}", "choose another --out, or make room")
    limit, largest = _limit_of_files(), max(4, moments) * ours
    if limit is not None and largest > limit:
        said = f"a file may have {limit:,} bytes here (ulimit -f), and a checkpoint's largest has about {largest:,}"
        yield Finding("file-size", said, "raise the limit")


def _cache() -> Iterator[Finding]:
    """Find a cache folder in which no result can be kept."""
    try:
        check_writable(cache_folder())
    except (UsageError, OSError) as error:
        yield Finding(
            "cache folder",
            f"{cause_of(error)}; so every run computes anew what it does not find there: tokens, the teacher's answers "
            f"and samples, FLOPs and latency, predicted memory ($KDALIGN_CACHE names another folder)",
        )


def _limit_of_files() -> int | None:
    """Return the largest file that this process may write, in bytes; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
