"""Check the seal of a run: its record by the seal, its other files by their hashes in the record.

The student's model card may be edited and is not checked. A seal is not a signature: whoever changes a file can seal
the record again. It detects a slip, a half-copied folder or an edited number; ``kdalign compare --verify`` also
computes the scores from the kept predictions again (``evaluation.rescoring``).
"""

from collections.abc import Mapping
from pathlib import Path

from kdalign.errors import TamperedRun
from kdalign.files import sha256
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import CARD, RECORD, RunRecord, read_tree
from kdalign.runs.seal import seal_of

_SHOWN = 12
"""Digits of a hash in an error line."""


def read_checked(path: Path) -> RunRecord:
    """Read a run's record after checking its seal and the folder's files except weights.

    Raises:
        UsageError: nothing there, an unfinished run, or not a record.
        TamperedRun: the run differs from when it ended.
    """
    tree, where = read_tree(path)
    record = RunRecord.from_json(tree, where)
    folder = path.parent if path.name == RECORD else path
    if record.seal and record.seal != seal_of(tree):
        raise TamperedRun(f"run {str(folder)!r}: {RECORD} was changed after the run ended: its seal does not fit it")
    _ = RunFolder(folder).begun  # whose seal is checked, though a finished run needs it no more
    check_files(folder, _small(record.files))
    return record


def read_whole(path: Path) -> RunRecord:
    """Read a run's record after checking all its files, weights too.

    Raises:
        UsageError: as ``read_checked``.
    """
    record = read_checked(path)
    check_weights(path, record)
    return record


def check_weights(folder: Path, record: RunRecord) -> None:
    """Check the weights of a run, which takes longer than all its other files.

    Raises:
        TamperedRun: weights are missing or were changed.
    """
    weights = {name: digest for name, digest in record.files.items() if name.endswith(".safetensors")}
    check_files(folder, weights)


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check files of a run by their SHA-256.

    Raises:
        TamperedRun: the line names the run and the first file that is missing or changed.
    """
    for name, digest in files.items():
        file = folder / name  # inside it: ``record_schema`` refuses other names
        if not file.is_file():
            raise TamperedRun(f"run {str(folder)!r}: {name} is missing, which was there when the run ended")
        found = sha256(file)
        if found != digest:
            raise TamperedRun(
                f"run {str(folder)!r}: {name} was changed after the run ended "
                f"(SHA-256 {digest[:_SHOWN]}… then, {found[:_SHOWN]}… now)"
            )


def _small(files: Mapping[str, str]) -> dict[str, str]:
    """All files except weights and the card."""
    return {
        name: digest
        for name, digest in files.items()
        if not name.endswith(".safetensors") and name != f"student/{CARD}"
    }
