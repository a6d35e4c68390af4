"""Run folders, archives, caches, checkpoints, and answers of a server."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.bad_input.case import ANY, REFUSED, Case, sealed
from tests.bad_input.draw import TREES, changed_bytes, changed_trees, paths_of
from tests.bad_input.place import BERT, SHORT, WRITES

READERS = (
    ("compare", "r"),
    ("compare", "r", "--format", "markdown"),
    ("compare", "r", "--format", "latex"),
    ("compare", "r", "--out", "x.html"),
    ("compare", "r", "@run", "--against", "r"),
    ("card", "r"),
    ("inspect", "r", "--device", "cpu"),
    ("eval", "r", "--device", "cpu", "--limit", "4"),
    ("profile", "r", "--no-weights"),
    ("distill", "--out", "r", "--resume"),
)


def records(place: Path) -> st.SearchStrategy[Case]:
    """A record that was changed and sealed again, or was not sealed again, and other files of a run."""
    good = json.loads((place / "run" / "record.json").read_text())
    names = ("recipe.yaml", "inputs.json", "plan.json", "history.jsonl", "predictions/validation.parquet")

    def record(made: tuple[str, Any], seal: bool, words: tuple[str, ...]) -> Case:
        why, tree = made
        unsealed = not seal and isinstance(tree, dict) and tree != good and "profile" not in words
        content = json.dumps(sealed(tree) if seal else tree).encode()
        return Case("record.json", why, words, {"r/record.json": content}, {"r": "run"}, REFUSED if unsealed else ANY)

    def damaged(name: str, made: tuple[str, bytes], words: tuple[str, ...]) -> Case:
        return Case("record.json", f"{name}: {made[0]}", words, {f"r/{name}": made[1]}, {"r": "run"})

    readers = st.sampled_from(READERS)
    return st.one_of(
        st.builds(record, changed_trees(good, ("seal",)), st.just(True), readers),
        st.builds(record, changed_trees(good, ("seal",)), st.just(True), readers),
        st.builds(record, changed_trees(good, ("seal", "files")), st.just(False), readers),
        st.sampled_from(names).flatmap(
            lambda name: st.builds(damaged, st.just(name), changed_bytes((place / "run" / name).read_bytes()), readers)
        ),
        st.builds(
            damaged, st.just("record.json"), changed_bytes((place / "run" / "record.json").read_bytes()), readers
        ),
    )


def archives(place: Path) -> st.SearchStrategy[Case]:
    """Archived results of an ablation, and evaluation files."""
    kept = [file.relative_to(place).as_posix() for file in sorted((place / "ablation" / "kept").iterdir())]
    dictionary = gzip.decompress((place / "ablation" / "kept" / "common.json.gz").read_bytes())
    readers = st.sampled_from(
        [("compare", "a"), ("compare", "a", "--against", "labels"), ("compare", "a", "--out", "x.html")]
    )

    def packed(name: str, made: tuple[str, Any], words: tuple[str, ...]) -> Case:
        packer = zlib.compressobj(9, zdict=dictionary)
        content = packer.compress(json.dumps(made[1]).encode()) + packer.flush()
        return Case("archived results", f"{name}: {made[0]}", words, {name: content}, {"a": "ablation"})

    def damaged(name: str, made: tuple[str, bytes], words: tuple[str, ...]) -> Case:
        return Case("archived results", f"{name}: {made[0]}", words, {name: made[1]}, {"a": "ablation"})

    def one(name: str) -> st.SearchStrategy[Case]:
        content, inside = (place / name).read_bytes(), name.replace("ablation", "a", 1)
        whole = st.builds(damaged, st.just(inside), changed_bytes(content), readers)
        if not name.endswith(".z"):
            return whole
        tree = json.loads(zlib.decompressobj(zdict=dictionary).decompress(content))
        return st.one_of(whole, *[st.builds(packed, st.just(inside), changed_trees(tree), readers)] * 2)

    evaluation = json.loads((place / "eval.json").read_text())
    scored = st.builds(
        lambda made, words: Case("archived results", made[0], words, {"e.json": json.dumps(made[1]).encode()}),
        changed_trees(evaluation),
        st.sampled_from(
            [
                ("compare", "e.json"),
                ("compare", "e.json", "--format", "latex"),
                ("compare", "@run", "--baseline", "e.json", "--max-drop", "accuracy=1"),
            ]
        ),
    )
    return st.one_of(*[one(name) for name in kept], scored)


def caches(place: Path) -> st.SearchStrategy[Case]:
    meta = json.loads((place / "cache" / "cache.json").read_text())
    (shard,) = (place / "cache").glob("shard-*")
    words = st.sampled_from(
        [
            ("cache", "info", "c"),
            ("cache", "verify", "c"),
            ("cache", "verify", "c", "--remove"),
            ("distill", *BERT, *SHORT, "--cache", "c", "--out", "out", "--dry-run"),
            ("distill", *BERT, *SHORT, "--cache", "c", "--out", "out"),
        ]
    )

    def make(made: tuple[str, str, bytes], command: tuple[str, ...]) -> Case:
        why, name, content = made
        return Case("caches", why, command, {f"c/{name}": content}, {"c": "cache"})

    return st.builds(
        make,
        st.one_of(
            changed_trees(meta).map(lambda made: (made[0], "cache.json", json.dumps(made[1]).encode())),
            changed_bytes((place / "cache" / "cache.json").read_bytes()).map(
                lambda made: (made[0], "cache.json", made[1])
            ),
            changed_bytes(shard.read_bytes()).map(lambda made: (made[0], shard.name, made[1])),
            changed_bytes(shard.read_bytes()).map(
                lambda made: (made[0], "shard-" + "0" * 32 + ".safetensors", made[1])
            ),
        ),
        words,
    )


def checkpoints(place: Path) -> st.SearchStrategy[Case]:
    """An unfinished run with a damaged file, which goes on or is refused."""
    folder = place / "killed"
    files = sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() and file.name != "log.txt"
    )
    words = ("distill", "--out", "k", "--resume")

    def damaged(name: str, made: tuple[str, bytes | None]) -> Case:
        return Case(
            "checkpoints and unfinished runs", f"{name}: {made[0]}", words, {f"k/{name}": made[1]}, {"k": "killed"}
        )

    def trees(name: str) -> st.SearchStrategy[Case]:
        tree = json.loads((folder / name).read_text())
        return changed_trees(tree, ("seal",)).map(
            lambda made: damaged(name, (made[0], json.dumps(sealed(made[1])).encode()))
        )

    json_files = [name for name in files if name.endswith(".json")]
    return st.one_of(
        st.sampled_from(files).flatmap(
            lambda name: st.builds(damaged, st.just(name), changed_bytes((folder / name).read_bytes()))
        ),
        st.sampled_from(files).map(lambda name: damaged(name, ("missing", None))),
        st.sampled_from(json_files).flatmap(trees),
    )


def generated(place: Path) -> st.SearchStrategy[Case]:
    """A folder of generated data with a damaged file, which goes on, is left, is replaced or is refused."""
    folder = place / "generated"
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    tables = [file for file in files if "/" not in file and file != "generation.json"]
    commands = st.sampled_from(
        [
            (*WRITES, "--out", "g"),
            (*WRITES, "--out", "g", "--overwrite"),
            (*WRITES, "--out", "g", "--keep", "words<=3", "--overwrite"),
            (*WRITES, "--out", "g", "--dry-run"),
            *[
                (
                    "distill",
                    "--teacher",
                    "@causal/teacher",
                    "--student",
                    "@causal/student",
                    "--task",
                    "lm:text",
                    "--data",
                    "g",
                    *SHORT,
                )
            ],
        ]
    )

    def damaged(name: str, made: tuple[str, bytes], words: tuple[str, ...], complete: bool) -> Case:
        gone: dict[str, bytes | None] = {} if complete or name == "generation.json" else {"g/generation.json": None}
        return Case("generated data", f"{name}: {made[0]}", words, {**gone, f"g/{name}": made[1]}, {"g": "generated"})

    def one(name: str) -> st.SearchStrategy[Case]:
        content = (folder / name).read_bytes()
        ways = [changed_bytes(content)]
        if name.endswith(".json"):
            trees = changed_trees(json.loads(content)).map(lambda made: (made[0], json.dumps(made[1]).encode()))
            ways = [*ways, trees, trees]
        return st.builds(damaged, st.just(name), st.one_of(*ways), commands, st.booleans())

    return st.one_of(*[one(name) for name in files if name not in tables] * 2, *map(one, tables))


RAW = (
    "", "{", "null", "[]", "7", '"x"', "<html>", "[" * 100_000, '{"choices": ' * 2000, "\0", "\xff\xfe",
    '{"choices": NaN}', '{"choices": [{"text": "\\ud800"}]}',
    '{"choices": [{"text": "\\u001b[2J", "finish_reason": "stop"}]}', '{"error": 5}',
    '{"error": {"message": "\\u001b[31mred"}}', '{"error": {"message": "sk-0123456789abcdefghij"}}',
    '{"choices": [' + "{}," * 999 + "{}]}", '{"model": "\\u001b]0;x\\u0007", "choices": [{"text": "a"}]}',
    '{"choices": [{"text": "' + "a" * 100_000 + '"}]}',
)  # fmt: skip
HEADERS: tuple[dict[str, str], ...] = (
    {"Content-Type": "text/html"}, {"Content-Encoding": "gzip"}, {"Location": "file:///etc/passwd"},
    {"Content-Type": "\x1b[31m"}, {"Retry-After": "99999999"}, {"Retry-After": "x"}, {"Content-Length": "5"},
    {"Transfer-Encoding": "chunked"},
)  # fmt: skip


def answers(place: Path) -> st.SearchStrategy[Case]:
    """A server's answers of other kinds, statuses, headers and bytes, to every command that asks one."""
    served = ("--base-url", "@url", "--max-requests", "4")
    scored = ("eval", "openai:m", "--task", "sst2", "--data", "@sst2", "--limit", "2", *served)
    continued = (
        "eval",
        "openai:m",
        "--task",
        "lm:text",
        "--data",
        "@causal/texts",
        "--limit",
        "2",
        "--metrics",
        "bleu",
        *served,
    )
    written = (
        "generate",
        "--teacher",
        "openai:m",
        "--task",
        "lm:text",
        "--data",
        "@causal/texts",
        "--limit",
        "2",
        "--out",
        "out",
        *served,
    )
    models = ("--teacher", "openai:tiny", "--student", "@causal/student")
    texts = ("--task", "lm:text", "--data", "@causal/texts", "--max-length", "16")
    taught = ("distill", *models, *texts, *SHORT, "--out", "out", "--base-url", "@url")
    shape = {
        "model": "m-2",
        "choices": [{"text": "a", "message": {"content": "a"}, "finish_reason": "stop", "index": 0}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    told = {
        "model": "tiny-1",
        "choices": [
            {"text": "", "prompt_logprobs": [None, {"5": {"logprob": -1.0, "decoded_token": "a"}}], "logprobs": {}}
        ],
        "usage": {"prompt_tokens": 7},
    }
    odd = st.one_of(TREES, st.sampled_from([-1.0, 5.0, "NaN", "\ud800", "\x1b[2J", 10**30, -(10**9)]))
    paths, long_paths = [list(path) for path in paths_of(shape)], [list(path) for path in paths_of(told)]
    how = st.one_of(
        st.builds(lambda path, value: {"set": [[path, value]]}, st.sampled_from(paths), odd),
        st.builds(lambda path, value: {"set": [[path, value]]}, st.sampled_from(paths), odd),
        st.sampled_from(RAW).map(lambda raw: {"raw": raw}),
        st.builds(
            lambda status, raw: {"status": status, "raw": raw},
            st.sampled_from([204, 301, 400, 401, 404, 418, 422]),
            st.sampled_from(RAW),
        ),
        st.builds(
            lambda headers, raw: {"headers": headers, "raw": raw}, st.sampled_from(HEADERS), st.sampled_from(RAW[:6])
        ),
    )
    teaching = st.one_of(
        st.builds(lambda path, value: {"set": [[path, value]]}, st.sampled_from(long_paths), odd),
        st.sampled_from(RAW).map(lambda raw: {"raw": raw}),
    ).map(lambda made: made | {"model": str(place / "causal" / "teacher")})
    asking = st.builds(
        lambda made, words: Case("answers of a server", json.dumps(made)[:100], words, answer=made),
        how,
        st.sampled_from([scored, continued, written]),
    )
    return st.one_of(
        asking,
        asking,
        teaching.map(lambda made: Case("answers of a server", json.dumps(made)[:100], taught, answer=made)),
    )
