"""Results of an inspection: the operators that ONNX Runtime runs, and the error of each layer."""

from __future__ import annotations

from bench.core.schema import FrozenModel


class NeedlessPair(FrozenModel):
    """A conversion from int8 to float and back, or from float to int8 and back, that no kernel needs.

    Attributes:
        name: the operator between the two conversions, or the tensor if there is no operator.
        between: the nodes (or the model's input or output) before and after the pair.
        reason: why the conversion is there.
    """

    name: str
    between: tuple[str, str]
    reason: str


class FloatOperator(FrozenModel):
    """An operator with multiply-adds that runs in float.

    Attributes:
        macs: multiply-adds of one run.
        reason: why the operator runs in float.
    """

    name: str
    op_type: str
    macs: int
    reason: str


class UncountedOperator(FrozenModel):
    """An operator whose multiply-adds are unknown and therefore not counted; `reason` states why."""

    name: str
    op_type: str
    reason: str

    @property
    def label(self) -> str:
        """Type and name of the operator, for messages."""
        return f"{self.op_type} {self.name!r}" if self.name else self.op_type


class SaturatingLayer(FrozenModel):
    """A layer whose 16-bit sums can overflow on x86 without VNNI (`exporter.inspection.saturation`).

    Attributes:
        channels: number of output channels in which the sum of two products can overflow, with products
            paired as the kernel pairs them.
        affects_this_host: False if this CPU adds in 32 bits.
        observed_share: fraction of the layer's sums that overflow changed on samples; None without samples.
        drift_sqnr_db: SQNR of the sums with overflows against the exact sums, in dB; None without samples.
    """

    name: str
    channels: int
    affects_this_host: bool
    observed_share: float | None
    drift_sqnr_db: float | None


class Audit(FrozenModel):
    """The result of an inspection. All numbers of multiply-adds refer to one run with batch size 1.

    For loops and branches, they refer to the inspected run.

    Attributes:
        target: the kind of CPU that the graph was optimized for.
        host_target: the kind of this CPU. If it differs from `target`, ONNX Runtime optimized the graph for
            `target`, and the kernels of the graph were not run.
        macs: number of counted multiply-adds, without the `uncounted` operators.
        int8_macs: number of counted multiply-adds that run in int8.
        int8_mac_ratio: fraction of the counted multiply-adds that runs in int8. With `uncounted` operators
            it is an upper bound of the true fraction; `share_text` states that.
        operators: operator type -> number of operators in the optimized graph.
        float_ops: operators with multiply-adds that run in float.
        uncounted: operators whose multiply-adds are unknown.
        needless_pairs: conversions between int8 and float that no kernel needs.
        quantized_at_load: operators that have float weights in the file but run in int8. Between quantized
            tensors, ONNX Runtime itself quantizes the weights of Conv and Gemm, with a single scale
            (weight_bias_quantization.cc). Excluding such a node from quantization has no effect.
        saturation: layers whose 16-bit sums can overflow on x86 without VNNI.
        samples: number of samples on which saturation was observed.
    """

    target: str
    host_target: str
    macs: int
    int8_macs: int
    int8_mac_ratio: float
    operators: dict[str, int]
    float_ops: tuple[FloatOperator, ...]
    uncounted: tuple[UncountedOperator, ...]
    needless_pairs: tuple[NeedlessPair, ...]
    quantized_at_load: tuple[str, ...]
    saturation: tuple[SaturatingLayer, ...]
    samples: int


class LayerError(FrozenModel):
    """Quantization error of one tensor.

    Attributes:
        layer: name of the node that computes the tensor.
        op: operator type of the node that computes the tensor.
        sqnr_db: 20 log10(|x| / |x - y|), with x the float tensor and y the int8 tensor.
        lowest: lowest value of the float tensor.
        highest: highest value of the float tensor.
        range: lowest and highest value that int8 can represent with the tensor's scale and zero point.
    """

    layer: str
    op: str
    sqnr_db: float
    lowest: float
    highest: float
    range: tuple[float, float]
