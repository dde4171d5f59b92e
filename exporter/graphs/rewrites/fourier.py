"""Replace Fourier transforms of real signals by Conv or MatMul with a constant basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bench.core.arrays import Array
from exporter.graphs.domains import is_standard
from exporter.graphs.rewrites.products import add_initializer
from exporter.graphs.rewrites.symbols import constant, rank, scalar

# Largest basis, in values: of a length that is a power of two, and of another length. Beyond the first one,
# ONNX Runtime's fast transform is faster. The second one limits the file to 8 MiB more.
_LARGEST_BASIS, _LARGEST_SLOW_BASIS = 300_000, 2**21
_AXIS_AS_INPUT = 20  # opset from which on the axis of DFT is an input


class FourierPass(ir.passes.InPlacePass):
    """Replace STFT by Conv and DFT by MatMul.

    1. `STFT` becomes a Conv whose weights are the windowed basis [results * 2, 1, frame], and whose stride
       is the step between frames.
    2. `DFT` of an axis of known length becomes a MatMul with the basis [length, results * 2].

    The parameters must be constant and the signal real. Both are exact to 5e-7 of the largest value; ONNX
    Runtime's own transform of lengths that are not a power of two is exact to 1e-4. Its time depends on the
    length. Measured with STFT of 16,000 samples, one thread, AVX2 without VNNI, CPU time, interleaved
    (`tests/perf/fourier.py`), time of Conv / time of STFT in two runs: frames of 400 samples 0.09 and 0.13,
    of 1200 samples 0.18 and 0.23; powers of two: 64 samples 0.19 and 0.26, 256 samples 0.33 and 0.37, 512
    samples 0.59 and 0.73, 1024 samples 1.00 and 1.46, 2048 samples 2.99 and 3.03. So long frames of a power
    of two are left alone. The weights make the file larger: 0.64 MB for frames of 400 samples.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite all such transforms."""
        modified = False
        graph, opset = model.graph, model.opset_imports.get("", 0)
        for node in list(graph):
            if not is_standard(node) or node.op_type not in {"STFT", "DFT"}:
                continue
            made = _as_conv(node, graph) if node.op_type == "STFT" else _as_matmul(node, graph, opset)
            if made is None:
                continue
            for place, each in enumerate(made):
                product = each.op_type in {"Conv", "MatMul"}
                each.name = node.name if product else f"{_label(node)}.{each.op_type}{place}"
                each.metadata_props.update(node.metadata_props)
            _correct_shape(node.outputs[0], made)
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], made, [node.outputs[0]], [made[-1].outputs[0]]
            )
            modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True)
class _Basis:
    """The basis of a transform.

    Attributes:
        length: values that are transformed.
        frequencies: results of the transform.
    """

    length: int
    frequencies: int

    @property
    def pays(self) -> bool:
        """Whether a product with this basis is faster than ONNX Runtime's transform, and not too large."""
        fast = self.length & (self.length - 1) == 0
        return 2 * self.frequencies * self.length <= (_LARGEST_BASIS if fast else _LARGEST_SLOW_BASIS)

    def rows(self) -> Array:
        """The real and the imaginary part of each frequency, float64 [frequencies * 2, length]."""
        turns = np.outer(np.arange(self.frequencies), np.arange(self.length)) % self.length
        angle = 2 * np.pi * turns / self.length
        return np.stack([np.cos(angle), -np.sin(angle)], axis=1).reshape(-1, self.length)


def _as_conv(node: ir.Node, graph: ir.Graph) -> list[ir.Node] | None:
    """Nodes that compute an STFT: [batch, length] or [batch, length, 1] -> [batch, frames, results, 2]."""
    signal, step, window, frame = (*node.inputs, None, None)[:4]
    stride, length, taps = scalar(step), scalar(frame), constant(window)
    if length is None and frame is None and taps is not None:
        length = len(taps)
    if stride is None or length is None or not _is_real(signal, {2, 3}) or min(stride, length) < 1:
        return None
    if window is not None and (taps is None or taps.shape != (length,)):
        return None
    basis = _basis(node, int(length), default=1)
    if not basis.pays:
        return None
    rows = basis.rows() if taps is None else basis.rows() * taps
    label = _label(node)
    weight = add_initializer(graph, f"{label}.basis", rows[:, None].astype(np.float32))
    before = add_initializer(graph, f"{label}.channel", np.array([0, 1, -1], np.int64))
    after = add_initializer(graph, f"{label}.parts", np.array([0, 0, basis.frequencies, 2], np.int64))
    reshape = ir.node("Reshape", inputs=[signal, before])
    conv = ir.node("Conv", inputs=[reshape.outputs[0], weight], attributes={"strides": [int(stride)]})
    turn = ir.node("Transpose", inputs=[conv.outputs[0]], attributes={"perm": [0, 2, 1]})
    return [reshape, conv, turn, ir.node("Reshape", inputs=[turn.outputs[0], after])]


def _as_matmul(node: ir.Node, graph: ir.Graph, opset: int) -> list[ir.Node] | None:
    """Nodes that compute a DFT: [..., length, 1] -> [..., results, 2]."""
    source = node.inputs[0]
    axes, axis = rank(source), _axis(node, opset)
    if source is None or source.shape is None or axes is None or axis is None:
        return None
    size = source.shape[axis]
    stated = node.inputs[1] if len(node.inputs) > 1 else None
    length = size if stated is None else scalar(stated)
    if _integer(node, "inverse", 0) or not isinstance(size, int) or not isinstance(length, int | float):
        return None
    if axis % axes != axes - 2 or not _is_real(source, {axes}) or length < 1:
        return None
    basis = _basis(node, int(length), default=0)
    if not basis.pays:
        return None
    # A longer transform reads zeros after the values, and a shorter one ignores the last values.
    columns = basis.rows().T[:size]
    columns = np.pad(columns, ((0, size - len(columns)), (0, 0)))
    label = _label(node)
    weight = add_initializer(graph, f"{label}.basis", np.ascontiguousarray(columns.astype(np.float32)))
    last = add_initializer(graph, f"{label}.last_axis", np.array([-1], np.int64))
    shape = np.array([0] * (axes - 2) + [basis.frequencies, 2], np.int64)
    squeeze = ir.node("Squeeze", inputs=[source, last])
    product = ir.node("MatMul", inputs=[squeeze.outputs[0], weight])
    after = add_initializer(graph, f"{label}.parts", shape)
    return [squeeze, product, ir.node("Reshape", inputs=[product.outputs[0], after])]


def _basis(node: ir.Node, length: int, *, default: int) -> _Basis:
    onesided = _integer(node, "onesided", default)
    return _Basis(length, length // 2 + 1 if onesided else length)


def _is_real(signal: ir.Value | None, ranks: set[int]) -> bool:
    """Whether a signal is float32 and has no imaginary part; its last axis is 1 if it has three or more."""
    axes = rank(signal)
    if signal is None or signal.shape is None or signal.dtype != ir.DataType.FLOAT or axes not in ranks:
        return False
    return axes == 2 or signal.shape[-1] == 1


def _axis(node: ir.Node, opset: int) -> int | None:
    """The axis of a DFT, or None if it is computed."""
    if opset < _AXIS_AS_INPUT:
        return _integer(node, "axis", 1)
    stated = node.inputs[2] if len(node.inputs) > 2 else None
    number = -2.0 if stated is None else scalar(stated)
    return None if number is None else int(number)


def _correct_shape(result: ir.Value, made: list[ir.Node]) -> None:
    """State the number of frequencies; ONNX infers a wrong one if `onesided` is not stated."""
    parts = constant(made[-1].inputs[1])
    assert parts is not None
    kept = [None] * (len(parts) - 2) if result.shape is None else result.shape[:-2]
    result.shape = ir.Shape([*kept, *(int(size) for size in parts[-2:])])


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _label(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)
