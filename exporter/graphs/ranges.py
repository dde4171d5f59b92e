"""The range of an activation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The real values that the lowest and the highest integer represent."""

    lowest: float
    highest: float

    def with_zero(self) -> Range:
        """The range, widened to include zero."""
        return Range(min(self.lowest, 0.0), max(self.highest, 0.0))
