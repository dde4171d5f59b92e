"""Checkpoints of a running training, so a killed training continues instead of starting over.

A checkpoint is one safetensors file; values that are not tensors are JSON in its header. Nothing is
pickled. A training with one process continues with exactly the same random numbers. With several processes,
the augmentation draws new random numbers.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from torch import Tensor

from bench.core.files import write_bytes
from bench.core.schema import FrozenModel

# Version 1. A checkpoint of another version is not read.
FORMAT: Final = 1
INTERVAL_S = 60.0


class Values(FrozenModel):
    """The values of a checkpoint that are not tensors; each writer defines its own subclass."""

    format: Literal[1] = FORMAT


AnyValues = TypeVar("AnyValues", bound=Values)


@dataclass(frozen=True)
class Saved(Generic[AnyValues]):
    """A checkpoint: named tensors, and plain values."""

    tensors: Mapping[str, Tensor]
    values: AnyValues


class Checkpoints:
    """Checkpoints of the trainings of one stage, one file for each training.

    Args:
        folder: folder of the files; the first write creates it.
        interval_s: minimum time between two checkpoints of a training. Writing takes time, and repeating a
            minute of training is cheap.
        clock: returns the time in seconds.
    """

    def __init__(
        self, folder: Path, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._interval_s, self._clock = folder, interval_s, clock
        self._last = clock()

    def due(self) -> bool:
        """Whether the interval since the last checkpoint is over."""
        return self._clock() - self._last >= self._interval_s

    def write(self, name: str, saved: Saved[AnyValues]) -> None:
        """Replace the checkpoint of a training atomically: a kill leaves the old or the new file."""
        from safetensors.torch import save

        header = {"edgeproof": json.dumps(saved.values.model_dump(mode="json"), allow_nan=False)}
        tensors = {key: _alone(value) for key, value in saved.tensors.items()}
        write_bytes(self._path(name), save(tensors, metadata=header))
        self._last = self._clock()

    def read(self, name: str, kind: type[AnyValues]) -> Saved[AnyValues] | None:
        """The checkpoint of a training, or None.

        None means that the file is missing, damaged, of another format, or has values of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(name), framework="pt") as file:
                values = kind.model_validate_json((file.metadata() or {})["edgeproof"])
                return Saved({key: file.get_tensor(key) for key in file.keys()}, values)  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def rescue(self, name: str, state: Mapping[str, Tensor]) -> Path:
        """Save weights of a failed training as a checkpoint that a recipe can load."""
        from safetensors.torch import save

        path = self._path(f"{name}.last-good")
        write_bytes(path, save({key: _alone(value) for key, value in state.items()}))
        return path

    def _path(self, name: str) -> Path:
        return self._folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.safetensors"


def _alone(tensor: Tensor) -> Tensor:
    """A copy with separate memory: safetensors rejects tensors that share memory, as tied weights do."""
    return tensor.detach().cpu().contiguous().clone()
