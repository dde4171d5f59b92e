"""The recipe with its network, data and files, found and checked once for all steps of a build."""

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
    """Identification of the code that a build runs.

    Attributes:
        edgeproof: hash of edgeproof's own source.
        user: hash of the user's modules.
        libraries: version of each library, by name.
    """

    edgeproof: str
    user: str
    libraries: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """A recipe with the objects that it names.

    Attributes:
        recipe: the recipe as it was read.
        folder: folder of the recipe; relative paths start there.
        progress: receives messages about the progress of the build.
        model_factory: callable that builds the recipe's network.
        data: the splits that the data factory returned, checked.
        data_fingerprint: hash of all samples.
        code: identification of the code that runs.
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
        """The inputs that the result of every step depends on: seed, data and code."""
        common: dict[str, object] = {
            "seed": self.recipe.seed,
            "data": self.data_fingerprint,
            "code": asdict(self.code),
        }
        # `augment` may depend on arguments of the data factory that do not change the samples themselves,
        # so these arguments are inputs too.
        if self.data.augment is not None:
            common["augment"] = {
                **self.recipe.data.model_dump(mode="json"),
                **self.files_of(self.recipe.data),
            }
        return common

    def warned(self, lines: Iterable[str]) -> tuple[str, ...]:
        """Show lines as warnings now, and return them for the result of the step."""
        warnings = tuple(lines)
        for warning in warnings:
            self.progress.say(f"warning: {warning}")
        return warnings

    def target(self) -> Target:
        """The kind of CPU and the version of ONNX Runtime that the model will run on."""
        return find_target(self.recipe.quantize.target, self.recipe.quantize.onnxruntime)

    def fresh_module(self) -> nn.Module:
        """The recipe's network with new random weights."""
        return _module(self.model_factory, self.recipe.model.args, "model.factory")

    def checkpoint(self) -> Path | None:
        """Path of the recipe's checkpoint; None if the recipe names none."""
        address = self.recipe.model.checkpoint
        return None if address is None else find_file(address, self.folder, "model.checkpoint")

    def new_head(self) -> str | None:
        """Name of the layer whose number of classes differs from the checkpoint's, or None."""
        from exporter.sources.checkpoint import load_into, read_checkpoint

        path = self.checkpoint()
        return (
            None if path is None else load_into(self.fresh_module(), read_checkpoint(path), path).new_head
        )

    def other_network(self, config: TeacherConfig, place: str) -> nn.Module:
        """A PyTorch teacher from outside this build, with the weights of its checkpoint.

        Raises:
            CheckpointError: the checkpoint does not fit, or has other classes than the student.
        """
        from exporter.sources.checkpoint import load_into, read_checkpoint

        module = _module(find_factory(config.factory, f"{place}.factory"), config.args, f"{place}.factory")
        path = find_file(config.checkpoint, self.folder, f"{place}.checkpoint")
        loaded = load_into(module, read_checkpoint(path), path)
        if loaded.new_head is not None:
            from exporter.errors import CheckpointError

            raise CheckpointError(
                path,
                f"its layer {loaded.new_head!r} has other classes than the student",
                "choose a teacher with the same classes",
            )
        return module

    def model_teacher(self, config: OnnxTeacherConfig, data: Splits, place: str) -> nn.Module:
        """A teacher that is an ONNX model."""
        from exporter.training.distillation.onnx_teacher import OnnxTeacher

        return OnnxTeacher(self.model_file(config, place), data.train.first(1), place)

    def model_file(self, config: OnnxTeacherConfig, place: str) -> Path:
        """Path of a teacher's .onnx file: the file itself, or the float model of an artifact folder."""
        folder = self.folder / config.model
        if not folder.is_dir():
            return find_file(config.model, self.folder, place)
        check_hashes(folder)
        return folder / FLOAT_MODEL

    def files_of(self, config: ModelConfig | DataConfig | TeacherConfig) -> dict[str, dict[str, list[str]]]:
        """`{"files": hashes}` of the files that the arguments of a factory name; {} if they name none.

        Relative paths are looked up in the working directory, in the folder of the recipe, and in the
        folder of the factory's module.
        """
        module = sys.modules.get(config.factory.partition(":")[0])
        source = getattr(module, "__file__", None)
        beside = () if source is None else (Path(source).parent,)
        files = named_files(config.args, (Path.cwd(), self.folder, *beside))
        return {"files": files} if files else {}

    def load_data(self, config: DataConfig, place: str) -> Splits:
        """Call another data factory of the recipe, for example the factory of a `pretrain` stage."""
        return load_splits(config, place)

    def load_unlabelled(self, config: DataConfig, place: str) -> object:
        """Call a factory of samples without labels; `splits.with_unlabelled` checks its result."""
        return call_factory(
            find_factory(config.factory, f"{place}.factory"), config.args, f"{place}.factory"
        )


def resolve_recipe(recipe: Recipe, folder: Path, progress: Progress) -> ResolvedRecipe:
    """Find and check everything that a recipe names, before any work begins.

    Raises:
        EdgeproofError: a factory, file or sample cannot be used.
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
    # A factory may import more modules of the user when it is called. Calling it now loads them, so
    # `user_code` hashes them too.
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
    """Show the notes of a data factory, one line each."""
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
        raise LookupFailed(place, f"returned {type(module).__name__}", "return a torch.nn.Module")
    return module.float()
