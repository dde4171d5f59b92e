"""Run the steps of a build in order, or take them from the cache if their inputs have not changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bench.core.progress import Progress
from exporter.caching.cache import Cache, Entry, content_key
from exporter.caching.run_log import RunLog
from exporter.results import StepResult

Result = TypeVar("Result", bound=StepResult)


@dataclass(frozen=True)
class StepFolders:
    """Folders that a step reads from and writes to.

    Attributes:
        parents: folders of all earlier steps, by name.
        out: empty folder that the step fills.
        unfinished: folder for checkpoints, from which an interrupted step resumes; the step creates it.
    """

    parents: Mapping[str, Path]
    out: Path
    unfinished: Path


class Step(Protocol):
    """One step of a build."""

    @property
    def name(self) -> str:
        """Name of the step; unique in the build."""

    @property
    def kind(self) -> str:
        """Kind of the step, as written in recipes, cache and manifest."""

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the earlier steps whose files this step reads."""

    def ingredients(self) -> Mapping[str, object]:
        """JSON values that, together with the parents, determine the result of the step."""

    def run(self, folders: StepFolders) -> StepResult:
        """Run the step: write its files and return its result.

        Raises:
            EdgeproofError: an error that the user can fix.
        """


@dataclass(frozen=True)
class FinishedSteps:
    """The finished steps of a build.

    Attributes:
        entries: the cache entry of each step, by name, in order.
        ran: names of the steps that had to be run; the others came from the cache.
    """

    entries: Mapping[str, Entry]
    ran: tuple[str, ...]

    def folder(self, name: str) -> Path:
        """The folder with the files of a step."""
        return self.entries[name].folder

    def result(self, name: str, kind: type[Result]) -> Result:
        """The result of a step, checked to be an instance of `kind`.

        Raises:
            TypeError: the result is of another class.
        """
        found = self.entries[name].result
        if not isinstance(found, kind):
            raise TypeError(f"step {name!r} has a {type(found).__name__}, not a {kind.__name__}")
        return found


def run_steps(
    steps: Sequence[Step],
    cache: Cache,
    *,
    until: str | None,
    fresh: bool,
    progress: Progress,
    log: RunLog,
) -> FinishedSteps:
    """Run steps in order, up to and including `until`.

    The key of a step covers its ingredients and the keys of its parents. So an edit of the recipe reruns
    only the steps that depend on it. With `fresh`, no step is taken from the cache.
    """
    entries: dict[str, Entry] = {}
    ran: list[str] = []
    # All ingredients are collected before the first step runs, so that an unreadable input of a later step
    # fails now, not after hours.
    ingredients = {step.name: dict(step.ingredients()) for step in steps}
    for step in steps:
        key = content_key(
            {
                "kind": step.kind,
                "name": step.name,
                "ingredients": ingredients[step.name],
                "parents": [entries[parent].key for parent in step.parents],
            }
        )
        found = None if fresh else cache.find(key, step.kind)
        if found is None:
            if fresh:
                cache.forget(key)
            found = _run(step, key, entries, cache, log)
            ran.append(step.name)
            progress.say(f"{step.name}: done{_headline(found.result)}")
        else:
            log.write("cached", step=step.name, key=key)
            progress.say(f"{step.name}: unchanged{_headline(found.result)}")
        entries[step.name] = found
        if step.name == until:
            break
    return FinishedSteps(entries, tuple(ran))


def _run(step: Step, key: str, entries: Mapping[str, Entry], cache: Cache, log: RunLog) -> Entry:
    log.write("start", step=step.name, key=key)
    start = time.monotonic()
    parents = {name: entry.folder for name, entry in entries.items()}
    try:
        entry = cache.store(
            key, step.name, lambda out: step.run(StepFolders(parents, out, cache.unfinished(key)))
        )
    except BaseException as error:
        log.write("failed", step=step.name, key=key, error=f"{type(error).__name__}: {error}"[:500])
        raise
    cache.forget(key)
    log.write("done", step=step.name, key=key, seconds=round(time.monotonic() - start, 3))
    return entry


def _headline(result: StepResult) -> str:
    parts = result.headline()
    return f" ({', '.join(parts)})" if parts else ""
