"""Find and load checkpoints: a hub id or a folder, safetensors only, no remote code."""

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import file_exists, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from kdalign.data.tasks import Task
from kdalign.data.tasks.task import label_order
from kdalign.errors import UsageError, cause_of, did_you_mean, library_errors, shortened
from kdalign.files import is_utf8, read_json, sha256
from kdalign.models.architecture import (
    LANGUAGE_HEADS,
    HeadKind,
    accepted_inputs,
    any_ids,
    attention_of,
    auto_class,
    block_paths,
    check_sizes,
    count_parameters,
    has_classifier,
    head_of,
    language_model_class,
    layout_of,
    not_finite,
    skeleton,
)
from kdalign.models.weight_files import ADAPTER, INDEX, WHOLE, adapter_in, held_in, shard_names, weight_files

UNBOUNDED = 10**9
"""The positions of a model that has no longest input."""

_MOST_LAYERS = 1_000
"""Of a model that is built: beyond that, a number in a configuration is taken for a mistake."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, its configuration read, its weights not yet.

    Attributes:
        name: as the user gave it.
        path: what ``from_pretrained`` takes.
        revision: the hub's commit that every file comes from; None for a folder.
        hash: the hub's commit, or the first 16 digits of the SHA-256 of a folder's weights.
        gguf: the name of the GGUF file in a folder that holds one instead of safetensors.
    """

    name: str
    path: str
    config: PretrainedConfig
    revision: str | None
    hash: str
    gguf: str | None = None

    @property
    def has_classifier(self) -> bool:
        """Whether it says that it carries a classification head."""
        return has_classifier(self.config)


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Checkpoint:
    """Find a checkpoint and read its configuration.

    Args:
        name: a folder (a run folder stands for its student), or a hub id such as ``org/name``.
        revision: a branch, tag or commit on the hub.
        weights: whether they must be there; a configuration alone tells the shape.

    Raises:
        UsageError: nothing there, a configuration of which no model can be made, weights that are missing, damaged or
            quantised, an adapter, or a model type that kdalign does not know.
    """
    if not name.strip():
        raise UsageError(f"the name of a model is empty: {name!r}")
    try:
        folder = Path(name).expanduser()
        if (folder / "student" / "config.json").is_file():
            folder = folder / "student"
        is_folder, there = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder of a user that is unknown
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot look for model {shortened(repr(name), 120)}: {why}") from None
    if there and not is_utf8(folder):
        raise UsageError(f"the name of model {name!r} is no UTF-8, as those of files with weights must be: rename it")
    if is_folder or folder.suffix == ".gguf":
        if revision is not None:
            raise UsageError(f"--revision is for hub models; {name!r} is a local one")
        return _in_folder(name, folder, weights) if is_folder else _in_gguf(name, folder)
    if there or not re.fullmatch(r"[\w][\w.\-]*(/[\w][\w.\-]*)?", name):
        what = "is a file" if there else "does not exist"
        raise UsageError(
            f"model {shortened(repr(name), 120)} {what} "
            "(accepted: a folder with config.json and safetensors, a .gguf file, or a hub id)"
        )
    return _on_hub(name, revision, weights)


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        UsageError: it has none, one without a padding token, or one that numbers tokens beyond the model's vocabulary.
    """
    family, name = layout_of(checkpoint.config).family, checkpoint.name
    tokenizer = load_tokenizer_named(name, family, checkpoint.path, checkpoint.revision, checkpoint.gguf)
    token, highest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if highest >= checkpoint.config.vocab_size:
        raise UsageError(
            f"the tokenizer of {name!r} is not this model's: it gives {token!r} the number {highest}, and the model "
            f"has {checkpoint.config.vocab_size} entries; put the model's own tokenizer beside it"
        )
    return tokenizer


def load_tokenizer_named(
    name: str, family: str, path: str | None = None, revision: str | None = None, gguf: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, which need not hold a model, for models of a family.

    Raises:
        UsageError: it has none, or one without a padding token (causal models pad with their end token).
    """
    extra = {} if gguf is None else {"gguf_file": gguf}
    folder = Path(path or name)
    if gguf is None and folder.is_dir():
        _check_tokenizer_files(name, folder)
    mend = "a tokenizer.json that this version of tokenizers reads is needed (save it again by save_pretrained)"
    with library_errors(f"model {name!r} has no tokenizer that can be read", mend), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(path or name, revision=revision, trust_remote_code=False, **extra)
        entries, special = len(tokenizer), len(tokenizer.all_special_ids)
        tokenizer("a b")  # a file may be read and yet not work
    if entries <= special:  # what from_pretrained makes where there are no files
        raise UsageError(f"model {name!r} has no tokenizer: its files hold no vocabulary")
    if tokenizer.pad_token_id is None and family == "causal":
        # What is padded is masked by its length, whatever it holds.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"the tokenizer of {name!r} has no padding token; name one of its tokens pad_token in tokenizer_config.json"
        )
    return tokenizer


_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def _check_tokenizer_files(name: str, folder: Path) -> None:
    """Refuse files that are no JSON objects, and tokenizers of which kdalign needs another form.

    Raises:
        UsageError: which file, and what is accepted.
    """
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / file).is_file() and not isinstance(read_json(folder / file, parse_constant=float), dict):
            raise UsageError(f"{str(folder / file)!r} is not a tokenizer's: it holds no object ({{...}})")
    there = [file for file in (*_TOKENIZERS, "source.spm") if (folder / file).is_file()]
    pieces = [file for file in there if file.endswith((".model", ".spm"))]
    if pieces and "tokenizer.json" not in there and importlib.util.find_spec("sentencepiece") is None:
        raise UsageError(
            f"the tokenizer of {name!r} is a {pieces[0]} without a tokenizer.json, and reading it needs a package: "
            "pip install sentencepiece, or save it beside as tokenizer.json where that is installed"
        )


def positions(config: PretrainedConfig) -> int:
    """The longest input in tokens that a model takes."""
    given = getattr(config, "max_position_embeddings", None)  # T5 has none and XLNet -1: they count relatively
    found = int(given) if given is not None and given > 0 else UNBOUNDED
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        found -= int(config.pad_token_id) + 1  # these count positions from after the padding id
    return found


def check_length(checkpoint: Checkpoint, max_length: int, flag: str = "--max-length") -> None:
    """Refuse inputs longer than the model's positions."""
    if max_length > positions(checkpoint.config):
        raise UsageError(
            f"{flag} {max_length} is more than the {positions(checkpoint.config)} positions of {checkpoint.name!r}: "
            f"give {flag} {positions(checkpoint.config)} or less"
        )


def check_head(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse a classification head that is for other labels than the task's, before any weights are loaded."""
    if output_order(checkpoint.config, task) is None:
        names = [checkpoint.config.id2label[i] for i in range(checkpoint.config.num_labels)]
        wanted = ", ".join(task.labels) or "one score"
        mend = _label_mend(list(map(str, names)), task)
        raise UsageError(
            f"model {checkpoint.name!r} has a head for {', '.join(map(str, names))}; "
            f"task {task.name!r} has {wanted}{mend}"
        )


def _label_mend(names: list[str], task: Task) -> str:
    """The way on where a head has other names than a task, as a clause; empty where it is for something else."""
    if task.order_unknown:
        return "; name the labels in the model's order in a task file"
    if task.labels and len(names) == len(task.labels):
        return (
            f"; which of them is which is not known: name id2label in config.json by the task's labels, each with the "
            f'number of its output, such as {{"0": {json.dumps(task.labels[0])}, ...}}'
        )
    return ""


def for_several_labels(config: PretrainedConfig) -> bool:
    """Whether a head says that it gives each label a probability of its own, several of which may hold."""
    return bool(config.problem_type == "multi_label_classification")


def output_order(config: PretrainedConfig, task: Task) -> tuple[int, ...] | None:
    """For each of the task's outputs, the number of the model's output that stands for it; None where none does."""
    if task.regression:
        return (0,) if config.num_labels == 1 else None
    return label_order([str(config.id2label[number]) for number in range(config.num_labels)], task)


def load_classifier(
    checkpoint: Checkpoint, task: Task, *, fresh_head: bool, seed: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a checkpoint as a classifier (or regressor) for a task.

    Args:
        checkpoint: where from.
        task: its labels name the outputs of a fresh head.
        fresh_head: put a new random head on it; otherwise the head must be in the weights.
        seed: of the new head.
        dtype: of the weights in memory, whatever they are in the file.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    config = for_task(checkpoint.config, task) if fresh_head else checkpoint.config
    loaded = _load(AutoModelForSequenceClassification, checkpoint, config, dtype, seed)
    _check_whole(checkpoint, loaded, fresh_head)
    return _of_numbers(_with_fresh_head(loaded.model, seed) if fresh_head else loaded.model, checkpoint)


def load_language_model(
    checkpoint: Checkpoint, *, fresh_head: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a checkpoint with its family's language-model head.

    Args:
        checkpoint: where from.
        fresh_head: put a new random head on a body without one; otherwise the head must be in the weights.
        seed: of the new head.
        dtype: of the weights in memory, whatever they are in the file.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    if checkpoint.gguf is not None:
        return _of_numbers(_load_gguf(checkpoint, dtype), checkpoint)
    auto = auto_class(LANGUAGE_HEADS[layout_of(checkpoint.config).family])
    loaded = _load(auto, checkpoint, checkpoint.config, dtype, seed)
    _check_whole(checkpoint, loaded, fresh_head)
    return _of_numbers(loaded.model, checkpoint)


def load_body(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint without any head, in float32.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    loaded = _load(auto_class(HeadKind.NONE), checkpoint, checkpoint.config, torch.float32)
    _check_whole(checkpoint, loaded, False)
    return _of_numbers(loaded.model, checkpoint)


def check_weights(checkpoint: Checkpoint, head: HeadKind, *, fresh_head: bool = False) -> None:
    """Refuse weights that could not be loaded under a head, or that hold NaN, without keeping them in memory.

    Names and shapes are those of the headers; values are looked at one tensor at a time. Weights on the hub that are
    not here yet are looked at once they are loaded.

    Args:
        checkpoint: where from.
        head: that answers.
        fresh_head: whether it would be a new one; otherwise it must be in the weights.

    Raises:
        UsageError: the weights lack what the configuration promises, have it in another shape, or are no numbers.
    """
    if checkpoint.gguf is not None or not _here(checkpoint):
        return
    of = f"{checkpoint.path} {checkpoint.hash} {_written(checkpoint.config)}"
    if (of, head, fresh_head) not in _SOUND:
        loaded = _load(auto_class(head), checkpoint, checkpoint.config, torch.float32, device="meta")
        _check_whole(checkpoint, loaded, fresh_head)
        _SOUND.add((of, head, fresh_head))
    if of not in _SOUND:
        _check_numbers(checkpoint)
        _SOUND.add(of)


_SOUND: set[object] = set()
"""What this process has found whole: runs of several tasks, arms and seeds ask again of the same models."""


def _written(config: PretrainedConfig) -> str:
    return f"{type(config).__name__} {config.to_json_string(use_diff=False)}"


def _check_numbers(checkpoint: Checkpoint) -> None:
    """Refuse a folder whose weights hold NaN or infinity; those in the hub's cache are looked at once loaded."""
    if checkpoint.revision is not None:
        return
    for file in weight_files(Path(checkpoint.path), checkpoint.name):
        with library_errors(f"cannot read the weights of {checkpoint.name!r}"), safe_open(file, "pt") as opened:
            for name in opened.keys():  # it is no dictionary
                tensor = opened.get_tensor(name)
                if tensor.dtype in _CHECKED and not bool(tensor.isfinite().all()):
                    raise _no_numbers(checkpoint, name)


_CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _of_numbers(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """A model whose weights are all finite.

    Raises:
        UsageError: which is not.
    """
    bad = not_finite(model)
    if bad:
        raise _no_numbers(checkpoint, bad)
    return model


def _no_numbers(checkpoint: Checkpoint, weight: str) -> UsageError:
    return UsageError(
        f"model {checkpoint.name!r} gives NaN: its weight {weight!r} holds NaN or infinite numbers (a training that "
        f"diverged, or a damaged file); take another checkpoint"
    )


def _here(checkpoint: Checkpoint) -> bool:
    """Whether the weights lie on this machine."""
    if checkpoint.revision is None:
        return True
    found = [try_to_load_from_cache(checkpoint.path, file, revision=checkpoint.revision) for file in (WHOLE, INDEX)]
    if isinstance(found[0], str) or not isinstance(found[1], str):
        return isinstance(found[0], str)
    return all((Path(found[1]).parent / shard).is_file() for shard in shard_names(Path(found[1])))


@dataclass(frozen=True)
class _Loaded:
    """A model, and Transformers' report on what became of the names in its weights.

    Attributes:
        missing: parameters that the weights lack, or have in another shape.
        unexpected: names in the weights that the model has no place for.
        shapes: of those in another shape, the one in the weights and the one that the configuration asks for.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def _check_whole(checkpoint: Checkpoint, loaded: _Loaded, fresh_head: bool) -> None:
    """Refuse a model of which parts would start at random.

    Args:
        checkpoint: where it comes from.
        loaded: what came.
        fresh_head: whether its head may be new; its body and embeddings may not.
    """
    name, model = checkpoint.name, loaded.model
    missing = [each for each in loaded.missing if not _may_be_new(each, model, fresh_head)]
    if not missing:
        _check_all_layers(name, loaded)
        return
    if missing[0] in loaded.shapes:
        held, asked = loaded.shapes[missing[0]]
        raise UsageError(
            f"the weights of {name!r} are not those of its configuration: {missing[0]!r} has the shape {held} there, "
            f"and {asked} is asked for"
        )
    other = next((name for name in loaded.unexpected if name.endswith(f".{missing[0]}")), None)
    if other is not None:
        before = other.removesuffix(missing[0])
        saved = "saved from a compiled model" if before == "_orig_mod." else "saved from inside another module"
        raise UsageError(
            f"the weights of {name!r} have {before!r} before every name ({saved}): "
            f"save them without it, such as {missing[0]!r}"
        )
    of_all = " all" if len(missing) == len(model.state_dict()) else ""
    raise UsageError(
        f"the weights of {name!r} lack{of_all} {len(missing):,} tensors of a {checkpoint.config.model_type} "
        f"model, such as {missing[0]!r}, which would start at random"
    )


def _may_be_new(parameter: str, model: PreTrainedModel, fresh_head: bool) -> bool:
    """Whether a parameter may start at random: of a pooler that nothing reads, or of a head that is to be new."""
    if model.base_model is model:
        return parameter.startswith("pooler.")
    return fresh_head and (".pooler." in parameter or not parameter.startswith(f"{model.base_model_prefix}."))


def _check_all_layers(name: str, loaded: _Loaded) -> None:
    """Refuse weights of more layers than the configuration has, which would be left out without a word."""
    for path in block_paths(loaded.model).values():
        numbers = [
            int(found[1])
            for each in loaded.unexpected
            if (found := re.search(rf"(?:^|\.){re.escape(path)}\.(\d+)\.", each)) is not None
        ]
        layers = len(list(loaded.model.get_submodule(path).children()))
        if numbers and max(numbers) >= layers:
            raise UsageError(
                f"the weights of {name!r} have {max(numbers) + 1} layers, and its configuration {layers}: correct "
                "config.json (kdalign cuts a model itself: --student layers=N)"
            )


def further_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """A further file of a checkpoint; None where it has none.

    Older sentence-transformers keep the model in a folder ``0_Transformer``, and what goes for the whole above it.
    """
    inner = Path(checkpoint.path).absolute()
    if checkpoint.revision is None and not (inner / name).is_file() and (inner.parent / "modules.json").is_file():
        if re.fullmatch(r"\d+_Transformer", inner.name) and (inner.parent / name).is_file():
            return inner.parent / name
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with library_errors(f"cannot look for {name} of {checkpoint.name!r}"):
        file = cached_file(checkpoint.path, name, revision=checkpoint.revision, **missing)
    return None if file is None else Path(file)


def _load(
    auto: Any,
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: torch.dtype,
    seed: int = 0,
    device: str | None = None,
) -> _Loaded:
    """A checkpoint's model; what its weights lack is drawn by the seed. On the meta device no tensor is read."""
    place = {} if device is None else {"device_map": device}
    with (
        library_errors(f"cannot load the weights of {checkpoint.name!r}"),
        _quiet(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(seed)
        model, report = auto.from_pretrained(
            checkpoint.path,
            config=config,
            revision=checkpoint.revision,
            dtype=dtype,
            attn_implementation=attention_of(config),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, with their names
            **place,
        )
    shapes = {name: (tuple(held), tuple(asked)) for name, held, asked in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *shapes}
    return _Loaded(model, tuple(sorted(missing)), tuple(sorted(report["unexpected_keys"])), shapes)


def _load_gguf(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of a GGUF file, its weights spread out, as an ordinary model.

    What Transformers loads counts as quantised, and can be neither cast nor saved: its weights are moved into another.
    """
    auto = auto_class(LANGUAGE_HEADS[layout_of(checkpoint.config).family])
    with library_errors(f"cannot load the weights of {checkpoint.name!r}"), _quiet():
        loaded = auto.from_pretrained(checkpoint.path, gguf_file=checkpoint.gguf, dtype=dtype)
        model: PreTrainedModel = auto.from_config(
            checkpoint.config, attn_implementation=attention_of(checkpoint.config), dtype=dtype
        )
        model.load_state_dict(loaded.state_dict())
    return model


def _with_fresh_head(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The same encoder under a head drawn by the seed, even where the checkpoint's head would have fitted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForSequenceClassification.from_config(
            model.config, attn_implementation=attention_of(model.config), dtype=model.dtype
        )
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    return fresh


def load_as_it_is(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint with the head it has, or none, in float32, for measuring.

    Raises:
        UsageError: the weights are unreadable.
    """
    if checkpoint.gguf is not None:
        return _load_gguf(checkpoint, torch.float32)
    loaded = _load(auto_class(head_of(checkpoint.config)), checkpoint, checkpoint.config, torch.float32)
    _check_whole(checkpoint, loaded, False)
    return loaded.model


def for_task(config: PretrainedConfig, task: Task) -> PretrainedConfig:
    """A copy of a configuration whose head is the task's."""
    tree = config.to_dict()
    for key in (
        "num_labels",
        "id2label",
        "label2id",
        "problem_type",
        "architectures",
        "dtype",
        "torch_dtype",
    ):
        tree.pop(key, None)
    labels = task.labels or (task.label,)
    changed = type(config).from_dict(tree)
    changed.num_labels = task.outputs
    changed.id2label = dict(enumerate(labels))
    changed.label2id = {label: number for number, label in enumerate(labels)}
    changed.problem_type = "regression" if task.regression else "single_label_classification"
    return changed


def same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids: the same tokens with the same numbers, special ones included."""
    probe = ("A probe: naïve CAFÉ, 1½ x!", "b")
    return bool(
        first.get_vocab() == second.get_vocab()
        and first.all_special_ids == second.all_special_ids
        and first(*probe).input_ids == second(*probe).input_ids
    )


def weights_megabytes(checkpoint: Checkpoint) -> float:
    """The size of the weights on disk, in 10^6 bytes."""
    folder = Path(checkpoint.path)
    if checkpoint.revision is not None:
        folder = Path(cached_file(checkpoint.path, "config.json", revision=checkpoint.revision)).parent
    pattern = "*.safetensors" if checkpoint.gguf is None else checkpoint.gguf
    return sum(file.stat().st_size for file in folder.glob(pattern)) / 1e6


def _on_hub(name: str, revision: str | None, weights: bool) -> Checkpoint:
    with library_errors(f"no model {name!r} here or on the hub"):
        file = cached_file(name, "config.json", revision=revision)
        if file is None:
            raise UsageError(f"hub repository {name!r} holds no model: it has no config.json")
        # A branch may move on while we work: from here on everything comes from the commit it points to now.
        commit = Path(file).parent.name
        there = [each for each in (WHOLE, INDEX, *ADAPTER[:1]) if _has(name, each, commit)]
    if ADAPTER[0] in there:
        raise _adapted(name, ADAPTER[0], whole=True)
    config = _config_of(name, Path(file), name, commit)
    if weights and not {WHOLE, INDEX} & set(there):
        raise UsageError(f"model {name!r} has no {WHOLE}; kdalign reads no other weights")
    if weights and WHOLE not in there:
        with library_errors(f"cannot read the index of the weights of {name!r}"):
            index = cached_file(name, INDEX, revision=commit)
        assert index is not None, "it was there"
        shard_names(Path(index))
    found = Checkpoint(name, name, config, commit, commit)
    if weights and _here(found):
        held_in(Path(file).parent, name)
    return found


def _has(name: str, file: str, commit: str) -> bool:
    """Whether a commit on the hub has a file; without asking where it is known here."""
    known = try_to_load_from_cache(name, file, revision=commit)
    if known is not None:
        return isinstance(known, str)
    try:
        return bool(file_exists(name, file, revision=commit))
    except OfflineModeIsEnabled:
        return False


def _in_gguf(name: str, file: Path) -> Checkpoint:
    """A model in a GGUF file, which holds its configuration and tokenizer, too."""
    if not file.is_file():
        raise UsageError(f"model {name!r} does not exist")
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"reading {name!r} needs a package: pip install 'kdalign[gguf]'")
    from gguf import GGUFReader

    with library_errors(f"cannot read {name!r} as GGUF", "copy the file again from where it came"):
        GGUFReader(str(file))  # its tensors lie within the file
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    _check_config(name, config)
    config.architectures = [language_model_class(config)]
    return Checkpoint(name, str(file.parent), config, None, sha256(file)[:16], file.name)


def _in_folder(name: str, folder: Path, weights: bool) -> Checkpoint:
    ggufs = sorted(folder.glob("*.gguf"))
    has_config, adapter = (folder / "config.json").is_file(), adapter_in(folder)
    if len(ggufs) == 1 and not has_config:
        return _in_gguf(name, ggufs[0])
    if adapter is not None:
        raise _adapted(name, adapter, has_config)
    if not has_config:
        inner = [file.parent for file in sorted(folder.glob("*/config.json")) if _is_model(file)]
        inside = f"; the model is in {str(inner[0])!r}: give that folder" if len(inner) == 1 else ""
        raise UsageError(f"folder {name!r} holds no model: it has no config.json{inside}")
    config = _config_of(name, folder / "config.json", str(folder))
    if not weights:
        return Checkpoint(name, str(folder), config, None, sha256(folder / "config.json")[:16])
    held = held_in(folder, name)
    _check_architectures(name, config, held.names)
    digest = hashlib.sha256("".join(sha256(file) for file in sorted(folder.glob("*.safetensors"))).encode())
    return Checkpoint(name, str(folder), config, None, digest.hexdigest()[:16])


def _is_model(config: Path) -> bool:
    """Whether weights lie beside a configuration; a pooling's has none."""
    return (config.parent / WHOLE).is_file() or (config.parent / INDEX).is_file()


def _adapted(name: str, file: str, whole: bool) -> UsageError:
    """The error for an adapter: kdalign takes whole models, so that what is scored is what was named.

    Args:
        name: the model.
        file: of the adapter.
        whole: whether a whole model lies beside.
    """
    merge = "merge it into its model by peft's merge_and_unload() and save_pretrained()"
    if whole:
        return UsageError(
            f"model {name!r} has an adapter beside its own weights ({file}), so it is not clear which is meant: "
            f"{merge}, or take the adapter out of that folder"
        )
    return UsageError(f"{name!r} is an adapter without its model ({file}): {merge}, and give that folder")


def _config_of(name: str, file: Path, path: str, revision: str | None = None) -> PretrainedConfig:
    """A model's configuration, once a model can be made of it.

    Args:
        name: what the user called it.
        file: ``config.json``.
        path: what ``from_pretrained`` takes.
        revision: the hub's commit.

    Raises:
        UsageError: no JSON object, quantised, code of its own, or values of which no model can be made.
    """
    tree = read_json(file, parse_constant=float)  # Transformers writes infinities there
    if not isinstance(tree, dict):
        raise UsageError(f"{str(file)!r} is no configuration: it holds no object ({{...}})")
    _check_tree(name, tree)
    with library_errors(f"cannot read the configuration of {name!r}"), _quiet():
        config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    _check_config(name, config)
    return config


def _check_tree(name: str, tree: Mapping[str, Any]) -> None:
    """Refuse what a configuration's JSON must not hold, before Transformers makes anything of it."""
    where = f"the configuration of {name!r}"
    kind = tree.get("model_type")
    if not isinstance(kind, str):
        raise UsageError(f"{where} has no model_type (accepted: a word such as 'bert')")
    if kind not in CONFIG_MAPPING:
        own = "; it comes with code of its own (auto_map), which kdalign does not run" if "auto_map" in tree else ""
        raise UsageError(
            f"{where} has model_type {kind!r}, which this Transformers ({transformers.__version__}) does not know"
            f"{did_you_mean(kind, CONFIG_MAPPING)}{own}"
        )
    for key in ("quantization_config", "compression_config"):
        if tree.get(key) is not None:
            told = tree[key].get("quant_method", "") if isinstance(tree[key], dict) else ""
            how = f" by {told}" if isinstance(told, str) and told else ""
            raise UsageError(
                f"model {name!r} is quantised{how} ({key} in config.json), and kdalign reads weights that are not: "
                "take the model as it was before, or dequantise it"
            )
    classes = tree.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
        raise UsageError(f"{where}: architectures is {classes!r} (accepted: a list of names of classes)")
    for key, value in tree.items():
        if key.endswith(("layers", "n_layer")) and isinstance(value, int) and value > _MOST_LAYERS:  # lists are made
            raise UsageError(f"{where}: {key} is {value:,} (accepted: at most {_MOST_LAYERS:,})")


def _check_config(name: str, config: PretrainedConfig) -> None:
    """Refuse a configuration of which no model can be made, or one that cannot compute."""
    written = _written(config)
    if written in _SOUND:
        return
    try:
        check_sizes(config)
        model = skeleton(config)
    except UsageError as error:
        key = error.__cause__.args[0] if isinstance(error.__cause__, KeyError) else None
        field = next((field for field, value in config.to_dict().items() if value == key is not None), None)
        raise UsageError(f"model {name!r}: {error}" + (f" ({field} in config.json)" if field else "")) from None
    wrong = _forward_error(model)
    if wrong is not None and count_parameters(model) <= _SMALL:  # without storage, sound models may fail, too
        wrong = _forward_error(skeleton(config, device="cpu"))
        if wrong is not None:
            raise UsageError(
                f"model {name!r}: a {config.model_type} model of this configuration cannot compute: {cause_of(wrong)}"
            )
    _SOUND.add(written)


_SMALL = 10**7
"""Parameters of a model that is made with random weights to see whether it computes."""


def _forward_error(model: PreTrainedModel) -> Exception | None:
    """What a model raises over four tokens; None where it computes."""
    ids = any_ids(model.config, 1, 4, model.device)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    try:
        with torch.no_grad():
            model(**accepted_inputs(model, inputs))
    except Exception as error:  # whatever a forward of nonsense raises
        return error
    return None


def _check_architectures(name: str, config: PretrainedConfig, names: tuple[str, ...]) -> None:
    """Refuse a configuration that does not say what the head in its weights is for: it would be thrown away unsaid."""
    if config.architectures:
        return
    for head in (HeadKind.CLASSIFIER, LANGUAGE_HEADS[layout_of(config).family]):
        auto = auto_class(head)
        if type(config) not in auto._model_mapping:
            continue
        model = skeleton(config, head=head)
        heads = sorted({name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")})
        if heads and set(heads) <= set(names):
            raise UsageError(
                f"the config.json of {name!r} names no architectures, and its weights have a head ({heads[0]!r}): "
                f'add "architectures": ["{type(model).__name__}"]'
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Transformers' load report: a fresh head is announced by kdalign itself."""
    logger = transformers.utils.logging
    verbosity, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity(logging.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(verbosity)
        if bars:
            logger.enable_progress_bar()
