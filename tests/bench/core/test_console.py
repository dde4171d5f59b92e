"""Progress for a terminal and for a log."""

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
    """A clock that a test turns by hand."""
    hand = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: hand.now))
    return hand


def test_a_log_gets_a_line_at_both_ends_and_now_and_then(clock):
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


def test_a_terminal_gets_a_bar():
    target = terminal()
    with BarProgress(target).task("latency", 2) as task:
        task.advance(2, note="model[int8].onnx")
    text = target.file.getvalue()
    assert "latency" in text
    assert "2/2" in text
    assert "model[int8].onnx" in text


@pytest.mark.parametrize(("kind", "make"), [(BarProgress, terminal), (PlainProgress, log)])
def test_the_console_decides(kind, make):
    assert type(progress_for(make())) is kind


@pytest.mark.parametrize("make", [terminal, log])
def test_a_line_is_said_as_it_is(make):
    target = make()
    progress_for(target).say("[bold]12 files[/] done")
    assert target.file.getvalue() == "[bold]12 files[/] done\n"


def test_silence(capsys):
    with SILENT.task("latency", 2) as task:
        task.advance(note="unheard")
    SILENT.say("unheard")
    assert capsys.readouterr() == ("", "")
