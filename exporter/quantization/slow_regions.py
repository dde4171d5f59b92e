"""Nodes whose int8 kernels took more time than their float kernels, from profiles of both models.

Profiles only suggest candidates: fusions differ between the two graphs, and a node that returns to float
adds conversions. Whoever uses a candidate confirms it by timing the whole model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from exporter.graphs.index import GraphIndex
from exporter.inspection.operator_times import OperatorTime

# An excess below this fraction of the model's time is smaller than the measurement noise.
LEAST_SHARE = 0.02
# The worst layers are those that may save at least this fraction of what the very worst may save.
_WORST_SHARE = 0.4
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"})
# ONNX Runtime appends these to the name of a node or of its output when it fuses or changes layouts.
_ADDED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant)+$")
_CONVERSION = re.compile(r"_(QuantizeLinear|DequantizeLinear|dq|q)(_\w*)?$")


@dataclass(frozen=True)
class SlowNodes:
    """Nodes that may be faster in float.

    Attributes:
        ratios: name of each node -> time in int8 / time in float of its layer or region.
        excess_us: the time that float may save, in microseconds.
    """

    ratios: Mapping[str, float]
    excess_us: float


@dataclass(frozen=True)
class _Layers:
    """A graph whose activations count as part of the layer before them.

    Attributes:
        leader: name of each node -> name of the first node of its layer.
        members: leader -> names of the nodes of its layer.
        makers: tensor -> leader of the layer that computes it.
        readers: tensor -> leaders of the layers that read it.
    """

    leader: Mapping[str, str]
    members: Mapping[str, tuple[str, ...]]
    makers: Mapping[str, str]
    readers: Mapping[str, tuple[str, ...]]


def slow_candidates(
    network: onnx.ModelProto,
    quantized: onnx.ModelProto,
    float_times: Sequence[OperatorTime],
    int8_times: Sequence[OperatorTime],
) -> tuple[SlowNodes, ...]:
    """Sets of nodes to try in float, the most promising first.

    1. The layers whose int8 kernels are slower than their float kernels: the worst, then all.
    2. The runs of connected int8 layers that are slower than in float, with the conversions around them:
       the worst, then all.

    Args:
        network: the float model; its nodes have unique names.
        quantized: the int8 model in QDQ form; its nodes keep the names of `network`.
        float_times: profile of the float model.
        int8_times: profile of the int8 model.
    """
    layers = _layers(network)
    in_float, _ = _by_layer(layers, float_times)
    in_int8, conversions = _by_layer(layers, int8_times)
    least = LEAST_SHARE * sum(time.median_us for time in int8_times)
    running = _in_int8(layers, quantized)
    slow = [
        _set(layers, [name], in_int8[name], in_float[name])
        for name in running
        if name in in_float and in_int8.get(name, 0.0) > in_float[name]
    ]
    slow.sort(key=lambda found: -found.excess_us)
    regions = []
    for region in _connected(layers, network, running):
        around = sum(us for name, us in conversions.items() if region & _sides(layers, name, running))
        took = sum(in_int8.get(name, 0.0) for name in region) + around
        would = sum(in_float.get(name, 0.0) for name in region)
        if would and took > would:
            regions.append(_set(layers, sorted(region), took, would))
    regions.sort(key=lambda found: -found.excess_us)
    tried = [_union(_worst(slow)), _union(slow), _union(_worst(regions)), _union([*regions, *slow])]
    found: dict[frozenset[str], SlowNodes] = {}
    for one in tried:
        if one.ratios and one.excess_us >= least:
            found.setdefault(frozenset(one.ratios), one)
    return tuple(found.values())


def has_int8_products(quantized: onnx.ModelProto) -> bool:
    """Whether a node of a QDQ model reads both rounded activations and rounded weights."""
    graph = GraphIndex.of(quantized.graph)
    for node in graph.nodes:
        makers = [graph.maker(name, "DequantizeLinear") for name in node.input]
        weights = [maker.input[0] in graph.constants for maker in makers if maker is not None]
        if any(weights) and not all(weights):
            return True
    return False


def _layers(network: onnx.ModelProto) -> _Layers:
    graph = GraphIndex.of(network.graph)
    leader: dict[str, str] = {}
    members: dict[str, list[str]] = defaultdict(list)
    for node in graph.nodes:
        before = graph.maker(node.input[0]) if node.input and node.op_type in _ACTIVATIONS else None
        alone = before is not None and len(graph.readers(node.input[0])) == 1
        leader[node.name] = leader[before.name] if before is not None and alone else node.name
        members[leader[node.name]].append(node.name)
    makers = {name: leader[node.name] for node in graph.nodes for name in node.output if name}
    readers = {
        name: tuple(leader[node.name] for node in graph.readers(name)) for name in (*makers, *graph.inputs)
    }
    return _Layers(leader, {name: tuple(found) for name, found in members.items()}, makers, readers)


def _by_layer(layers: _Layers, times: Iterable[OperatorTime]) -> tuple[dict[str, float], dict[str, float]]:
    """The time of each layer, and of the conversions of each tensor, in microseconds.

    ONNX Runtime's layouts put names of output tensors in place of names of nodes.
    """
    own: dict[str, float] = defaultdict(float)
    conversions: dict[str, float] = defaultdict(float)
    for time in times:
        name = _ADDED.sub("", time.name)
        if time.is_conversion:
            conversions[_CONVERSION.sub("", name)] += time.median_us
        elif (found := layers.leader.get(name) or layers.makers.get(name)) is not None:
            own[found] += time.median_us
    return dict(own), dict(conversions)


def _in_int8(layers: _Layers, quantized: onnx.ModelProto) -> list[str]:
    """The layers that read rounded activations."""
    graph = GraphIndex.of(quantized.graph)

    def is_rounded(tensor: str) -> bool:
        maker = graph.maker(tensor, "DequantizeLinear")
        return maker is not None and maker.input[0] not in graph.constants

    found = dict.fromkeys(
        layers.leader[node.name]
        for node in graph.nodes
        if node.name in layers.leader and any(is_rounded(name) for name in node.input)
    )
    return list(found)


def _sides(layers: _Layers, tensor: str, running: Sequence[str]) -> set[str]:
    """The int8 layers that a conversion of a tensor serves: the one that computes it, else its readers."""
    maker = layers.makers.get(tensor)
    if maker is not None and maker in running:
        return {maker}
    return set(layers.readers.get(tensor, ())) & set(running)


def _connected(layers: _Layers, network: onnx.ModelProto, running: Sequence[str]) -> Iterator[set[str]]:
    """The runs of int8 layers that pass tensors to each other."""
    near: dict[str, set[str]] = {name: set() for name in running}
    for node in network.graph.node:
        reader = layers.leader[node.name]
        for tensor in node.input:
            maker = layers.makers.get(tensor)
            if reader in near and maker in near and maker is not None:
                near[reader].add(maker)
                near[maker].add(reader)
    left = dict.fromkeys(running)
    while left:
        region, edge = set(), [next(iter(left))]
        while edge:
            name = edge.pop()
            if name in left:
                del left[name]
                region.add(name)
                edge.extend(near[name])
        yield region


def _set(layers: _Layers, leaders: Iterable[str], took: float, would: float) -> SlowNodes:
    ratio = took / max(would, 0.1)
    return SlowNodes(
        {node: ratio for leader in leaders for node in layers.members[leader]}, excess_us=took - would
    )


def _worst(found: Sequence[SlowNodes]) -> list[SlowNodes]:
    return [one for one in found if one.excess_us >= _WORST_SHARE * found[0].excess_us]


def _union(parts: Sequence[SlowNodes]) -> SlowNodes:
    """All nodes of several sets; a node in two of them counts once."""
    ratios: dict[str, float] = {}
    excess = 0.0
    for part in parts:
        if not part.ratios.keys() <= ratios.keys():
            excess += part.excess_us
        ratios = {**part.ratios, **ratios}
    return SlowNodes(ratios, excess)
