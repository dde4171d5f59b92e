"""The content-addressed store of finished steps.

An entry is a folder named after the hash of everything that can change its content. It appears whole, by
one rename, or not at all; its record holds the hash of every file, so that a damaged entry is noticed
and made anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.files import atomic_directory, remove_leftovers, sha256_of, write_json

RECORD = "entry.json"
UNFINISHED = "unfinished"
# Steps of edited recipes that were killed are mostly never taken up again, and a checkpoint may be large.
KEPT_UNFINISHED = 4


@dataclass(frozen=True)
class Entry:
    """A finished step: its key, its files, what it measured."""

    key: str
    folder: Path
    metrics: dict[str, Any]


class Cache:
    """Finished steps below one folder, `root`. The caller holds the build lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Entry | None:
        """The entry of a key, if it is there and unharmed."""
        folder = self._folder(key)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            whole = record["key"] == key and all(
                sha256_of(folder / name) == digest for name, digest in record["files"].items()
            )
            return Entry(key, folder, record["metrics"]) if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    @contextmanager
    def store(self, key: str, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield a folder to fill with files and a dict to fill with metrics; keep both on success."""
        metrics: dict[str, Any] = {}
        with atomic_directory(self._folder(key)) as staging:
            yield staging, metrics
            files = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
            write_json(staging / RECORD, {"key": key, "name": name, "files": files, "metrics": metrics})

    def unfinished(self, key: str) -> Path:
        """A folder for what a step keeps while it runs, to go on from when it is killed."""
        return self.root / UNFINISHED / key

    def forget(self, key: str) -> None:
        """Remove what a step kept while it ran."""
        shutil.rmtree(self.unfinished(key), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed builds left behind, but for the newest of what they can go on from."""
        kept = sorted(
            (self.root / UNFINISHED).glob("*"), key=lambda folder: (folder.stat().st_mtime_ns, folder)
        )
        for folder in kept[:-KEPT_UNFINISHED]:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.root, *self.root.glob("??"), *kept[-KEPT_UNFINISHED:]):
            remove_leftovers(folder)

    def _folder(self, key: str) -> Path:
        return self.root / key[:2] / key


def content_key(ingredients: Mapping[str, Any]) -> str:
    """SHA-256 of nested plain values, independent of the order of keys."""
    text = json.dumps(ingredients, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
