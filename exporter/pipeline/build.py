"""`edgeproof build`: run a recipe and write a gated artifact."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import UsageError
from bench.core.files import AnyPath, atomic_directory, remove_leftovers_of, storage_errors
from bench.core.policy import criteria
from bench.core.progress import SILENT, Progress
from bench.inputs.artifact import RESULT
from bench.inputs.manifest import MANIFEST
from bench.judging.gate import Judgement, judgement_from
from bench.measuring.result import read_result
from exporter.caching.cache import RECORD, Cache, cache_root
from exporter.caching.lock import exclusive
from exporter.caching.run_log import RunLog
from exporter.caching.steps import FinishedSteps, run_steps
from exporter.extras import require_all
from exporter.pipeline.destination import check_destination, check_not_read
from exporter.recipes import RESERVED_NAMES, Recipe, read_recipe
from exporter.results import StepResult

ARTIFACTS_FOLDER = "artifacts"


@dataclass(frozen=True)
class BuildOutcome:
    """The result of a build.

    Attributes:
        artifact: folder of the artifact; None if the build stopped at `until`.
        judgement: the judgement of the gate; None if the build stopped at `until`.
        steps: result of each step, by name, in order.
        ran: names of the steps that had to be run; empty if all came from the cache.
        packaged: whether this build wrote the artifact; False if the artifact was up to date.
    """

    artifact: Path | None
    judgement: Judgement | None
    steps: Mapping[str, StepResult]
    ran: tuple[str, ...]
    packaged: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems that the user should look at, one line each, in the order of the steps."""
        return tuple(line for result in self.steps.values() for line in result.warnings)


def build(
    recipe: AnyPath,
    *,
    out: AnyPath | None = None,
    until: str | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress = SILENT,
) -> BuildOutcome:
    """Run a recipe. A process runs one build at a time; builds of other threads wait.

    Args:
        recipe: path of the recipe, a TOML file.
        out: folder of the artifact; by default `artifacts/NAME` in the working directory.
        until: the last step to run. If given, no artifact is written; if `out` is given too, the files of
            that step are written there.
        overrides: `table.key=value` texts that replace values of the recipe.
        fresh: run every step, even if the cache contains its result.
        progress: receives messages about the progress.

    Raises:
        EdgeproofError: an error that the user can fix.

    Examples:
        >>> import exporter
        >>> outcome = exporter.build("recipe.toml")
        >>> outcome.judgement.verdict.value, outcome.artifact.name
        ('PASS', 'tiny')
        >>> outcome.steps["quantize"].target
        'portable'
        >>> exporter.build("recipe.toml").ran  # finished steps do not run again
        ()
    """
    require_all()
    path = Path(recipe)
    asked = read_recipe(path, overrides)
    folder = path.resolve().parent
    destination = Path(out or Path(ARTIFACTS_FOLDER) / asked.name).absolute()
    if until is None or out is not None:
        check_destination(destination, MANIFEST if until is None else RECORD)
        check_not_read(destination, asked, folder)
    _check_until(until, asked)
    root = cache_root(path)
    prepare_places(asked, folder, root)
    with exclusive(root / "lock", progress.say):
        cache = Cache(root)
        cache.sweep()
        remove_leftovers_of(destination)
        log = RunLog(root, asked.name)
        finished = _run(asked, folder, cache, log, until=until, fresh=fresh, progress=progress)
        if until is None:
            return _finish(destination, asked, finished, log, cache)
        if out is not None:
            with storage_errors(destination), atomic_directory(destination) as staging:
                shutil.copytree(finished.folder(until), staging, dirs_exist_ok=True)
        return BuildOutcome(None, None, _results(finished), finished.ran, packaged=False)


def prepare_places(recipe: Recipe, folder: Path, root: Path) -> None:
    """Check before the work starts that other machines will follow the build; do nothing without any.

    Raises:
        StageError: another user can write to the recipe's folder or to the cache.
    """
    if recipe.train.nodes > 1:
        from exporter.training.loop import hardware

        hardware.prepare_places(folder, root)


def _run(
    recipe: Recipe,
    folder: Path,
    cache: Cache,
    log: RunLog,
    *,
    until: str | None,
    fresh: bool,
    progress: Progress,
) -> FinishedSteps:
    from exporter.pipeline.plan import plan_steps
    from exporter.pipeline.resolved_recipe import resolve_recipe

    resolved = resolve_recipe(recipe, folder, progress)
    steps = plan_steps(resolved, reuse=None if fresh else cache.root)
    return run_steps(steps, cache, until=until, fresh=fresh, progress=progress, log=log)


def _finish(
    destination: Path, recipe: Recipe, finished: FinishedSteps, log: RunLog, cache: Cache
) -> BuildOutcome:
    """Judge the raw samples that the gate step stored, and write the artifact unless it is up to date."""
    from exporter.pipeline.packaging import is_current, write_artifact
    from exporter.reporting.charts import import_matplotlib

    measured = read_result(finished.folder("gate") / RESULT)
    judgement = judgement_from(measured, criteria(recipe.gate, [recipe.gate.float_twin]))
    packaged = not is_current(destination, finished)
    if packaged:
        import_matplotlib(cache.root / "matplotlib")
        write_artifact(destination, recipe, finished, judgement)
        log.write("packaged", verdict=judgement.verdict.value)
    return BuildOutcome(destination, judgement, _results(finished), finished.ran, packaged)


def _results(finished: FinishedSteps) -> dict[str, StepResult]:
    return {name: entry.result for name, entry in finished.entries.items()}


def _check_until(until: str | None, recipe: Recipe) -> None:
    first, *last = RESERVED_NAMES
    known = [first, *recipe.stage_names(), *last]
    if until is not None and until not in known:
        raise UsageError(
            f"--until {until}", "is not a step of this recipe", f"choose one of: {', '.join(known)}"
        )
