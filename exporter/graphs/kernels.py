"""Find the oldest ONNX Runtime that can run a model, from its opset, its IR version and its operators.

A version loads a model if it supports the opset and the IR version and has a CPU kernel for each operator
with its types. The tables list the differences between the kernel registries of all releases since the
oldest one that edgeproof supports (`onnxruntime_pybind11_state.get_all_opkernel_def`).
`tests/perf/kernel_versions.py` prints them. The tables omit cases that every version can run without a
kernel: ONNX Runtime casts float16 to float, and it expands operators that ONNX defines by other operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from bench.core.errors import ModelError
from bench.inputs.runtime import METADATA_KEY, OLDEST, RuntimeVersion
from exporter.graphs.domains import domain_of, is_standard
from exporter.graphs.index import GraphIndex, bodies_of
from exporter.graphs.onnx_files import infer_shapes

_V1_23, _V1_24, _V1_25, _V1_26, _V1_27, _V1_28, _V1_29, _V1_30, _V1_31, _V1_32 = (
    RuntimeVersion(1, minor) for minor in range(23, 33)
)
# The highest opset and the highest IR version that each version loads. Version 1.23 also loads opset 23,
# but it has no kernel for QuantizeLinear of that opset.
_OPSETS = {22: OLDEST, 25: _V1_24, 26: _V1_25, 28: _V1_32}
_IR_VERSIONS = {10: OLDEST, 11: _V1_23, 13: _V1_24, 14: _V1_32}
_MICROSOFT = "com.microsoft"
# Operators for which the oldest version has no kernel: domain, names, first version with a kernel.
_NEW_OPERATORS = (
    ("", ("Attention", "RMSNormalization", "RotaryEmbedding"), _V1_23),
    ("", ("BitCast", "CumProd", "DeformConv", "TensorScatter"), _V1_25),
    (_MICROSOFT, ("MoE", "QMoE"), _V1_23),
    (_MICROSOFT, ("CausalConvWithState", "LinearAttention"), _V1_25),
    (_MICROSOFT, ("MRotaryEmbedding",), _V1_29),
    (
        _MICROSOFT,
        ("EngramGate", "GatedAdd", "GatedRMSNorm", "LinearAttentionGate", "NGramHashMapping"),
        _V1_30,
    ),
    (
        _MICROSOFT,
        (
            "BranchwiseRMSNorm", "HyperConnectionPostMix", "HyperConnectionPreMix", "ScaledSiLU",
            "VarlenNGramHashMapping",
        ),
        _V1_31,
    ),
    (_MICROSOFT, ("GatedDeltaNet", "GatherPacked", "MoEGroupRouter", "VarlenCausalConvWithState"), _V1_32),
)  # fmt: skip
# Operators whose revision in ONNX got a kernel later: opset of the revision, first ONNX Runtime.
_REVISED = {("", "LpNormalization"): (22, _V1_25)}
_OPERATORS = {(domain, name): version for domain, names, version in _NEW_OPERATORS for name in names}
_FLOAT8 = ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz")
# Element types of inputs or outputs that an operator's kernel supports only since a later version.
_TYPES: dict[tuple[str, str], dict[str, RuntimeVersion]] = {
    ("", "Cast"): {
        "int4": _V1_23, "uint4": _V1_23, "int2": _V1_24, "uint2": _V1_24, "float8e8m0": _V1_27,
    },
    ("", "SplitToSequence"): {"bool": _V1_23},
    ("", "ConvInteger"): {"int8": _V1_24},
    ("", "DequantizeLinear"): {"int2": _V1_24, "uint2": _V1_24},
    ("", "QuantizeLinear"): {"int2": _V1_24, "uint2": _V1_24},
    ("", "Transpose"): {"int2": _V1_24, "uint2": _V1_24},
    ("", "Max"): {"int8": _V1_24, "uint8": _V1_24},
    ("", "Min"): {"int8": _V1_24, "uint8": _V1_24},
    ("", "TopK"): {"int8": _V1_26, "uint8": _V1_26, "int16": _V1_26},
    (_MICROSOFT, "FusedMatMul"): {"double": _V1_26},
    (_MICROSOFT, "GroupQueryAttention"): {"int8": _V1_27, "uint8": _V1_27},
    ("", "DepthToSpace"): {"int8": _V1_28},
    ("", "SpaceToDepth"): {"int8": _V1_28, "uint8": _V1_28},
    ("", "Cos"): {"double": _V1_29},
    ("", "Trilu"): {"int32": _V1_29},
    ("", "LayerNormalization"): {"bfloat16": _V1_30},
    (_MICROSOFT, "SkipLayerNormalization"): {"bfloat16": _V1_30},
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): {"bfloat16": _V1_30},
    ("", "Where"): {"int8": _V1_31, "uint32": _V1_31},
    (_MICROSOFT, "GatherBlockQuantized"): dict.fromkeys((*_FLOAT8, "float4e2m1"), _V1_31),
    ("", "BitShift"): dict.fromkeys(("int8", "int16", "int32", "int64", "uint16"), _V1_32),
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """The oldest ONNX Runtime that runs a model, and the part of the model that requires it."""

    version: RuntimeVersion
    reason: str


def kernel_version(operator: str, element_type: str, domain: str = "") -> RuntimeVersion:
    """The oldest ONNX Runtime whose CPU kernel of an operator supports an element type.

    Args:
        operator: type of the operator, for example `SpaceToDepth`.
        element_type: ONNX Runtime's name of the type, for example `float`, `uint8` or `bfloat16`.
        domain: domain of the operator; empty for ONNX's own.
    """
    types = _TYPES.get((domain, operator), {})
    return max(_OPERATORS.get((domain, operator), OLDEST), types.get(element_type, OLDEST))


def oldest_runtime(model: onnx.ModelProto) -> Need:
    """Find the oldest ONNX Runtime that runs a model.

    Types of tensors are inferred. If ONNX cannot infer a type, only the operator counts.
    """
    needs = [Need(OLDEST, "edgeproof supports no older version")]
    opsets = [opset.version for opset in model.opset_import if is_standard(opset)]
    needs += [Need(_of_table(_OPSETS, opset), f"opset {opset}") for opset in opsets]
    needs.append(Need(_of_table(_IR_VERSIONS, model.ir_version), f"IR version {model.ir_version}"))
    try:
        shaped = infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        shaped = model
    opset = max(opsets, default=1)
    needs += _needs_of(shaped.graph, {}, opset)
    for function in shaped.functions:
        needs += [_need_of(node, {}, opset) for node in function.node]
    return max(needs, key=lambda need: need.version)


def state_oldest_runtime(model: onnx.ModelProto) -> RuntimeVersion:
    """Write the oldest ONNX Runtime that runs a model into its metadata, in place, and return it."""
    needed = oldest_runtime(model).version
    metadata = {entry.key: entry.value for entry in model.metadata_props} | {METADATA_KEY: str(needed)}
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    return needed


def check_runtime_asked(model: onnx.ModelProto, asked: RuntimeVersion, place: object) -> None:
    """Check that a float model runs on the requested ONNX Runtime.

    Raises:
        ModelError: the model requires a newer version; the error names the operator, opset or IR version.
    """
    need = oldest_runtime(model)
    if need.version > asked:
        raise ModelError(
            place,
            f"cannot run on ONNX Runtime {asked}: {need.reason} requires {need.version}",
            f'set onnxruntime to ">={need.version}", or change the network',
        )


def _of_table(table: Mapping[int, RuntimeVersion], wanted: int) -> RuntimeVersion:
    """The version of the first key that is at least `wanted`; the last version if all keys are smaller."""
    return next((version for reached, version in table.items() if wanted <= reached), [*table.values()][-1])


def _needs_of(graph: onnx.GraphProto, outer: Mapping[str, str], opset: int) -> Iterator[Need]:
    index = GraphIndex.of(graph)
    own = {name: _type_name(index.element_type(name)) for name in (*index.values, *index.constants)}
    types = {**outer, **own}
    for node in index.nodes:
        yield _need_of(node, types, opset)
        for body in bodies_of(node):
            yield from _needs_of(body, types, opset)


def _need_of(node: onnx.NodeProto, types: Mapping[str, str], opset: int) -> Need:
    domain = domain_of(node)
    label = repr(node.name or node.output[0])
    needs = [Need(kernel_version(node.op_type, "", domain), f"{node.op_type} ({label})")]
    for element in sorted({types.get(name, "") for name in (*node.input, *node.output)}):
        version = kernel_version(node.op_type, element, domain)
        needs.append(Need(version, f"{node.op_type} of {element} ({label})"))
    since, revised = _REVISED.get((domain, node.op_type), (opset + 1, OLDEST))
    if opset >= since:
        needs.append(Need(revised, f"{node.op_type} of opset {since}"))
    return max(needs, key=lambda need: need.version)  # of equal versions, the first: the operator itself


def _type_name(elem_type: int) -> str:
    """ONNX Runtime's name of an element type: ONNX's name in lower case."""
    return TensorProto.DataType.Name(elem_type).lower() if elem_type else ""
