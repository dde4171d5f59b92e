"""The content-addressed store of finished steps.

An entry is a folder whose name is the hash of everything that can change its content. One rename creates
it, so an entry is never incomplete. Its record holds the hash of every file; if a file is damaged, the step
runs again.
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
# Number of interrupted steps whose checkpoints are kept. Checkpoints may be large, and after an edit of the
# recipe most interrupted steps are never resumed.
KEPT_UNFINISHED = 4


@dataclass(frozen=True)
class Entry:
    """A finished step: its key, the folder of its files, and its result."""

    key: str
    folder: Path
    result: StepResult


class Cache:
    """Store of finished steps in the folder `root`. The caller must hold the build lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str, kind: str) -> Entry | None:
        """Return the entry of a key; None if it does not exist or is damaged.

        Args:
            key: hash of everything that can change the entry.
            kind: the kind of the step.
        """
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
        """Store the files that `fill` writes and the result that it returns; if it raises, store nothing.

        Args:
            key: hash of everything that can change the entry.
            name: name of the step.
            fill: receives an empty folder, writes the files into it and returns the result.
        """
        folder = self._folder(key)
        with atomic_directory(folder) as staging:
            result = fill(staging)
            files = {path.name: sha256_of(path) for path in sorted(staging.iterdir())}
            record = {"key": key, "name": name, "files": files, "metrics": result.as_json()}
            write_json(staging / RECORD, record)
        return Entry(key, folder, result)

    def unfinished(self, key: str) -> Path:
        """The folder in which a step keeps checkpoints, so that it can resume after an interruption."""
        return self.root / UNFINISHED / key

    def forget(self, key: str) -> None:
        """Remove the checkpoints of a step."""
        shutil.rmtree(self.unfinished(key), ignore_errors=True)

    def sweep(self) -> None:
        """Remove leftover files of interrupted builds, except the newest `KEPT_UNFINISHED` checkpoints."""
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
    """SHA-256 of nested values that JSON can represent; the order of keys does not matter."""
    text = json.dumps(ingredients, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_root(recipe_path: Path) -> Path:
    """The folder of a recipe's finished steps: `EDGEPROOF_CACHE`, or `.edgeproof` next to the recipe."""
    return Path(os.environ.get(CACHE_VARIABLE) or recipe_path.resolve().parent / CACHE_FOLDER).absolute()
