"""Name nodes and values after the module that they come from."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"


class ReadableNamesPass(ir.passes.InPlacePass):
    """Give every node a stable name that can be found in the PyTorch code.

    The numbers in the exporter's names (`node_Conv_996`) change with its version. Reports, exclude lists
    and error messages need stable names.

    1. The name of a node with weights is the module that owns them: `_blocks.3._expand_conv`.
    2. The name of any other node is the module that it ran in, and its operator: `_blocks.3.Add`.
    3. A name that is already used gets a number: `_blocks.3.Clip_2`.
    4. A single output has the name of its node. Inputs and outputs of the graph keep their names.
    5. Folded biases (`x.weight_bias`) get PyTorch's name (`x.bias`).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename nodes and the values between them."""
        graph = model.graph
        fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
        taken = Counter([*graph.initializers.keys(), *(str(name) for name in fixed)])
        for name, value in list(graph.initializers.items()):
            better = name.removesuffix(".weight_bias") + ".bias"
            if name.endswith(".weight_bias") and better not in graph.initializers:
                value.name = better
                taken[better] += 1
        for node in graph:
            node.name = _unique(_name_of(node), taken)
            for index, output in enumerate(node.outputs):
                if output.name not in fixed:
                    suffix = f":{index}" if index else ""
                    output.name = f"{node.name}{suffix}"
        return ir.passes.PassResult(model, True)


def _name_of(node: ir.Node) -> str:
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer() and str(value.name).endswith(".weight"):
            return str(value.name).removesuffix(".weight")
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        scopes = []
    # The last scope is the call itself, and the one before it is the module that contains the call.
    module = str(scopes[-2]) if len(scopes) >= 2 else ""
    return f"{module}.{node.op_type}" if module else node.op_type


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    if taken[name] == 1:
        return name
    return _unique(f"{name}_{taken[name]}", taken)
