"""The step of a recipe's stage: train, prune, shrink or distil a network in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bench.core.files import model_sha256, sha256_of
from bench.inputs.host import fingerprint
from exporter.caching.steps import StepFolders
from exporter.networks.network import Network, load_network
from exporter.pipeline.resolved_recipe import ResolvedRecipe, say_notes
from exporter.recipes import (
    DistillConfig,
    OnnxTeacherConfig,
    PretrainConfig,
    QatConfig,
    ShrinkConfig,
    Stage,
    Teacher,
    TeacherConfig,
    teachers_of,
    trains,
)
from exporter.results import StepResult
from exporter.sources import splits
from exporter.sources.lookup import find_file
from exporter.sources.splits import Splits, fingerprint_arrays, with_unlabelled
from exporter.training.loop import ONE_CPU, Checkpoints, Engine
from exporter.training.loop.hardware import Job, hardware_ingredients, open_engine
from exporter.training.stages import STAGES, Context, Loaders, Settings


@dataclass(frozen=True)
class TrainStep:
    """Run one stage on the network of the previous step.

    Attributes:
        resolved: the recipe.
        name: name of the stage.
        config: the stage's table in the recipe.
        previous: name of the previous step.
        reuse: folder in which builds share the measured times of layers; None shares nothing.
    """

    resolved: ResolvedRecipe
    name: str
    config: Stage
    previous: str
    reuse: Path | None

    @property
    def kind(self) -> str:
        """The kind of the stage."""
        return self.config.kind

    @property
    def parents(self) -> tuple[str, ...]:
        """The previous step, and the stages that are teachers."""
        teachers = [teacher for teacher in teachers_of(self.config) if isinstance(teacher, str)]
        return tuple(dict.fromkeys((self.previous, *teachers)))

    def ingredients(self) -> Mapping[str, object]:
        """The stage's table, the training hardware, and the other tables and files that the stage reads."""
        recipe = self.resolved.recipe
        hardware = {"train": hardware_ingredients(recipe.train)} if trains(self.config) else {}
        return {
            **self.resolved.ingredients,
            "config": self.config.model_dump(mode="json"),
            **hardware,
            **self._others_read(),
        }

    def run(self, folders: StepFolders) -> StepResult:
        """Run the stage on the recipe's hardware, and write the network.

        Raises:
            StageError: the stage cannot do what the recipe asks.
        """
        resolved = self.resolved
        if not trains(self.config):
            network, result = run_stage(
                resolved, self.name, folders.parents, ONE_CPU, checkpoints=None, reuse=self.reuse
            )
        else:
            job = Job(resolved.recipe, resolved.folder, self.name, folders.parents, folders.unfinished)
            with open_engine(job) as engine:
                network, result = run_stage(
                    resolved,
                    self.name,
                    folders.parents,
                    engine,
                    checkpoints=Checkpoints(folders.unfinished),
                    reuse=self.reuse,
                )
        network.save(folders.out)
        return result

    def _others_read(self) -> dict[str, object]:
        """Inputs of the stage other than its table and the recipe's model and data; files as hashes."""
        resolved, config = self.resolved, self.config
        recipe = resolved.recipe
        if isinstance(config, PretrainConfig):
            source = resolved.load_data(config.data, "stage.data")
            say_notes(source, f"{self.name}.data", resolved.progress)
            # The samples are hashed. `augment` may read further files, so these are hashed too.
            files = {} if source.augment is None else resolved.files_of(config.data)
            return {"source": splits.fingerprint(source), **files}
        found = self._teacher_files()
        if isinstance(config, DistillConfig) and config.unlabelled is not None:
            extra = resolved.load_unlabelled(config.unlabelled, "stage.unlabelled")
            both = with_unlabelled(resolved.data, extra, "stage.unlabelled")
            found["unlabelled"] = fingerprint_arrays(sorted(both.inputs.items()))
        if isinstance(config, ShrinkConfig):  # the cut depends on times measured on this host
            found |= {
                "export": recipe.export.model_dump(mode="json"),
                "exclude": recipe.quantize.exclude,
                "target": resolved.target().name,
                "onnxruntime": str(resolved.target().runtime),
                "threads": recipe.bench.threads,
                "host": fingerprint().model_dump(mode="json"),
            }
        if isinstance(config, QatConfig):
            return {
                "export": recipe.export.model_dump(mode="json"),
                "quantize": recipe.quantize.model_dump(mode="json"),
                "target": resolved.target().name,
            }
        return found

    def _teacher_files(self) -> dict[str, object]:
        hashes: list[str] = []
        named: list[dict[str, dict[str, list[str]]]] = []
        for teacher in teachers_of(self.config):
            if isinstance(teacher, TeacherConfig):
                place = f"{self.name}.teacher.checkpoint"
                hashes.append(sha256_of(find_file(teacher.checkpoint, self.resolved.folder, place)))
                named.append(self.resolved.files_of(teacher))
            elif isinstance(teacher, OnnxTeacherConfig):
                path = self.resolved.model_file(teacher, f"{self.name}.teacher.model")
                hashes.append(model_sha256(path))
        found: dict[str, object] = {"teachers": hashes} if hashes else {}
        return {**found, "files": named} if any(named) else found


def run_stage(
    resolved: ResolvedRecipe,
    name: str,
    folders: Mapping[str, Path],
    engine: Engine,
    *,
    checkpoints: Checkpoints | None,
    reuse: Path | None = None,
) -> tuple[Network, StepResult]:
    """Run one stage of a recipe on the network of the previous step.

    Args:
        resolved: the recipe.
        name: name of the stage.
        folders: folders of all earlier steps, by name.
        engine: the hardware to train on.
        checkpoints: store of checkpoints, from which an interrupted training resumes; None stores nothing.
        reuse: folder in which builds share the measured times of layers; None shares nothing.
    """
    recipe = resolved.recipe
    names = ["pretrained", *recipe.stage_names()]
    index = names.index(name)
    config = recipe.stage[index - 1]

    def teacher(which: Teacher, data: Splits) -> nn.Module:
        if isinstance(which, str):
            return load_network(resolved.fresh_module(), folders[which]).module
        if isinstance(which, OnnxTeacherConfig):
            return resolved.model_teacher(which, data, f"{name}.teacher.model")
        return resolved.other_network(which, f"{name}.teacher")

    context = Context(
        name=name,
        seed=recipe.seed,
        progress=resolved.progress,
        fresh_module=resolved.fresh_module,
        load=Loaders(teacher=teacher, data=resolved.load_data, unlabelled=resolved.load_unlabelled),
        settings=Settings(
            export=recipe.export,
            quantize=recipe.quantize,
            threads=recipe.bench.threads,
            timings=None if reuse is None else reuse / "tables",
        ),
        engine=engine,
        checkpoints=checkpoints,
    )
    network = load_network(resolved.fresh_module(), folders[names[index - 1]])
    return STAGES[config.kind](network, config, resolved.data, context)
