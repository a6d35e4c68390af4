"""Names that stand for code: a shipped name, ``package.module:Name`` or ``file.py:Name``.

A name may come from anybody: a record, a recipe, a task file, a plan. So a name becomes code only where it is trusted,
and the code is told of before it is loaded. Nothing but shipped names is trusted unless somebody says so:

- the command line trusts names that are written on the command line itself, and all others by ``--allow code``;
- ``kdalign.distill`` trusts its recipe's, as whoever calls it runs code already;
- ``kdalign.allow_code`` is for all else that is called from Python.
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
    """A name stands for code that nobody allowed to be run."""


@dataclass(frozen=True)
class Trust:
    """Which names may become code.

    Attributes:
        names: those that a user wrote himself.
        everything: whether any other may, too.
        tell: told once of each file or module before its code is run.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False
    tell: Callable[[str], None] | None = field(default=None, compare=False)

    def allows(self, name: str) -> bool:
        """Whether this name may."""
        return self.everything or name in self.names

    @property
    def silent(self) -> "Trust":
        """The same for another process, which tells nobody again."""
        return Trust(self.names, self.everything)


_trust: ContextVar[Trust | None] = ContextVar("kdalign_trust", default=None)
_told: ContextVar[set[str] | None] = ContextVar("kdalign_told", default=None)


def trust() -> Trust:
    """What is trusted now: nothing unless a ``trusting`` is around it, which new threads and processes lack."""
    return _trust.get() or Trust()


@contextmanager
def trusting(given: Trust) -> Iterator[None]:
    """Trust these names for as long as it lasts, and no others."""
    before, told = _trust.set(given), _told.set(_told.get() or set())
    try:
        yield
    finally:
        _trust.reset(before)
        _told.reset(told)


def trust_now(given: Trust) -> None:
    """Trust these names, and no others, until the ``trusting`` around it ends."""
    assert _trust.get() is not None, "a ``trusting`` is around it"
    _trust.set(given)


@contextmanager
def trusting_caller() -> Iterator[None]:
    """Trust every name where the caller is the user's own code: unless something else was said before."""
    with trusting(_trust.get() or Trust(everything=True)):
        yield


@contextmanager
def allow_code() -> Iterator[None]:
    """Let names in runs, recipes, task files and plans stand for code, which is then run: only if you trust them all.

    ::

        with kdalign.allow_code():
            kdalign.compare(["runs"], against="labels")  # by the runs' own metrics, too
    """
    with trusting(replace(trust(), everything=True)):
        yield


def names_code(name: str) -> bool:
    """Whether a name has the form of one that stands for code."""
    return re.fullmatch(r"(.+\.py|[^\W\d]\w*(\.\w+)*):\w+", name) is not None


def code_named(tree: object) -> frozenset[str]:
    """All names of code in keys and values of a tree, and in their parts between commas."""
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
        Untrusted: nobody allowed it.
    """
    if names_code(name) and not trust().allows(name):
        source = name.rpartition(":")[0]
        raise Untrusted(f"{what} {name!r} is code, of {source!r}, which is run only with --allow code")


def resolve(name: str, shipped: Mapping[str, T], what: str) -> T:
    """The object that a name stands for; code is run only where its name is trusted, and told of before.

    Args:
        name: a key of ``shipped``, ``package.module:Name``, or ``path/to/file.py:Name``.
        shipped: what kdalign brings, by name.
        what: the word for it in error lines, such as ``"metric"``.

    Raises:
        UsageError: no such shipped name, module, file or attribute.
        Untrusted: it stands for code that nobody allowed to be run.
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
    """The module of a file or of a dotted name, its code run."""
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise UsageError(f"no file {source!r} to load from")
    if not is_file and source.partition(".")[0] in sys.stdlib_module_names:
        # Such as os:system, which would be called with what a metric or map is called with.
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
    except Exception as error:  # whatever a user's own code raises
        raise UsageError(f"{what} {name!r}: cannot import {source!r} ({error})") from error


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"kdalign_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up a class's module
    spec.loader.exec_module(module)
    return module
