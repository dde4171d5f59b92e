"""The workstation's part of the error tree (its root and the rest: `bench.core.errors`).

EdgeproofError
├── RecipeError        a recipe that cannot be read, or asks for what cannot be
├── LookupFailed       a dotted path, `pkg://` address or file that leads nowhere
├── CheckpointError    weights that are missing, damaged, foreign, or a program in disguise
├── PlanError          a plan that is damaged, or belongs to another network
├── StageError         a stage that cannot do what it was asked
└── ExportError        a network that does not survive the way to ONNX
"""

from __future__ import annotations

from bench.core.errors import EdgeproofError


class RecipeError(EdgeproofError):
    """A recipe that cannot be read, or asks for what cannot be."""


class LookupFailed(EdgeproofError):  # noqa: N818 (LookupError is a builtin)
    """A dotted path, `pkg://` address or file that leads nowhere."""


class CheckpointError(EdgeproofError):
    """Weights that are missing, damaged, of another network, or a program in disguise."""


class PlanError(EdgeproofError):
    """A plan that is damaged, or belongs to another network."""


class StageError(EdgeproofError):
    """A stage that cannot do what it was asked."""


class ExportError(EdgeproofError):
    """A network that does not survive the way to ONNX."""
