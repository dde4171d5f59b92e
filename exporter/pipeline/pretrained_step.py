"""The step `pretrained`: build the network and load its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bench.core.files import sha256_of
from exporter.caching.steps import StepFolders
from exporter.errors import CheckpointError
from exporter.networks.network import Network, deterministic
from exporter.pipeline.resolved_recipe import ResolvedRecipe
from exporter.recipes import trains
from exporter.results import PretrainedResult
from exporter.sources.checkpoint import load_into, read_checkpoint
from exporter.training.loop import check_classes


@dataclass(frozen=True)
class PretrainedStep:
    """The first step of every build: the network with the weights of its checkpoint."""

    kind: ClassVar[str] = PretrainedResult.kind
    name: ClassVar[str] = PretrainedResult.kind
    parents: ClassVar[tuple[str, ...]] = ()

    resolved: ResolvedRecipe

    def ingredients(self) -> Mapping[str, object]:
        """The table `model`, hashes of the files that it names, and whether a later stage trains."""
        model, checkpoint = self.resolved.recipe.model, self.resolved.checkpoint()
        return {
            **self.resolved.ingredients,
            "model": model.model_dump(mode="json"),
            "weights": None if checkpoint is None else sha256_of(checkpoint),
            "trained_later": self._trained_later(),
            **self.resolved.files_of(model),
        }

    def run(self, folders: StepFolders) -> PretrainedResult:
        """Build the network and write it.

        Raises:
            CheckpointError: the checkpoint does not fit, or has other classes and no later stage trains.
            StageError: the network does not accept the data.
        """
        with deterministic(self.resolved.recipe.seed, "model"):
            module = self.resolved.fresh_module()
        parameters = sum(p.numel() for p in module.parameters())
        path = self.resolved.checkpoint()
        loaded = None
        if path is not None:
            loaded = load_into(module, read_checkpoint(path), path)
            if loaded.new_head is not None and not self._trained_later():
                raise CheckpointError(
                    path,
                    f"its layer {loaded.new_head!r} has other classes, and no stage trains a new layer",
                    'add a stage of kind "finetune"',
                )
        classes = check_classes(module, self.resolved.data, "model")
        Network(module).save(folders.out)
        return PretrainedResult(
            parameters=parameters,
            tensors=None if loaded is None else loaded.tensors,
            new_head=None if loaded is None else loaded.new_head,
            classes=classes,
        )

    def _trained_later(self) -> bool:
        return any(trains(stage) for stage in self.resolved.recipe.stage)
