"""Rules that remove additions of 0 and products with 1, and nothing that is only close to them."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir
from onnxscript.rewriter.pattern import Constant, OpsetPatternBuilder, RewriteRule, Var

_ZERO, _ONE = (Constant(number, rel_tol=0.0, abs_tol=0.0) for number in (0, 1))


class _Operators(Protocol):
    """The object that creates the nodes of a replacement."""

    def Identity(self, x: ir.Value) -> ir.Value: ...  # noqa: N802


def _add_0(op: OpsetPatternBuilder, x: Var) -> object:
    return op.Add(x, _ZERO)


def _sub_0(op: OpsetPatternBuilder, x: Var) -> object:
    return op.Sub(x, _ZERO)


def _mul_by_1(op: OpsetPatternBuilder, x: Var) -> object:
    return op.Mul(x, _ONE)


def _div_by_1(op: OpsetPatternBuilder, x: Var) -> object:
    return op.Div(x, _ONE)


def _identity(op: _Operators, x: ir.Value, **_: object) -> object:
    return op.Identity(x)


# onnxscript's rules of the same names accept constants within 1e-8 of 0 and 1e-5 of 1. They remove the
# 1e-12 that BERT adds to a variance, so the norm of a constant row becomes NaN.
add_0_rule, sub_0_rule, mul_by_1_rule, div_by_1_rule = (
    RewriteRule(matched, _identity) for matched in (_add_0, _sub_0, _mul_by_1, _div_by_1)
)
EXACT_NO_OPS = (*mul_by_1_rule.commute(), *add_0_rule.commute(), sub_0_rule, div_by_1_rule)
