"""Running steps: each once, in order, from the cache where nothing that matters has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core.progress import Progress
from exporter.caching.cache import Cache, Entry, content_key
from exporter.caching.run_log import RunLog

# What a step does: (folders of the steps it builds on, by name; folder to fill; folder, not made yet, for
# what a killed step goes on from) -> metrics.
Run = Callable[[Mapping[str, Path], Path, Path], dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """One step of a build.

    Attributes:
        name: unique in the build.
        kind: what it does.
        ingredients: plain values that, with the parents, decide its outcome.
        parents: names of earlier steps whose files it reads.
        run: does it.
    """

    name: str
    kind: str
    ingredients: Mapping[str, Any]
    parents: tuple[str, ...]
    run: Run


@dataclass(frozen=True)
class Trail:
    """What became of the steps: entries by name, in order, and which of them had to be run."""

    entries: Mapping[str, Entry]
    kinds: Mapping[str, str]
    ran: tuple[str, ...] = field(default=())


def run_steps(
    steps: Sequence[Step],
    cache: Cache,
    *,
    until: str | None,
    fresh: bool,
    progress: Progress,
    log: RunLog,
) -> Trail:
    """Run steps in order, up to and including `until`.

    A step's key covers its ingredients and its parents' keys: an edit reruns what follows from it and
    nothing else. With `fresh`, nothing is taken from the cache.
    """
    entries: dict[str, Entry] = {}
    ran: list[str] = []
    for step in steps:
        key = content_key(
            {
                "kind": step.kind,
                "name": step.name,
                "ingredients": dict(step.ingredients),
                "parents": [entries[parent].key for parent in step.parents],
            }
        )
        found = None if fresh else cache.find(key)
        if found is None:
            if fresh:
                cache.forget(key)
            found = _run(step, key, entries, cache, log)
            ran.append(step.name)
            progress.say(f"{step.name}: done{_headline(found.metrics)}")
        else:
            log.write("cached", step=step.name, key=key)
            progress.say(f"{step.name}: unchanged{_headline(found.metrics)}")
        entries[step.name] = found
        if step.name == until:
            break
    return Trail(entries, {step.name: step.kind for step in steps if step.name in entries}, tuple(ran))


def _run(step: Step, key: str, entries: Mapping[str, Entry], cache: Cache, log: RunLog) -> Entry:
    log.write("start", step=step.name, key=key)
    start = time.monotonic()
    try:
        with cache.store(key, step.name) as (folder, metrics):
            folders = {name: entry.folder for name, entry in entries.items()}
            metrics.update(step.run(folders, folder, cache.unfinished(key)))
    except BaseException as error:
        log.write("failed", step=step.name, key=key, error=f"{type(error).__name__}: {error}"[:500])
        raise
    cache.forget(key)
    log.write("done", step=step.name, key=key, seconds=round(time.monotonic() - start, 3))
    stored = cache.find(key)
    assert stored is not None
    return stored


def _headline(metrics: Mapping[str, Any]) -> str:
    """The one or two figures of a step that a person waiting wants to see."""
    parts = []
    for name, label in (("evaluation_accuracy", "accuracy"), ("source_accuracy", "accuracy")):
        if name in metrics:
            parts.append(f"{label} {metrics[name]:.2%}")
    if metrics.get("zero_share"):
        parts.append(f"{metrics['zero_share']:.2%} of parameters zero")
    elif metrics.get("sparsity"):
        parts.append(f"sparsity {metrics['sparsity']:.0%}")
    if "after" in metrics:
        parts.append(f"{metrics['before']['latency_ms']:.3g} to {metrics['after']['latency_ms']:.3g} ms")
    if "int8" in metrics:
        parts.append(f"int8 agrees on {metrics['int8']['agreement']:.2%}")
    if "target" in metrics:
        parts.append(f"for {metrics['target']}")
    if "verdict" in metrics:
        parts.append(str(metrics["verdict"]))
    return f" ({', '.join(parts)})" if parts else ""
