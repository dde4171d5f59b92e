"""What the steps find that come with every recipe, beside `quantize`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import JsonValue

from bench.metrics.parity import Parity
from exporter.results.audit import Audit, LayerError
from exporter.results.base import StepResult
from exporter.results.training import Zeros


class PretrainedResult(StepResult):
    """What came in.

    Attributes:
        parameters: of the network.
        tensors: tensors that the checkpoint holds; None without a checkpoint.
        new_head: the layer that has random weights because the checkpoint has other classes, if any.
        classes: class scores that the network gives.
    """

    kind: ClassVar[str] = "pretrained"

    parameters: int
    tensors: int | None = None
    new_head: str | None = None
    classes: int

    def left_out(self) -> set[str]:
        """Without a checkpoint nothing is said of its tensors; with one, None says that no head is new."""
        return super().left_out() - ({"new_head"} if self.tensors is not None else set())


class ExportResult(StepResult, Zeros):
    """What the float model is.

    Attributes:
        nodes: of its graph.
        size_bytes: of the file, with weights beside it.
    """

    kind: ClassVar[str] = "export"

    nodes: int
    opset: int
    size_bytes: int

    def headline(self) -> tuple[str, ...]:
        """The share of zeros."""
        return self.zeros_text()


class ParityResult(StepResult):
    """How near the exported models are to the network that was trained.

    Attributes:
        torch_accuracy: of the network in PyTorch, on the evaluation split.
        export: the float model against PyTorch.
        int8: the quantized model against the float model.
        layers: error of each tensor that is rounded, in graph order.
        audit: what ONNX Runtime really runs of the quantized model.
    """

    kind: ClassVar[str] = "parity"

    torch_accuracy: float
    export: Parity
    int8: Parity
    layers: tuple[LayerError, ...]
    audit: Audit

    def headline(self) -> tuple[str, ...]:
        """The share of equal predictions."""
        return (f"int8 agrees on {self.int8.agreement:.2%}",)


class GateResult(StepResult):
    """What the gate said.

    Attributes:
        verdict: PASS, FAIL, INCONCLUSIVE or INVALID.
        reasons: why, a line each.
        metrics: each metric with its bounds, as `gate --json` prints them.
        blocks: how many blocks were measured.
    """

    kind: ClassVar[str] = "gate"

    verdict: str
    reasons: tuple[str, ...]
    metrics: dict[str, JsonValue]
    blocks: int

    def headline(self) -> tuple[str, ...]:
        """The verdict."""
        return (self.verdict,)
