"""The lock and the warning filter that threads share."""

from __future__ import annotations

import threading
import warnings

import pytest

from exporter.process import one_at_a_time, warnings_ignored


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_second_thread_gets_a_message_and_waits():
    events, told, waiting = [], [], threading.Event()

    def on_wait(words):
        told.append(words)
        waiting.set()

    def second():
        with one_at_a_time(on_wait):
            events.append("second")

    with one_at_a_time():
        thread = in_thread(second)
        assert waiting.wait(60)
        events.append("first")
    thread.join(60)
    assert events == ["first", "second"]
    assert told == ["waiting for the build of another thread to finish"]


def test_the_same_thread_may_enter_again():
    told = []
    with one_at_a_time(told.append), one_at_a_time(told.append):
        pass
    assert told == []


def test_an_error_frees_the_lock():
    with pytest.raises(ValueError, match="broken"), one_at_a_time():
        raise ValueError("broken")
    entered = threading.Event()

    def second():
        with one_at_a_time():
            entered.set()

    in_thread(second)
    assert entered.wait(60)


def test_warnings_come_back_when_the_last_thread_has_left():
    before = warnings.filters[:]
    entered, leave = threading.Event(), threading.Event()

    def other():
        with warnings_ignored():
            entered.set()
            leave.wait(60)

    with warnings_ignored():
        thread = in_thread(other)
        assert entered.wait(60)
        warnings.warn("ignored", UserWarning, stacklevel=1)
    warnings.warn("the other thread is inside", UserWarning, stacklevel=1)
    leave.set()
    thread.join(60)
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="shown"):
        warnings.warn("shown again", UserWarning, stacklevel=1)
