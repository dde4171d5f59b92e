"""Keeping a training while it runs, so that a killed one goes on instead of starting over.

A checkpoint is one safetensors file; what is not a tensor is JSON in its header. Nothing is pickled.
One process goes on with the very numbers that it would have had; several draw new augmentation.
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
    """What a checkpoint holds beside tensors; who writes it says what that is."""

    format: Literal[1] = FORMAT


AnyValues = TypeVar("AnyValues", bound=Values)


@dataclass(frozen=True)
class Saved(Generic[AnyValues]):
    """A checkpoint: named tensors, and plain values."""

    tensors: Mapping[str, Tensor]
    values: AnyValues


class Checkpoints:
    """Checkpoints of the trainings of one stage, a file each.

    Args:
        folder: where they lie; made when the first is written.
        interval_s: least time between two of a training. Writing takes a moment, losing a minute is cheap.
        clock: seconds.
    """

    def __init__(
        self, folder: Path, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._interval_s, self._clock = folder, interval_s, clock
        self._last = clock()

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._clock() - self._last >= self._interval_s

    def write(self, name: str, saved: Saved[AnyValues]) -> None:
        """Replace the checkpoint of a training; a kill leaves the old one or the new one."""
        from safetensors.torch import save

        header = {"edgeproof": json.dumps(saved.values.model_dump(mode="json"), allow_nan=False)}
        tensors = {key: _alone(value) for key, value in saved.tensors.items()}
        write_bytes(self._path(name), save(tensors, metadata=header))
        self._last = self._clock()

    def read(self, name: str, kind: type[AnyValues]) -> Saved[AnyValues] | None:
        """The checkpoint of a training, if there is a whole one of this format with values of a kind."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(name), framework="pt") as file:
                values = kind.model_validate_json((file.metadata() or {})["edgeproof"])
                return Saved({key: file.get_tensor(key) for key in file.keys()}, values)  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def rescue(self, name: str, state: Mapping[str, Tensor]) -> Path:
        """Keep weights of a training that went wrong, as a checkpoint that a recipe can name."""
        from safetensors.torch import save

        path = self._path(f"{name}.last-good")
        write_bytes(path, save({key: _alone(value) for key, value in state.items()}))
        return path

    def _path(self, name: str) -> Path:
        return self._folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.safetensors"


def _alone(tensor: Tensor) -> Tensor:
    """A copy with memory of its own: safetensors refuses tensors that share theirs, as tied weights do."""
    return tensor.detach().cpu().contiguous().clone()
