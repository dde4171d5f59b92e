"""Values in checkpoints are read exactly as they were written, and never as another kind."""

from __future__ import annotations

import numpy as np
from pydantic import JsonValue

from exporter.results import Epoch
from exporter.training.loop import Checkpoints
from exporter.training.loop.checkpoints import Saved, Values

EPOCH = Epoch(epoch=0, learning_rate=0.1, train_loss=1 / 3, train_accuracy=0.5, validation_accuracy=0.25)


class Kept(Values):
    curves: tuple[Epoch, ...]
    generator: dict[str, JsonValue]


class Other(Values):
    curves: int


def test_values_are_read_exactly(tmp_path):
    """The state of a generator includes 128-bit integers."""
    values = Kept(curves=(EPOCH,), generator=dict(np.random.default_rng(0).bit_generator.state))
    Checkpoints(tmp_path).write("a", Saved({}, values))
    assert Checkpoints(tmp_path).read("a", Kept).values == values


def test_values_of_another_kind_are_not_read(tmp_path):
    Checkpoints(tmp_path).write("a", Saved({}, Kept(curves=(EPOCH,), generator={})))
    assert Checkpoints(tmp_path).read("a", Other) is None
    assert Checkpoints(tmp_path).read("a", Values) is None
