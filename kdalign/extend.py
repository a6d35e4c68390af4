"""Names that stand for code: a shipped name, ``package.module:Name`` or ``file.py:Name``."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from kdalign.errors import UsageError, unknown

T = TypeVar("T")


def resolve(name: str, shipped: Mapping[str, T], what: str) -> T:
    """The object that a name stands for.

    Args:
        name: a key of ``shipped``, ``package.module:Name``, or ``path/to/file.py:Name``.
        shipped: what kdalign brings, by name.
        what: the word for it in error lines, such as ``"metric"``.

    Raises:
        UsageError: no such shipped name, module, file or attribute.
    """
    if name in shipped:
        return shipped[name]
    source, _, attribute = name.rpartition(":")
    if not source.endswith(".py") and not re.fullmatch(r"\w+(\.\w+)*", source):
        raise unknown(what, name, shipped)
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except UsageError:
        raise
    except Exception as error:  # whatever a user's own code raises
        raise UsageError(f"{what} {name!r}: cannot import {source!r} ({error})") from error
    if attribute not in vars(module):
        names = [key for key in vars(module) if not key.startswith("_")]
        raise unknown(f"name in {source}", attribute, names)
    found: Any = vars(module)[attribute]
    return found  # type: ignore[no-any-return]  # the caller's protocol is checked where it is used


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r} to load from")
    spec = importlib.util.spec_from_file_location(f"kdalign_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up a class's module
    spec.loader.exec_module(module)
    return module
