"""Forgetting what a file says wrongly about the shapes of its tensors.

Exporters write down shapes of tensors inside a graph and of its outputs. Nothing makes sure that they are
right: ONNX Runtime warns of an output of another shape and runs on. Folding constants would take such a
shape for the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx


def forget_stale_shapes(model: onnx.ModelProto, seen: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
    """Remove the shapes that a model states, in place; ONNX infers again those that follow from its inputs.

    1. Shapes of tensors inside the graph go. Element types stay.
    2. An output keeps the rank that was seen, with all sizes open. A size that was right each time may be
       wrong for other inputs.

    Args:
        model: the model.
        seen: output name -> shape, for each time that the model was run. An output that was never seen
            keeps what is stated.
    """
    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    for value in model.graph.output:
        ranks = {len(run[value.name]) for run in seen if value.name in run}
        if not ranks:
            continue
        shape = value.type.tensor_type.shape
        shape.Clear()
        if len(ranks) == 1:
            shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(*ranks))
        else:  # no shape says that the rank varies
            value.type.tensor_type.ClearField("shape")
