"""Stored results of timing on this host; a second run on the same host times nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.core.arrays import Array
from bench.core.files import model_sha256, write_json
from bench.core.schema import FrozenModel
from bench.inputs.host import fingerprint
from exporter.caching.cache import content_key
from exporter.options import Goal
from exporter.results import Speed

# Increase it if the search changes, so that old decisions are not used.
_VERSION = 1


class Decision(FrozenModel):
    """The result of timing a model.

    Attributes:
        in_float: nodes that returned to float because int8 was slower -> reason.
        speed: the time of the final model against float.
    """

    in_float: dict[str, str]
    speed: Speed


def times_key(rival: Path, quantized: Path, feeds: Mapping[str, Array], goal: Goal) -> str:
    """Identify a comparison: both files, the shapes of the feeds, the goal, the CPU and its software."""
    return content_key(
        {
            "version": _VERSION,
            "float": model_sha256(rival),
            "quantized": model_sha256(quantized),
            "goal": goal,
            "feeds": {name: [str(array.dtype), *array.shape] for name, array in feeds.items()},
            "host": fingerprint().model_dump(mode="json"),
        }
    )


@dataclass(frozen=True)
class TimeStore:
    """A folder with one JSON file for each comparison; None stores nothing."""

    folder: Path | None

    def find(self, key: str) -> Decision | None:
        """The stored decision; None if the file is missing or damaged."""
        if self.folder is None:
            return None
        try:
            return Decision.model_validate_json(self._file(self.folder, key).read_bytes())
        except (OSError, ValueError):
            return None

    def keep(self, key: str, decision: Decision) -> None:
        """Store a decision.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self.folder is not None:
            write_json(self._file(self.folder, key), decision.model_dump(mode="json"))

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / f"times-{key}.json"
