"""Whether a run is as it was left: its record by its seal, its other files by their hashes in the record.

The student's model card is for its reader to go on writing, and not among them.
A seal is no signature: who changes a file can seal the record again. It tells a slip, a half copied folder or an edited
number from a run; ``kdalign compare --verify`` then takes the scores from the kept answers again (``verification``).
"""

from collections.abc import Mapping
from pathlib import Path

from kdalign.errors import TamperedRun
from kdalign.files import sha256
from kdalign.runs.folder import seal_of
from kdalign.runs.record import CARD, RECORD, RunRecord, read_tree

_SHOWN = 12
"""Digits of a hash that an error line shows."""


def read_checked(path: Path) -> RunRecord:
    """The record of a run folder, or of a record file, once its seal and the folder's small files were checked.

    Raises:
        UsageError: nothing there, an unfinished run, or not a record.
        Changed: the run is not as it was when it ended.
    """
    tree, where = read_tree(path)
    record = RunRecord.from_json(tree, where)
    folder = path.parent if path.name == RECORD else path
    if record.seal and record.seal != seal_of(tree):
        raise TamperedRun(f"run {str(folder)!r}: {RECORD} was changed after the run ended: its seal does not fit it")
    check_files(folder, _small(record.files))
    return record


def check_weights(folder: Path, record: RunRecord) -> None:
    """Check the weights of a run, which take longer than all its other files.

    Raises:
        Changed: the weights are missing or were changed.
    """
    weights = {name: digest for name, digest in record.files.items() if name.endswith(".safetensors")}
    check_files(folder, weights)


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check files of a run by their SHA-256.

    Raises:
        Changed: the first that is missing or another, by its name and its run's.
    """
    for name, digest in files.items():
        file = folder / name  # below it: ``record_schema`` refuses other names
        if not file.is_file():
            raise TamperedRun(f"run {str(folder)!r}: {name} is missing, which was there when the run ended")
        found = sha256(file)
        if found != digest:
            raise TamperedRun(
                f"run {str(folder)!r}: {name} was changed after the run ended "
                f"(SHA-256 {digest[:_SHOWN]}… then, {found[:_SHOWN]}… now)"
            )


def _small(files: Mapping[str, str]) -> dict[str, str]:
    """All but weights, and the card."""
    return {
        name: digest
        for name, digest in files.items()
        if not name.endswith(".safetensors") and name != f"student/{CARD}"
    }
