"""Read YAML strictly: repeated keys, deep nesting, aliases that multiply and very long numbers are refused."""

from functools import cache
from pathlib import Path
from typing import Any

from kdalign.errors import UsageError, cause_of, shorten
from kdalign.files import DEEPEST, check_digits, read_text

LARGEST_YAML = 4 * 2**20
"""Limit of bytes of a YAML file: PyYAML takes about ten seconds for each million."""
_MOST_COPIES = 100_000
"""Limit of values that all aliases of a YAML text stand for together."""


def parse_yaml(text: str, where: str, loader: Any = None) -> Any:
    """Parse YAML by one of PyYAML's safe loaders, so that no tag makes an object.

    Repeated keys, a value that contains itself, and aliases that stand for very many values are refused.

    Args:
        text: one document.
        where: the file, for error lines.
        loader: another safe loader, such as ``yaml.BaseLoader``, which reads all values as text.

    Raises:
        UsageError: it is not YAML, nested too deeply, or has a value that Python cannot hold (an impossible date).
    """
    import yaml

    try:
        return yaml.load(text, Loader=strict_loader(loader or yaml.SafeLoader))  # nosec B506 # a subclass of it
    except RecursionError:
        raise UsageError(f"{where} is not YAML that can be read: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        context = f" ({error.context})" if error.context else ""
        raise UsageError(f"{where} is not YAML: {place}{cause_of(ValueError(f'{error.problem}{context}'))}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where} is not YAML: {cause_of(error)}") from None


def read_yaml(file: Path, loader: Any = None) -> Any:
    """Read the value in a YAML file.

    Raises:
        UsageError: as ``read_text`` and ``parse_yaml``.
    """
    return parse_yaml(read_text(file, LARGEST_YAML), repr(str(file)), loader)


@cache
def strict_loader(safe: Any) -> Any:
    """Return one of PyYAML's safe loaders, made strict: nothing is dropped silently or too large to hold."""
    import yaml

    strict = type("StrictLoader", (_StrictNodes, safe), {})
    if issubclass(safe, yaml.SafeLoader):
        strict.add_constructor("tag:yaml.org,2002:int", strict.construct_short_int)  # type: ignore[attr-defined]
    return strict


class _StrictNodes:
    """Composer of YAML nodes that refuses repeated keys, deep nesting, and aliases that multiply or hold themselves."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[call-arg]  # of the loader that it is mixed into
        self.open: list[str | None] = []  # anchors of the nodes being read, from the outside in
        self.sizes: dict[int, int] = {}  # values below each node
        self.copies = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read one node, or the node that an alias stands for."""
        import yaml

        loader: Any = super()
        event = self.peek_event()  # type: ignore[attr-defined]
        alias = isinstance(event, yaml.AliasEvent)
        if alias and event.anchor in self.open:
            raise _refused(f"*{event.anchor} holds itself", event)
        self.open.append(None if alias else event.anchor)
        if len(self.open) > DEEPEST:
            raise _refused("nested too deeply", event)
        node = loader.compose_node(parent, index)
        self.open.pop()
        if not alias:
            self.sizes[id(node)] = 1 + sum(self.sizes[id(inner)] for inner in self._inner(node))
            return node
        self.copies += self.sizes[id(node)]
        if self.copies > _MOST_COPIES:
            raise _refused(f"aliases stand for more than {_MOST_COPIES:,} values", event)
        return node

    def _inner(self, node: Any) -> list[Any]:
        """The nodes directly in a node, once the keys of a mapping are checked."""
        import yaml

        if isinstance(node, yaml.ScalarNode):
            return []
        if not isinstance(node, yaml.MappingNode):
            return list(node.value)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise _refused(f"key {shorten(key.value, 100)!r} is given twice", key)
            seen.add((key.tag, key.value))
        return [inner for pair in node.value for inner in pair]

    def construct_short_int(self, node: Any) -> int:
        """Read a whole number of few digits."""
        loader: Any = super()
        check_digits(str(node.value))
        return int(loader.construct_yaml_int(node))


def _refused(problem: str, place: Any) -> Exception:
    import yaml

    error: Exception = yaml.composer.ComposerError(None, None, problem, place.start_mark)
    return error
