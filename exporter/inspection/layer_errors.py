"""Measure the error of each layer of an int8 model against the float model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.metrics.parity import decibels
from exporter.graphs.index import GraphIndex
from exporter.graphs.observed import Observed, samples_per_run
from exporter.graphs.onnx_files import load
from exporter.graphs.rewrites.first_convolution import blocks_of, on_blocks
from exporter.results import LayerError
from exporter.sources.splits import Samples

_DEQUANTIZED = "_DequantizeLinear_Output"
_MAX_BATCH = 8
# More samples do not change the ranking of the layers.
LAYER_SAMPLES = 32


@dataclass(frozen=True)
class _Rounded:
    """A tensor that the quantizer rounds.

    Attributes:
        node: the float model's node that computes it.
        tensor: its name in the float model.
        dequantized: its name in the int8 model, after rounding.
        range: the lowest and highest value that int8 can represent.
        on_blocks: whether the int8 model computes it on blocks of pixels.
    """

    node: onnx.NodeProto
    tensor: str
    dequantized: str
    range: tuple[float, float]
    on_blocks: bool


@dataclass
class _Sums:
    """Energies and extremes of a tensor so far. `same_form` is False if the shapes differ in a run."""

    signal: float = 0.0
    noise: float = 0.0
    lowest: float = field(default=np.inf)
    highest: float = field(default=-np.inf)
    same_form: bool = True

    def add(self, x: Array, y: Array) -> None:
        """Add a batch of the float tensor x and the int8 tensor y."""
        if x.shape != y.shape:
            self.same_form = False
        elif x.size:
            self.signal += float(np.square(x, dtype=np.float64).sum())
            self.noise += float(np.square(np.subtract(x, y, dtype=np.float64)).sum())
            self.lowest, self.highest = min(self.lowest, float(x.min())), max(self.highest, float(x.max()))


def layer_samples(fixed_batch: int | None) -> int:
    """The number of samples to compare layers on: whole batches."""
    return LAYER_SAMPLES if fixed_batch is None else max(LAYER_SAMPLES // fixed_batch, 1) * fixed_batch


def layer_errors(
    float_model: Path, int8_model: Path, samples: Samples, fixed_batch: int | None = None
) -> tuple[LayerError, ...]:
    """Measure the error of every tensor that the quantizer rounds, in graph order.

    Both graphs run without optimizations, batch by batch. Signal and noise energies are summed, so memory
    does not grow with the number of samples.

    Args:
        float_model: the float model.
        int8_model: a QDQ model that was made from it.
        samples: the samples to run; a rest that does not fill a fixed batch is left out.
        fixed_batch: the batch size that the models require, or None if it is dynamic.

    Raises:
        DataError: the samples do not fill one batch.
    """
    reference, quantized = load(float_model), load(int8_model)
    tensors = _rounded_tensors(GraphIndex.of(reference.graph), GraphIndex.of(quantized.graph))
    if not tensors:  # for an empty list of outputs, ONNX Runtime returns all outputs
        return ()
    before, after = [one.tensor for one in tensors], [one.dequantized for one in tensors]
    first, second = Observed(reference, before), Observed(quantized, after)
    sums = {one.tensor: _Sums() for one in tensors}
    pairs = {one.tensor: one for one in tensors}
    size = fixed_batch or min(_MAX_BATCH, samples_per_run(reference, before, samples))
    for feeds in _batches(samples, fixed_batch, size):
        for group in first.groups(feeds):
            values = first.fetch(group, feeds)
            rounded = second.fetch([pairs[name].dequantized for name in group], feeds)
            for name, value in values.items():
                one = pairs[name]
                sums[name].add(on_blocks(value) if one.on_blocks else value, rounded[one.dequantized])
    return tuple(
        LayerError(
            layer=one.node.name or one.tensor,
            op=one.node.op_type,
            sqnr_db=decibels(found.signal, found.noise),
            lowest=found.lowest,
            highest=found.highest,
            range=one.range,
        )
        for one, found in zip(tensors, sums.values(), strict=True)
        if found.same_form and found.lowest <= found.highest
    )


def _batches(samples: Samples, fixed_batch: int | None, size: int) -> Iterator[dict[str, Array]]:
    if fixed_batch is None:
        yield from samples.batches(size)
        return
    if samples.count < fixed_batch:
        raise DataError(
            "--layers",
            f"{samples.count} samples do not fill one batch of {fixed_batch}",
            f"provide at least {fixed_batch} samples with --data",
        )
    for feeds in samples.batches(fixed_batch):
        if len(next(iter(feeds.values()))) == fixed_batch:
            yield feeds


def _rounded_tensors(reference: GraphIndex, quantized: GraphIndex) -> list[_Rounded]:
    """The tensors of the float model that the int8 model rounds and dequantizes, in graph order."""
    found: dict[str, _Rounded] = {}
    for node in quantized.nodes:
        rounding = quantized.maker(node.input[0], "QuantizeLinear") if node.input else None
        ends = _representable(node, quantized) if node.op_type == "DequantizeLinear" else None
        if rounding is None or ends is None:
            continue
        result = node.output[0]
        for name in (result.removesuffix(_DEQUANTIZED), rounding.input[0]):
            maker = reference.maker(name)
            if maker is not None:
                moved = quantized.maker(blocks_of(name)) is not None
                found.setdefault(name, _Rounded(maker, name, result, ends, moved))
                break
    order = (name for node in reference.nodes for name in node.output)
    return [found[name] for name in order if name in found]


def _representable(node: onnx.NodeProto, graph: GraphIndex) -> tuple[float, float] | None:
    """The lowest and highest value of a DequantizeLinear; None if its scale is computed or not integer.

    Without a zero point, the bytes are unsigned and zero is 0.
    """
    values = [_constant(name, graph) for name in node.input[1:3] if name]
    if not values or any(value is None for value in values):
        return None
    scale = np.asarray(values[0], np.float64)
    zero = np.asarray(values[1] if len(values) > 1 else np.uint8(0))
    if zero.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero.dtype)
    ends = [(end - zero.astype(np.int64)) * scale for end in (limits.min, limits.max)]
    return float(ends[0].min()), float(ends[1].max())


def _constant(name: str, graph: GraphIndex) -> Array | None:
    """The value of an initializer or of a Constant node; None for other tensors."""
    if graph.is_constant(name):
        return graph.constant(name)
    maker = graph.maker(name, "Constant")
    stated = {} if maker is None else {one.name: one for one in maker.attribute}
    if "value" in stated:
        return numpy_helper.to_array(stated["value"].t)
    if "value_float" in stated:
        return np.array(stated["value_float"].f, np.float32)
    return None
