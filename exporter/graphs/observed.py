"""Observe tensors of a model on samples in bounded memory, whatever sizes its open axes take.

A file states the sizes of its closed axes only. The sizes of all tensors are therefore measured on a
sample: a `Size` node for each tensor counts its values without keeping them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import count as numbers

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from bench.core.arrays import Array
from bench.core.errors import DataError
from bench.inputs.runtime_words import plain_words, run_failure
from exporter.graphs.edits import add_constant, with_outputs
from exporter.graphs.inference import session_with_outputs
from exporter.sources.splits import Samples

MAX_BATCH = 16
# Limit on the activations observed in one batch. Larger batches do not fit in the caches. They also get
# newly allocated memory each time, and the first access to it costs more than the convolutions (measured:
# 41 ms per image in batches of 16, 10 ms one by one, EfficientNet-Lite0 at 224 px).
BATCH_BYTES = 32 * 2**20
# Limit on the activations kept at once, except for a single larger tensor. A batch with more is run once
# for each part of its tensors. A higher limit saves nothing for usual networks, because their batches stay
# below `BATCH_BYTES`.
HELD_BYTES = 2 * BATCH_BYTES

_ONE_BYTE = frozenset({"tensor(uint8)", "tensor(int8)", "tensor(bool)"})


class Observed:
    """Runs a model for the values of some of its tensors.

    Args:
        model: the model.
        tensors: names of tensors to observe, computed ones or inputs.
        optimized: whether ONNX Runtime may fuse operators; see `session_with_outputs`.

    Attributes:
        tensors: the observed tensors, in the given order.
        computed: those of them that are not inputs.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], *, optimized: bool = False) -> None:
        counted, self._counts = _with_sizes(model, tensors)
        self._session = session_with_outputs(counted, [], optimized=optimized)
        types = {output.name: output.type for output in self._session.get_outputs()}
        self._bytes = {name: 1 if types[name] in _ONE_BYTE else 4 for name in self._counts}
        inputs = {value.name for value in self._session.get_inputs()}
        self.tensors = tuple(name for name in tensors if name in inputs or name in self._counts)
        self.computed = tuple(self._counts)
        self._measured: dict[str, int] | None = None

    def sizes(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """The bytes of each computed tensor for these feeds; no tensor is kept."""
        found = self._run(list(self._counts.values()), feeds)
        return {
            name: self._bytes[name] * int(values) for name, values in zip(self._counts, found, strict=True)
        }

    def groups(self, feeds: Mapping[str, Array]) -> list[list[str]]:
        """The computed tensors in parts of up to `HELD_BYTES`, measured on the first feeds."""
        if self._measured is None:
            self._measured = self.sizes(feeds)
        return _parts(self._measured)

    def exceeds(self, feeds: Mapping[str, Array]) -> bool:
        """Whether the computed tensors take more than `HELD_BYTES`, measured on the first feeds."""
        groups = self.groups(feeds)
        return len(groups) > 1 or sum((self._measured or {}).values()) > HELD_BYTES

    def fetch(self, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The values of some of the observed tensors; an input is returned as it was given."""
        computed = [name for name in names if name in self._counts]
        found = dict(zip(computed, self._run(computed, feeds), strict=True))
        return {name: found[name] if name in found else feeds[name] for name in names}

    def parts(self, feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """The values of all observed tensors, a part of up to `HELD_BYTES` at a time; inputs come first."""
        given = [name for name in self.tensors if name not in self._counts]
        if given:
            yield {name: feeds[name] for name in given}
        for group in self.groups(feeds):
            yield self.fetch(group, feeds)

    def _run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        if not names:  # for an empty list of outputs, ONNX Runtime returns all outputs
            return []
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        given = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        found: list[Array] = self._session.run(list(names), given, options)
        return found


def samples_per_run(model: onnx.ModelProto, tensors: Sequence[str], samples: Samples) -> int:
    """The number of samples per run for which the values of `tensors` fit in `BATCH_BYTES`.

    Args:
        model: a model with an open batch axis.
        tensors: names of tensors of the model.
        samples: at least one sample; the first one is run.

    Raises:
        DataError: the model fails on the sample.
    """
    with closing(_batches(samples)) as batches:
        first = next(batches, None)
    if first is None or not tensors:
        return MAX_BATCH
    with sample_errors():
        observed = Observed(model, tensors)
        computed = observed.sizes(first)
    given = sum(first[name].nbytes for name in observed.tensors if name not in computed)
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(given + sum(computed.values()), 1)))


@contextmanager
def sample_errors() -> Iterator[None]:
    """Convert an error of ONNX Runtime into a `DataError` about the samples."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
        raise bad_sample("calibration data", str(error)) from error


def bad_sample(place: object, message: str) -> DataError:
    """The error for a sample that a model fails on.

    Args:
        place: the samples.
        message: ONNX Runtime's message.
    """
    if (known := run_failure(message)) is not None:
        return DataError(place, *known)
    return DataError(
        place,
        f"the model fails on a sample ({plain_words(message)})",
        "compare the samples' shapes, types and values with the model's inputs",
    )


def extremes_model(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """A model that computes three values of each tensor: its lowest, its highest, and a check.

    The check equals the highest value if all values are finite; otherwise it is NaN. ONNX Runtime's
    ReduceMin and ReduceMax ignore NaN at most positions.

    Args:
        model: the model.
        tensors: names of computed tensors.

    Returns:
        The model, and its outputs in the order of `tensors`; each has shape [3].
    """
    made = with_outputs(model, [])
    fresh = _fresh_names(made)
    zero = add_constant(made.graph, next(fresh), np.zeros((), np.float32))
    row = add_constant(made.graph, next(fresh), np.ones(1, np.int64))
    outputs = []
    for tensor in tensors:
        low, high, none, total, check, result = (next(fresh) for _ in range(6))
        made.graph.node.extend(
            [
                helper.make_node("ReduceMin", [tensor], [low], keepdims=0),
                helper.make_node("ReduceMax", [tensor], [high], keepdims=0),
                helper.make_node("Mul", [tensor, zero], [none]),
                helper.make_node("ReduceSum", [none], [total], keepdims=0),
                helper.make_node("Add", [high, total], [check]),
            ]
        )
        parts = []
        for part in (low, high, check):
            parts.append(next(fresh))
            made.graph.node.append(helper.make_node("Reshape", [part, row], [parts[-1]]))
        made.graph.node.append(helper.make_node("Concat", parts, [result], axis=0))
        made.graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, [3]))
        outputs.append(result)
    return made, outputs


def _with_sizes(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy with outputs for computed tensors and their sizes, and tensor -> name of the size."""
    made = with_outputs(model, tensors)
    fresh = _fresh_names(made)
    computed = {name for node in model.graph.node for name in node.output}
    counts = {name: next(fresh) for name in dict.fromkeys(tensors) if name in computed}
    for name, size in counts.items():
        made.graph.node.append(helper.make_node("Size", [name], [size]))
        made.graph.output.append(helper.make_tensor_value_info(size, TensorProto.INT64, []))
    return made, counts


def _fresh_names(model: onnx.ModelProto) -> Iterator[str]:
    """Names of tensors that the graph does not use."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    return (name for name in (f"observed_{number}" for number in numbers()) if name not in taken)


def _parts(sizes: Mapping[str, int]) -> list[list[str]]:
    """Neighbouring tensors together, as long as they fit in `HELD_BYTES`."""
    parts: list[list[str]] = []
    held = 0
    for name, size in sizes.items():
        if not parts or held + size > HELD_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts


def _batches(samples: Samples) -> Generator[dict[str, Array], None, None]:
    yield from samples.batches(1)
