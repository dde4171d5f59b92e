"""Activation ranges found before, kept for the next time the same model meets the same data.

What is excluded, and the types of a target, decide which tensors are rounded, not what they hold: a run
that excludes a layer more reads its ranges here.
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
    """One JSON file for each model, data and method, in a folder.

    Attributes:
        folder: of the files; made when there is something to keep.
        data: names the content of the calibration samples, as their hash does.
    """

    folder: Path
    data: str

    def find(self, key: str) -> dict[str, Range]:
        """The ranges kept under a key; none where there is no file, or a damaged one."""
        try:
            kept = json.loads(self._file(key).read_text(encoding="utf-8"))
            pairs = {name: (float(low), float(high)) for name, (low, high) in kept[key].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        if not all(-math.inf < low <= high < math.inf for low, high in pairs.values()):
            return {}
        return {name: Range(low, high) for name, (low, high) in pairs.items()}

    def keep(self, key: str, ranges: Mapping[str, Range]) -> None:
        """Replace what is kept under a key.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_json(self._file(key), {key: {name: [r.lowest, r.highest] for name, r in ranges.items()}})

    def _file(self, key: str) -> Path:
        return self.folder / f"ranges-{key}.json"
