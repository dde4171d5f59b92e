"""Count the multiply-adds of the graph that ONNX Runtime runs (`inspection.macs`), in int8 and in float.

A QDQ model shows which operators could run in int8. Only the optimized graph shows which ones do. If an
operator that may multiply is not counted, the fraction in int8 is reported as an upper bound.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from bench.core.arrays import Array
from bench.core.errors import DataError, ModelError
from bench.inputs.evaluation import read_evaluation
from bench.inputs.host import fingerprint, has_vnni, host_target
from bench.inputs.session import (
    Signature,
    check_feeds,
    model_error,
    open_session,
    signature_of,
)
from bench.measuring.worker import fixed_batch, synthetic_feeds
from exporter.graphs.float_reasons import stated_reasons
from exporter.graphs.index import GraphIndex
from exporter.graphs.inference import optimizing_options
from exporter.graphs.onnx_files import load
from exporter.graphs.targets import TARGETS
from exporter.inspection.fusion import float_reason, needless_pairs, plain_name
from exporter.inspection.macs import NOTHING, Call, Work, has_no_macs, work_of
from exporter.inspection.node_calls import PlacedNode, all_nodes, node_calls
from exporter.inspection.saturation import observe_saturation
from exporter.results.audit import Audit, FloatOperator, SaturatingLayer, UncountedOperator

# Samples on which saturation is observed. More samples hardly change the shares.
SAMPLES = 32
_BATCH = 8
# Whether signed activations (S8S8) fuse into int8 kernels; for other kinds of CPU, the host's CPU decides.
_SIGNED_FUSES = {"x86-vnni": False, "x86-avx2": False, "arm64": True}


def audit(path: Path, data: Path | None = None, made_for: str | None = None) -> Audit:
    """Optimize a model as ONNX Runtime does on this CPU or on the model's target, and count its operators.

    Args:
        path: an .onnx file.
        data: samples in the format of `inputs.evaluation`. Without samples, feeds are synthesized from
            the input signature, and saturation is bounded instead of observed.
        made_for: a kind of CPU. ONNX Runtime's optimizer then fuses as on that kind; this works on any
            host. For None or an unknown kind, it fuses as on this host. Saturation is reported only for
            kinds whose sums can saturate.

    Raises:
        ModelError: the model cannot be loaded or run.
        DataError: the samples do not fit the model, or there are none although the model has dynamic
            dimensions besides the batch.
    """
    signature = signature_of(open_session(path))
    batches = [] if data is None else _read_batches(data, signature)
    feeds = _first(batches[0], signature) if batches else synthetic_feeds(path, signature)
    with tempfile.TemporaryDirectory(prefix="edgeproof-") as folder:
        here = host_target(fingerprint())
        target = made_for if made_for in _SIGNED_FUSES else here
        model = _optimized(path, Path(folder) / "optimized.onnx", target)
    graph, written = GraphIndex.of(model.graph), load(path)
    counted, uncounted = _count(path, model, feeds)
    x86 = target.startswith("x86")
    stated = stated_reasons(written)
    floats = [_float_operator(one, work, graph, stated, x86=x86) for one, work in counted if work.float]
    in_int8 = {plain_name(one.node) for one, work in counted if work.int8}
    operators: dict[str, int] = {}
    for one, _ in counted:
        operators[one.node.op_type] = operators.get(one.node.op_type, 0) + 1
    total = sum((work for _, work in counted), NOTHING)
    macs = total.int8 + total.float
    return Audit(
        target=target,
        host_target=here,
        macs=macs,
        int8_macs=total.int8,
        int8_mac_ratio=total.int8 / macs if macs else 0.0,
        operators=operators,
        float_ops=tuple(sorted(floats, key=lambda operator: -operator.macs)),
        uncounted=uncounted,
        needless_pairs=needless_pairs(graph),
        quantized_at_load=_quantized_at_load(written, in_int8),
        saturation=(
            _saturation(path, written, batches, {f.name for f in floats} - in_int8)
            if _saturates(made_for, target)
            else ()
        ),
        samples=sum(len(next(iter(batch.values()))) for batch in batches),
    )


def _saturates(made_for: str | None, target: str) -> bool:
    """Whether 16-bit sums can saturate on the kind of CPU that is asked for, or else on this host."""
    kinds: dict[str, bool] = {name: kind.saturates for name, kind in TARGETS.items()}
    return kinds.get(made_for or target, kinds.get(target, False))


def share_text(found: Audit) -> str:
    """The fraction in int8 as text; if an operator is not counted, an upper bound that names it."""
    if not found.uncounted:
        return f"{_share(found.int8_mac_ratio)} of {found.macs:,} multiply-adds run in int8"
    missing = _uncounted_text(found.uncounted)
    if not found.macs:
        return f"the fraction in int8 is unknown: {missing}"
    return f"at most {_share(found.int8_mac_ratio)} of {found.macs:,} multiply-adds run in int8: {missing}"


def coverage_failure(found: Audit, minimum: float) -> str | None:
    """The reason why the fraction in int8 is below `minimum`, in one line, or None if it is not.

    An upper bound does not show that a minimum above 0 is met.

    Args:
        found: the audit.
        minimum: the required fraction of multiply-adds, 0 to 1.
    """
    short = found.int8_mac_ratio < minimum
    if not short and (not found.uncounted or minimum == 0):
        return None
    most = "at most " if found.uncounted else ""
    parts = [
        f"{most}{_share(found.int8_mac_ratio)} of multiply-adds run in int8, "
        f"at least {minimum:.1%} required",
        *([_uncounted_text(found.uncounted)] if found.uncounted else []),
    ]
    if short and found.float_ops:
        worst, count = found.float_ops[0], len(found.float_ops)
        parts.append(
            f"{count} {'operators stay' if count > 1 else 'operator stays'} in float, "
            f"the largest is {worst.name or worst.op_type}: {worst.reason}"
        )
    return "; ".join(parts)


def _share(ratio: float) -> str:
    """A fraction as a percentage, rounded to at most 99.9 % unless it is exactly 1."""
    return f"{min(ratio, 0.999) if ratio < 1 else ratio:.1%}"


def _uncounted_text(uncounted: Sequence[UncountedOperator]) -> str:
    first, more = uncounted[0], len(uncounted) - 1
    others = f"; {more} more {'is' if more == 1 else 'are'} not counted" if more else ""
    return f"{first.label} is not counted ({first.reason}){others}"


def _count(
    path: Path, model: onnx.ModelProto, feeds: Mapping[str, Array]
) -> tuple[list[tuple[PlacedNode, Work]], tuple[UncountedOperator, ...]]:
    """The work of each operator of an optimized graph and its bodies, and the operators without a count."""
    nodes = list(all_nodes(model.graph))
    try:
        calls = node_calls(model, feeds)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
        raise ModelError(
            path,
            f"cannot be run to count its multiply-adds ({error})",
            "check that ONNX Runtime can run the model",
        ) from error
    counted, uncounted = [], []
    for placed, runs in zip(nodes, calls, strict=True):
        work = _work(placed.node, runs)
        if isinstance(work, str):
            node = placed.node
            uncounted.append(UncountedOperator(name=plain_name(node), op_type=node.op_type, reason=work))
        counted.append((placed, NOTHING if isinstance(work, str) else work))
    return counted, tuple(uncounted)


def _work(node: onnx.NodeProto, runs: Sequence[Call] | None) -> Work | str:
    """The multiply-adds of all runs of an operator, or the reason why they are unknown."""
    if has_no_macs(node):
        return NOTHING
    if runs is None:
        return "ONNX Runtime does not report its shapes"
    if not runs:
        return "it is in a branch or loop that did not run on the samples"
    total = NOTHING
    for run in runs:
        work = work_of(node, run)
        if work is None:
            return "no formula for its multiply-adds is known"
        total += work
    return total


def _float_operator(
    placed: PlacedNode, work: Work, graph: GraphIndex, stated: Mapping[str, str], *, x86: bool
) -> FloatOperator:
    """An operator with its reason: a body that contains it, a reason that the file states, or its form."""
    node, container = placed.node, placed.container
    if work.int8:
        reason = "its projections run in int8, but the products of its activations do not"
    elif container is not None:
        reason = f"it is in the body of {container.op_type} {container.name!r}, which is not quantized"
    else:
        reason = stated.get(plain_name(node)) or float_reason(node, graph, x86=x86)
    return FloatOperator(name=plain_name(node), op_type=node.op_type, macs=work.float, reason=reason)


def _quantized_at_load(model: onnx.ModelProto, in_int8: set[str]) -> tuple[str, ...]:
    index = GraphIndex.of(model.graph)
    stored = [n for n in index.nodes if n.op_type in {"Conv", "Gemm"} and index.is_constant(n.input[1])]
    return tuple(
        node.name
        for node in stored
        if index.element_type(node.input[1]) == onnx.TensorProto.FLOAT and node.name in in_int8
    )


def _saturation(
    path: Path, model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]], in_float: set[str]
) -> tuple[SaturatingLayer, ...]:
    try:
        found = observe_saturation(model, batches or None)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
        raise ModelError(
            path,
            f"cannot be run without optimizations ({error})",
            "check that ONNX Runtime can run the model",
        ) from error
    vnni = has_vnni(fingerprint())
    return tuple(
        SaturatingLayer(
            name=one.layer.name,
            channels=one.channels,
            affects_this_host=not vnni,
            observed_share=one.observed_share,
            drift_sqnr_db=one.drift_sqnr_db,
        )
        for one in found
        if not one.layer.name or one.layer.name not in in_float
    )


def _read_batches(data: Path, signature: Signature) -> list[dict[str, Array]]:
    """Read up to `SAMPLES` samples in batches, or one batch if the model's fixed batch is larger."""
    size = fixed_batch(signature) or _BATCH
    evaluation = read_evaluation(data, rows=max(SAMPLES // size, 1) * size, spread=True)
    check_feeds(data, signature, dict(evaluation.feeds))
    count = evaluation.count
    if fixed_batch(signature) is not None:
        count -= count % size
    if not count:
        raise DataError(
            data,
            f"{evaluation.count} samples do not fill one batch of {size}",
            f"provide at least {size} samples, or export the model with a dynamic batch",
        )
    return [
        {n: np.ascontiguousarray(a[start : min(start + size, count)]) for n, a in evaluation.feeds.items()}
        for start in range(0, count, size)
    ]


def _first(batch: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """One sample, or the whole batch if the model has a fixed batch size."""
    return {name: array[: fixed_batch(signature) or 1] for name, array in batch.items()}


def _optimized(path: Path, destination: Path, target: str) -> onnx.ModelProto:
    """The graph after all optimizations that ONNX Runtime applies on a kind of CPU."""
    options = optimizing_options(destination, _SIGNED_FUSES.get(target))
    try:
        # The blocked layout of float convolutions is disabled: it pads channels, which would be counted.
        onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["NchwcTransformer"],
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base class except Exception
        raise model_error(path, error) from error
    return onnx.load(destination)
