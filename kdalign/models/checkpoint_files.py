"""Find a checkpoint on the hub, in a folder or a GGUF file, and read its configuration."""

import hashlib
import importlib.util
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
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from kdalign.errors import UsageError, cause_of, did_you_mean, library_errors, shorten
from kdalign.files import is_utf8, read_json, sha256
from kdalign.models.architecture import (
    count_parameters,
    language_model_class,
    layout_of,
    meta_model,
)
from kdalign.models.gguf_files import read_gguf_config
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind, auto_class, has_classifier
from kdalign.models.inputs import accepted_inputs, any_inputs
from kdalign.models.size_checks import check_sizes
from kdalign.models.weight_files import ADAPTER, INDEX, WHOLE, find_adapter, read_headers, shard_names

UNBOUNDED = 10**9
"""Positions of a model without a longest input."""


_MOST_LAYERS = 1_000
"""Most layers of a model that is built: a higher number in a configuration is taken for a mistake."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration is read and whose weights are not loaded yet.

    Attributes:
        name: name that the user gave.
        path: what ``from_pretrained`` takes.
        revision: the hub's commit that every file comes from; None for a folder.
        hash: the hub's commit, or the first 16 digits of the SHA-256 of a folder's weights.
        gguf: name of the GGUF file, in a folder with one instead of safetensors.
    """

    name: str
    path: str
    config: PretrainedConfig
    revision: str | None
    hash: str
    gguf: str | None = None

    @property
    def gguf_file(self) -> Path | None:
        """Path of the GGUF file."""
        return None if self.gguf is None else Path(self.path) / self.gguf

    @property
    def has_classifier(self) -> bool:
        """True if its configuration names a classification head."""
        return has_classifier(self.config)


def find_checkpoint(name: str, revision: str | None = None, *, weights: bool = True) -> Checkpoint:
    """Find a checkpoint and read its configuration.

    Args:
        name: a folder (a run folder stands for its student), or a hub id such as ``org/name``.
        revision: a branch, tag or commit on the hub.
        weights: False if only the configuration is needed.

    Raises:
        UsageError: no such checkpoint, a configuration that no model can have, weights that are missing, damaged or
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
        raise UsageError(f"cannot look for model {shorten(repr(name), 120)}: {why}") from None
    if there and not is_utf8(folder):
        raise UsageError(f"the name of model {name!r} is not UTF-8, as those of files with weights must be: rename it")
    if is_folder or folder.suffix == ".gguf":
        if revision is not None:
            raise UsageError(f"--revision is for hub models; {name!r} is a local one")
        return _in_folder(name, folder, weights) if is_folder else _in_gguf(name, folder)
    if there or not re.fullmatch(r"[\w][\w.\-]*(/[\w][\w.\-]*)?", name):
        what = "is a file" if there else "does not exist"
        raise UsageError(
            f"model {shorten(repr(name), 120)} {what} "
            "(accepted: a folder with config.json and safetensors, a .gguf file, or a hub id)"
        )
    return _on_hub(name, revision, weights)


def max_positions(config: PretrainedConfig) -> int:
    """Return a model's longest input in tokens."""
    of_targets = getattr(config, "max_target_positions", None)  # Whisper's; its sounds have a length of their own
    # T5 has none and XLNet -1: they count relatively.
    given = getattr(config.get_text_config(), "max_position_embeddings", of_targets)
    found = int(given) if given is not None and given > 0 else UNBOUNDED
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        found -= int(config.pad_token_id) + 1  # these count positions from after the padding id
    return found


def check_length(checkpoint: Checkpoint, max_length: int, flag: str = "--max-length") -> None:
    """Refuse inputs longer than a checkpoint's positions."""
    check_positions(checkpoint.name, max_positions(checkpoint.config), max_length, flag)


def check_positions(name: str, positions: int, max_length: int, flag: str = "--max-length") -> None:
    """Refuse inputs longer than a model's positions.

    Raises:
        UsageError: both lengths.
    """
    if max_length > positions:
        raise UsageError(
            f"{flag} {max_length} is more than the {positions} positions of {name!r}: give {flag} {positions} or less"
        )


SOUND_NAME: set[object] = set()
"""Configurations that this process has checked: runs of several tasks, arms and seeds check the same models again."""


def describe_config(config: PretrainedConfig) -> str:
    """Write a configuration as text, its class first."""
    return f"{type(config).__name__} {config.to_json_string(use_diff=False)}"


def is_local(checkpoint: Checkpoint) -> bool:
    """Return whether the weights are on this machine."""
    if checkpoint.revision is None:
        return True
    found = [try_to_load_from_cache(checkpoint.path, file, revision=checkpoint.revision) for file in (WHOLE, INDEX)]
    if isinstance(found[0], str) or not isinstance(found[1], str):
        return isinstance(found[0], str)
    return all((Path(found[1]).parent / shard).is_file() for shard in shard_names(Path(found[1])))


def further_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """Find another file of a checkpoint; None if it has none.

    Older sentence-transformers keep the model in a folder ``0_Transformer``, and files about the whole above it.
    """
    inner = Path(checkpoint.path).absolute()
    if checkpoint.revision is None and not (inner / name).is_file() and (inner.parent / "modules.json").is_file():
        if re.fullmatch(r"\d+_Transformer", inner.name) and (inner.parent / name).is_file():
            return inner.parent / name
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    with library_errors(f"cannot look for {name} of {checkpoint.name!r}"):
        file = cached_file(checkpoint.path, name, revision=checkpoint.revision, **missing)
    return None if file is None else Path(file)


def weights_megabytes(checkpoint: Checkpoint) -> float:
    """Return the size of the weights on disk, in 10^6 bytes."""
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
        # A branch may move during the run: from here on everything comes from the commit that it points to now.
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
    if weights and is_local(found):
        read_headers(Path(file).parent, name)
    return found


def _has(name: str, file: str, commit: str) -> bool:
    """Return whether a commit on the hub has a file; the hub is asked only if the cache does not know."""
    known = try_to_load_from_cache(name, file, revision=commit)
    if known is not None:
        return isinstance(known, str)
    try:
        return bool(file_exists(name, file, revision=commit))
    except OfflineModeIsEnabled:
        return False


def _in_gguf(name: str, file: Path) -> Checkpoint:
    """Find a model in a GGUF file, which holds its configuration and tokenizer, too."""
    if not file.is_file():
        raise UsageError(f"model {name!r} does not exist")
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"reading {name!r} needs a package: pip install 'kdalign[gguf]'")
    with library_errors(f"cannot read {name!r} as GGUF", "copy the file again from where it came"):
        config = read_gguf_config(file)
    _check_config(name, config)
    config.architectures = [language_model_class(config)]
    return Checkpoint(name, str(file.parent), config, None, sha256(file)[:16], file.name)


def _in_folder(name: str, folder: Path, weights: bool) -> Checkpoint:
    ggufs = sorted(folder.glob("*.gguf"))
    has_config, adapter = (folder / "config.json").is_file(), find_adapter(folder)
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
    held = read_headers(folder, name)
    _check_architectures(name, config, held.names)
    digest = hashlib.sha256("".join(sha256(file) for file in sorted(folder.glob("*.safetensors"))).encode())
    return Checkpoint(name, str(folder), config, None, digest.hexdigest()[:16])


def _is_model(config: Path) -> bool:
    """Return whether there are weights next to a configuration; a pooling's has none."""
    return (config.parent / WHOLE).is_file() or (config.parent / INDEX).is_file()


def _adapted(name: str, file: str, whole: bool) -> UsageError:
    """Return the error for an adapter: kdalign takes whole models, so that the model scored is the one named.

    Args:
        name: the model.
        file: the adapter's file.
        whole: True if there is a whole model next to it.
    """
    merge = "merge it into its model by peft's merge_and_unload() and save_pretrained()"
    if whole:
        return UsageError(
            f"model {name!r} has an adapter beside its own weights ({file}), so it is not clear which is meant: "
            f"{merge}, or take the adapter out of that folder"
        )
    return UsageError(f"{name!r} is an adapter without its model ({file}): {merge}, and give that folder")


def _config_of(name: str, file: Path, path: str, revision: str | None = None) -> PretrainedConfig:
    """Read a model's configuration, and check that a model can be made of it.

    Args:
        name: name that the user gave.
        file: ``config.json``.
        path: argument of ``from_pretrained``.
        revision: the hub's commit.

    Raises:
        UsageError: no JSON object, a quantised model, code of its own, or values that no model can have.
    """
    tree = read_json(file, parse_constant=float)  # Transformers writes infinities there
    if not isinstance(tree, dict):
        raise UsageError(f"{str(file)!r} is not a configuration: it holds no object ({{...}})")
    _check_tree(name, tree)
    with library_errors(f"cannot read the configuration of {name!r}"), quiet_transformers():
        config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    _check_config(name, config)
    return config


def _check_tree(name: str, tree: Mapping[str, Any]) -> None:
    """Refuse wrong values in a configuration's JSON, before Transformers reads it."""
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
        if (
            key.endswith(("layers", "n_layer")) and isinstance(value, int) and value > _MOST_LAYERS
        ):  # Transformers makes lists of that length
            raise UsageError(f"{where}: {key} is {value:,} (accepted: at most {_MOST_LAYERS:,})")


def _check_config(name: str, config: PretrainedConfig) -> None:
    """Refuse a configuration that no model can have, or whose model cannot compute."""
    written = describe_config(config)
    if written in SOUND_NAME:
        return
    try:
        check_sizes(config)
        model = meta_model(config)
    except UsageError as error:
        key = error.__cause__.args[0] if isinstance(error.__cause__, KeyError) else None
        field = next((field for field, value in config.to_dict().items() if value == key is not None), None)
        raise UsageError(f"model {name!r}: {error}" + (f" ({field} in config.json)" if field else "")) from None
    wrong = _forward_error(model)
    if wrong is not None and count_parameters(model) <= _SMALL:  # without storage, sound models may fail, too
        wrong = _forward_error(meta_model(config, device="cpu"))
        if wrong is not None:
            raise UsageError(
                f"model {name!r}: a {config.model_type} model of this configuration cannot compute: {cause_of(wrong)}"
            )
    SOUND_NAME.add(written)


_SMALL = 10**7
"""Most parameters of a model that is built with random weights to test that it computes."""


def _forward_error(model: PreTrainedModel) -> Exception | None:
    """Return the error that a model raises over four tokens; None if it computes."""
    inputs = any_inputs(model.config, 1, 4, model.device)
    inputs.pop("attention_mask", None)
    try:
        with torch.no_grad():
            model(**accepted_inputs(model, inputs))
    except Exception as error:  # whatever a forward of nonsense raises
        return error
    return None


def _check_architectures(name: str, config: PretrainedConfig, names: tuple[str, ...]) -> None:
    """Refuse a configuration that does not name the class of its weights' head, which would be dropped silently."""
    if config.architectures:
        return
    for head in filter(None, (HeadKind.CLASSIFIER, LANGUAGE_HEADS.get(layout_of(config).family))):
        auto = auto_class(head, config.model_type)
        if type(config) not in auto._model_mapping:
            continue
        model = meta_model(config, head=head)
        heads = sorted({name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")})
        if heads and set(heads) <= set(names):
            raise UsageError(
                f"the config.json of {name!r} names no architectures, and its weights have a head ({heads[0]!r}): "
                f'add "architectures": ["{type(model).__name__}"]'
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
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
