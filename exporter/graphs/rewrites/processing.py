"""Pre- and postprocessing inside the graph: a device feeds raw bytes and reads classes.

A data factory always returns the network's own inputs. If the recipe moves the preprocessing into the
graph, `as_shipped` recovers the bytes of each picture from these inputs, or fails if they are not exact.
Parity compares torch on the original inputs with ONNX on the bytes, so it also checks the recovery.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnxscript import TapeBuilder

from bench.core.arrays import Array
from bench.core.errors import DataError
from exporter.errors import ExportError
from exporter.graphs.edits import add_constant, remove_nodes, rename_reads, replace_nodes, sort_nodes
from exporter.graphs.index import GraphIndex
from exporter.graphs.onnx_files import infer_shapes
from exporter.graphs.ranges import Range
from exporter.recipes import PostprocessConfig, PreprocessConfig
from exporter.sources.splits import Split

BEFORE, AFTER = "preprocess.", "postprocess."
NHWC_TO_NCHW = (0, 3, 1, 2)
NCHW_TO_NHWC = (0, 2, 3, 1)
# Largest distance of a recovered byte from a whole number. Rounding in float32 causes 0.0001 for values up
# to 255; a picture that was resized after decoding has up to 0.5.
_WHOLE = 0.01
# Two scales with a smaller relative difference count as equal: over 255 levels, the error is far below half
# a level.
_SAME_SCALE = 1e-5


def as_shipped(split: Split, config: PreprocessConfig | None) -> Split:
    """The samples in the form of the exported model's inputs: float32 [N, C, H, W] becomes uint8 pictures.

    Raises:
        DataError: the pictures are not (byte - mean) / std of whole bytes.
    """
    if config is None:
        return split
    name = _picture(config, {n: (a.ndim, a.dtype == np.float32) for n, a in split.inputs.items()})
    pictures = split.inputs[name]
    mean, std = _channels(config, pictures.shape[1])
    content = np.empty(pictures.shape, np.uint8)
    for index, picture in enumerate(pictures):  # one by one, because a whole split may be large
        values = picture.astype(np.float64) * std + mean
        whole = np.rint(values)
        if np.abs(values - whole).max() > _WHOLE or whole.min() < 0 or whole.max() > 255:
            raise DataError(
                f"export.preprocess: sample {index} of {name!r}",
                "is not (byte - mean) / std of whole bytes",
                "let the data factory normalize 8-bit pictures with exactly this mean and std",
            )
        content[index] = whole
    if config.layout == "nhwc":
        content = np.ascontiguousarray(content.transpose(NCHW_TO_NHWC))
    return Split({**split.inputs, name: content}, split.labels, split.ids)


def take_bytes(model: ir.Model, config: PreprocessConfig) -> None:
    """Insert (byte - mean) / std between the model's input and the network; the input keeps its name.

    1. Pictures in layout `nhwc` are transposed as bytes, which moves a quarter of the data.
    2. With one integer mean and one std for all channels, DequantizeLinear computes exactly this. The
       quantizer uses its qparams (`byte_ranges`). `join_bytes` removes the conversions between the bytes
       and the first convolution, so QLinearConv reads the raw bytes.
    3. Otherwise, Cast and BatchNormalization compute (x - mean) / std per channel. Mul and Add would
       compute the same, but ONNX Runtime moves the transposition after them, where they process three
       channels at a time. The quantizer leaves Cast and BatchNormalization in float.

    Measured on the int8 EfficientNet-Lite0 at 224 px, one thread, AVX512-VNNI, interleaved in one run on
    random weights, p50: 2.57 ms with float inputs (2.74 with their computation in numpy), 2.50 with rule 2,
    2.70 with rule 3, 3.39 with Mul and Add.

    Raises:
        DataError: the network has no such input, or `mean` or `std` fit another number of channels.
        ExportError: the number of channels is dynamic.
    """
    graph = model.graph
    name = _picture(
        config,
        {str(v.name): (len(v.shape or ()), v.dtype == ir.DataType.FLOAT) for v in graph.inputs},
    )
    index = next(i for i, value in enumerate(graph.inputs) if value.name == name)
    inner = graph.inputs[index]
    assert inner.shape is not None
    channels = inner.shape[1]
    if not isinstance(channels, int):
        raise ExportError(
            "export.preprocess",
            f"the number of channels of input {name!r} is dynamic",
            "export axis 1 with a fixed size",
        )
    mean, std = (values.reshape(-1) for values in _channels(config, channels))
    order = NCHW_TO_NHWC if config.layout == "nhwc" else range(4)
    outer = ir.Value(
        name=name,
        shape=ir.Shape([inner.shape[axis] for axis in order]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    tape = TapeBuilder()
    value = outer
    if config.layout == "nhwc":
        value = tape.Transpose(outer, perm=list(NHWC_TO_NCHW))
    if _is_affine(mean, std):
        scale = _constant(tape, "scale", np.float32(1 / std[0]))
        value = tape.DequantizeLinear(value, scale, _constant(tape, "zero_point", np.uint8(mean[0])))
    else:
        constants = {"factor": 1 / std, "offset": 0 * std, "mean": mean, "variance": 1 + 0 * std}
        terms = [_constant(tape, key, array.astype(np.float32)) for key, array in constants.items()]
        value = tape.BatchNormalization(tape.Cast(value, to=ir.DataType.FLOAT), *terms, epsilon=0.0)
    inner.name = f"{name}.network"
    value.name, value.shape, value.type = inner.name, inner.shape, inner.type
    ir.convenience.replace_all_uses_with(inner, value)
    graph.inputs[index] = outer
    _name(tape, BEFORE)
    graph.insert_before(graph[0], tape.nodes)
    _register(graph, tape)


def give_classes(model: ir.Model, config: PostprocessConfig) -> None:
    """Append softmax, argmax or top-k to a network, whose first output is [N, classes].

    `softmax` outputs `probabilities` [N, classes]. `argmax` outputs `classes`, int64 [N]. `topk` outputs
    `classes`, int64 [N, k], the most likely first, and their `scores` [N, k], which are values of the
    network's output. The quantizer leaves these nodes in float, because 8 bits are too coarse for
    probabilities.

    Raises:
        ExportError: the first output is not [N, classes], or the network has fewer than k classes.
    """
    graph = model.graph
    logits = graph.outputs[0]
    classes = logits.shape[-1] if logits.shape is not None and len(logits.shape) == 2 else None
    if not isinstance(classes, int):
        raise ExportError(
            "export.postprocess",
            f"output {logits.name!r} does not have the shape [N, classes]",
            "remove export.postprocess",
        )
    tape = TapeBuilder()
    if config.kind == "softmax":
        found = [_output(tape.Softmax(logits, axis=-1), "probabilities", logits, ir.DataType.FLOAT)]
    elif config.kind == "argmax":
        best = tape.ArgMax(logits, axis=-1, keepdims=0)
        found = [_output(best, "classes", logits, ir.DataType.INT64, ())]
    else:
        if config.k > classes:
            raise ExportError(
                "export.postprocess.k",
                f"is {config.k}, but the network has {classes} classes",
                f"set it to at most {classes}",
            )
        k = _constant(tape, "k", np.array([config.k], np.int64), AFTER)
        scores, best = tape.TopK(logits, k, axis=-1, _outputs=2)
        found = [
            _output(best, "classes", logits, ir.DataType.INT64, (config.k,)),
            _output(scores, "scores", logits, ir.DataType.FLOAT, (config.k,)),
        ]
    _name(tape, AFTER)
    graph.extend(tape.nodes)
    _register(graph, tape)
    graph.outputs[:1] = found


def edge_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the preprocessing and postprocessing nodes; quantization does not change these nodes."""
    return tuple(node.name for node in model.graph.node if node.name.startswith((BEFORE, AFTER)))


def score_tensor(model: onnx.ModelProto) -> str:
    """The name of the tensor with the network's scores [N, classes], before any postprocessing."""
    after = [n.input[0] for n in model.graph.node if n.name.startswith(AFTER) and n.input]
    return str(after[0] if after else model.graph.output[0].name)


def network_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network of an exported model without pre- and postprocessing.

    Its inputs are the data factory's inputs, and its output is the scores. The result is a copy without the
    nodes before and after the network, or the model itself if there are none. If an int8 network reads raw
    bytes (`join_bytes`), its input stays bytes.
    """
    edges = set(edge_nodes(model))
    if not edges:
        return model
    score = score_tensor(model)
    alone = infer_shapes(model)
    graph = alone.graph
    index = GraphIndex.of(graph)
    for value in graph.input:
        name, inner = value.name, f"{value.name}.network"
        decoder = index.maker(inner)
        if decoder is None or not decoder.name.startswith(BEFORE):
            continue
        unknown = helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None)
        value.CopyFrom(index.values.get(inner, unknown))
        value.name = name
        rename_reads(index.nodes, {inner: name})
    output = index.values.get(score, onnx.ValueInfoProto(name=score))
    replace_nodes(graph, [node for node in index.nodes if node.name not in edges])
    del graph.output[:]
    graph.output.append(output)
    return alone


def byte_ranges(model: onnx.ModelProto) -> dict[str, Range]:
    """The ranges of tensors dequantized from bytes with one scale and zero point; they need no samples."""
    return {
        node.output[0]: Range((0 - zero_point) * scale, (255 - zero_point) * scale)
        for node, (scale, zero_point) in _from_bytes(GraphIndex.of(model.graph))
    }


def join_bytes(model: onnx.ModelProto) -> None:
    """Let the quantized network read the input bytes directly if it quantizes them with the same qparams.

    DequantizeLinear followed by QuantizeLinear with the same qparams returns the same byte.
    """
    index = GraphIndex.of(model.graph)
    replacement: dict[str, str] = {}
    needless: list[onnx.NodeProto] = []
    for before, qparams in _from_bytes(index):
        joined = [
            node
            for node in index.readers(before.output[0])
            if node.op_type == "QuantizeLinear"
            and node.output[0] not in index.outputs
            and _same(qparams, _qparams(node, index))
        ]
        replacement |= {node.output[0]: before.input[0] for node in joined}
        needless += joined if len(joined) < index.uses(before.output[0]) else [*joined, before]
    rename_reads(index.nodes, replacement)
    remove_nodes(model.graph, needless)


def sign_bytes(model: onnx.ModelProto, network: frozenset[str]) -> None:
    """Let the int8 nodes of a network read its bytes as signed integers, in place.

    The quantizer adds no QuantizeLinear after a DequantizeLinear of the given model. But ONNX Runtime does
    not fuse a convolution of unsigned bytes whose result is signed; it would run in float. The same scale
    and the zero point less 128 represent the same values exactly.

    Args:
        model: a QDQ model with signed activations.
        network: names of the nodes that the quantizer processed.
    """
    index = GraphIndex.of(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node, (_, zero_point) in _from_bytes(index):
        source, scale = node.output[0], node.input[1]
        readers = [reader for reader in index.readers(source) if reader.name in network]
        if not readers:
            continue
        rounded, signed, shift = (f"{source}.{part}" for part in ("rounded", "signed", "zero_point"))
        add_constant(model.graph, shift, np.array(zero_point - 128, np.int8))
        for kind, name, result in (
            ("QuantizeLinear", source, rounded),
            ("DequantizeLinear", rounded, signed),
        ):
            nodes.append(helper.make_node(kind, [name, scale, shift], [result], name=result))
        rename_reads(readers, {source: signed})
    if nodes:
        replace_nodes(model.graph, [*index.nodes, *nodes])
        sort_nodes(model.graph)


def _from_bytes(index: GraphIndex) -> Iterator[tuple[onnx.NodeProto, tuple[float, int]]]:
    """Yield each DequantizeLinear whose input does not come from a QuantizeLinear, with its qparams."""
    for node in index.nodes:
        if node.op_type != "DequantizeLinear" or index.is_constant(node.input[0]):
            continue
        qparams = _qparams(node, index)
        if qparams is not None and index.maker(node.input[0], "QuantizeLinear") is None:
            yield node, qparams


def _qparams(node: onnx.NodeProto, index: GraphIndex) -> tuple[float, int] | None:
    """(scale, zero_point) of a node with uint8 on one side; None if they are not constant scalars."""
    if len(node.input) < 3 or not all(index.is_constant(name) for name in node.input[1:3]):
        return None
    scale, zero_point = (index.constant(name) for name in node.input[1:3])
    if scale.size != 1 or zero_point.size != 1 or zero_point.dtype != np.uint8:
        return None
    return float(scale.reshape(())), int(zero_point.reshape(()))


def _same(first: tuple[float, int], second: tuple[float, int] | None) -> bool:
    return second is not None and (
        first[1] == second[1] and abs(first[0] - second[0]) <= _SAME_SCALE * first[0]
    )


def _picture(config: PreprocessConfig, inputs: dict[str, tuple[int, bool]]) -> str:
    """The name of the input with pictures: `config.input`, or by default the only input.

    Args:
        config: the recipe's table.
        inputs: name -> (number of axes, whether it is float32).
    """
    names = [config.input] if config.input is not None else list(inputs)
    if len(names) != 1 or names[0] not in inputs:
        raise DataError(
            "export.preprocess.input",
            f"names none of the inputs {', '.join(inputs)}",
            "set it to the input with pictures",
        )
    if inputs[names[0]] != (4, True):
        raise DataError(
            "export.preprocess",
            f"input {names[0]!r} is not float32 [N, C, H, W]",
            "set export.preprocess.input to the input with pictures",
        )
    return names[0]


def _channels(config: PreprocessConfig, channels: int) -> tuple[Array, Array]:
    """Mean and std of each channel, float64 [channels, 1, 1]."""
    for key, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in {1, channels}:
            raise DataError(
                f"export.preprocess.{key}",
                f"has {len(values)} values, but the pictures have {channels} channels",
                "write one value, or one per channel",
            )
    mean, std = (np.broadcast_to(np.asarray(v, np.float64), channels) for v in (config.mean, config.std))
    return mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)


def _is_affine(mean: Array, std: Array) -> bool:
    """Whether one scale and one uint8 zero point can express mean and std."""
    return bool(np.ptp(mean) == 0 and np.ptp(std) == 0 and mean[0] == np.rint(mean[0]))


def _constant(tape: TapeBuilder, name: str, value: Array | np.generic, prefix: str = BEFORE) -> ir.Value:
    return tape.initializer(ir.tensor(np.asarray(value)), name=f"{prefix}{name}")


def _output(
    value: ir.Value, name: str, logits: ir.Value, dtype: ir.DataType, rest: tuple[int, ...] | None = None
) -> ir.Value:
    """Set the name, type and shape of a result. The shape is the logits' shape, or [N, *rest]."""
    assert logits.shape is not None
    value.name, value.type = name, ir.TensorType(dtype)
    value.shape = logits.shape.copy() if rest is None else ir.Shape([logits.shape[0], *rest])
    return value


def _name(tape: TapeBuilder, prefix: str) -> None:
    for node in tape.nodes:
        node.name = f"{prefix}{node.op_type}"
        for output in node.outputs:
            output.name = output.name or node.name


def _register(graph: ir.Graph, tape: TapeBuilder) -> None:
    for value in tape.initializers:
        graph.register_initializer(value)
