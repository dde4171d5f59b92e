"""Changes to an exported graph, one a file; each is kept for a gain that its docstring states."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.rewrites.global_average_pool import GlobalAveragePoolPass
from exporter.graphs.rewrites.last_axes_transpose import LastAxesTransposePass
from exporter.graphs.rewrites.readable_names import ReadableNamesPass
from exporter.graphs.rewrites.residual_norm import ResidualNormPass
from exporter.graphs.rewrites.softmax_guard import SoftmaxGuardPass
from exporter.graphs.rewrites.strip_metadata import StripMetadataPass

__all__ = [
    "GlobalAveragePoolPass",
    "LastAxesTransposePass",
    "ReadableNamesPass",
    "ResidualNormPass",
    "SoftmaxGuardPass",
    "StripMetadataPass",
    "rewrite_for_cpu",
]


def rewrite_for_cpu(model: ir.Model) -> None:
    """Bring a float graph into the form that ONNX Runtime's CPU kernels run best, in float and in int8."""
    for rewrite in (
        GlobalAveragePoolPass(),
        LastAxesTransposePass(),
        SoftmaxGuardPass(),
        ResidualNormPass(),
        RemoveUnusedNodesPass(),
    ):
        rewrite(model)
