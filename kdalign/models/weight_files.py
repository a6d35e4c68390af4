"""Find a folder's safetensors files, and check by their headers that each is whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdalign.errors import UsageError, library_errors
from kdalign.files import read_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files of peft; Transformers would silently add such an adapter to the model next to it."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_OTHERS = ("tf", "flax", "jax")
_MEND = "copy it again from where it came"


@dataclass(frozen=True)
class WeightHeaders:
    """Files and tensor names of a checkpoint, by the headers.

    Attributes:
        files: the files, in the order of their names.
        names: names of all tensors.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]


def weight_files(folder: Path, name: str) -> tuple[Path, ...]:
    """Find the safetensors files of a folder: the whole one, else those that its index names.

    Args:
        folder: the model's folder.
        name: name that the user gave.

    Raises:
        UsageError: there are none, or the index names other files than safetensors files next to it.
    """
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    if (folder / INDEX).is_file():
        files = tuple(folder / file for file in shard_names(folder / INDEX))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UsageError(
                f"model {name!r} lacks {len(missing)} of its {len(files)} files of weights, such as {missing[0]!r}; "
                f"{_MEND}"
            )
        return files
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack"))
    there = f" (it has {others[0]!r})" if others else ""
    raise UsageError(f"folder {name!r} has no {WHOLE}; kdalign reads no other weights{there}")


def shard_names(index: Path) -> list[str]:
    """Read the file names of an index, in order.

    Raises:
        UsageError: it is not an index, or names anything but safetensors files of its own folder.
    """
    tree = read_json(index)
    named = tree.get("weight_map") if isinstance(tree, dict) else None
    what = f"{str(index)!r} is not an index of weights"
    if not isinstance(named, dict) or not named:
        raise UsageError(f"{what}: it has no 'weight_map' of names to files; {_MEND}")
    for tensor, file in named.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UsageError(
                f"{str(index)!r} says that {tensor!r} lies in {file!r} "
                f"(accepted: names of .safetensors files in the same folder)"
            )
    if not isinstance(tree.get("metadata"), dict):
        raise UsageError(f"{what}: it has no 'metadata' (accepted: an object, {{}} at the least)")
    return sorted(set(named.values()))


def read_headers(folder: Path, name: str) -> WeightHeaders:
    """Read the headers of all files; no tensor is read.

    Raises:
        UsageError: a file that is missing, cut short or not a safetensors file, weights of another library's layout, or
            weights that are not floating-point numbers.
    """
    files = weight_files(folder, name)
    names = [tensor for file in files for tensor in _names(file)]
    return WeightHeaders(files, tuple(names))


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    what = f"{str(file)!r} is damaged or not a safetensors file"
    with library_errors(what, _MEND), safe_open(str(file), framework="pt") as opened:
        names = list(opened.keys())
        form = (opened.metadata() or {}).get("format")
        kinds = {name: opened.get_slice(name).get_dtype() for name in names if name.endswith("weight")}
    if form in _OTHERS:
        raise UsageError(f"{str(file)!r} says that its weights are laid out for {form!r} (accepted: 'pt', PyTorch's)")
    _check_kinds(file, kinds)
    return names


def _check_kinds(file: Path, kinds: Mapping[str, str]) -> None:
    """Refuse weights that a loader would take for plain numbers though they are quantised, with scales next to them."""
    for name, kind in kinds.items():
        if kind not in _FLOATS:
            raise UsageError(
                f"{str(file)!r} is quantised: its {name!r} is of type {kind} (accepted: {', '.join(_FLOATS)}); "
                "take the model as it was before, or dequantise it"
            )


def find_adapter(folder: Path) -> str | None:
    """Find an adapter's file in a folder; None if there is none."""
    return next((file for file in ADAPTER if (folder / file).exists()), None)
