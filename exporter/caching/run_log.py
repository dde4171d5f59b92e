"""The run log: a file in the cache folder with one JSON line for each event of a build."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.core.files import storage_errors

FILE = "builds.jsonl"


class RunLog:
    """Appends events to the log. Each line is a single write, so lines of two processes never mix."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self._path = folder / FILE
        self._recipe = recipe

    def write(self, event: str, **details: Any) -> None:
        """Append one event with its UTC time, the process id and the recipe's name."""
        line = {
            "utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
            "recipe": self._recipe,
            "event": event,
            **details,
        }
        with storage_errors(self._path), self._path.open("ab", buffering=0) as stream:
            stream.write(json.dumps(line).encode() + b"\n")
