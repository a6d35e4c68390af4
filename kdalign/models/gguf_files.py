"""Models in GGUF files: Transformers reads a file once; from then on its content comes from kdalign's cache.

Transformers walks over a file's vocabulary in Python, for configuration, tokenizer and weights anew: 24 CPU seconds for
SmolLM2-135M, whose file has 98 MB. Kept are the dequantised weights in float32, and the files that a folder of this
model would have.
"""

import importlib.metadata
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.tokenization import fingerprint
from kdalign.files import sha256
from kdalign.result_cache import Arrays, KeptResult, find_result

KIND = "gguf"
"""Folder in the cache."""
_FILE, _WEIGHT = "file:", "weight:"
"""Prefixes of the names in a kept result."""

_Read = TypeVar("_Read")


def read_gguf_config(file: Path) -> PretrainedConfig:
    """Read the configuration of the model in a file, without the quantisation."""
    config = _read(file, "config.json", lambda folder: AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if config is None:
        from gguf import GGUFReader

        GGUFReader(str(file))  # its tensors lie within the file
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    config.name_or_path = str(file.parent)
    return config


def read_gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer in a file."""
    tokenizer: PreTrainedTokenizerBase | None = _read(file, "tokenizer.json", AutoTokenizer.from_pretrained)
    if tokenizer is None:
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    tokenizer.name_or_path = str(file.parent)
    return tokenizer


def load_gguf_model(file: Path, auto: Any, config: PretrainedConfig, attention: str) -> PreTrainedModel:
    """Load the model in a file as an ordinary one, its weights dequantised to float32.

    The model that Transformers loads counts as quantised, and can be neither cast nor saved: its weights are moved.

    Args:
        file: the file.
        auto: class of Transformers that loads it, such as ``AutoModelForCausalLM``.
        config: its configuration, from ``read_gguf_config``.
        attention: implementation of attention.
    """
    known = _kept(file)
    if known is not None:
        arrays = {name.removeprefix(_WEIGHT): each for name, each in known.items() if name.startswith(_WEIGHT)}
        state = {name: torch.from_numpy(np.array(each)) for name, each in arrays.items()}
    else:
        state = auto.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).state_dict()
    of_model = auto._model_mapping[type(config)]
    settings = {"dtype": torch.float32, "attn_implementation": attention, "output_loading_info": True}
    model: PreTrainedModel
    model, report = of_model.from_pretrained(None, config=config, state_dict=state, **settings)
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"weights are missing: {sorted(report['missing_keys'])[:1]}")
    model.config.name_or_path = config.name_or_path
    if known is None:
        _keep(file, model, config)
    return model


def _place(file: Path) -> KeptResult:
    versions = {"transformers": transformers.__version__, "gguf": importlib.metadata.version("gguf")}
    return find_result(KIND, {"file": sha256(file), **versions})


@cache
def _read_kept(file: Path, _changed: tuple[int, int]) -> Arrays | None:
    return _place(file).read()


def _kept(file: Path) -> Arrays | None:
    """Return what is kept of a file; digests are compared once in a process, unless the file changes."""
    now = file.stat()
    known = _read_kept(file, (now.st_mtime_ns, now.st_size))
    if known is None:
        _read_kept.cache_clear()  # it may be kept meanwhile
    return known


def _read(file: Path, needed: str, read: Callable[[str], _Read]) -> _Read | None:
    """Read something from a folder of the kept files; None if the file that it needs is not kept."""
    known = _kept(file)
    if known is None or _FILE + needed not in known:
        return None
    try:
        with TemporaryDirectory() as folder:
            for name, content in known.items():
                if name.startswith(_FILE):
                    (Path(folder) / name.removeprefix(_FILE)).write_bytes(content.tobytes())
            return read(folder)
    except OSError:  # no room for temporary files
        return None


def _keep(file: Path, model: PreTrainedModel, config: PretrainedConfig) -> None:
    """Keep weights, configuration and tokenizer, if it has one that is the same when it is read again."""
    state = model.state_dict()
    first: dict[int, str] = {}  # of tensors that share their memory, such as tied ones
    for name, each in state.items():
        first.setdefault(each.data_ptr(), name)
    arrays = {f"{_WEIGHT}{name}": state[name].numpy() for name in first.values()}
    with suppress(OSError), TemporaryDirectory() as folder:  # without room for temporary files nothing is kept
        config.to_json_file(Path(folder) / "config.json", use_diff=False)
        try:
            tokenizer = read_gguf_tokenizer(file)
            tokenizer.save_pretrained(folder)
            if _facts_of(AutoTokenizer.from_pretrained(folder)) != _facts_of(tokenizer):
                raise ValueError("a tokenizer that its own files do not describe")
        except Exception:  # Transformers raises what it likes; such a file is read anew for its tokenizer
            for saved in Path(folder).iterdir():
                if saved.name != "config.json":
                    saved.unlink()
        for saved in sorted(Path(folder).iterdir()):
            arrays[_FILE + saved.name] = np.frombuffer(saved.read_bytes(), np.uint8)
        _place(file).write(arrays)


def _facts_of(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
    settings = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length
    words = tokenizer.special_tokens_map, tokenizer.chat_template
    return type(tokenizer), fingerprint(tokenizer), *settings, *words
