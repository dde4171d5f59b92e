"""Names of nodes and tensors."""

from __future__ import annotations

from collections.abc import Collection

import onnx


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a unique name, in place. The quantizer, repairs and reports identify nodes by name."""
    taken: set[str] = set()
    for node in model.graph.node:
        node.name = unused_name(node.name or node.output[0] or node.op_type, taken)
        taken.add(node.name)


def unused_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or the first unused name of `wanted_2`, `wanted_3`, ..."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
