"""The sentence encoder all-MiniLM-L6-v2."""

from __future__ import annotations

from models.minilm.network import MiniLM, minilm_l6

__all__ = ["MiniLM", "minilm_l6"]
