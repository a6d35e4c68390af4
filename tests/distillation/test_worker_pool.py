"""Worker processes of an ablation."""

from multiprocessing.context import ForkServerContext

import pytest

from kdalign.distillation.worker_pool import WorkerPool, _Worker
from kdalign.errors import RunError
from kdalign.observer import NullObserver


def test_an_ablation_whose_fork_server_is_killed_says_so_in_one_line(monkeypatch, tmp_path):
    class Killed:
        def __init__(self, **_):
            pass

        def start(self):
            raise EOFError

    monkeypatch.setattr(ForkServerContext, "Process", Killed)
    with pytest.raises(RunError, match=r"was ended while it loaded .*the same command resumes"):
        _Worker.start(1, NullObserver)


class Answering:
    """A worker whose process needs no start; its answers are set by the test."""

    def __init__(self, connection):
        self.connection, self.trial, self.given, self.answers, self.terminated = connection, None, [], [], 0
        self.process, self.told = self, False

    def give(self, trial):
        self.trial = trial
        self.given.append(trial)

    def answer(self):
        return self.answers.pop(0)

    def terminate(self):
        self.terminated += 1

    def end(self):
        self.connection.close()


@pytest.fixture
def workers(monkeypatch):
    """Workers that a pool starts, and the other ends of their pipes."""
    from multiprocessing import Pipe

    started, theirs = [], []

    def start(*_):
        ours, other = Pipe()
        theirs.append(other)
        started.append(Answering(ours))
        return started[-1]

    monkeypatch.setattr(_Worker, "start", start)
    return started, theirs


def test_a_free_worker_runs_the_next_trial_and_one_that_died_is_replaced(workers):
    started, theirs = workers
    with WorkerPool(2, NullObserver) as pool:
        pool.give("a")
        pool.give("b")
        assert [worker.given for worker in started] == [["a"], ["b"]]
        started[0].answers = [""]
        theirs[0].send("ended")
        assert pool.poll(5) == [("a", "")]
        started[0].connection.recv()
        pool.give("c")
        assert [worker.given for worker in started] == [["a", "c"], ["b"]], "the free one"
        started[1].answers = ["its process ended"]
        theirs[1].close()
        assert pool.poll(5) == [("b", "its process ended")]
        pool.give("d")
        assert started[2].given == ["d"], "a new one"
        pool.stop()
        pool.stop()
        assert [worker.terminated for worker in started] == [1, 0, 1], "each once"
    assert started[0].connection.closed


@pytest.mark.parametrize(("threads", "size", "each"), [(8, 3, 2), (2, 4, 1)])
def test_workers_share_the_threads_of_the_machine(monkeypatch, threads, size, each):
    from multiprocessing import Pipe

    given = []

    def start(threads, _):
        given.append(threads)
        return Answering(Pipe()[0])

    monkeypatch.setattr(_Worker, "start", start)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    WorkerPool(size, NullObserver).give("a trial")
    assert given == [each]


def test_a_worker_that_was_told_to_stop_is_given_nothing_more(workers):
    started, theirs = workers
    with WorkerPool(1, NullObserver) as pool:
        pool.give("a")
        pool.cancel("a")
        started[0].answers = [""]  # it had ended just before
        theirs[0].send("ended")
        assert pool.poll(5) == [("a", "")]
        pool.give("b")
        assert [worker.given for worker in started] == [["a"], ["b"]]
