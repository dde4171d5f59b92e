"""What each stage of a recipe gave: every prefix of it as a float and an int8 model, measured together."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bench.artifact import EVALUATION, FLOAT_MODEL, MODEL
from bench.evaluation import EvaluationSet, write_evaluation
from bench.judge import pair_scores
from bench.measure import MeasureConfig, Session
from bench.progress import SILENT, Progress
from bench.render import mebibytes, milliseconds, percent
from bench.result import ModelResult, Result
from bench.stats import signed_rank_interval
from exporter.build import cache_root, require_all
from exporter.cache import Cache
from exporter.lock import exclusive
from exporter.pipeline import run_steps
from exporter.recipe import Recipe, read_recipe, trains
from exporter.runlog import RunLog

if TYPE_CHECKING:
    from rich.table import Table

    from exporter.workshop import Workshop

Precision = Literal["float", "int8"]
ALPHA = 0.01  # of each bound of a ratio of times, as the gate has it


@dataclass(frozen=True)
class Variant:
    """A prefix of the recipe in one precision.

    Attributes:
        after: the last stage of the prefix.
        model: what was measured of it.
        time_ratio: its p50 by that of the first float model: estimate, lower and upper 99 % bound; a bound
            that too few blocks leave open is None.
    """

    after: str
    precision: Precision
    model: ModelResult
    time_ratio: tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Ablation:
    """All prefixes, and the measurement they come from, in which models bear the names of variants."""

    recipe: str
    result: Result

    def variants(self) -> list[Variant]:
        """Prefix by prefix, float before int8; computed from the raw samples."""
        found = []
        for model in self.result.models:
            after, _, precision = model.path.rpartition(".")
            found.append(
                Variant(
                    after,
                    "int8" if precision == "int8" else "float",
                    model,
                    _time_ratio(self.result.models[0], model),
                )
            )
        return found


def ablate(
    recipe_path: Path,
    *,
    blocks: int = 10,
    overrides: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Ablation:
    """Build every prefix of a recipe up to its int8 model, and measure all of them interleaved.

    Stages are taken from the cache that `build` fills, and left there for it: nothing is trained twice. The
    first prefix is the shortest that trains, since a new head says nothing before.

    Args:
        recipe_path: a TOML file.
        blocks: fresh processes a model.
        overrides: `table.key=value` texts.
        progress: told how far it is.

    Raises:
        EdgeproofError: whatever a user can mend.
    """
    require_all()
    recipe = read_recipe(recipe_path, overrides)
    root = cache_root(recipe_path)
    with exclusive(root / "lock", progress.say), tempfile.TemporaryDirectory(prefix="edgeproof-") as name:
        from exporter.workshop import open_workshop

        shop = open_workshop(recipe, recipe_path.resolve().parent, progress)
        models = _build(shop, root)
        evaluation = _evaluation(shop, Path(name))
        config = MeasureConfig(threads=recipe.bench.threads)
        with Session(list(models.values()), evaluation, config, progress) as session:
            session.predict()
            session.add_blocks(blocks)
            measured = session.result()
    named = zip(models, measured.models, strict=True)
    plain = {
        "models": tuple(model.model_copy(update={"path": name}) for name, model in named),
        "data": measured.data.model_copy(update={"path": EVALUATION}),
    }
    return Ablation(recipe.name, measured.model_copy(update=plain))


def prefixes(recipe: Recipe) -> list[Recipe]:
    """The recipe with its first stages alone, from the shortest that trains to the whole."""
    first = next((k for k, stage in enumerate(recipe.stage, 1) if trains(stage)), 0)
    return [
        recipe.model_copy(update={"stage": recipe.stage[:k]}) for k in range(first, len(recipe.stage) + 1)
    ]


def _build(shop: Workshop, root: Path) -> dict[str, Path]:
    """The models of all prefixes: `stage.float` and `stage.int8` -> file in the cache."""
    from exporter.steps import recipe_steps

    cache, log = Cache(root), RunLog(root, shop.recipe.name)
    cache.sweep()
    models: dict[str, Path] = {}
    for prefix in prefixes(shop.recipe):
        after = (prefix.stage_names() or ["pretrained"])[-1]
        shop.progress.say(f"up to {after}")
        steps = recipe_steps(dataclasses.replace(shop, recipe=prefix), kept=root)
        trail = run_steps(
            steps, cache, until="quantize", fresh=False, progress=shop.progress, log=log
        ).entries
        models[f"{after}.float"] = trail["export"].folder / FLOAT_MODEL
        models[f"{after}.int8"] = trail["quantize"].folder / MODEL
    return models


def _evaluation(shop: Workshop, folder: Path) -> Path:
    from exporter.processing import as_shipped

    split = as_shipped(shop.data.evaluation, shop.recipe.export.preprocess)
    path = folder / EVALUATION
    write_evaluation(path, EvaluationSet(split.inputs, split.labels.astype(np.int64), split.ids))
    return path


def _time_ratio(first: ModelResult, model: ModelResult) -> tuple[float, float | None, float | None]:
    interval = signed_rank_interval(pair_scores(first.runs, model.runs, 0.5), ALPHA)
    low, high = (
        math.exp(bound) if math.isfinite(bound) else None for bound in (interval.lower, interval.upper)
    )
    return math.exp(interval.estimate), low, high


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """What `ablate --json` prints; times in ns, sizes in bytes."""
    return {
        "recipe": ablation.recipe,
        "variants": [
            {
                "after": variant.after,
                "precision": variant.precision,
                "accuracy": variant.model.accuracy(),
                "latency_ns": variant.model.latency().model_dump(mode="json"),
                "time_ratio": dict(zip(("estimate", "lower", "upper"), variant.time_ratio, strict=True)),
                "size_bytes": variant.model.size_bytes,
                "peak_rss_bytes": variant.model.peak_rss_bytes(),
            }
            for variant in ablation.variants()
        ],
        "host": ablation.result.host.model_dump(mode="json"),
    }


def ablation_table(ablation: Ablation) -> Table:
    """One row a prefix and precision."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("up to")
    table.add_column("")
    for heading in ("accuracy", "latency p50", "times the first (99 %)", "file size", "peak memory"):
        table.add_column(heading, justify="right")
    for variant in ablation.variants():
        estimate, low, high = variant.time_ratio
        bounds = "" if low is None or high is None else f" ({low:.3f} … {high:.3f})"
        model = variant.model
        table.add_row(
            escape(variant.after) if variant.precision == "float" else "",
            variant.precision,
            percent(model.accuracy()),
            milliseconds(model.latency().p50),
            f"{estimate:.3f}{bounds}",
            mebibytes(model.size_bytes),
            mebibytes(model.peak_rss_bytes()),
        )
    return table
