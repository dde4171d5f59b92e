"""Results of the steps that every build has; for `quantize` see `exporter.results.quantize`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import JsonValue

from bench.metrics.parity import Parity
from exporter.results.audit import Audit, LayerError
from exporter.results.base import StepResult
from exporter.results.training import Zeros


class PretrainedResult(StepResult):
    """Result of the step `pretrained`: the network as it was loaded.

    Attributes:
        parameters: number of parameters of the network.
        tensors: number of tensors in the checkpoint; None without a checkpoint.
        new_head: name of the layer that has random weights because the checkpoint has other classes; None
            if there is none.
        classes: number of class scores that the network returns.
    """

    kind: ClassVar[str] = "pretrained"

    parameters: int
    tensors: int | None = None
    new_head: str | None = None
    classes: int

    def left_out(self) -> set[str]:
        """Names of fields that are not written; with a checkpoint, `new_head` is written even if None."""
        return super().left_out() - ({"new_head"} if self.tensors is not None else set())


class ExportResult(StepResult, Zeros):
    """Result of the step `export`: the float model.

    Attributes:
        nodes: number of nodes in the graph of the model.
        opset: version of the ONNX operator set that the model uses.
        size_bytes: size of the file with its external weights.
    """

    kind: ClassVar[str] = "export"

    nodes: int
    opset: int
    size_bytes: int

    def headline(self) -> tuple[str, ...]:
        """The fraction of zeros."""
        return self.zeros_text()


class ParityResult(StepResult):
    """Result of the step `parity`: how close the exported models are to the trained network.

    Attributes:
        torch_accuracy: accuracy of the network in PyTorch on the evaluation split.
        export: parity of the float model with PyTorch.
        int8: parity of the quantized model with the float model.
        layers: error of each quantized tensor, in graph order.
        audit: the operators that ONNX Runtime runs for the quantized model.
    """

    kind: ClassVar[str] = "parity"

    torch_accuracy: float
    export: Parity
    int8: Parity
    layers: tuple[LayerError, ...]
    audit: Audit

    def headline(self) -> tuple[str, ...]:
        """The fraction of samples with equal predictions."""
        return (f"int8 agrees on {self.int8.agreement:.2%}",)


class GateResult(StepResult):
    """Result of the step `gate`.

    Attributes:
        verdict: PASS, FAIL, INCONCLUSIVE or INVALID.
        reasons: reasons for the verdict, one line each.
        metrics: each metric with its bounds, as `gate --json` prints them.
        blocks: number of blocks that were measured.
    """

    kind: ClassVar[str] = "gate"

    verdict: str
    reasons: tuple[str, ...]
    metrics: dict[str, JsonValue]
    blocks: int

    def headline(self) -> tuple[str, ...]:
        """The verdict."""
        return (self.verdict,)
