"""The content-addressed store of finished steps.

An entry is a folder named after the hash of everything that can change its content. It appears whole, by
one rename, or not at all; its record holds the hash of every file, so that a damaged entry is noticed
and made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.core.files import atomic_directory, remove_leftovers, sha256_of, write_json
from exporter.results import StepResult, read_step_result

CACHE_VARIABLE = "EDGEPROOF_CACHE"
CACHE_FOLDER = ".edgeproof"
RECORD = "entry.json"
UNFINISHED = "unfinished"
# Steps of edited recipes that were killed are mostly never taken up again, and a checkpoint may be large.
KEPT_UNFINISHED = 4


@dataclass(frozen=True)
class Entry:
    """A finished step: its key, its files, what it found."""

    key: str
    folder: Path
    result: StepResult


class Cache:
    """Finished steps below one folder, `root`. The caller holds the build lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str, kind: str) -> Entry | None:
        """The entry of a key, if it is there and unharmed; `kind` is that of its step."""
        folder = self._folder(key)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            whole = record["key"] == key and all(
                sha256_of(folder / name) == digest for name, digest in record["files"].items()
            )
            result = read_step_result(kind, json.dumps(record["metrics"]).encode())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return Entry(key, folder, result) if whole else None

    def store(self, key: str, name: str, fill: Callable[[Path], StepResult]) -> Entry:
        """Keep what `fill` writes into a folder, and the result that it returns; nothing if it raises."""
        folder = self._folder(key)
        with atomic_directory(folder) as staging:
            result = fill(staging)
            files = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
            record = {"key": key, "name": name, "files": files, "metrics": result.as_json()}
            write_json(staging / RECORD, record)
        return Entry(key, folder, result)

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


def content_key(ingredients: Mapping[str, object]) -> str:
    """SHA-256 of nested plain values, independent of the order of keys."""
    text = json.dumps(ingredients, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_root(recipe_path: Path) -> Path:
    """Where a recipe's finished steps are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or recipe_path.resolve().parent / CACHE_FOLDER).absolute()
