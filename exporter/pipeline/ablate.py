"""`edgeproof ablate`: measure the effect of each stage of a recipe.

A prefix of a recipe is the recipe with only its first stages. Each prefix is built as a float and as an
int8 model, and all models are measured together.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.core.files import AnyPath
from bench.core.policy import Budgets
from bench.core.progress import SILENT, Progress
from bench.core.schema import Json
from bench.inputs.artifact import EVALUATION, FLOAT_MODEL, MODEL
from bench.inputs.evaluation import write_evaluation
from bench.judging.verdicts import Metric, judge_pair
from bench.measuring.measure import MeasureConfig, Measurement
from bench.measuring.result import ModelResult, Result
from bench.views.tables import mebibytes, milliseconds, not_measured_text, percent
from exporter.caching.cache import Cache, cache_root
from exporter.caching.lock import exclusive
from exporter.caching.run_log import RunLog
from exporter.caching.steps import run_steps
from exporter.extras import require_all
from exporter.pipeline.build import prepare_places
from exporter.recipes import Recipe, read_recipe, trains

if TYPE_CHECKING:
    from rich.table import Table

    from exporter.pipeline.resolved_recipe import ResolvedRecipe

Precision = Literal["float", "int8"]


@dataclass(frozen=True)
class Variant:
    """A prefix of the recipe in one precision.

    Attributes:
        after: name of the last stage of the prefix.
        precision: `float` or `int8`.
        model: measurements of the model.
        time: median latency divided by the first float model's median latency, with 99 % bounds if the
            number of blocks allows bounds.
    """

    after: str
    precision: Precision
    model: ModelResult
    time: Metric


@dataclass(frozen=True)
class Ablation:
    """The measurement of all prefixes of a recipe.

    Attributes:
        recipe: name of the recipe.
        result: raw samples of all models; each model is named `STAGE.float` or `STAGE.int8`.
    """

    recipe: str
    result: Result

    def variants(self) -> list[Variant]:
        """The variants, computed from the raw samples: prefix by prefix, float before int8."""
        found = []
        for model in self.result.models:
            after, _, precision = model.path.rpartition(".")
            found.append(
                Variant(
                    after,
                    "int8" if precision == "int8" else "float",
                    model,
                    judge_pair(self.result.models[0], model, Budgets())["latency_p50"],
                )
            )
        return found


def ablate(
    recipe: AnyPath,
    *,
    blocks: int = 10,
    overrides: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Ablation:
    """Build every prefix of a recipe up to its int8 model, and measure all models in turns.

    Results of stages are read from and stored in the cache that `build` uses, so nothing is trained twice.
    The first prefix has no stages: it is the network with the weights of its checkpoint. If there is no
    checkpoint, or if the last layer is new and therefore untrained, the first prefix is the shortest prefix
    that trains.

    Args:
        recipe: path of the recipe, a TOML file.
        blocks: number of fresh processes per model.
        overrides: `table.key=value` texts that replace values of the recipe.
        progress: receives messages about the progress.

    Raises:
        EdgeproofError: an error that the user can fix.

    Examples:
        >>> import exporter
        >>> found = exporter.ablate("recipe.toml", blocks=1)
        >>> [(variant.after, variant.precision) for variant in found.variants()][-2:]
        [('prune', 'float'), ('prune', 'int8')]
    """
    require_all()
    path = Path(recipe)
    asked = read_recipe(path, overrides)
    root, folder = cache_root(path), path.resolve().parent
    prepare_places(asked, folder, root)
    with (
        exclusive(root / "lock", progress.say),
        tempfile.TemporaryDirectory(prefix="edgeproof-") as name,
    ):
        from exporter.pipeline.resolved_recipe import resolve_recipe

        resolved = resolve_recipe(asked, folder, progress)
        models = _build(resolved, root)
        evaluation = _evaluation(resolved, Path(name))
        config = MeasureConfig(threads=asked.bench.threads)
        with Measurement(list(models.values()), evaluation, config, progress) as measurement:
            measurement.predict()
            measurement.add_blocks(blocks)
            measured = measurement.result()
    named = zip(models, measured.models, strict=True)
    plain = {
        "models": tuple(model.model_copy(update={"path": name}) for name, model in named),
        "data": measured.data.model_copy(update={"path": EVALUATION}),
    }
    return Ablation(asked.name, measured.model_copy(update=plain))


def prefixes(recipe: Recipe, *, trained: bool) -> list[Recipe]:
    """The recipe with only its first stages, from the shortest prefix to the whole recipe.

    Args:
        recipe: the whole recipe.
        trained: whether the loaded network is already trained. If not, the first prefix is the shortest
            prefix that trains.
    """
    first = 0 if trained else next((k for k, stage in enumerate(recipe.stage, 1) if trains(stage)), 0)
    return [
        recipe.model_copy(update={"stage": recipe.stage[:k]}) for k in range(first, len(recipe.stage) + 1)
    ]


def _build(resolved: ResolvedRecipe, root: Path) -> dict[str, Path]:
    """Build all prefixes; return `STAGE.float` and `STAGE.int8` -> model file in the cache."""
    from exporter.pipeline.plan import plan_steps

    cache, log = Cache(root), RunLog(root, resolved.recipe.name)
    cache.sweep()
    models: dict[str, Path] = {}
    trained = resolved.checkpoint() is not None and resolved.new_head() is None
    for prefix in prefixes(resolved.recipe, trained=trained):
        after = (prefix.stage_names() or ["pretrained"])[-1]
        resolved.progress.say(f"recipe up to {after}")
        steps = plan_steps(dataclasses.replace(resolved, recipe=prefix), reuse=root)
        finished = run_steps(
            steps, cache, until="quantize", fresh=False, progress=resolved.progress, log=log
        )
        models[f"{after}.float"] = finished.folder("export") / FLOAT_MODEL
        models[f"{after}.int8"] = finished.folder("quantize") / MODEL
    return models


def _evaluation(resolved: ResolvedRecipe, folder: Path) -> Path:
    from exporter.graphs.rewrites.processing import as_shipped
    from exporter.pipeline.parity_step import evaluation_set

    path = folder / EVALUATION
    shipped = as_shipped(resolved.data.evaluation, resolved.recipe.export.preprocess)
    write_evaluation(path, evaluation_set(shipped))
    return path


def ablation_json(ablation: Ablation) -> Json:
    """The object that `ablate --json` prints; times in ns, sizes in bytes."""
    return {
        "recipe": ablation.recipe,
        "variants": [
            {
                "after": variant.after,
                "precision": variant.precision,
                "made_for": variant.model.made_for,
                "accuracy": variant.model.accuracy(),
                "latency_ns": variant.model.latency().model_dump(mode="json"),
                "time_ratio": {
                    "estimate": variant.time.ratio,
                    "lower": variant.time.lower,
                    "upper": variant.time.upper,
                },
                "size_bytes": variant.model.size_bytes,
                "peak_rss_bytes": variant.model.peak_rss_bytes(),
            }
            for variant in ablation.variants()
        ],
        "host": ablation.result.host.model_dump(mode="json"),
    }


def ablation_table(ablation: Ablation) -> Table:
    """A table with one row per prefix and precision."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("up to")
    table.add_column("")
    for heading in ("accuracy", "latency p50", "latency / first (99 %)", "file size", "peak memory"):
        table.add_column(heading, justify="right")
    for variant in ablation.variants():
        model, time = variant.model, variant.time
        bounds = "" if None in (time.lower, time.upper) else f" ({time.lower:.3f} … {time.upper:.3f})"
        latency, ratio = milliseconds(model.latency().p50), f"{time.ratio:.3f}{bounds}"
        memory = mebibytes(model.peak_rss_bytes())
        if model.made_for is not None:  # not valid on another kind of CPU
            latency, ratio, memory = escape(not_measured_text(model.made_for)), "", ""
        table.add_row(
            escape(variant.after) if variant.precision == "float" else "",
            variant.precision,
            percent(model.accuracy()),
            latency,
            ratio,
            mebibytes(model.size_bytes),
            memory,
        )
    return table
