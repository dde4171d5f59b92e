"""Rewrites of an exported graph, one in each file. Each docstring states the measured gain."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporter.graphs.rewrites.captured_values import CapturedValuesPass
from exporter.graphs.rewrites.constant_matmul import ConstantMatMulPass
from exporter.graphs.rewrites.constant_values import ConstantValuesPass
from exporter.graphs.rewrites.decomposed_hard_swish import DecomposedHardSwishPass
from exporter.graphs.rewrites.decomposed_norm import DecomposedNormPass
from exporter.graphs.rewrites.einsum import EinsumPass
from exporter.graphs.rewrites.fold_after import FoldAfterPass
from exporter.graphs.rewrites.fold_before import FoldBeforePass
from exporter.graphs.rewrites.fourier import FourierPass
from exporter.graphs.rewrites.free_names import FreeNamesPass
from exporter.graphs.rewrites.gemm import GemmPass
from exporter.graphs.rewrites.global_average_pool import GlobalAveragePoolPass
from exporter.graphs.rewrites.last_axes_transpose import LastAxesTransposePass
from exporter.graphs.rewrites.readable_names import ReadableNamesPass
from exporter.graphs.rewrites.residual_norm import ResidualNormPass
from exporter.graphs.rewrites.softmax_guard import SoftmaxGuardPass
from exporter.graphs.rewrites.strip_metadata import StripMetadataPass

__all__ = [
    "CapturedValuesPass",
    "ConstantMatMulPass",
    "ConstantValuesPass",
    "DecomposedHardSwishPass",
    "DecomposedNormPass",
    "EinsumPass",
    "FoldAfterPass",
    "FoldBeforePass",
    "FourierPass",
    "FreeNamesPass",
    "GemmPass",
    "GlobalAveragePoolPass",
    "LastAxesTransposePass",
    "ReadableNamesPass",
    "ResidualNormPass",
    "SoftmaxGuardPass",
    "StripMetadataPass",
    "rewrite_for_cpu",
]


def rewrite_for_cpu(model: ir.Model, *, fold: bool = True) -> None:
    """Rewrite a float graph to the form that ONNX Runtime's CPU kernels run fastest, in float and int8.

    Args:
        model: the graph; it is changed.
        fold: whether to fold operators into the weights of the products beside them. An export of a
            PyTorch network leaves this out, because training for quantization must find the network's
            parameters in the graph.
    """
    folding = (
        EinsumPass(),
        FourierPass(),
        ConstantMatMulPass(),
        FoldAfterPass(),
        FoldBeforePass(),
        GemmPass(),
    )
    for rewrite in (
        ConstantValuesPass(),
        DecomposedHardSwishPass(),
        DecomposedNormPass(),
        RemoveUnusedNodesPass(),  # nodes of a decomposed norm read the sum before it
        *(folding if fold else ()),
        GlobalAveragePoolPass(),
        LastAxesTransposePass(),
        SoftmaxGuardPass(),
        ResidualNormPass(),
        RemoveUnusedNodesPass(),
        CapturedValuesPass(),
        FreeNamesPass(),
    ):
        rewrite(model)
