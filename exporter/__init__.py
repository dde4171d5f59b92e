"""From a pretrained PyTorch checkpoint to a gated int8 artifact.

What a user's own model and data code needs is here; the rest is behind the command `edgeproof`.
"""

from bench.core.errors import DataError, EdgeproofError
from exporter.networks.trained import load_trained
from exporter.sources.images import load_image_folder, resize_images
from exporter.sources.lookup import package_file
from exporter.sources.splits import Split, Splits, stratified_indices

__all__ = [
    "DataError",
    "EdgeproofError",
    "Split",
    "Splits",
    "load_image_folder",
    "load_trained",
    "package_file",
    "resize_images",
    "stratified_indices",
]
