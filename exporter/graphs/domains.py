"""Domains of operators. ONNX's own domain has two names, `""` and `"ai.onnx"`."""

from __future__ import annotations

from typing import Protocol

_STANDARD = frozenset({"", "ai.onnx"})


class _InDomain(Protocol):
    """A node of protobuf or onnx-ir, or an entry of a model's list of opsets."""

    @property
    def domain(self) -> str: ...


def is_standard(item: _InDomain) -> bool:
    """Whether a node, or an entry of a list of opsets, belongs to ONNX's own domain."""
    return item.domain in _STANDARD


def domain_of(item: _InDomain) -> str:
    """The domain of an item, with the empty name for ONNX's own domain."""
    return "" if is_standard(item) else item.domain
