"""What the steps of one build share: the recipe's network, data and files, found and checked once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import one_line
from bench.core.progress import Progress
from bench.inputs.artifact import FLOAT_MODEL, check_hashes
from exporter.caching.provenance import library_versions, own_code, user_code
from exporter.graphs.targets import Target, find_target
from exporter.recipes import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    OnnxTeacherConfig,
    PretrainConfig,
    Recipe,
    TeacherConfig,
    teachers_of,
)
from exporter.recipes.fields import Arguments
from exporter.sources.lookup import add_import_roots, call_factory, find_factory, find_file
from exporter.sources.named_files import named_files
from exporter.sources.splits import Splits, check_splits, fingerprint

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Code:
    """The code that a build runs.

    Attributes:
        edgeproof: a hash of edgeproof's own.
        user: a hash of the user's modules.
        libraries: version of each library, by name.
    """

    edgeproof: str
    user: str
    libraries: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """A recipe with everything that it names.

    Attributes:
        recipe: as it was read.
        folder: of the recipe; relative paths start there.
        progress: told how far the build is.
        model_factory: the recipe's network.
        data: its splits, checked.
        data_fingerprint: a hash of all samples.
        code: that runs.
    """

    recipe: Recipe
    folder: Path
    progress: Progress
    model_factory: Callable[..., object]
    data: Splits
    data_fingerprint: str
    code: Code

    @cached_property
    def ingredients(self) -> dict[str, object]:
        """What decides the result of every step: seed, data and code; files are hashed once."""
        common: dict[str, object] = {
            "seed": self.recipe.seed,
            "data": self.data_fingerprint,
            "code": asdict(self.code),
        }
        # What alters samples in training may depend on arguments that leave the samples alone.
        if self.data.augment is not None:
            common["augment"] = {
                **self.recipe.data.model_dump(mode="json"),
                **self.files_of(self.recipe.data),
            }
        return common

    def warned(self, lines: Iterable[str]) -> tuple[str, ...]:
        """The lines as warnings of a step; a person is told of them at once."""
        warnings = tuple(lines)
        for warning in warnings:
            self.progress.say(f"warning: {warning}")
        return warnings

    def target(self) -> Target:
        """The CPU kind and the runtime to ship to."""
        return find_target(self.recipe.quantize.target, self.recipe.quantize.onnxruntime)

    def fresh_module(self) -> nn.Module:
        """The recipe's network with new random weights."""
        return _module(self.model_factory, self.recipe.model.args, "model.factory")

    def checkpoint(self) -> Path | None:
        """The recipe's checkpoint, if it names one."""
        address = self.recipe.model.checkpoint
        return None if address is None else find_file(address, self.folder, "model.checkpoint")

    def new_head(self) -> str | None:
        """The module whose classes the recipe's checkpoint does not fit, if it has one and there is any."""
        from exporter.sources.checkpoint import load_into, read_checkpoint

        path = self.checkpoint()
        return (
            None if path is None else load_into(self.fresh_module(), read_checkpoint(path), path).new_head
        )

    def other_network(self, config: TeacherConfig, place: str) -> nn.Module:
        """A teacher that is not of this build."""
        from exporter.sources.checkpoint import load_into, read_checkpoint

        module = _module(find_factory(config.factory, f"{place}.factory"), config.args, f"{place}.factory")
        path = find_file(config.checkpoint, self.folder, f"{place}.checkpoint")
        loaded = load_into(module, read_checkpoint(path), path)
        if loaded.new_head is not None:
            from exporter.errors import CheckpointError

            raise CheckpointError(
                path, f"its {loaded.new_head!r} has other classes", "a teacher must know the student's"
            )
        return module

    def model_teacher(self, config: OnnxTeacherConfig, data: Splits, place: str) -> nn.Module:
        """A teacher that is a finished model."""
        from exporter.training.distillation.onnx_teacher import OnnxTeacher

        return OnnxTeacher(self.model_file(config, place), data.train.first(1), place)

    def model_file(self, config: OnnxTeacherConfig, place: str) -> Path:
        """The .onnx of a finished model: the file itself, or the float model of a whole artifact."""
        folder = self.folder / config.model
        if not folder.is_dir():
            return find_file(config.model, self.folder, place)
        check_hashes(folder)
        return folder / FLOAT_MODEL

    def files_of(self, config: ModelConfig | DataConfig | TeacherConfig) -> dict[str, dict[str, list[str]]]:
        """`{"files": hashes}` of what the arguments of a factory name; {} where they name nothing.

        Paths start in the working directory, beside the recipe, or beside the factory's module.
        """
        module = sys.modules.get(config.factory.partition(":")[0])
        source = getattr(module, "__file__", None)
        beside = () if source is None else (Path(source).parent,)
        files = named_files(config.args, (Path.cwd(), self.folder, *beside))
        return {"files": files} if files else {}

    def load_data(self, config: DataConfig, place: str) -> Splits:
        """Call another data factory of the recipe."""
        return load_splits(config, place)

    def load_unlabelled(self, config: DataConfig, place: str) -> object:
        """Call a factory of samples without labels; `splits.with_unlabelled` checks them."""
        return call_factory(
            find_factory(config.factory, f"{place}.factory"), config.args, f"{place}.factory"
        )


def resolve_recipe(recipe: Recipe, folder: Path, progress: Progress) -> ResolvedRecipe:
    """Resolve everything that a recipe names, before any work begins.

    Raises:
        EdgeproofError: a factory, file or sample that cannot be used.
    """
    add_import_roots(folder)
    model_factory = find_factory(recipe.model.factory, "model.factory")
    if recipe.model.checkpoint is not None:
        find_file(recipe.model.checkpoint, folder, "model.checkpoint")
    references = [recipe.model.factory, recipe.data.factory]
    for stage in recipe.stage:
        if isinstance(stage, PretrainConfig):
            references.append(stage.data.factory)
        references += [t.factory for t in teachers_of(stage) if isinstance(t, TeacherConfig)]
        if isinstance(stage, DistillConfig) and stage.unlabelled is not None:
            references.append(stage.unlabelled.factory)
    for reference in references:
        find_factory(reference, reference)
    # A factory may import more of the user's modules when it is called: they must be hashed too.
    _module(model_factory, recipe.model.args, "model.factory")
    progress.say("reading data")
    data = load_splits(recipe.data, "data")
    say_notes(data, "data", progress)
    code = Code(own_code(), user_code((folder, Path.cwd()), tuple(references)), library_versions())
    return ResolvedRecipe(
        recipe=recipe,
        folder=folder,
        progress=progress,
        model_factory=model_factory,
        data=data,
        data_fingerprint=fingerprint(data),
        code=code,
    )


def say_notes(splits: Splits, place: str, progress: Progress) -> None:
    """Tell the person what the data factory has to say of its samples, a line each."""
    for note in splits.notes:
        progress.say(f"note: {place}: {one_line(note)}")


def load_splits(config: DataConfig, place: str) -> Splits:
    """Call a data factory and check what it returns."""
    factory = find_factory(config.factory, f"{place}.factory")
    return check_splits(call_factory(factory, config.args, f"{place}.factory"), place)


def _module(factory: Callable[..., object], arguments: Arguments, place: str) -> nn.Module:
    from torch import nn

    from exporter.errors import LookupFailed

    module = call_factory(factory, arguments, place)
    if not isinstance(module, nn.Module):
        raise LookupFailed(place, f"returned a {type(module).__name__}", "return a torch.nn.Module")
    return module.float()
