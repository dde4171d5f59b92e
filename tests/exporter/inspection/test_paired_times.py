"""Models that take turns; the clock is replaced, so nothing depends on the machine."""

from __future__ import annotations

import itertools

import numpy as np
import onnx

from bench.inputs.session import RuntimeOptions, open_session
from exporter.inspection import paired_times
from exporter.inspection.paired_times import LONG_RUN_NS, MAX_BLOCKS, MAX_BURST, MIN_BLOCKS, cpu_times

FEEDS = {"image": np.zeros((1, 1, 8, 8), np.float32)}


class Clock:
    """A clock on which every burst of runs takes the same time."""

    def __init__(self, step):
        self.now, self.step = 0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_models_and_files_take_turns(onnx_models):
    models = [onnx_models.float, onnx.load(onnx_models.int8)]
    found = cpu_times(models, FEEDS, seconds=1e9, clock=Clock(4_000_000), now=lambda: 0.0)
    assert found.shape == (MAX_BLOCKS, 2)
    assert (found == 4_000_000).all()


def test_short_runs_are_timed_in_bursts(onnx_models):
    found = cpu_times([onnx_models.float], FEEDS, seconds=0.0, clock=Clock(100))
    assert found.shape == (MIN_BLOCKS, 1)
    assert (found == 100 / MAX_BURST).all()


def test_long_runs_are_timed_alone(onnx_models, monkeypatch):
    runs = []
    session = open_session(onnx_models.float, RuntimeOptions(threads=1))
    monkeypatch.setattr(paired_times, "open_session", lambda path, options: Counted(session, runs))
    found = cpu_times([onnx_models.float], FEEDS, seconds=0.0, clock=Clock(LONG_RUN_NS))
    assert (found == LONG_RUN_NS).all()
    assert len(runs) == 2 + MIN_BLOCKS


class Counted:
    """A session that counts its runs."""

    def __init__(self, session, runs):
        self.session, self.runs = session, runs

    def run(self, names, feeds):
        self.runs.append(feeds)
        return self.session.run(names, feeds)


def test_no_block_begins_after_the_time_is_over(onnx_models):
    seconds = itertools.count()
    found = cpu_times([onnx_models.float], FEEDS, seconds=20.0, clock=Clock(10**6), now=seconds.__next__)
    assert len(found) == MIN_BLOCKS + 19
