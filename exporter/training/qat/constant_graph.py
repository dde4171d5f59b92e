"""The tensors of an exported graph that depend on a network's parameters and on no input.

Networks compute some of their weights: they reshape, slice and transpose parameters, look up relative
positions, resize a table, or scale a weight to unit length. The exporter folds such computations into
constants, and keeps no record of them. The graph before that folding still contains them. With it, each
weight can be computed again from changed parameters, with gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import onnx
import torch
from onnx import helper, inliner
from torch import Tensor, nn

from exporter.graphs.attributes import attributes_of
from exporter.graphs.index import GraphIndex
from exporter.networks.layer_kinds import BatchNorm
from exporter.training.qat.operators import OPERATORS, is_known

_ANY_SIZE = 1  # for an open axis; a folded weight does not depend on it
# Other tensors may depend on the size of an open axis, and then not fit each other.
_WRONG_SIZE = (RuntimeError, IndexError, ValueError)


@dataclass(frozen=True, eq=False)
class ConstantGraph:
    """Nodes and constants, from which parameters make weights.

    Attributes:
        trained: names of parameters and norm statistics, each under all of its names.
        nodes: tensor -> the node that computes it from parameters.
        constants: values of tensors that depend neither on an input nor on a parameter.
        unknown: operators that compute a weight from parameters, but cannot be trained.
    """

    trained: frozenset[str]
    nodes: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, Tensor]
    unknown: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto, module: nn.Module) -> ConstantGraph:
        """Find the nodes whose results depend on parameters alone.

        Args:
            model: the export of `module` before constants are folded.
            module: the network; it is not changed.
        """
        graph = (inliner.inline_local_functions(model) if model.functions else model).graph
        index, trained = GraphIndex.of(graph), frozenset(parameters_of(module))
        constants = {
            name: torch.from_numpy(index.constant(name).copy())
            for name in index.constants
            if name not in trained and index.element_type(name) != onnx.TensorProto.STRING
        }
        nodes: dict[str, onnx.NodeProto] = {}
        unknown = set()
        for found in graph.node:
            node = _without_input(found, index)
            read = [name for name in node.input if name]
            if not all(name in trained or name in nodes or name in constants for name in read):
                continue
            if not is_known(node):
                unknown.add(node.op_type)
            elif any(name not in constants for name in read):
                nodes |= dict.fromkeys(node.output, node)
            else:
                with suppress(*_WRONG_SIZE):
                    constants |= _results(node, constants)
        return cls(trained, nodes, constants, frozenset(unknown))

    def value(self, tensor: str, module: nn.Module) -> Tensor:
        """A parameter, a norm's statistic, or a tensor that the graph computes from these."""
        return self._value(tensor, module, {})

    def values(self, module: nn.Module) -> dict[str, Tensor]:
        """All parameters and norm statistics, and all tensors that the graph computes from them."""
        values = parameters_of(module)
        for name in self.nodes:
            with suppress(*_WRONG_SIZE):
                self._value(name, module, values)
        return values

    def _value(self, name: str, module: nn.Module, values: dict[str, Tensor]) -> Tensor:
        if name in values:
            return values[name]
        if name in self.trained:
            return _of_module(module, name)
        if name in self.constants:
            device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
            return self.constants[name].to(device)
        node = self.nodes[name]
        values |= _results(node, {read: self._value(read, module, values) for read in node.input if read})
        return values[name]


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters under all of their names, and the statistics of norms."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for name, child in module.named_modules(remove_duplicate=False):
        if is_norm(child):
            for statistic in ("running_mean", "running_var"):
                found[f"{name}.{statistic}" if name else statistic] = getattr(child, statistic)
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm with statistics, which the exporter folds into a layer."""
    return isinstance(module, BatchNorm) and module.running_mean is not None


def _of_module(module: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), attribute)
    return value


def _results(node: onnx.NodeProto, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = OPERATORS[node.op_type](
        attributes_of(node), *(given[name] if name else None for name in node.input)
    )
    return dict(zip(node.output, (made,) if isinstance(made, Tensor) else made, strict=False))


def _without_input(node: onnx.NodeProto, index: GraphIndex) -> onnx.NodeProto:
    """The same node, but without reading a tensor of which only the stated type or shape counts."""
    shape = index.shape(node.input[0]) if node.op_type == "Shape" else None
    if shape is not None:
        start, end = (attributes_of(node).get(name) for name in ("start", "end"))
        sizes = [_ANY_SIZE if size is None else size for size in shape[start or 0 : end]]
        return helper.make_node("Constant", [], node.output, value_ints=sizes)
    if node.op_type == "CastLike" and (kind := index.element_type(node.output[0])):
        return helper.make_node("Cast", node.input[:1], node.output, to=kind)
    return node
