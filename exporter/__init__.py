"""Make a gated int8 artifact from a pretrained PyTorch checkpoint or an .onnx file.

These functions do the same as the commands of the same name:

    build               run a recipe
    ablate              measure the effect of each stage of a recipe
    quantize            quantize a float model to int8, or only its weights to 4 bits
    inspect             show which operators ONNX Runtime runs in int8

`load_trained` loads the network that a stage wrote. The other names are results, errors, and helpers for
the model and data code of a recipe. Importing this package loads none of its modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import bench

if TYPE_CHECKING:
    from bench.core.errors import DataError, EdgeproofError
    from exporter.inspection.inspect import Inspection, inspect
    from exporter.networks.trained import load_trained
    from exporter.pipeline.ablate import Ablation, ablate
    from exporter.pipeline.build import BuildOutcome, build
    from exporter.pipeline.quantize import quantize
    from exporter.results import QuantizedFile
    from exporter.sources.images import load_image_folder, resize_images
    from exporter.sources.lookup import package_file
    from exporter.sources.splits import Split, Splits, stratified_indices

    __version__: str

__all__ = [
    "Ablation",
    "BuildOutcome",
    "DataError",
    "EdgeproofError",
    "Inspection",
    "QuantizedFile",
    "Split",
    "Splits",
    "__version__",
    "ablate",
    "build",
    "inspect",
    "load_image_folder",
    "load_trained",
    "package_file",
    "quantize",
    "resize_images",
    "stratified_indices",
]

# The module that defines each name; it is imported when the name is first used.
_HOMES = {
    "bench.core.errors": ("DataError", "EdgeproofError"),
    "exporter.inspection.inspect": ("Inspection", "inspect"),
    "exporter.networks.trained": ("load_trained",),
    "exporter.pipeline.ablate": ("Ablation", "ablate"),
    "exporter.pipeline.build": ("BuildOutcome", "build"),
    "exporter.pipeline.quantize": ("quantize",),
    "exporter.results": ("QuantizedFile",),
    "exporter.sources.images": ("load_image_folder", "resize_images"),
    "exporter.sources.lookup": ("package_file",),
    "exporter.sources.splits": ("Split", "Splits", "stratified_indices"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # with this function, a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return bench.__version__
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
