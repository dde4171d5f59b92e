"""Whether a quantized model still gives what the file that it was made of gives: names, types and shapes.

Rewriting and quantizing trust what a file says of itself. Where it says something wrong, the result may be
another function without any error; so both files are run on the same few samples before one is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.core.arrays import Array
from bench.core.errors import DataError, ModelError
from bench.inputs.evaluation import read_evaluation
from bench.inputs.session import Signature, open_session, signature_of
from bench.measuring.worker import fixed_batch, synthetic_feeds
from exporter.errors import ExportError

# Samples that both files are run on, some together and one alone: a shape may be right for one batch only.
SAMPLES, _TOGETHER = 32, 8
# What an axis that a model leaves open is given where there are no samples.
_MADE_UP_SIZE = 8


@dataclass(frozen=True)
class Answer:
    """What a model gave for some feeds, output by output, in the model's order."""

    feeds: Mapping[str, Array]
    outputs: Mapping[str, object]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs that are tensors."""
        return {name: value.shape for name, value in self.outputs.items() if isinstance(value, np.ndarray)}


def few_samples(data: Path, signature: Signature) -> list[dict[str, Array]]:
    """Feeds to run both models on: some samples together, and one alone where the batch is open.

    Raises:
        DataError: the samples cannot be read.
    """
    size = fixed_batch(signature)
    feeds = dict(read_evaluation(data, rows=size or SAMPLES, spread=True).feeds)
    count, step = len(next(iter(feeds.values()))), size or _TOGETHER
    cuts = [(start, start + step) for start in range(0, count, step)]
    if size is None and count > 1:
        cuts.append((0, 1))
    return [
        {name: np.ascontiguousarray(array[start:end]) for name, array in feeds.items()}
        for start, end in cuts
    ]


def made_up_samples(model: Path, signature: Signature) -> list[dict[str, Array]]:
    """Feeds for where there are no samples; none if the model takes what cannot be made up."""
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
    except (DataError, TypeError):  # sequences and texts
        return []


def answers_of(model: Path, batches: Sequence[Mapping[str, Array]]) -> list[Answer]:
    """Run a model on each of some feeds.

    Raises:
        ModelError: it cannot be loaded, or fails when it runs.
    """
    session = open_session(model)
    names = [spec.name for spec in signature_of(session).outputs]
    found = []
    for feeds in batches:
        try:
            outputs = session.run(None, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ModelError(
                model, f"fails when it runs ({error})", "check it against the samples"
            ) from error
        found.append(Answer(feeds, dict(zip(names, outputs, strict=True))))
    return found


def check_same_outputs(given: Path, answers: Sequence[Answer], made: Path) -> None:
    """Make sure that a model gives outputs as those of the file that it was made of.

    Args:
        given: that file, for the error.
        answers: what it gave.
        made: the model that was made of it.

    Raises:
        ExportError: an output has another name, type or shape, or values that are not finite where the
            given file's are; or the model does not run.
    """
    try:
        found = answers_of(made, [answer.feeds for answer in answers])
    except ModelError as error:
        raise _changed(given, f"the quantized model {error.cause}") from error
    for before, after in zip(answers, found, strict=True):
        if (difference := _difference(before.outputs, after.outputs)) is not None:
            raise _changed(given, difference)


def _difference(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    if list(before) != list(after):
        return f"the quantized model gives {list(after)}, the file {list(before)}"
    for name, wanted in before.items():
        one, other = _kind(wanted), _kind(after[name])
        if one != other:
            return f"the quantized model gives {other} for output {name!r}, the file {one}"
        if _is_broken(wanted, after[name]):
            return f"the quantized model gives NaN or infinity for output {name!r}, the file does not"
    return None


def _is_broken(wanted: object, got: object) -> bool:
    """Whether a tensor has values that are not finite where the wanted ones are; of the same shape."""
    if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray) or wanted.dtype.kind != "f":
        return False
    return not np.isfinite(got[np.isfinite(wanted)]).all()


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _changed(given: Path, cause: str) -> ExportError:
    return ExportError(
        given, cause, "nothing was written; export the model again, or leave the layers before it in float"
    )
