"""What ONNX Runtime really runs of a model, and how far each layer is from float."""

from __future__ import annotations

from bench.core.schema import FrozenModel


class NeedlessPair(FrozenModel):
    """A conversion from int8 to float and back, or the other way round, that no kernel needs.

    Attributes:
        name: the operator that it surrounds, or the tensor if there is none.
        between: the nodes (or the model's input or output) before and after it.
    """

    name: str
    between: tuple[str, str]
    reason: str


class FloatOperator(FrozenModel):
    """A multiplying operator that runs in float, and why."""

    name: str
    op_type: str
    macs: int
    reason: str


class UncountedOperator(FrozenModel):
    """An operator that may multiply, whose multiply-adds are in no figure, and why not."""

    name: str
    op_type: str
    reason: str

    @property
    def label(self) -> str:
        """Type and name, for people."""
        return f"{self.op_type} {self.name!r}" if self.name else self.op_type


class SaturatingLayer(FrozenModel):
    """A layer whose 16-bit sums can overflow on x86 without VNNI (`exporter.inspection.saturation`).

    Attributes:
        channels: output channels in which a pair of products can overflow, in the kernel's own pairing.
        affects_this_host: False where the CPU adds in 32 bits.
        observed_share: share of the layer's sums that overflows changed on samples, or None without.
        drift_sqnr_db: exact sums against those with overflows, in dB, or None without samples.
    """

    name: str
    channels: int
    affects_this_host: bool
    observed_share: float | None
    drift_sqnr_db: float | None


class Audit(FrozenModel):
    """The outcome of an inspection; multiply-adds are those of a batch of one.

    In loops and branches they are those of the run that was looked at.

    Attributes:
        target: the kind of CPU whose fusions these are.
        host_target: the kind of this CPU. Where it is another, the graph is the one that ONNX Runtime makes
            for `target`, and its kernels were not seen.
        macs: multiply-adds that were counted; what `uncounted` operators do is not among them.
        int8_mac_ratio: share of the counted multiply-adds that run in int8. With `uncounted` operators it
            is an upper bound of the true share; `share_text` says so.
        quantized_at_load: operators with float weights in the file that run in int8 all the same. Between
            quantized tensors, ONNX Runtime quantizes the weights of Conv and Gemm itself, with a single
            scale (weight_bias_quantization.cc); to exclude such a node has no effect.
        samples: how many real samples saturation was observed on.
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
    """Error of a tensor that is rounded.

    Attributes:
        layer: the node that makes it.
        op: its operator.
        sqnr_db: 20 log10(|x| / |x - y|), float x against int8 y.
        lowest: lowest value in float.
        highest: highest value in float.
        range: the lowest and the highest value that int8 can tell.
    """

    layer: str
    op: str
    sqnr_db: float
    lowest: float
    highest: float
    range: tuple[float, float]
