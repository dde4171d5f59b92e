"""Kinds of CPU, and the form of int8 that is fast and correct on each.

A target reflects three properties of ONNX Runtime's CPU kernels:

1. x86 kernels multiply unsigned activations by signed weights (U8S8). Signed activations (S8S8) are
   converted to U8S8 only if a Quantize node has one reader, so in residual networks half of the
   convolutions stay in float.
2. Without VNNI, x86 adds pairs of products in 16 bits (`vpmaddubsw`), which can saturate. Channels that
   could saturate get fewer weight levels (`inspection.saturation`). With VNNI, the sums have 32 bits.
3. Arm kernels multiply signed activations by signed weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.inputs.host import ConcreteTarget, HostFingerprint, fingerprint, host_target
from bench.inputs.runtime import OLDEST, RuntimeVersion, required_version
from exporter.options import TargetName

# Levels of int8 weights on either side of zero: ONNX Runtime's quantizer rounds the largest weight of a
# channel to this value. It does not use -128.
WEIGHT_LEVELS = 127
# Operators that ONNX Runtime's CPU kernels run in int8 between Dequantize and Quantize. Its quantizer also
# marks ConvTranspose, LayerNormalization, InstanceNormalization and Pad, which then run in float between
# two conversions, and Softmax, whose int8 kernel is not faster and whose result loses too much in 8 bits.
_INT8_OPERATORS = frozenset(
    {
        "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid",
        "AveragePool", "GlobalAveragePool", "MaxPool", "Resize", "Split", "Slice", "Reshape", "Flatten",
        "Squeeze", "Unsqueeze", "Transpose",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Rules of quantization for a kind of CPU.

    Attributes:
        name: name of the target.
        signed_activations: whether activations are int8 instead of uint8; weights are always int8.
        per_channel: whether each output channel of the weights has its own scale.
        saturates: whether 16-bit sums can saturate, so some channels need fewer than 127 weight levels.
        stem_on_blocks: whether the first convolution of pictures is faster on blocks of pixels
            (`rewrites.first_convolution`).
        operators: operator types that the kernels run in int8.
        runtime: the oldest ONNX Runtime that must run the model. Rewrites that need a newer one are
            skipped.
    """

    name: ConcreteTarget
    signed_activations: bool
    per_channel: bool
    saturates: bool
    stem_on_blocks: bool = False
    operators: frozenset[str] = _INT8_OPERATORS
    runtime: RuntimeVersion = OLDEST


TARGETS: dict[ConcreteTarget, Target] = {
    "x86-vnni": Target(
        "x86-vnni", signed_activations=False, per_channel=True, saturates=False, stem_on_blocks=True
    ),
    "x86-avx2": Target("x86-avx2", signed_activations=False, per_channel=True, saturates=True),
    "arm64": Target("arm64", signed_activations=True, per_channel=True, saturates=False),
    # Correct on every CPU and fast on x86: U8S8 with sums that fit in 16 bits.
    "portable": Target("portable", signed_activations=False, per_channel=True, saturates=True),
}


def find_target(
    name: TargetName, onnxruntime: str | None = None, host: HostFingerprint | None = None
) -> Target:
    """The target with the given name.

    Args:
        name: a kind of CPU; `auto` selects the kind of `host`.
        onnxruntime: a requirement such as `>=1.24`; by default all versions that edgeproof supports.
        host: the host for `auto`; by default this host.

    Raises:
        ValueError: the requirement has another form or names a version that is too old.
    """
    target = TARGETS[host_target(host or fingerprint()) if name == "auto" else name]
    return target if onnxruntime is None else replace(target, runtime=required_version(onnxruntime))
