"""Changes to an exported graph, one a file; each is kept for a gain that its docstring states."""

from __future__ import annotations

from exporter.rewrites.global_average_pool import GlobalAveragePoolPass
from exporter.rewrites.readable_names import ReadableNamesPass
from exporter.rewrites.strip_metadata import StripMetadataPass

__all__ = ["GlobalAveragePoolPass", "ReadableNamesPass", "StripMetadataPass"]
