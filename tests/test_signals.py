"""The first signal is noted, the second acts as usual."""

import os
import signal
import threading

from kdalign.signals import first_signal


def test_the_first_signal_is_noted_and_the_second_acts_as_usual():
    usual = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: usual.append(number))
    try:
        with first_signal(signal.SIGUSR1) as received:
            assert received == []
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (received, usual) == ([signal.SIGUSR1], [])
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (received, usual) == ([signal.SIGUSR1], [signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_handlers_are_as_before_once_it_is_over():
    before = signal.getsignal(signal.SIGTERM)
    with first_signal(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_collects_nothing_and_sets_no_handler():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with first_signal(signal.SIGTERM) as received:
            seen.append((list(received), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], True)]
