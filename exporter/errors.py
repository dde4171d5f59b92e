"""Errors that only the workstation raises (the base class and the others: `bench.core.errors`).

EdgeproofError
├── RecipeError        a recipe cannot be read, or its values are invalid or contradictory
├── LookupFailed       a dotted path, `pkg://` address or file cannot be found or loaded
├── CheckpointError    weights are missing or damaged, belong to another network, or would run code
├── PlanError          a shrinking plan is damaged, or belongs to another network
├── StageError         a stage cannot do what the recipe asks
├── ExportError        a network cannot be exported to ONNX
└── SlowerError        the quantized model is slower than float (exit code 1, as a failed verdict)
"""

from __future__ import annotations

from bench.core.errors import EdgeproofError


class RecipeError(EdgeproofError):
    """The recipe cannot be read, or its values are invalid or contradictory."""


class LookupFailed(EdgeproofError):  # noqa: N818 (LookupError is a builtin)
    """A dotted path, `pkg://` address or file cannot be found or loaded."""


class CheckpointError(EdgeproofError):
    """Weights are missing or damaged, belong to another network, or would run code when loaded."""


class PlanError(EdgeproofError):
    """A shrinking plan is damaged, or belongs to another network."""


class StageError(EdgeproofError):
    """A stage cannot do what the recipe asks."""


class ExportError(EdgeproofError):
    """A network cannot be exported to ONNX."""


class SlowerError(EdgeproofError):
    """The quantized model is slower than the float model, and the goal is speed: a failed verdict."""

    exit_code = 1
