"""Run a ConvTranspose in int8, as a convolution with one result for each place of a block of outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.core.arrays import Array
from exporter.graphs.attributes import attributes_of
from exporter.graphs.domains import is_standard
from exporter.graphs.edits import add_constant, replace_nodes
from exporter.graphs.index import GraphIndex
from exporter.graphs.names import unused_name
from exporter.graphs.slow_kernels import slow_in_int8

# Multiply-adds for each value, and results of each group, from which on the int8 convolution is faster.
_ENOUGH_PRODUCTS, _ENOUGH_WITH_DEPTH_TO_SPACE = 32, 96
_ENOUGH_RESULTS = 16
# Operators on single values. They give the same before and after the values are moved.
_ELEMENTWISE = frozenset({"Relu", "Clip", "LeakyRelu"})
_MOVED_AXES = 2
_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a ConvTranspose, written as a convolution over blocks of `stride` outputs.

    Attributes:
        kernel: taps of the ConvTranspose.
        stride: its stride, and the outputs of a block.
        shift: tap of the first output of the first block, if the block's first input is its first one.
        first: the smallest distance from a block to an input that it needs.
        taps: taps of the convolution.
        pads: zeros before and after the input.
        cut: outputs to remove at the begin and at the end.
    """

    kernel: int
    stride: int
    shift: int
    first: int
    taps: int
    pads: tuple[int, int]
    cut: tuple[int, int]


@dataclass(frozen=True)
class _Form:
    """A ConvTranspose that can be rewritten.

    Attributes:
        axes: its spatial axes.
        weight: weights of the convolution, [outputs x block, inputs / groups, taps...].
        groups: the number of groups.
        block: outputs of a block.
        blocks: the number of blocks along each axis, None if it is open.
        channels_last: whether the results of a place are beside each other, [places, outputs]; otherwise
            the places of an output, as DepthToSpace wants them.
    """

    axes: tuple[_Axis, ...]
    weight: Array
    groups: int
    block: int
    blocks: tuple[int | None, ...]
    channels_last: bool

    @property
    def needs_depth_to_space(self) -> bool:
        """Whether DepthToSpace moves the results to their places."""
        return self.block > 1 and len(self.axes) > 1 and not self.channels_last


def as_convolutions(
    model: onnx.ModelProto, exclude: Collection[str], *, depth_to_space: bool = True
) -> dict[str, str]:
    """Replace each ConvTranspose that is faster in int8 by a convolution, in place.

    ONNX Runtime has no int8 ConvTranspose. With stride s, the outputs form blocks of s x s, and all
    outputs at the same place of a block are a convolution of the input with every s-th tap of the
    kernel. So one convolution with s x s times the channels and ceil(k / s) taps computes the same
    sums, and its results are moved to their places. The padding of a ConvTranspose removes outputs at
    the borders; if it is not a multiple of s, a Slice does it, which is cheaper than one more tap. With
    stride 1, it is a convolution with the mirrored kernel alone. A Relu, Clip or LeakyRelu after the
    ConvTranspose moves before the moves, where the convolution absorbs it.

    The int8 convolution has its channels last. Transpose, Reshape, Transpose, Reshape, Transpose then
    move runs of s x outputs bytes: ONNX Runtime cancels the first and the last Transpose. This needs
    known sizes. For open sizes and groups, DepthToSpace moves single bytes.

    Measured between two convolutions of 1 x 1, one thread, AVX2 without VNNI, interleaved
    (`tests/perf/transposed_convolution.py`): the int8 model takes 0.56 to 0.61 x the time with the
    rewrite for 384 -> 192 channels with k = s = 2, 0.48 to 0.52 x for 128 -> 64 with k = 4 and s = 2,
    0.69 to 0.74 x with k = 3, 0.73 to 0.87 x for 32 -> 16 with k = s = 2, 0.39 to 0.45 x along one axis
    with k = 16 and s = 8, and 0.43 to 0.49 x for 64 -> 64 with k = 3 and s = 1. For 64 -> 3 channels,
    int8 is slower than float. With DepthToSpace, the first four take 0.71 to 0.77 x, 0.59 to 0.65 x,
    0.88 to 1.00 x and 1.18 to 1.36 x. In float, the rewrite is slower.

    A ConvTranspose is rewritten if

    1. its weights and bias are constants, it has 1 or 2 spatial axes, or stride 1, and no dilation,
    2. its strides are equal, and its size is stated if it has an `output_shape`, and
    3. each value takes at least 32 multiply-adds (with DepthToSpace 96), each group has at least 16
       results, and `slow_in_int8` knows no reason against the convolution.

    Args:
        model: the float model with named nodes and stated shapes, changed in place.
        exclude: names of nodes that stay in float; they are not changed.
        depth_to_space: whether ONNX Runtime can run DepthToSpace on the target's activations.

    Returns:
        The new tensors -> the tensors of the given model that hold the same values.
    """
    index = GraphIndex.of(model.graph)
    forms = {
        id(node): form
        for node in index.nodes
        if node.op_type == "ConvTranspose" and is_standard(node) and node.name not in exclude
        if (form := _form(node, index)) is not None and is_faster(form)
        if depth_to_space or not form.needs_depth_to_space
    }
    moved: dict[str, str] = {}
    taken = index.names() | set(index.by_name)
    nodes: list[onnx.NodeProto] = []
    placed: set[int] = set()
    for node in index.nodes:
        if id(node) in forms:
            after = _elementwise(node, index, exclude) if forms[id(node)].block > 1 else []
            made = _Made(model.graph, taken)
            nodes += _rewritten(node, after, forms[id(node)], index, made)
            moved |= made.moved
            placed |= {id(item) for item in after}
        elif id(node) not in placed:
            nodes.append(node)
    replace_nodes(model.graph, nodes)
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in moved
    )
    return moved


def is_faster(form: _Form) -> bool:
    """Whether the convolution is faster in int8 than the ConvTranspose in float."""
    outputs, inputs = form.weight.shape[:2]
    convolution = helper.make_node("Conv", ["x", "w"], ["y"], group=form.groups)
    if slow_in_int8(convolution, form.weight.shape) is not None:
        return False
    depthwise = bool(inputs == 1 and outputs == form.groups)
    products = inputs * math.prod(axis.kernel for axis in form.axes) / form.block
    limit = _ENOUGH_WITH_DEPTH_TO_SPACE if form.needs_depth_to_space else _ENOUGH_PRODUCTS
    enough = products >= limit and outputs // form.groups >= _ENOUGH_RESULTS
    return depthwise or bool(enough)


def _form(node: onnx.NodeProto, index: GraphIndex) -> _Form | None:
    """The form of a ConvTranspose, or None if it is computed, dilated or of another kind."""
    weight, attributes = index.constants.get(node.input[1]), attributes_of(node)
    bias_is_constant = not any(node.input[2:]) or node.input[2] in index.constants
    if weight is None or weight.data_type != TensorProto.FLOAT or not bias_is_constant:
        return None
    kernel = list(weight.dims[2:])
    strides = list(attributes.get("strides", [1] * len(kernel)))
    dilated = any(size != 1 for size in attributes.get("dilations", ()))
    if dilated or len(set(strides)) != 1 or (len(kernel) > _MOVED_AXES and strides[0] > 1):
        return None
    padding = _padding(node, kernel, strides, index.shape(node.input[0]))
    if padding is None:
        return None
    axes = tuple(_axis(*sizes) for sizes in zip(kernel, strides, *padding, strict=True))
    if any(min(*axis.pads, *axis.cut) < 0 for axis in axes):
        return None
    groups = int(attributes.get("group", 1))
    sizes = (index.shape(node.input[0]) or [None] * (2 + len(kernel)))[2:]
    blocks = tuple(
        None if size is None else size + axis.first + axis.pads[1]
        for size, axis in zip(sizes, axes, strict=True)
    )
    channels_last = groups == 1 and (len(axes) == 1 or None not in blocks)
    spread = _spread(index.constant(node.input[1]), axes, groups, channels_last=channels_last)
    return _Form(axes, spread, groups, math.prod(strides), blocks, channels_last)


def _padding(
    node: onnx.NodeProto,
    kernel: Sequence[int],
    strides: Sequence[int],
    shape: Sequence[int | None] | None,
) -> tuple[list[int], list[int]] | None:
    """Outputs that are removed before and after each axis; None if this depends on an open size.

    The output padding counts as outputs that are not removed.
    """
    attributes, rank = attributes_of(node), len(kernel)
    more = attributes.get("output_padding", [0] * rank)
    automatic = attributes.get("auto_pad", "NOTSET")
    wanted = attributes.get("output_shape")
    if wanted:
        sizes = [size for size in list(shape or ())[2:] if size is not None]
        if len(sizes) != rank:
            return None
        full = [s * (n - 1) + m + k for s, n, m, k in zip(strides, sizes, more, kernel, strict=True)]
        total = [size - out for size, out in zip(full, wanted[-rank:], strict=True)]
    elif automatic in {"SAME_UPPER", "SAME_LOWER"}:
        total = [k + m - s for k, m, s in zip(kernel, more, strides, strict=True)]
    else:
        pads = [0] * 2 * rank if automatic == "VALID" else attributes.get("pads", [0] * 2 * rank)
        return pads[:rank], [pad - m for pad, m in zip(pads[rank:], more, strict=True)]
    if min(total) < 0:
        return None
    half = [size // 2 for size in total]
    rest = [size - less for size, less in zip(total, half, strict=True)]
    begin, end = (half, rest) if automatic == "SAME_UPPER" else (rest, half)
    return begin, [pad - m for pad, m in zip(end, more, strict=True)]


def _axis(kernel: int, stride: int, begin: int, end: int) -> _Axis:
    """The convolution along one axis, with the fewest taps; it does not depend on the size of the input.

    Output o, counted with the `cut` outputs before it, is at place r of block q: o = s q + r. It sums the
    inputs i = q - d with the tap r + shift + s d, where shift = begin - cut.
    """
    candidates = [_shifted(kernel, stride, begin, end, cut) for cut in {0, begin % stride}]
    return min(candidates, key=lambda axis: (axis.taps, axis.cut))


def _shifted(kernel: int, stride: int, begin: int, end: int, cut: int) -> _Axis:
    shift, rest = begin - cut, kernel - begin - end + cut
    first = -((shift + stride - 1) // stride)
    last = (kernel - 1 - shift) // stride
    blocks = -(-rest // stride)  # the blocks without those that begin at the other inputs
    return _Axis(
        kernel=kernel,
        stride=stride,
        shift=shift,
        first=first,
        taps=last - first + 1,
        pads=(last, blocks - 1 - first),
        cut=(cut, stride * blocks - rest),
    )


def _spread(weight: Array, axes: Sequence[_Axis], groups: int, *, channels_last: bool) -> Array:
    """The weights of the convolution from those of the ConvTranspose, [inputs, outputs of a group, ...]."""
    inputs, outputs = weight.shape[:2]
    spread = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:])
    for number, axis in enumerate(axes):
        places, taps = np.indices((axis.stride, axis.taps))
        old = places + axis.shift + axis.stride * (axis.first + axis.taps - 1 - taps)
        inside = (old >= 0) & (old < axis.kernel)
        position = 3 + 2 * number
        spread = np.take(spread, np.where(inside, old, 0), axis=position)
        mask = inside.reshape([1] * position + [*inside.shape] + [1] * (spread.ndim - position - 2))
        spread = spread * mask
    rank = len(axes)
    places_at, taps_at = [3 + 2 * n for n in range(rank)], [4 + 2 * n for n in range(rank)]
    results = (0, *places_at, 2) if channels_last else (0, 2, *places_at)
    ordered = spread.transpose(*results, 1, *taps_at)
    block = math.prod(axis.stride for axis in axes)
    sizes = [axis.taps for axis in axes]
    return np.ascontiguousarray(ordered.reshape(groups * outputs * block, inputs // groups, *sizes))


def _elementwise(node: onnx.NodeProto, index: GraphIndex, exclude: Collection[str]) -> list[onnx.NodeProto]:
    """The operators on single values that follow a node, each the only reader of the one before."""
    found: list[onnx.NodeProto] = []
    last = node
    while (reader := index.only_reader(last.output[0])) is not None:
        scalars = all(
            name in index.constants and not index.shape(name) for name in reader.input[1:] if name
        )
        known = reader.op_type in _ELEMENTWISE and is_standard(reader) and scalars
        if not known or reader.name in exclude:
            break
        found.append(reader)
        last = reader
    return found


@dataclass
class _Made:
    """New parts of a graph: their constants, names, and tensors -> the tensors with the same values."""

    graph: onnx.GraphProto
    taken: set[str]
    moved: dict[str, str] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        """A name that no tensor and no node has."""
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def constant(self, wanted: str, value: Array) -> str:
        """The name of a new constant."""
        return add_constant(self.graph, self.name(wanted), value)


def _rewritten(
    node: onnx.NodeProto, after: Sequence[onnx.NodeProto], form: _Form, index: GraphIndex, made: _Made
) -> list[onnx.NodeProto]:
    """The nodes that replace a ConvTranspose and the operators on single values after it."""
    inputs = [node.input[0], made.constant(f"{node.name}.blocks.weight", form.weight)]
    if len(node.input) > 2 and node.input[2]:
        bias = index.constant(node.input[2])
        bias = np.tile(bias, form.block) if form.channels_last else np.repeat(bias, form.block)
        inputs.append(made.constant(f"{node.name}.blocks.bias", bias))
    result = (after[-1] if after else node).output[0]
    names = {item.output[0]: made.name(f"{item.output[0]}.blocks") for item in (node, *after)}
    moves = _moves(form, node.name, names[result], result, made)
    if not moves:
        names = {result: result}
    made.moved |= {new: old for old, new in names.items() if new != old}
    made.moved |= {item.output[0]: result for item in moves[:-1]}
    convolution = helper.make_node(
        "Conv",
        inputs,
        [names[node.output[0]]],
        name=node.name,
        pads=[axis.pads[side] for side in (0, 1) for axis in form.axes],
        kernel_shape=list(form.weight.shape[2:]),
        group=form.groups,
    )
    copies = []
    for item in after:
        copy = onnx.NodeProto()
        copy.CopyFrom(item)
        copy.input[0], copy.output[0] = names[item.input[0]], names[item.output[0]]
        copies.append(copy)
    return [convolution, *copies, *moves]


def _moves(form: _Form, label: str, source: str, result: str, made: _Made) -> list[onnx.NodeProto]:
    """The nodes that move the values of blocks to their places, and cut the borders off."""
    stride, rank = form.axes[0].stride, len(form.axes)
    outputs = len(form.weight) // form.block
    last = stride > 1 and form.channels_last
    moves: list[onnx.NodeProto] = []

    def add(operator: str, step: str, *constants: Sequence[int]) -> onnx.NodeProto:
        inputs = [moves[-1].output[0] if moves else source]
        for number, value in enumerate(constants):
            inputs.append(made.constant(f"{label}.{step}.{number}", np.array(value, np.int64)))
        name = made.name(f"{label}.{step}")
        moves.append(helper.make_node(operator, inputs, [name], name=name))
        return moves[-1]

    def turn(step: str, *axes: int) -> None:
        add("Transpose", step).attribute.append(helper.make_attribute("perm", axes))

    if last:
        turn("last", 0, *range(2, 2 + rank), 1)
        if rank > 1:
            add("Reshape", "rows", [-1, *(size or 0 for size in form.blocks), stride, stride * outputs])
            turn("turned", 0, 1, 3, 2, 4)
        sizes = [-1] if rank == 1 else [stride * (size or 0) for size in form.blocks]
        add("Reshape", "joined", [0 if rank == 1 else -1, *sizes, outputs])
    elif stride > 1 and rank == 1:
        add("Reshape", "places", [0, outputs, stride, -1])
        turn("turned", 0, 1, 3, 2)
        add("Reshape", "joined", [0, outputs, -1])
    elif form.needs_depth_to_space:
        settings = {"blocksize": stride, "mode": "CRD"}
        attributes = [helper.make_attribute(name, value) for name, value in settings.items()]
        add("DepthToSpace", "moved").attribute.extend(attributes)
    if any(any(axis.cut) for axis in form.axes):
        starts = [axis.cut[0] for axis in form.axes]
        ends = [-axis.cut[1] or _LARGEST for axis in form.axes]
        first = 1 if last else 2
        add("Slice", "cut", starts, ends, range(first, first + rank))
    if last:
        turn("first", 0, 1 + rank, *range(1, 1 + rank))
    if moves:
        moves[-1].output[0] = result
    return moves
