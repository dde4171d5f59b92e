"""Ctrl-C is handled, also in a finalizer, where Python itself would lose it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from bench.core.interrupt import check_interrupt, interruptible


def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass  # Python handles a signal between two instructions


def test_an_interrupt_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        press()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_finalizer_swallows_is_raised_at_the_next_check():
    class Finalizer:
        def __del__(self):
            press()

    with interruptible():
        Finalizer()
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()


def test_handler_and_flag_are_reset():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        press()
    assert signal.getsignal(signal.SIGINT) is before
    check_interrupt()
    with interruptible():
        check_interrupt()


def test_other_threads_get_no_signals():
    seen = []
    before = signal.getsignal(signal.SIGINT)  # a background job of a shell ignores SIGINT

    def act():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert seen == [before]
