"""Ranks, the processes of one launch (such as torchrun's), that share work: each part once, whatever their number.

Batches are formed as by one process, and rank r of n reads those whose number is r modulo n: so the results are the
same bit for bit on any number of ranks. They come to every rank, so that all go on alike, and the first one writes the
files. An error on one rank is raised on all. A process that runs alone is the only rank, and waits for nobody.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from traceback import clear_frames
from typing import Any, TypeVar

import torch.distributed as dist

from kdalign.errors import Interrupted, KdalignError, RunError, cause_of

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")

TOGETHER = 16
"""Batches of each rank between two exchanges: as many as make an exchange cheap, and an error known soon."""


def rank_and_size() -> tuple[int, int]:
    """Return the number of this rank, and of all ranks; 0 and 1 for a process that runs alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: _Result) -> list[_Result]:
    """Return every rank's value on each of them, in the order of ranks; values are pickled."""
    _, size = rank_and_size()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def on_every_rank(work: Callable[[], _Result]) -> list[_Result]:
    """Run work on each rank, and return all results on every one of them.

    Raises:
        RunError: the work has failed on another rank, of the same kind and with the same line if it is kdalign's own.
    """
    if rank_and_size()[1] == 1:
        return [work()]
    result, failed = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the other ranks wait for it
        failed = error
        clear_frames(error.__traceback__)  # which may hold the memory that ran out
    said = gather((result, None if failed is None else _described(failed)))
    if failed is not None:
        raise failed
    for _, failure in said:
        if failure is not None:
            kind, line = failure
            raise kind(line)
    return [each for each, _ in said]  # type: ignore[misc]  # nothing has failed


def _described(error: Exception) -> tuple[type[KdalignError], str]:
    """Return the kind and line of the error that other ranks raise for one that they do not have."""
    if isinstance(error, KdalignError) and not isinstance(error, Interrupted):
        return type(error), str(error)
    return RunError, cause_of(error)


def on_first_rank(work: Callable[[], _Result]) -> _Result:
    """Run work on the first rank alone, while the others wait, and return its result on every rank.

    Raises:
        RunError: as ``on_every_rank``.
    """
    rank, _ = rank_and_size()
    return on_every_rank(lambda: work() if rank == 0 else None)[0]  # type: ignore[return-value]  # the first has one


@contextmanager
def entered_on_first_rank(context: AbstractContextManager[_Result]) -> Iterator[_Result]:
    """Enter a context, such as a lock, on the first rank alone; every rank gets what it yields."""
    with ExitStack() as entered:
        yield on_first_rank(lambda: entered.enter_context(context))


def share_batches(
    batches: Iterable[_Part], read: Callable[[_Part], _Result], *, in_step: bool = False, together: int = TOGETHER
) -> Iterator[tuple[_Part, _Result]]:
    """Let each rank read its share of batches, and yield all of them in order, each with its result, on every rank.

    Args:
        batches: the same on every rank, such as the rows of each.
        read: reads one batch; its result is pickled if there are several ranks.
        in_step: all ranks read equally often, as a model that is sharded over them needs it: one that is left without
            a batch reads another's, and drops the result.
        together: batches of each rank between two exchanges.

    Raises:
        RunError: as ``on_every_rank``, once the batches of an exchange are read. With ``in_step`` a rank whose batch
            fails ends alone, as the others wait inside the same forward; their launcher ends them.
    """
    rank, size = rank_and_size()
    if size == 1:
        for batch in batches:
            yield batch, read(batch)
        return
    left = iter(batches)
    while window := list(islice(left, size * together)):
        shares = (
            gather(_read(window, read, rank, size))
            if in_step
            else on_every_rank(lambda: [read(batch) for batch in window[rank::size]])
        )
        for number, batch in enumerate(window):
            yield batch, shares[number % size][number // size]


def _read(window: list[_Part], read: Callable[[_Part], _Result], rank: int, size: int) -> list[_Result]:
    """Read a rank's batches of a window, and another's again if these are fewer than the first rank's."""
    results = [read(batch) for batch in window[rank::size]]
    if len(results) < len(window[::size]):
        read(window[-1])
    return results
