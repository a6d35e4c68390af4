"""Ranks share batches: each is read once, whatever their number; here they are threads, which exchange the same."""

import threading
from contextlib import contextmanager

import pytest

from kdalign import ranks
from kdalign.errors import Interrupted, NotFinite, RunError, UsageError
from kdalign.ranks import entered_on_first_rank, on_every_rank, on_first_rank, share_batches


@pytest.fixture
def launch(monkeypatch):
    """Run the same work on n ranks, and return what each of them returns or raises."""

    def run(size, work):
        own, barrier = threading.local(), threading.Barrier(size, timeout=10)
        values, results = [None] * size, [None] * size

        def gather(value):
            values[own.rank] = value
            barrier.wait()
            found = list(values)
            barrier.wait()
            return found

        def start(rank):
            own.rank = rank
            try:
                results[rank] = work(rank)
            except Exception as error:
                results[rank] = error

        monkeypatch.setattr(ranks, "rank_and_size", lambda: (own.rank, size))
        monkeypatch.setattr(ranks, "gather", gather)
        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(20)
        return results

    return run


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize(("count", "together"), [(0, 2), (1, 2), (4, 1), (11, 2), (12, 2), (7, 16)])
def test_each_batch_is_read_once_and_comes_in_order_on_every_rank(launch, size, count, together):
    read = [[] for _ in range(size)]

    def work(rank):
        def square(batch):
            read[rank].append(batch)
            return batch**2

        return list(share_batches(range(count), square, together=together))

    assert launch(size, work) == [[(number, number**2) for number in range(count)]] * size
    assert read == [list(range(rank, count, size)) for rank in range(size)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9])
def test_ranks_in_step_read_equally_often_and_drop_what_is_read_twice(launch, count):
    read = [[] for _ in range(3)]

    def work(rank):
        def square(batch):
            read[rank].append(batch)
            return batch**2

        return list(share_batches(range(count), square, in_step=True, together=2))

    assert launch(3, work) == [[(number, number**2) for number in range(count)]] * 3
    assert {len(each) for each in read} == {-(-count // 3)}


def test_a_process_that_runs_alone_reads_each_batch_as_it_is_asked_for():
    read = []
    shared = share_batches(iter("abc"), lambda batch: read.append(batch) or batch.upper())
    assert next(shared) == ("a", "A")
    assert read == ["a"]
    assert list(shared) == [("b", "B"), ("c", "C")]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(NotFinite, NotFinite), (UsageError, UsageError), (ValueError, RunError), (MemoryError, RunError),
     (lambda line: Interrupted(line, 2), RunError)],
)  # fmt: skip
def test_an_error_on_one_rank_ends_all_with_its_line(launch, error, kind):
    def work(rank):
        def read(batch):
            if batch == 4:
                raise error("row 17 is no text")
            return batch

        return list(share_batches(range(9), read, together=2))

    first, second, third = launch(3, work)
    assert isinstance(second, type(error("")))
    assert {type(first), type(third)} == {kind}
    assert all("row 17 is no text" in str(each) for each in (first, second, third))


def test_the_first_rank_works_alone_and_all_get_its_result(launch):
    worked = []
    assert launch(3, lambda rank: on_first_rank(lambda: worked.append(rank) or "done")) == ["done"] * 3
    assert worked == [0]
    failures = launch(2, lambda rank: on_first_rank(lambda: {}["no such key"]))
    assert [type(each) for each in failures] == [KeyError, RunError]


def test_every_rank_works_and_all_get_every_result(launch):
    assert launch(3, lambda rank: on_every_rank(lambda: rank * 10)) == [[0, 10, 20]] * 3


def test_a_lock_is_held_by_the_first_rank_and_its_refusal_ends_all(launch):
    entered, left = [], []

    @contextmanager
    def lock(free):
        if not free:
            raise UsageError("another process works here")
        entered.append(1)
        yield "held"
        left.append(1)

    def work(rank):
        with entered_on_first_rank(lock(free=True)) as note:
            return note

    assert launch(3, work) == ["held"] * 3
    assert (entered, left) == ([1], [1])

    def refused(rank):
        with entered_on_first_rank(lock(free=False)):
            raise AssertionError("entered")

    assert [type(each) for each in launch(2, refused)] == [UsageError, UsageError]
