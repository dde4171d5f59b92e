"""Folding and rewriting a graph by onnxscript's own rules, in time that grows as the graph does."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import rewriter
from onnxscript.optimizer._constant_folding import FoldConstantsPass
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import slice_split_rule

_MAX_ROUNDS = 8
_INPUT_BYTES, _OUTPUT_BYTES = 8192, 512 * 512


def simplify(model: ir.Model) -> None:
    """Fold constants and rewrite in turn until nothing changes, in place.

    The passes are those of `onnxscript.optimizer.optimize_ir`, but for one rule. It makes a Split of two
    Slices, and looks at all nodes for the second one once for every node: half the time of a chain of
    1,600 convolutions. It is left out where there are no Slices.
    """
    sliced = any(node.op_type == "Slice" for node in model.graph)
    rules = [r for r in rewriter._DEFAULT_REWRITE_RULES if sliced or r is not slice_split_rule]
    clean = [
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]
    fold = FoldConstantsPass(
        shape_inference=True, input_size_limit=_INPUT_BYTES, output_size_limit=_OUTPUT_BYTES
    )
    ir.passes.Sequential(
        common.InlinePass(),
        ir.passes.PassManager([fold, RewritePass(rules), *clean], steps=_MAX_ROUNDS, early_stop=True),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
