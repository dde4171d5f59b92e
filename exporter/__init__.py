"""From a pretrained PyTorch checkpoint to a gated int8 artifact.

What a user's own model and data code needs is here; the rest is behind the command `edgeproof`.
"""

from bench.errors import DataError, EdgeproofError
from exporter.data import Split, Splits, stratified_indices
from exporter.images import load_image_folder, resize_images
from exporter.lookup import package_file
from exporter.trained import load_trained

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
