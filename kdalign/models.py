"""Find and load checkpoints: a hub id or a folder, safetensors only, no remote code."""

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import file_exists, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its HTTP library's, whichever that is
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from kdalign.architecture import (
    LANGUAGE_HEADS,
    HeadKind,
    attention_of,
    auto_class,
    has_classifier,
    head_of,
    language_model_class,
    layout_of,
)
from kdalign.errors import UsageError
from kdalign.files import sha256
from kdalign.tasks import Task
from kdalign.tasks.task import label_order

UNBOUNDED = 10**9
"""The positions of a model that has no longest input."""

_SAFE = ("model.safetensors", "model.safetensors.index.json")


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


def locate(name: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and read its configuration.

    Args:
        name: a folder (a run folder stands for its student), or a hub id such as ``org/name``.
        revision: a branch, tag or commit on the hub.

    Raises:
        UsageError: nothing there, no safetensors, or a model type that kdalign does not know.
    """
    folder = Path(name).expanduser()
    if (folder / "student" / "config.json").is_file():
        folder = folder / "student"
    if folder.is_dir() or folder.suffix == ".gguf":
        if revision is not None:
            raise UsageError(f"--revision is for hub models; {name!r} is a local one")
        return _in_folder(name, folder) if folder.is_dir() else _in_gguf(name, folder)
    if folder.exists() or not re.fullmatch(r"[\w][\w.\-]*(/[\w][\w.\-]*)?", name):
        what = "is a file" if folder.exists() else "does not exist"
        raise UsageError(
            f"model {name!r} {what} (accepted: a folder with config.json and safetensors, a .gguf file, or a hub id)"
        )
    return _on_hub(name, revision)


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(path or name, revision=revision, trust_remote_code=False, **extra)
    except (OSError, ValueError, HTTPError) as error:
        raise UsageError(f"model {name!r} has no tokenizer: {_first_sentence(error)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what from_pretrained makes where there are no files
        raise UsageError(f"model {name!r} has no tokenizer: its files hold no vocabulary")
    if tokenizer.pad_token_id is None and family == "causal":
        tokenizer.pad_token = tokenizer.eos_token  # what is padded is masked by its length, whatever it holds
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"the tokenizer of {name!r} has no padding token; name one of its tokens pad_token in tokenizer_config.json"
        )
    return tokenizer


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
        mend = "; name the labels in the model's order in a task file" if task.order_unknown else ""
        raise UsageError(
            f"model {checkpoint.name!r} has a head for {', '.join(map(str, names))}; "
            f"task {task.name!r} has {wanted}{mend}"
        )


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
    config = checkpoint.config
    if fresh_head:
        config = for_task(config, task)
    model, report = _load(AutoModelForSequenceClassification, checkpoint, config, dtype, seed, fresh_head)
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if not fresh_head and missing:
        raise UsageError(f"the weights of {checkpoint.name!r} lack {missing[0]!r} and would start it at random")
    body = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if body:
        raise UsageError(f"the weights of {checkpoint.name!r} lack {body[0]!r}: not a {config.model_type} encoder")
    return _with_fresh_head(model, seed) if fresh_head else model


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
    config = checkpoint.config
    if checkpoint.gguf is not None:
        return _load_gguf(checkpoint, dtype)
    auto = auto_class(LANGUAGE_HEADS[layout_of(config).family])
    model, report = _load(auto, checkpoint, config, dtype, seed)
    missing = sorted(report["missing_keys"])
    body = [key for key in missing if fresh_head and key.startswith(f"{model.base_model_prefix}.")]
    if body or (missing and not fresh_head):
        raise UsageError(
            f"the weights of {checkpoint.name!r} lack {(body or missing)[0]!r} and would start it at random"
        )
    return model


def load_body(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint without any head, in float32.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    model, report = _load(auto_class(HeadKind.NONE), checkpoint, checkpoint.config, torch.float32)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UsageError(f"the weights of {checkpoint.name!r} lack {missing[0]!r} and would start it at random")
    return model


def pooling_of(checkpoint: Checkpoint) -> str | None:
    """How sentence-transformers would pool the tokens, by its file ``1_Pooling/config.json``; None without one."""
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(checkpoint.path, "1_Pooling/config.json", revision=checkpoint.revision, **missing)
    if file is None:
        return None
    told = json.loads(Path(file).read_text(encoding="utf-8"))
    word = re.compile(r"pooling_mode_(\w+?)(_tokens?)?")
    matches = [word.fullmatch(key) for key, value in told.items() if value is True]
    return " and ".join(match[1] for match in matches if match)


def _load(
    auto: Any, checkpoint: Checkpoint, config: PretrainedConfig, dtype: torch.dtype, seed: int = 0, resize: bool = False
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A checkpoint's model and Transformers' report on what its weights lack; that is drawn by the seed."""
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
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
                ignore_mismatched_sizes=resize,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"cannot load the weights of {checkpoint.name!r}: {_first_sentence(error)}") from None
    return model, report


def _load_gguf(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of a GGUF file, its weights spread out, as an ordinary model.

    What Transformers loads counts as quantised, and can be neither cast nor saved: its weights are moved into another.
    """
    auto = auto_class(LANGUAGE_HEADS[layout_of(checkpoint.config).family])
    try:
        with _quiet():
            loaded = auto.from_pretrained(checkpoint.path, gguf_file=checkpoint.gguf, dtype=dtype)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"cannot load the weights of {checkpoint.name!r}: {_first_sentence(error)}") from None
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
    return _load(auto_class(head_of(checkpoint.config)), checkpoint, checkpoint.config, torch.float32)[0]


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


def _on_hub(name: str, revision: str | None) -> Checkpoint:
    try:
        file = cached_file(name, "config.json", revision=revision)
        if file is None:
            raise UsageError(f"hub repository {name!r} holds no model: it has no config.json")
        # A branch may move on while we work: from here on everything comes from the commit it points to now.
        commit = Path(file).parent.name
        config = AutoConfig.from_pretrained(name, revision=commit, trust_remote_code=False)
        layout_of(config)
        here = any(isinstance(try_to_load_from_cache(name, weights, revision=commit), str) for weights in _SAFE)
        if not here and not any(file_exists(name, weights, revision=commit) for weights in _SAFE):
            raise UsageError(f"model {name!r} has no model.safetensors; kdalign reads no other weights")
    except (OSError, ValueError, KeyError, HTTPError) as error:
        raise UsageError(f"no model {name!r} here or on the hub: {_first_sentence(error)}") from None
    return Checkpoint(name, name, config, commit, commit)


def _in_gguf(name: str, file: Path) -> Checkpoint:
    """A model in a GGUF file, which holds its configuration and tokenizer, too."""
    if not file.is_file():
        raise UsageError(f"model {name!r} does not exist")
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"reading {name!r} needs a package: pip install 'kdalign[gguf]'")
    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"cannot read {name!r} as GGUF: {_first_sentence(error)}") from None
    config.architectures = [language_model_class(config)]
    vars(config).pop("quantization_config", None)
    return Checkpoint(name, str(file.parent), config, None, sha256(file)[:16], file.name)


def _in_folder(name: str, folder: Path) -> Checkpoint:
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1 and not (folder / "config.json").is_file():
        return _in_gguf(name, ggufs[0])
    if not (folder / "config.json").is_file():
        raise UsageError(f"folder {name!r} holds no model: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"cannot read the configuration of {name!r}: {_first_sentence(error)}") from None
    layout_of(config)
    if not any((folder / file).is_file() for file in _SAFE):
        raise UsageError(f"folder {name!r} has no model.safetensors; kdalign reads no other weights")
    digest = hashlib.sha256("".join(sha256(file) for file in sorted(folder.glob("*.safetensors"))).encode())
    return Checkpoint(name, str(folder), config, None, digest.hexdigest()[:16])


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


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
