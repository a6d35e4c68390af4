"""Files of a cache of teacher outputs: shards that are read in place, each named by the checksum of its bytes.

A folder holds ``cache.json``, all that decides the numbers, and any number of shards. A shard is a safetensors file
with the keys of its rows, for each array the lines of all rows, and where each row's lines begin. Its name is its
checksum, so that processes write shards without knowing of one another, and what is damaged is known. A killed writer
leaves whole shards and a temporary file.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdalign.errors import UsageError
from kdalign.files import atomic_file, read_json, write_json
from kdalign.teachers.row_keys import DIGEST
from kdalign.teachers.row_outputs import Arrays

META = "cache.json"
_BEGIN, _END = "shard-", ".safetensors"
SHARD_BYTES, SHARD_SECONDS = 64 * 2**20, 60.0
"""Most bytes of a shard before it is written, and most seconds of work that a kill may lose."""
_KEYS, _LINES = "row keys", "lines of "


@dataclass(frozen=True)
class ShardFacts:
    """Counts of a shard, or of several.

    Attributes:
        rows: number of rows.
        tokens: number of tokens that the teacher read.
        predictions: number of positions whose next token is kept.
        bytes: size of the files.
        tails: by temperature, the sum over predictions of the probability outside the kept entries.
    """

    rows: int = 0
    tokens: int = 0
    predictions: int = 0
    bytes: int = 0
    tails: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "ShardFacts") -> "ShardFacts":
        names = dict.fromkeys([*self.tails, *other.tails])
        return ShardFacts(
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.predictions + other.predictions,
            self.bytes + other.bytes,
            {name: self.tails.get(name, 0.0) + other.tails.get(name, 0.0) for name in names},
        )

    @property
    def bytes_a_token(self) -> float:
        """Bytes on disk for each token that the teacher read."""
        return self.bytes / max(self.tokens, 1)

    @property
    def mean_tails(self) -> dict[str, float]:
        """Mean probability outside the kept entries, by temperature."""
        return {name: total / max(self.predictions, 1) for name, total in self.tails.items()}


class ShardWriter:
    """Collects rows and writes a shard whenever enough of them are there."""

    def __init__(self, folder: "CacheFolder") -> None:
        self._folder, self._cache = folder.path, folder.digest
        self._keys: list[bytes] = []
        self._rows: list[Arrays] = []
        self._facts = ShardFacts()
        self._begun = time.monotonic()
        self.written = ShardFacts()

    def add(self, keys: Sequence[bytes], rows: Sequence[Arrays], facts: ShardFacts) -> None:
        """Add rows, and write a shard if it is large or old enough.

        Raises:
            Unwritten: the disk is full, or writing is not permitted.
        """
        size = sum(lines.numel() * lines.element_size() for row in rows for lines in row.values())
        self._keys += keys
        self._rows += rows
        self._facts = self._facts + facts + ShardFacts(bytes=size)
        if self._facts.bytes >= SHARD_BYTES or time.monotonic() - self._begun >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is collected."""
        if not self._keys:
            return
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        tensors = {_KEYS: torch.frombuffer(bytearray(b"".join(self._keys)), dtype=torch.uint8).view(-1, DIGEST)}
        for name in names:
            counts = [len(row[name]) if name in row else 0 for row in self._rows]
            tensors[name] = torch.cat([row[name] for row in self._rows if name in row])
            if any(count != 1 for count in counts):
                tensors[_LINES + name] = torch.tensor([0, *counts]).cumsum(0)
        facts = {"rows": len(self._keys), "tokens": self._facts.tokens, "predictions": self._facts.predictions}
        written = {"facts": json.dumps({**facts, "tails": dict(self._facts.tails)}), "cache": self._cache}
        content = save(tensors, written)
        file = self._folder / f"{_BEGIN}{_checksum(content)}{_END}"
        with atomic_file(file) as temporary:
            temporary.write_bytes(content)
        self.written = self.written + ShardFacts(**facts, bytes=len(content), tails=self._facts.tails)
        self._keys, self._rows, self._facts, self._begun = [], [], ShardFacts(), time.monotonic()


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class _Shard:
    """A shard that is mapped into memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        opened: Any = safe_open(str(file), framework="pt")
        self._opened = opened
        self._names = set(opened.keys())
        self._begins: dict[str, Tensor] = {}
        self._slices: dict[str, Any] = {}

    @property
    def keys(self) -> np.ndarray[Any, Any]:
        """(rows,), the rows' keys as bytes of one length."""
        return np.ascontiguousarray(self._opened.get_tensor(_KEYS).numpy()).view(f"S{DIGEST}")[:, 0]

    @property
    def cache(self) -> str:
        """Digest of the cache that it was written for."""
        return str(self._opened.metadata()["cache"])

    @property
    def facts(self) -> ShardFacts:
        """Its counts."""
        return ShardFacts(**json.loads(self._opened.metadata()["facts"]), bytes=self._file.stat().st_size)

    def read(self, row: int, names: Iterable[str]) -> Arrays:
        """Read a row's lines of these arrays, of those that the shard has."""
        found = {}
        for name in names:
            if name not in self._names:
                continue
            if name not in self._slices:
                self._slices[name] = self._opened.get_slice(name)
                lines = _LINES + name
                self._begins[name] = self._opened.get_tensor(lines) if lines in self._names else torch.empty(0)
            begins = self._begins[name]
            first, end = (int(begins[row]), int(begins[row + 1])) if len(begins) else (row, row + 1)
            found[name] = self._slices[name][first:end]
        return found


@dataclass
class CacheFolder:
    """A folder with kept outputs.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def meta(self) -> dict[str, Any]:
        """Facts that decide the numbers: teacher, tokenizer, precision, outputs and formats.

        Raises:
            UsageError: the folder holds no cache, or its description is missing or damaged.
        """
        if not self.is_cache:
            if self.files:
                raise self._undescribed("missing")
            raise UsageError(f"{str(self.path)!r} holds no teacher outputs: it has no {META}")
        try:
            found = read_json(self.path / META)
        except UsageError:
            found = None
        if not isinstance(found, dict) or found.pop(_CHECK, _digest_of(found)) != _digest_of(found):
            raise self._undescribed("damaged")
        return found

    def _undescribed(self, state: str) -> UsageError:
        return UsageError(
            f"{str(self.path / META)!r} is {state}, and without it no shard can be read: remove the folder, and the "
            "next run with --cache (or `kdalign cache build`) computes its rows again"
        )

    @property
    def is_cache(self) -> bool:
        """True if it holds a cache, finished or not."""
        return (self.path / META).is_file()

    @property
    def digest(self) -> str:
        """Hash of what decides the numbers, which each shard holds, so that none is read in another cache."""
        return _digest_of(self.meta)

    def begin(self, meta: Mapping[str, Any]) -> None:
        """Write what decides the numbers."""
        write_json(self.path / META, {**meta, _CHECK: _digest_of(meta)})

    def remove_unfinished(self) -> None:
        """Remove what a killed writer left."""
        for file in self.path.glob(f".{_BEGIN}*"):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the cache's own files."""
        self.remove_unfinished()
        for file in (*self.files, self.path / META):
            file.unlink(missing_ok=True)

    @property
    def files(self) -> list[Path]:
        """The shards, sorted by name; a pipe or device is none, since reading it could block."""
        return sorted(file for file in self.path.glob(f"{_BEGIN}*{_END}") if file.is_file())

    def damaged(self) -> list[Path]:
        """Return the shards whose bytes are not those that were written."""
        return [file for file in self.files if _checksum_of(file) != file.name[len(_BEGIN) : -len(_END)]]

    def remove_damaged(self) -> list[str]:
        """Remove the damaged shards, whose rows the next build computes again, and return their names."""
        damaged = self.damaged()
        for file in damaged:
            file.unlink(missing_ok=True)
        return [file.name for file in damaged]

    def check(self) -> None:
        """Refuse a cache with a damaged shard.

        Raises:
            UsageError: the file, and what can be done.
        """
        damaged = self.damaged()
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise UsageError(
                f"{str(damaged[0])!r}{more}: damaged, its checksum is not that of its name; "
                f"`kdalign cache verify {self.path} --remove` removes such files, and their rows are computed again"
            )


_CHECK = "check"
"""Key of the description's own checksum, which older versions did not write."""


def _digest_of(meta: Mapping[str, Any]) -> str:
    """Checksum of a cache's description without its own."""
    return _checksum(json.dumps({name: each for name, each in meta.items() if name != _CHECK}, sort_keys=True).encode())


def _checksum_of(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as opened:
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()


class CacheIndex:
    """Rows of a cache's shards, found by their keys. Nothing but keys is in memory."""

    def __init__(self, folder: CacheFolder) -> None:
        """Open all shards that are there.

        Raises:
            UsageError: a shard cannot be read, or is of another cache.
        """
        digest = folder.digest
        self._shards, of_shards, self.facts = list[_Shard](), list[np.ndarray[Any, Any]](), ShardFacts()
        for file in folder.files:
            try:
                shard = _Shard(file)
                written_for, keys, facts = shard.cache, shard.keys, shard.facts
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"the shard {str(file)!r} cannot be opened ({error}): `kdalign cache verify {folder.path} "
                    "--remove` removes damaged shards, and their rows are computed again"
                ) from None
            if written_for != digest:
                raise UsageError(
                    f"{file.name} was not written for the cache {str(folder.path)!r} as its {META} describes it: move "
                    f"such files away, and their rows are computed again"
                )
            self._shards.append(shard)
            of_shards.append(keys)
            self.facts = self.facts + facts
        every = np.concatenate([np.empty(0, f"S{DIGEST}"), *of_shards])
        self._order = np.argsort(every, kind="stable")
        self._keys = every[self._order]
        self._shard = np.repeat(np.arange(len(of_shards)), [len(each) for each in of_shards])[self._order]
        self._row = np.concatenate([np.empty(0, np.int64), *(np.arange(len(each)) for each in of_shards)])[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return self._place(key) is not None

    def _place(self, key: bytes) -> int | None:
        wanted = np.array([key], f"S{DIGEST}")
        place = int(np.searchsorted(self._keys, wanted)[0])
        return place if place < len(self._keys) and self._keys[place] == wanted[0] else None

    def read(self, key: bytes, names: Iterable[str]) -> Arrays | None:
        """Read a row's arrays; None if it is not there."""
        place = self._place(key)
        return None if place is None else self._shards[self._shard[place]].read(int(self._row[place]), names)

    @cached_property
    def keys(self) -> list[bytes]:
        """Keys of all rows, sorted."""
        return [bytes(key).ljust(DIGEST, b"\0") for key in self._keys]
