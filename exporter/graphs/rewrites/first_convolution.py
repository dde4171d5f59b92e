"""Run the first convolution of an int8 network on blocks of two by two pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.core.arrays import Array
from bench.inputs.runtime import RuntimeVersion
from exporter.graphs.attributes import attributes_of
from exporter.graphs.edits import replace_nodes, set_constant
from exporter.graphs.index import GraphIndex
from exporter.graphs.kernels import kernel_version
from exporter.graphs.onnx_files import infer_shapes

# Pictures have 1 to 4 channels. With many channels, each kernel tap is already a long copy.
MAX_CHANNELS = 4
# The oldest ONNX Runtime with SpaceToDepth for bytes.
BYTES_NEED = kernel_version("SpaceToDepth", "uint8")


@dataclass(frozen=True)
class _Stem:
    """The first convolution, the node that dequantizes its picture, and its int8 weights."""

    convolution: onnx.NodeProto
    dequantize: onnx.NodeProto
    weight: onnx.TensorProto


def fold_stem(model: onnx.ModelProto, runtime: RuntimeVersion) -> bool:
    """Replace a picture's convolution with stride 2 by one with stride 1 on blocks of 2 x 2, in place.

    ONNX Runtime's int8 convolution gathers the taps of each output, and a tap of a picture has only 3
    bytes. The first layer of EfficientNet-Lite0 took 12 % of the int8 model's time for 3 % of the
    multiply-adds. On SpaceToDepth of the picture, the convolution has four times the channels and about
    half the kernel size; the additional weights are zero. The sums are the same to the bit, but the taps
    are fewer and longer. Measured on AVX512-VNNI, one thread, interleaved, followed by another convolution
    of 3 x 3: a stem of 3 x 3 takes 0.75 x the time, a stem of 7 x 7 (ResNet) 0.75 x; the whole
    EfficientNet-Lite0 at 224 px takes 0.96 x.

    A convolution is rewritten if

    1. it is int8, with one group, stride 2 in both axes, no dilation and a kernel of at least 2 x 2,
    2. its picture has at most 4 channels and an even, known size, and nothing else reads it, and
    3. its weights are constants that no other node reads.

    SpaceToDepth is placed before the node that quantizes the picture, where it moves floats. Every ONNX
    Runtime has this kernel, and it is faster than the kernel for bytes (quantizing and moving a picture of
    224 px takes 135 us in this order and 159 us in the other). If the model's input is bytes, SpaceToDepth
    moves bytes, which requires ONNX Runtime 1.28.

    Args:
        model: a QDQ model.
        runtime: the oldest ONNX Runtime that must run the model.

    Returns:
        Whether a convolution was rewritten.
    """
    index = GraphIndex.of(model.graph)
    stem = _find_stem(index)
    size = None if stem is None else _even_size(model, stem.dequantize.input[0])
    if stem is None or size is None:
        return False
    quantize = _quantizer(index, stem.dequantize.input[0])
    if quantize is None and runtime < BYTES_NEED:
        return False
    weight = numpy_helper.to_array(stem.weight)
    pads = attributes_of(stem.convolution).get("pads", [0, 0, 0, 0])
    taps, offsets = [], []
    for axis in (0, 1):
        kernel, begin, end = weight.shape[2 + axis], pads[axis], pads[axis + 2]
        first, last = math.floor(-begin / 2), math.floor((kernel - 1 - begin) / 2)
        taps.append(last - first + 1)
        offsets.append(-begin - 2 * first)
        outputs = (size[axis] + begin + end - kernel) // 2 + 1
        pads[axis], pads[axis + 2] = -first, outputs - 1 + taps[axis] - size[axis] // 2 + first
    folded = on_blocks(_spread(weight, taps, offsets))
    set_constant(stem.weight, folded)
    _set_attributes(stem.convolution, kernel_shape=taps, strides=[1, 1], pads=pads)
    reader = stem.dequantize if quantize is None else quantize
    source = reader.input[0]
    blocks = blocks_of(source)
    reader.input[0] = blocks
    for name in (reader.output[0], stem.dequantize.output[0]):
        _forget_shape(model, name)
    made = helper.make_node("SpaceToDepth", [source], [blocks], name=blocks, blocksize=2)
    place = index.nodes.index(reader)
    replace_nodes(model.graph, [*index.nodes[:place], made, *index.nodes[place:]])
    return True


def blocks_of(tensor: str) -> str:
    """The name of the tensor with a picture's blocks, if its convolution reads blocks."""
    return f"{tensor}.blocks"


def on_blocks(pictures: Array) -> Array:
    """SpaceToDepth of pictures [N, channels, rows, columns]: [N, 4 * channels, rows / 2, columns / 2].

    The output channels are ordered by row in the block, then column in the block, then channel.
    """
    count, channels, rows, columns = pictures.shape
    split = pictures.reshape(count, channels, rows // 2, 2, columns // 2, 2)
    moved = split.transpose(0, 3, 5, 1, 2, 4).reshape(count, 4 * channels, rows // 2, columns // 2)
    return np.ascontiguousarray(moved)


def _quantizer(index: GraphIndex, tensor: str) -> onnx.NodeProto | None:
    """The node that quantizes a picture with one scale, or None if the model's input is bytes."""
    node = index.maker(tensor, "QuantizeLinear")
    if node is None or not all(index.is_constant(n) and index.shape(n) == () for n in node.input[1:]):
        return None
    return node


def _spread(weight: Array, taps: list[int], offsets: list[int]) -> Array:
    """Pad weights [out, channels, rows, columns] with zeros to [out, channels, *(2 * taps)].

    The kernel starts `offsets` rows and columns after the first row and column of the first block.
    """
    out, channels, rows, columns = weight.shape
    wide = np.zeros((out, channels, 2 * taps[0], 2 * taps[1]), weight.dtype)
    wide[:, :, offsets[0] : offsets[0] + rows, offsets[1] : offsets[1] + columns] = weight
    return wide


def _find_stem(index: GraphIndex) -> _Stem | None:
    for node in index.nodes:
        if node.op_type != "Conv" or not _strides_by_two(node):
            continue
        picture, kernel = (index.maker(name, "DequantizeLinear") for name in node.input[:2])
        if picture is None or kernel is None:
            continue
        weight = index.constants.get(kernel.input[0])
        read = (*node.input[:2], picture.input[0], kernel.input[0])
        if (
            all(index.uses(name) == 1 for name in read)
            and weight is not None
            and len(weight.dims) == 4
            and weight.dims[1] <= MAX_CHANNELS
            and min(weight.dims[2:]) >= 2
        ):
            return _Stem(node, picture, weight)
    return None


def _strides_by_two(node: onnx.NodeProto) -> bool:
    found = attributes_of(node)
    return (
        found.get("strides") == [2, 2]
        and found.get("dilations", [1, 1]) == [1, 1]
        and found.get("group", 1) == 1
        and found.get("auto_pad", "NOTSET") == "NOTSET"
    )


def _even_size(model: onnx.ModelProto, tensor: str) -> tuple[int, int] | None:
    """Height and width of pictures [N, channels, height, width], if both are known and even."""
    shape = GraphIndex.of(infer_shapes(model).graph).shape(tensor)
    if shape is None or len(shape) != 4:
        return None
    height, width = shape[2:]
    return (height, width) if height and width and height % 2 == width % 2 == 0 else None


def _set_attributes(node: onnx.NodeProto, **values: list[int]) -> None:
    kept = [entry for entry in node.attribute if entry.name not in values]
    made = [helper.make_attribute(name, value) for name, value in values.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])


def _forget_shape(model: onnx.ModelProto, tensor: str) -> None:
    kept = [value for value in model.graph.value_info if value.name != tensor]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
