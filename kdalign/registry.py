"""Resolve a name to an object: a built-in, ``package.module:Name`` or ``file.py:Name``.

Names come from records, recipes, task files and plans, which may be a stranger's. So only a trusted name becomes code,
and the code is announced before it is loaded. By default only shipped names are trusted:

- the command line trusts names written on the command line itself, and all others with ``--allow code``;
- ``kdalign.distill`` trusts its recipe's names, because its caller runs code already;
- ``kdalign.allow_code`` is for everything else called from Python.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kdalign.errors import UsageError, unknown

T = TypeVar("T")


class Untrusted(UsageError):
    """A name stands for code that may not be run."""


@dataclass(frozen=True)
class Trust:
    """Names that may become code.

    Attributes:
        names: names that the user wrote.
        everything: true if any other name may, too.
        tell: callback for a line on each file or module, once, before its code is run.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False
    tell: Callable[[str], None] | None = field(default=None, compare=False)

    def allows(self, name: str) -> bool:
        """Return whether a name may become code."""
        return self.everything or name in self.names

    @property
    def silent(self) -> "Trust":
        """The same without announcements, for another process."""
        return Trust(self.names, self.everything)


_trust: ContextVar[Trust | None] = ContextVar("kdalign_trust", default=None)
_told: ContextVar[set[str] | None] = ContextVar("kdalign_told", default=None)


def trust() -> Trust:
    """Return the trust in force: none outside a ``trusting``, which new threads and processes lack."""
    return _trust.get() or Trust()


@contextmanager
def trusting(given: Trust) -> Iterator[None]:
    """Trust these names and no others inside the context."""
    before, told = _trust.set(given), _told.set(_told.get() or set())
    try:
        yield
    finally:
        _trust.reset(before)
        _told.reset(told)


def trust_now(given: Trust) -> None:
    """Trust these names and no others until the enclosing ``trusting`` ends."""
    assert _trust.get() is not None, "a ``trusting`` encloses it"
    _trust.set(given)


@contextmanager
def trusting_caller() -> Iterator[None]:
    """Trust every name for a caller that is the user's own code, unless trust was set before."""
    with trusting(_trust.get() or Trust(everything=True)):
        yield


@contextmanager
def allow_code() -> Iterator[None]:
    """Allow names in runs, recipes, task files and plans to run code: only if you trust them all.

    ::

        with kdalign.allow_code():
            kdalign.compare(["runs"], against="labels")  # with the runs' own metrics
    """
    with trusting(replace(trust(), everything=True)):
        yield


def names_code(name: str) -> bool:
    """Return whether a name has the form of one that stands for code."""
    return re.fullmatch(r"(.+\.py|[^\W\d]\w*(\.\w+)*):\w+", name) is not None


def code_named(tree: object) -> frozenset[str]:
    """Collect all names of code in keys and values of a tree, and in their parts between commas."""
    if isinstance(tree, str):
        return frozenset(name for name in (tree, *map(str.strip, tree.split(","))) if names_code(name))
    if isinstance(tree, Mapping):
        return code_named([*tree, *tree.values()])
    if isinstance(tree, Iterable):
        return frozenset().union(*map(code_named, tree))
    return frozenset()


def check_trusted(name: str, what: str) -> None:
    """Refuse a name that stands for code which may not be run.

    Raises:
        Untrusted: its code is not allowed.
    """
    if names_code(name) and not trust().allows(name):
        source = name.rpartition(":")[0]
        raise Untrusted(f"{what} {name!r} is code from {source!r}, which runs only with --allow code")


def resolve(name: str, shipped: Mapping[str, T], what: str) -> T:
    """Return the object that a name stands for; code is run only if its name is trusted, and announced first.

    Args:
        name: a key of ``shipped``, ``package.module:Name``, or ``path/to/file.py:Name``.
        shipped: built-in objects by name.
        what: kind of object in error lines, such as ``"metric"``.

    Raises:
        UsageError: no such shipped name, module, file or attribute.
        Untrusted: its code is not allowed.
    """
    if name in shipped:
        return shipped[name]
    if not names_code(name):
        raise unknown(what, name, shipped)
    check_trusted(name, what)
    source, _, attribute = name.rpartition(":")
    module = _load(source, what, name)
    if attribute not in vars(module):
        names = [key for key in vars(module) if not key.startswith("_")]
        raise unknown(f"name in {source}", attribute, names)
    found: Any = vars(module)[attribute]
    return found  # type: ignore[no-any-return]  # the caller's protocol is checked where it is used


def _load(source: str, what: str, name: str) -> Any:
    """Run a file or module and return it."""
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise UsageError(f"no file {source!r} to load from")
    if not is_file and source.partition(".")[0] in sys.stdlib_module_names:
        # Such as os:system, which would be called with a metric's or map's arguments.
        raise UsageError(f"{what} {name!r}: {source!r} is part of Python and has no {what} for kdalign")
    told = _told.get()
    tell = trust().tell
    if tell is not None and told is not None and source not in told:
        told.add(source)
        tell(f"runs code: {source} (for {what} {name})")
    try:
        return _load_file(Path(source)) if is_file else importlib.import_module(source)
    except UsageError:
        raise
    except Exception as error:  # a user's code may raise anything
        moved = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("kdalign.")
        hint = "; losses and metrics of your own import from kdalign.plugins" if moved else ""
        raise UsageError(f"{what} {name!r}: cannot import {source!r} ({error}){hint}") from error


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"kdalign_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up a class's module
    spec.loader.exec_module(module)
    return module
