"""Stored activation ranges, for later builds of the same model with the same data.

The excluded nodes and the target's types determine which tensors are rounded. They do not change the values
of the tensors, so a build that excludes one more layer still reads its ranges here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.core.files import write_json
from exporter.graphs.ranges import Range


@dataclass(frozen=True)
class RangeStore:
    """A folder with one JSON file for each combination of model, data and method.

    Attributes:
        folder: the folder of the files; `keep` creates it.
        data: an identifier of the content of the calibration samples, for example their hash.
    """

    folder: Path
    data: str

    def find(self, key: str) -> dict[str, Range]:
        """The ranges stored under a key; empty if the file is missing or damaged."""
        try:
            kept = json.loads(self._file(key).read_text(encoding="utf-8"))
            pairs = {name: (float(low), float(high)) for name, (low, high) in kept[key].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        if not all(-math.inf < low <= high < math.inf for low, high in pairs.values()):
            return {}
        return {name: Range(low, high) for name, (low, high) in pairs.items()}

    def keep(self, key: str, ranges: Mapping[str, Range]) -> None:
        """Store ranges under a key, replacing earlier ones.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_json(self._file(key), {key: {name: [r.lowest, r.highest] for name, r in ranges.items()}})

    def _file(self, key: str) -> Path:
        return self.folder / f"ranges-{key}.json"
