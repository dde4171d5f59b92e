"""CPU kinds, and what int8 must look like to be fast and right on each.

A target is a decision about three facts of ONNX Runtime's CPU kernels:

1. x86 kernels multiply unsigned activations by signed weights (U8S8). Signed activations (S8S8) are
   rewritten to that only where a Quantize node has one consumer, so that residual networks stay in
   float for half of their convolutions.
2. Without VNNI, x86 adds pairs of products in 16 bits (`vpmaddubsw`) and saturates: channels that can
   reach that get weights of fewer levels (`inspection.saturation`). With VNNI the sums have 32 bits.
3. Arm multiplies signed by signed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.inputs.host import ConcreteTarget, HostFingerprint, fingerprint, host_target
from bench.inputs.runtime import OLDEST, RuntimeVersion, required_version
from exporter.options import TargetName

# Levels of int8 weights on either side of zero: what ONNX Runtime's quantizer makes of the largest weight
# of a channel. It leaves -128 out.
WEIGHT_LEVELS = 127
# What ONNX Runtime's CPU kernels run in int8 once it stands between Dequantize and Quantize. Its quantizer
# marks more: ConvTranspose, LayerNormalization, InstanceNormalization and Pad, which then run in float
# between two conversions, and Softmax, whose int8 kernel is no faster and whose result 8 bits hold badly.
_INT8_OPERATORS = frozenset(
    {
        "Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid",
        "AveragePool", "GlobalAveragePool", "MaxPool", "Resize", "Split", "Slice", "Reshape", "Flatten",
        "Squeeze", "Unsqueeze", "Transpose",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """How to quantize for a CPU kind.

    Attributes:
        signed_activations: int8 rather than uint8 activations; weights are always int8.
        per_channel: one weight scale per output channel.
        saturates: 16-bit sums may overflow, so that some channels get weights of fewer than 127 levels.
        stem_on_blocks: the first convolution of pictures is faster on blocks of pixels
            (`rewrites.first_convolution`).
        operators: types that its kernels run in int8.
        runtime: the oldest ONNX Runtime that the model has to run on. A rewrite is left out where it needs
            a newer one.
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
    # Right everywhere and fast on x86: U8S8 whose sums fit in 16 bits.
    "portable": Target("portable", signed_activations=False, per_channel=True, saturates=True),
}


def find_target(
    name: TargetName, onnxruntime: str | None = None, host: HostFingerprint | None = None
) -> Target:
    """The target of a name.

    Args:
        name: a CPU kind; `auto` is that of `host`.
        onnxruntime: a requirement such as `>=1.24`; by default all versions that edgeproof supports.
        host: by default this one.

    Raises:
        ValueError: the requirement is written otherwise, or names a version that is too old.
    """
    target = TARGETS[host_target(host or fingerprint()) if name == "auto" else name]
    return target if onnxruntime is None else replace(target, runtime=required_version(onnxruntime))
