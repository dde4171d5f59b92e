"""The two names of ONNX's own domain."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import helper

from exporter.graphs.domains import domain_of, is_standard

MAKERS = [
    lambda domain: helper.make_node("Relu", ["x"], ["y"], domain=domain),
    lambda domain: ir.Node(domain, "Relu", []),
    lambda domain: helper.make_opsetid(domain, 20),
]


@pytest.mark.parametrize("make", MAKERS, ids=["protobuf", "onnx-ir", "opset"])
def test_onnx_has_two_names_for_its_own_domain(make):
    assert all(is_standard(make(domain)) for domain in ("", "ai.onnx"))
    assert not any(is_standard(make(domain)) for domain in ("com.microsoft", "ai.onnx.ml"))
    assert [domain_of(make(domain)) for domain in ("", "ai.onnx", "ai.onnx.ml")] == ["", "", "ai.onnx.ml"]
