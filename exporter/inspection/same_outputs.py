"""Check that a quantized model has the same outputs as the given file: names, types, shapes, finite values.

Rewriting and quantization trust the shapes and types that a file states. If these are wrong, the result can
be a different function without any error. Both models therefore run on the same few samples before the
result is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import InferenceSession

from bench.core.arrays import Array
from bench.core.errors import DataError, ModelError, one_line
from bench.inputs.runtime_words import plain_words
from bench.inputs.session import Signature, open_session, signature_of
from bench.measuring.worker import synthetic_feeds
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError
from exporter.graphs.inference import open_model, session_options

# Both models run on these samples in batches and on one sample alone, because a shape may be correct for
# one batch size only.
_TOGETHER = 8
# Limit on the inputs of a batch; activations take a multiple of it. A batch has at least two samples. (For
# pictures of 512 px, batches of eight took 1.3 GiB and most of the time of `quantize`.)
_BATCH_INPUT_BYTES = 2 * 2**20
# The size of a dynamic axis if there are no samples.
_MADE_UP_SIZE = 8
# Lowest SQNR between the given file and its rewritten float form.
_SAME_DB = 30.0
_HUGE, _ROUNDING = 1e30, 1e-6
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True)
class Answer:
    """The outputs of a model for given feeds, in the model's order; a sequence as several tensors."""

    feeds: Mapping[str, Array]
    outputs: Mapping[str, object]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs that are tensors."""
        return {name: value.shape for name, value in self.outputs.items() if isinstance(value, np.ndarray)}


def few_samples(feeds: Mapping[str, Array], size: int | None) -> list[dict[str, Array]]:
    """Feeds to run both models on: batches of samples, and one sample alone if the batch is dynamic.

    Of large samples, at most eight are run.

    Args:
        feeds: the samples, input name -> array [N, ...].
        size: the batch size that the model requires, or None if it is dynamic.
    """
    count, step = len(next(iter(feeds.values()))), size or _together(feeds)
    wanted = min(count, _TOGETHER) if step < _TOGETHER and size is None else count
    batches = -(-wanted // step)
    cuts = [(start * step, (start + 1) * step) for start in range(batches)]
    if size is None and count > 1:
        cuts.append((0, 1))
    return [
        {name: np.ascontiguousarray(array[start:end]) for name, array in feeds.items()}
        for start, end in cuts
    ]


def _together(feeds: Mapping[str, Array]) -> int:
    """The number of samples in a batch: fewer if they are large."""
    sample_bytes = sum(array.nbytes // len(array) for array in feeds.values())
    return max(2, min(_TOGETHER, _BATCH_INPUT_BYTES // max(sample_bytes, 1)))


def made_up_samples(model: Path, signature: Signature) -> list[dict[str, Array]]:
    """One batch of synthetic feeds, to use without samples; empty if an input cannot be synthesized."""
    closed = Signature(
        tuple(
            type(spec)(
                spec.name, spec.dtype, (*spec.shape[:1], *(s or _MADE_UP_SIZE for s in spec.shape[1:]))
            )
            for spec in signature.inputs
        ),
        signature.outputs,
    )
    try:
        return [synthetic_feeds(model, closed)]
    except (DataError, ModelError, TypeError):  # sequences and texts
        return []


def answers_of(model: Path, batches: Sequence[Mapping[str, Array]]) -> list[Answer]:
    """Run a model on each batch of feeds.

    Raises:
        ModelError: the model cannot be loaded, or fails when it runs.
    """
    return [
        # ONNX Runtime's arrays keep the memory of the whole session.
        Answer(answer.feeds, {name: _copied(value) for name, value in answer.outputs.items()})
        for answer in _each_answer(model, batches)
    ]


def _each_answer(model: Path, batches: Sequence[Mapping[str, Array]]) -> Iterator[Answer]:
    """The answers of `answers_of`, one after another, so that not all are in memory."""
    session = open_session(model)
    for feeds in batches:
        try:
            outputs = _run(session, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
            raise ModelError(
                model,
                f"fails when it runs ({plain_words(str(error))})",
                "check that the samples fit the model",
            ) from error
        yield Answer(feeds, outputs)


def check_defined(given: Path, answers: Sequence[Answer]) -> None:
    """Check that no output of the given file is NaN: then nothing could be said about an int8 model.

    Raises:
        ModelError: an output is NaN.
    """
    for answer in answers:
        for name, value in answer.outputs.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.isnan(value).any():
                raise ModelError(
                    given,
                    f"its output {name!r} is NaN for some samples, in float already",
                    "give samples of the kind that the model was trained on, or correct the model",
                )


def check_same_outputs(given: Path, answers: Sequence[Answer], made: Path) -> None:
    """Check that a quantized model's outputs match those of the file that it was made from.

    Args:
        given: the given file, named in the error.
        answers: the outputs of the given file.
        made: the quantized model.

    Raises:
        ExportError: an output has another name, type or shape, or NaN or infinity where the given file's
            output is finite; or the model does not run.
    """
    found = _each_answer(made, [answer.feeds for answer in answers])
    for before in answers:
        try:
            after = next(found)
        except ModelError as error:
            raise _changed(given, f"the quantized model {error.cause}") from error
        if (difference := _difference(before.outputs, after.outputs)) is not None:
            raise _changed(given, difference)


def check_same_values(given: Path, answers: Sequence[Answer], network: onnx.ModelProto) -> None:
    """Check that the float network computes the values of the file that it was made from.

    Normal form, folding and rewriting are exact, but they rely on converters of other libraries. The limit
    is far below the errors of a wrong conversion (10 dB) and far above rounding in another order (more than
    90 dB in float32) or in float16 (50 dB).

    Args:
        given: the given file, named in the error.
        answers: the outputs of the given file.
        network: the float network that will be quantized.

    Raises:
        ExportError: an output has another name, type, shape or other values; or the network does not run.
    """
    if any(node.op_type in _RANDOM for node in network.graph.node):
        return
    session = None
    for before in answers:
        try:
            session = session or open_model(network, session_options(1))
            after = _run(session, before.feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
            raise _changed(
                given, f"its rewritten float form fails ({one_line(str(error), 200)})"
            ) from error
        if (difference := _difference(before.outputs, after, "rewritten float model")) is not None:
            raise _changed(given, difference)
        for name, wanted in before.outputs.items():
            if (sqnr := _sqnr_db(wanted, after[name])) < _SAME_DB:
                raise _changed(
                    given, f"output {name!r} has an SQNR of {sqnr:.0f} dB after exact rewrites in float"
                )


def values_sqnr_db(answers: Sequence[Answer], network: onnx.ModelProto) -> float:
    """The lowest SQNR of a float network's outputs against given ones; infinite if all are nearly equal.

    Args:
        answers: feeds and outputs.
        network: a network with these inputs and outputs.
    """
    session = open_model(network, session_options(1))
    found = ((answer.outputs, _run(session, answer.feeds)) for answer in answers)
    return min(
        (_sqnr_db(value, after[name]) for before, after in found for name, value in before.items()),
        default=np.inf,
    )


def _run(session: InferenceSession, feeds: Mapping[str, Array]) -> dict[str, object]:
    names = [spec.name for spec in signature_of(session).outputs]
    found = zip(names, session.run(None, dict(feeds)), strict=True)
    return {part: value for name, output in found for part, value in _parts(name, output)}


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, np.ndarray) else value


def _parts(name: str, output: object) -> Iterator[tuple[str, object]]:
    """An output, or the tensors of a sequence: `name[0]`, `name[1]`, ..."""
    if isinstance(output, list):
        for index, value in enumerate(output):
            yield from _parts(f"{name}[{index}]", value)
    else:
        yield name, output


def usual_values(wanted: Array, got: Array) -> tuple[Array, Array]:
    """The values of two float tensors that are finite in both and not huge, float64 [values].

    Exporters use huge numbers as minus infinity; compared with them, everything else would be noise.
    """
    usual = np.isfinite(wanted) & np.isfinite(got) & (np.abs(wanted, dtype=np.float64) < _HUGE)
    return wanted[usual].astype(np.float64), got[usual].astype(np.float64)


def _sqnr_db(wanted: object, got: object) -> float:
    """SQNR of the values that are finite in both; infinite if there are none, or the type is not float."""
    if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray) or wanted.dtype.kind != "f":
        return np.inf
    one, other = usual_values(wanted, got)
    return np.inf if np.allclose(one, other, rtol=0, atol=_ROUNDING) else sqnr_db(one, other)


def _difference(
    before: Mapping[str, object], after: Mapping[str, object], made: str = "quantized model"
) -> str | None:
    if list(before) != list(after):
        return f"the outputs are {list(after)} in the {made}, but {list(before)} in the given file"
    for name, wanted in before.items():
        one, other = _kind(wanted), _kind(after[name])
        if one != other:
            return f"output {name!r} is {other} in the {made}, but {one} in the given file"
        if _is_broken(wanted, after[name]):
            return f"output {name!r} is NaN or infinite in the {made}, but not in the given file"
    return None


def _is_broken(wanted: object, got: object) -> bool:
    """Whether a tensor is not finite at a position where the expected tensor of the same shape is."""
    if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray) or wanted.dtype.kind != "f":
        return False
    return not np.isfinite(got[np.isfinite(wanted)]).all()


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _changed(given: Path, cause: str) -> ExportError:
    return ExportError(
        given,
        cause,
        "nothing was written; export the model again, or exclude the nodes that compute this output",
    )
