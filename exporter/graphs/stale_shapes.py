"""Remove shapes from a model that may be wrong.

Exporters store the shapes of inner tensors and of outputs in a file. Nothing checks them: if an output has
another shape, ONNX Runtime only warns. Constant folding would use a wrong shape as if it were correct.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from exporter.graphs.index import GraphIndex


def forget_stale_shapes(model: onnx.ModelProto, seen: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
    """Remove stated shapes from a model, in place; ONNX can infer the shapes that follow from its inputs.

    1. Shapes of inner tensors are removed. Element types are kept.
       Statements about constants are removed whole: without a shape, they hide the shape of the constant.
    2. An output gets the observed rank with dynamic sizes. A size that was the same in each run may be
       wrong for other inputs.
    3. No shape can express that the rank varies (a Squeeze without axes), but ONNX's checker wants a shape
       for each output. Such an output keeps its stated shape if no node reads it.

    Args:
        model: the model.
        seen: output name -> shape, for each run of the model. An output that is in no run keeps its stated
            shape.
    """
    _forget_constants(model.graph)
    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    index = GraphIndex.of(model.graph)
    for value in model.graph.output:
        ranks = {len(run[value.name]) for run in seen if value.name in run}
        stated = value.type.tensor_type
        if len(ranks) == 1:
            stated.shape.Clear()
            stated.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(*ranks))
        elif ranks and index.readers(value.name):
            stated.ClearField("shape")


def _forget_constants(graph: onnx.GraphProto) -> None:
    """Remove what a graph states about its constants; PyTorch's exporter states their types and shapes."""
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)
