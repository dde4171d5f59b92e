"""Measured speed of a quantized model."""

from __future__ import annotations

from exporter.results.base import Figures


class Speed(Figures):
    """CPU time of a run of the quantized model against float, in one process on one thread of this host.

    Attributes:
        ratio: time of the quantized model / time of the float model.
        lower: lower bound of the ratio (two-sided 99 % interval).
        upper: upper bound of the ratio.
        float_ms: median time of the float model, in ms.
        quantized_ms: median time of the quantized model, in ms.
        blocks: number of pairs of measurements.
    """

    ratio: float
    lower: float
    upper: float
    float_ms: float
    quantized_ms: float
    blocks: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.lower <= 1 <= self.upper

    def text(self) -> str:
        """The figures in a few words."""
        unclear = "" if self.is_clear else ", so neither is clearly faster"
        return (
            f"takes {self.ratio:.2f} x the CPU time of float (99 % interval {self.lower:.2f} to "
            f"{self.upper:.2f}; {self.quantized_ms:.3g} ms, float {self.float_ms:.3g} ms){unclear}"
        )
