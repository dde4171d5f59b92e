"""ONNX Runtime's quantizers. No other file uses private parts of that library.

This file adapts the 8-bit quantizer, `QDQQuantizer`, in three ways. Its time then grows only linearly with
the graph. It also accepts the ranges and the placement of this package, for which it has no public
interface. And an output of the model keeps its own range if a Relu or Clip also reads it.

The quantizer's own code builds the graph. But that code walks all initializers to find one, all nodes to
rename a tensor and all channels to round a weight, so a chain of 1,600 convolutions takes 40 times as long
as a chain of 200. Here dictionaries replace these searches; the result is the same byte for byte.

The quantizer for 4-bit weights, `MatMulNBitsQuantizer`, is public and used as documented. But its module
configures logging for the whole process when it is imported. Both quantizers log every node. Only their
messages in the thread that quantizes are dropped.

`exporter.extras` rejects versions of the library that this file was not tested with.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod as OrtMethod
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.base_quantizer import BaseQuantizer
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import (
    add_infer_metadata,
    compute_data_quant_params,
    find_by_name,
    get_qmin_qmax_for_qType,
    quantize_onnx_initializer,
)

from exporter.errors import ExportError
from exporter.graphs.edits import copy_of, sort_nodes
from exporter.graphs.index import GraphIndex, bodies_of
from exporter.graphs.ranges import Range
from exporter.graphs.targets import Target
from exporter.inspection.saturation import NO_OVERRIDES, Overrides
from exporter.process import records_dropped
from exporter.quantization.placement import Placement

# The 8-bit quantizer logs to the root logger.
_LOGGERS = (None, "onnxruntime.quantization.matmul_nbits_quantizer")
_ANY_RANGE = Range(-1.0, 1.0)
_ZERO = np.array(0, np.int8)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class QuantizerOptions:
    """Options of the 8-bit quantizer, apart from the ranges.

    Attributes:
        target: the kind of CPU, which determines types and granularity.
        placement: the nodes to quantize, and their results to leave in float.
        overrides: how to round particular weights.
    """

    target: Target
    placement: Placement
    overrides: Overrides = field(default_factory=lambda: NO_OVERRIDES)


def rounded_tensors(model: onnx.ModelProto, options: QuantizerOptions) -> list[str]:
    """The activations whose ranges the quantizer uses, in graph order.

    The tensors that it rounds depend only on the graph, and it marks them before it changes the graph. The
    other tensors (two thirds in a convolutional network, where norms and activations are absorbed) need not
    be observed.
    """
    if not options.placement.nodes:
        return []
    marker = _quantizer(_Marker, model, {}, options)
    with _errors(model), suppress(_AllAreMarked):
        marker.quantize_model()
    rounded = set(marker.tensors_to_quantize)
    for node in model.graph.node:
        # Unless a layer absorbs the Relu or Clip, the quantizer gives its input the range of its output.
        if node.op_type in {"Relu", "Clip"} and node.input[0] in rounded:
            rounded.add(node.output[0])
    return [name for name in float_tensors(model) if name in rounded]


def run_quantizer(
    model: onnx.ModelProto, ranges: Mapping[str, Range], options: QuantizerOptions
) -> onnx.ModelProto:
    """Quantize a float model to int8, in QDQ form.

    Args:
        model: the float model with inferred shapes; it is not changed.
        ranges: activation ranges of at least `rounded_tensors`.
        options: the quantizer's other options.

    Raises:
        ExportError: ONNX Runtime rejects the model.
    """
    if not options.placement.nodes:  # the quantizer would read an empty list as "all nodes"
        return copy_of(model)
    quantizer = _quantizer(_Quantizer, model, ranges, options)
    with _errors(model):
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    if any(True for node in result.graph.node for _body in bodies_of(node)):
        sort_nodes(result.graph)
    return result


def _quantizer(
    kind: type[_Quantizer], model: onnx.ModelProto, ranges: Mapping[str, Range], options: QuantizerOptions
) -> _Quantizer:
    copy = copy_of(model)
    add_infer_metadata(copy)  # otherwise it writes the model to a file and infers all shapes again
    # The quantizer requires a range even for tensors that it absorbs, but does not use it.
    wanted = dict.fromkeys(float_tensors(model), _ANY_RANGE) | dict(ranges)
    target = options.target
    with _errors(model):
        quantizer = kind(
            copy,
            target.per_channel,
            False,  # reduce_range: the overrides reduce the levels of particular weights instead
            QuantType.QInt8,
            QuantType.QInt8 if target.signed_activations else QuantType.QUInt8,
            TensorsData(
                OrtMethod.MinMax,  # makes the quantizer use the given ranges unchanged
                {
                    name: TensorData(lowest=np.float32(r.lowest), highest=np.float32(r.highest))
                    for name, r in wanted.items()
                },
            ),
            options.placement.nodes,
            [],
            target.operators,
            {"TensorQuantOverrides": dict(options.overrides)},
        )
    quantizer.float_results = options.placement.float_results
    return quantizer


@contextmanager
def _errors(model: onnx.ModelProto) -> Iterator[None]:
    """Name the model in the quantizer's errors, and drop its log messages.

    The messages advise steps that the exporter has already taken.
    """
    try:
        with records_dropped(*_LOGGERS):
            yield
    except _AllAreMarked:
        raise
    except Exception as error:  # the quantizer raises ValueError, RuntimeError and its own classes
        raise ExportError(
            model.graph.name or "model",
            f"ONNX Runtime cannot quantize it ({error})",
            "exclude the node that this error names",
        ) from error


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of graph inputs and node results of type float, in graph order, without unknown types."""
    index = GraphIndex.of(model.graph)
    produced = [name for node in index.nodes for name in node.output]
    names = dict.fromkeys((*index.inputs, *produced))
    return [name for name in names if index.element_type(name) == onnx.TensorProto.FLOAT]


class _Initializers:
    """The initializers of a graph, with a dictionary to find them by name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._named: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            self._named.setdefault(tensor.name, tensor)

    def __iter__(self) -> Iterator[onnx.TensorProto]:
        return iter(self._named.values())

    def find(self, name: str) -> onnx.TensorProto | None:
        return self._named.get(name)

    def append(self, tensor: onnx.TensorProto) -> None:
        self._graph.initializer.append(tensor)
        self._named.setdefault(tensor.name, self._graph.initializer[-1])

    def remove(self, name: str) -> None:
        """Remove an initializer from the dictionary only; `keep` removes it from the graph."""
        self._named.pop(name, None)

    def keep(self, names: Iterable[str]) -> None:
        """Keep only these initializers in the graph.

        One call replaces many calls of the graph's own `remove`, which compares tensor after tensor.
        """
        wanted = set(names)
        kept = [tensor for tensor in self if tensor.name in wanted]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        self._named = {tensor.name: tensor for tensor in self._graph.initializer}


class _IndexedModel(ONNXModel):  # type: ignore[misc]
    """ONNXModel with look-ups in constant time.

    A `GraphIndex` does not fit here: it is a snapshot, and the quantizer alternates look-ups and renames.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._initializers = _Initializers(model.graph)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._writers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            self._index(node)

    def _index(self, node: onnx.NodeProto) -> None:
        for index, names in ((self._readers, node.input), (self._writers, node.output)):
            for name in filter(None, names):
                index.setdefault(name, []).append(node)

    def initializer(self) -> _Initializers:
        return self._initializers

    def get_initializer(self, name: str) -> onnx.TensorProto | None:
        return self._initializers.find(name)

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        if self._initializers.find(tensor.name) is None:
            self._initializers.append(self._check_init(tensor))

    def initializer_extend(self, inits: list[onnx.TensorProto]) -> None:
        for tensor in inits:
            self._initializers.append(self._check_init(tensor))

    def remove_initializer(self, tensor: onnx.TensorProto) -> None:
        self._initializers.remove(tensor.name)
        for value in self.model.graph.input:
            if value.name == tensor.name:
                self.model.graph.input.remove(value)
                break

    def add_node(self, node: onnx.NodeProto) -> None:
        super().add_node(node)
        self._index(self.model.graph.node[-1])

    def remove_nodes(self, nodes_to_remove: list[onnx.NodeProto]) -> None:
        """For each given node, remove the first equal node of the graph."""
        doomed = Counter(node.SerializeToString(deterministic=True) for node in nodes_to_remove)
        kept = []
        for node in self.model.graph.node:
            content = node.SerializeToString(deterministic=True)
            if doomed[content]:
                doomed[content] -= 1
            else:
                kept.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def input_name_to_nodes(self) -> dict[str, list[onnx.NodeProto]]:
        return self._readers

    def replace_input_of_all_nodes(self, old_input_name: str, new_input_name: str) -> None:
        for node in (nodes := self._readers.pop(old_input_name, [])):
            self.replace_node_input(node, old_input_name, new_input_name)
        self._readers.setdefault(new_input_name, []).extend(nodes)

    def replace_input_of_nodes(
        self, old_input_name: str, new_input_name: str, node_names_set: set[str]
    ) -> None:
        nodes = self._readers.pop(old_input_name, [])
        for node in nodes:
            chosen = node.name in node_names_set
            if chosen:
                self.replace_node_input(node, old_input_name, new_input_name)
            self._readers.setdefault(new_input_name if chosen else old_input_name, []).append(node)

    def replace_output_of_all_nodes(self, old_output_name: str, new_output_name: str) -> None:
        for node in (nodes := self._writers.pop(old_output_name, [])):
            self.replace_node_output(node, old_output_name, new_output_name)
        self._writers.setdefault(new_output_name, []).extend(nodes)

    def clean_initializers(self) -> Any:
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        if not any(
            attribute.HasField("g") or attribute.graphs for n in graph.node for attribute in n.attribute
        ):
            self._initializers.keep(used | {value.name for value in graph.input})
        return super().clean_initializers()


def _find(name: str, items: Any) -> Any:
    return items.find(name) if isinstance(items, _Initializers) else find_by_name(name, items)


def _rounded_at_once(  # noqa: PLR0917 (the parameters of the function that it replaces)
    weight: onnx.TensorProto,
    quant_type: int,
    zero_point: np.ndarray[Any, Any],
    scale: np.ndarray[Any, Any],
    axis: int | None = None,
    quant_weight_name: str | None = None,
    block_size: int = 0,
) -> onnx.TensorProto:
    """Round all channels of a weight in one division instead of one by one."""
    if axis is not None and not block_size:
        shape = [-1 if dimension == axis else 1 for dimension in range(len(weight.dims))]
        scale, zero_point = (
            np.broadcast_to(v.reshape(shape), weight.dims).ravel() for v in (scale, zero_point)
        )
        axis = None
    quantized: onnx.TensorProto = quantize_onnx_initializer(
        weight, quant_type, zero_point, scale, axis, quant_weight_name, block_size
    )
    return quantized


def _weight_qparams(
    data: np.ndarray[Any, Any],
    quant_type: int,
    symmetric: bool,
    **options: Any,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`(zero_point, scale)` of a channel, in ONNX Runtime's order, with a fast path for symmetric int8.

    For symmetric int8 weights, ONNX Runtime's `compute_scale_zp` computes, in float64,
    scale = 2 max|w| / (qmax - qmin). The scale is 1 if that is not a normal float32. Overrides replace the
    least and the most weight; they are rounded to the type of the weights. (A network for text recognition
    with 11,000 reduced channels: 0.6 s instead of 2.4.)
    """
    usual = symmetric and quant_type == onnx.TensorProto.INT8 and data.dtype == np.float32 and data.size
    if not usual or options.get("min_real_range") is not None:
        zero_point, scale = compute_data_quant_params(data, quant_type, symmetric, **options)
        return zero_point, scale
    low, high = _limits(options.get("reduce_range", False))
    least, most = options.get("rmin_override"), options.get("rmax_override")
    lowest = float(data.min() if least is None else np.float32(least))
    highest = float(data.max() if most is None else np.float32(most))
    scale = 2.0 * max(-lowest, highest, 0.0) / (high - low)
    return _ZERO, np.array(scale if scale >= _TINY else 1.0, np.float32)


@cache
def _limits(reduce_range: bool) -> tuple[int, int]:
    low, high = get_qmin_qmax_for_qType(onnx.TensorProto.INT8, reduce_range, symmetric=True)
    return int(low), int(high)


def _with(kind: type, replaced: Mapping[str, Any]) -> dict[str, FunctionType]:
    """Copies of the methods that call a global function in `replaced`; they call the replacement."""
    return {
        name: FunctionType(m.__code__, {**m.__globals__, **replaced}, name, m.__defaults__, m.__closure__)
        for name, m in vars(kind).items()
        if isinstance(m, FunctionType) and replaced.keys() & set(m.__code__.co_names)
    }


class _Quantizer(QDQQuantizer):  # type: ignore[misc]
    """QDQQuantizer on an indexed model. Results can be left in float by name, not only by operator type."""

    float_results: frozenset[str] = frozenset()

    _replaced: Mapping[str, Any] = {
        "find_by_name": _find,
        "compute_data_quant_params": _weight_qparams,
        "quantize_onnx_initializer": _rounded_at_once,
    }
    locals().update(_with(BaseQuantizer, _replaced) | _with(QDQQuantizer, _replaced))

    def calc_graph_quant_params(self) -> Any:
        # The constructor calls this last, after it has created its own model of the graph.
        self.model: Any = _IndexedModel(self.model.model)
        return super().calc_graph_quant_params()

    def adjust_tensor_ranges(self) -> None:
        """Give the input of a Relu or Clip the range of its output, but not if something else reads it.

        The library's own function does this even if the input is an output of the model, or if a branch or
        loop reads it. Such a tensor then loses its negative half, which costs up to 3 dB.
        """
        index = GraphIndex.of(self.model.model.graph)
        shared = {name: found for name, found in self.tensors_range.items() if index.uses(name) > 1}
        super().adjust_tensor_ranges()
        self.tensors_range.data.update(shared)

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self.float_results:
            super().quantize_activation_tensor(tensor_name)


class _AllAreMarked(Exception):  # noqa: N818 (not an error)
    pass


class _Marker(_Quantizer):
    """A quantizer that stops as soon as it has marked the tensors to quantize."""

    def _calc_initializer_quant_params(self) -> Any:
        raise _AllAreMarked


def quantize_products(
    model: onnx.ModelProto, *, bits: int, block_size: int, accuracy_level: int, exclude: Collection[str]
) -> onnx.ModelProto:
    """Replace every MatMul with a constant matrix by MatMulNBits, with asymmetric blocks.

    Args:
        model: the float model, changed in place.
        bits: bits per weight.
        block_size: weights along the summed axis that share a scale and a zero point.
        accuracy_level: the attribute `accuracy_level` of MatMulNBits; 4 selects int8 sums.
        exclude: names of nodes to leave in float.

    Raises:
        ExportError: ONNX Runtime rejects the model.
    """
    kind = _nbits_quantizer()
    try:
        with records_dropped(*_LOGGERS):
            quantizer = kind(
                model,
                bits=bits,
                block_size=block_size,
                is_symmetric=False,
                accuracy_level=accuracy_level,
                nodes_to_exclude=sorted(exclude),
            )
            quantizer.process()
    except Exception as error:  # the quantizer documents no exception types
        raise ExportError(
            model.graph.name or "model",
            f"ONNX Runtime cannot quantize it ({error})",
            "exclude the nodes that it cannot quantize",
        ) from error
    result: onnx.ModelProto = quantizer.model.model
    return result


def _nbits_quantizer() -> Any:
    """Import the class without its module's logging configuration.

    The module calls `basicConfig`, which does nothing if the root logger already has a handler.
    """
    placeholder = logging.NullHandler()
    logging.root.addHandler(placeholder)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    finally:
        logging.root.removeHandler(placeholder)
    return MatMulNBitsQuantizer
