"""Hypothesis strategies of bad values, bytes and trees."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

NASTY = (
    "", " ", "-1", "0", "1e400", "nan", "inf", "-inf", "1_000", "0x10", "٣", "9" * 25, "1e-320", "true", "null",
    "none", "[", "{", "[1, 2]", "{a: 1}", "a: b: c", "*a", "&a [*a]", "!!python/object/apply:os.system ['touch RAN']",
    "\x1b]0;own\x07\x1b[31mred", "\u202egnp.exe", "line\nbreak", "tab\tseparated", "\r", "\x85", "\u2028",
    "caf\u00e9", "漢字", "👩‍👩‍👧", "a" * 300, "../../etc/passwd", "/dev/zero", "/dev/null", "/proc/self/mem", "/", ".",
    "..", "~", "~root", "$HOME", "$(touch RAN)", "`touch RAN`", "; touch RAN", "<script>alert(1)</script>",
    "=cmd|'/c calc'!A1", "\\input{/etc/passwd}", "%s%n", "{0.__class__}", "{{7*7}}", "os:system", "builtins:eval",
    "evil.py:X", "openai:", "openai:m", "file:///etc/passwd", "http://127.0.0.1:9/v1", "new:bert",
    "new:bert,layers=0,width=0", "layers=0", "layers=-1", "layers=1e9", "layers=2,width=7", "train:0", "train:-1",
    "train:99999999", "0:0 1:99", "0:0 0:1", "a,b", ",", ",,", "=", "a=", "=1", "a=b=c", "lm:", "lm:x",
    "translation:", "translation:a-a", "translation:a-b-c", "classification,classification", "rest", "auto", "*", "?",
    "-", "--", "--help", "@file", "#", "\udcff\udcfe", "NUL", "con", "a/b/c/d", "a//b", "./", "x.html", "x.tex",
    "x.exe", "accuracy>=", ">=1", "accuracy>=nan", "accuracy>=1e999", "accuracy=1=2", "word", "1,5", "5%",
)  # fmt: skip
"""Texts that other programs have stumbled over, or that only look like what is asked for."""

WORDS = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["9", "[", "(", "ab,", "x y ", "\u00e9"]).flatmap(
        lambda text: st.sampled_from([50, 600, 9_000]).map(lambda times: text * times)
    ),
)
"""Values of options: no null character, which no operating system passes on."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -1, 0.5, 10**9, 10**15, 10**40, 1e308, 1e-320]),
    st.sampled_from([text for text in NASTY if text.isprintable() or "\x1b" in text]),
    st.text(max_size=8),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("weight"), inner, max_size=3)
    ),
    max_leaves=5,
)


def draw(strategy: st.SearchStrategy[Any], count: int, first_seed: int) -> list[Any]:
    """Draw values that differ: the same ones for the same seed and version of hypothesis.

    Fewer are returned where a strategy has no more.
    """
    found: dict[str, Any] = {}
    for number in range(first_seed, first_seed + 8):
        if len(found) >= count:
            break

        @seed(number)
        @settings(
            max_examples=max(2 * (count - len(found)), 20),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def collect(value: Any) -> None:
            found.setdefault(repr(value), value)

        collect()
    values = list(found.values())
    return values[-count:] if len(values) > count else values  # the first that are drawn are the simplest


def changed_bytes(content: bytes) -> st.SearchStrategy[tuple[str, bytes]]:
    """Damage a file: what was done, and its bytes."""
    size = len(content)
    place = st.integers(0, max(size - 1, 0))
    junk = st.one_of(
        st.binary(min_size=1, max_size=8), st.sampled_from([b"\0", b"\xff\xfe", b"\n", b'"', b",", b"{", b"\x1b[2J"])
    )
    whole = [
        ("empty", b""),
        ("zeros", bytes(min(size, 4096))),
        ("binary", bytes(range(256))),
        ("a byte order mark alone", b"\xef\xbb\xbf"),
        ("UTF-16 without a mark", content[:2000].decode("latin-1").encode("utf-16-le")),
        ("twice", content * 2),
        ("a null character", b"\0" + content),
        ("nested", b"[" * 5000),
        ("nested keys", b"{a: " * 3000),
        ("a line of a million", b"a" * 1_000_000),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + content[:50]),
        ("a pickle", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\ttouch RAN\x85R."),
    ]

    def flip(at: int, bit: int) -> tuple[str, bytes]:
        flipped = bytearray(content or b"\0")
        flipped[at] ^= 1 << bit
        return f"bit {bit} of byte {at} flipped", bytes(flipped)

    return st.one_of(
        st.sampled_from(whole),
        place.map(lambda at: (f"cut after {at} bytes", content[:at])),
        st.builds(flip, place, st.integers(0, 7)),
        st.builds(lambda at, bytes_: (f"{bytes_!r} at byte {at}", content[:at] + bytes_ + content[at:]), place, junk),
        st.builds(
            lambda at, many: (f"{many} bytes lost at {at}", content[:at] + content[at + many :]),
            place,
            st.integers(1, 64),
        ),
    )


def paths_of(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All paths of keys and indexes in a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from paths_of(value, (*above, key))


def changed_trees(tree: Any, keep: tuple[str, ...] = ()) -> st.SearchStrategy[tuple[str, Any]]:
    """Change one or two places of a tree of keys and values: what was done, and the new tree.

    Args:
        tree: it stays as it is.
        keep: keys at the top that are not changed.
    """
    paths = [path for path in paths_of(tree) if path[0] not in keep]
    lifted: list[tuple[str, Callable[[Any], Any]]] = [
        ("a list of itself", lambda value: [value]),
        ("a mapping of itself", lambda value: {"value": value}),
        ("its text", lambda value: str(value)),
        ("its negative", lambda value: -value if isinstance(value, int | float) else None),
        ("as a text with spaces", lambda value: f" {value} "),
        ("much more", lambda value: value * 1000 if isinstance(value, int | float) else [value] * 50),
        ("nothing of it", lambda value: type(value)()),
        ("deep in lists", _deep),
    ]

    def change(path: tuple[Any, ...], how: tuple[str, Any]) -> tuple[str, Any]:
        new = copy.deepcopy(tree)
        try:
            _apply(new, path, how)
        except (KeyError, IndexError, TypeError):
            return "another kind", how[1] if how[0] == "set" else None
        return f"{'.'.join(map(str, path))}: {_said(how)}", new

    ways = st.one_of(
        st.just(("delete", None)),
        TREES.map(lambda value: ("set", value)),
        TREES.map(lambda value: ("set", value)),
        st.sampled_from(lifted).map(lambda lift: (lift[0], lift[1])),
        st.text(min_size=1, max_size=6).map(lambda name: ("rename", name)),
        TREES.map(lambda value: ("add", value)),
    )
    return st.one_of(st.builds(change, st.sampled_from(paths), ways), TREES.map(lambda value: ("another tree", value)))


def _said(how: tuple[str, Any]) -> str:
    return f"{how[0]} {json.dumps(how[1], ensure_ascii=True)[:60]}" if how[0] in ("set", "rename", "add") else how[0]


def _deep(value: Any) -> Any:
    for _ in range(200):
        value = [value]
    return value


def _apply(tree: Any, path: tuple[Any, ...], how: tuple[str, Any]) -> None:
    for part in path[:-1]:
        tree = tree[part]
    last, (word, given_) = path[-1], how
    if word == "delete":
        del tree[last]
    elif word == "set":
        tree[last] = given_
    elif word == "rename":
        tree[given_] = tree.pop(last)
    elif word == "add":
        tree["unknown" if isinstance(tree, dict) else slice(0, 0)] = given_ if isinstance(tree, dict) else [given_]
    else:
        tree[last] = given_(tree[last])
