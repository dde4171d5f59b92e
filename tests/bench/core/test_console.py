"""Progress on a terminal and in a log file."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench.core import console
from bench.core.console import PLAIN_INTERVAL_S, BarProgress, PlainProgress, progress_for
from bench.core.progress import SILENT


def terminal(width=120):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def log():
    return Console(file=io.StringIO(), force_terminal=False, width=20)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""
    hand = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def test_a_log_has_lines_at_start_and_end_and_at_intervals(clock):
    target = log()
    with PlainProgress(target).task("latency", 4) as task:
        clock.now += PLAIN_INTERVAL_S
        task.advance(note="a.onnx")
        clock.now += PLAIN_INTERVAL_S / 2
        task.advance()
        clock.now += PLAIN_INTERVAL_S / 2
        task.advance()
        clock.now += PLAIN_INTERVAL_S
        task.advance(note="b.onnx")
    assert target.file.getvalue().splitlines() == [
        "latency: 0/4",
        "latency: 1/4, about 30 s left, a.onnx",
        "latency: 3/4, about 7 s left",
        "latency: 4/4, 30.0 s, b.onnx",
    ]


def test_a_terminal_shows_a_bar():
    target = terminal()
    with BarProgress(target).task("latency", 2) as task:
        task.advance(2, note="model[int8].onnx")
    text = target.file.getvalue()
    assert "latency" in text
    assert "2/2" in text
    assert "model[int8].onnx" in text


@pytest.mark.parametrize(("kind", "make"), [(BarProgress, terminal), (PlainProgress, log)])
def test_the_console_decides_between_bars_and_lines(kind, make):
    assert type(progress_for(make())) is kind


@pytest.mark.parametrize("make", [terminal, log])
def test_a_line_is_printed_without_markup(make):
    target = make()
    progress_for(target).say("[bold]12 files[/] done")
    assert target.file.getvalue() == "[bold]12 files[/] done\n"


def test_silent_progress_prints_nothing(capsys):
    with SILENT.task("latency", 2) as task:
        task.advance(note="not shown")
    SILENT.say("not shown")
    assert capsys.readouterr() == ("", "")
