"""Attributes are Python values, even if a custom operator stores arbitrary bytes in them."""

from __future__ import annotations

from onnx import helper

from exporter.graphs.attributes import attributes_of


def test_numbers_lists_and_text():
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], auto_pad="NOTSET")
    assert attributes_of(node) == {"group": 2, "strides": [2, 2], "auto_pad": "NOTSET"}


def test_bytes_that_are_not_utf8_do_not_fail():
    node = helper.make_node("Custom", ["x"], ["y"], domain="other", blob=b"\xff\xfe", axis=1)
    assert attributes_of(node)["axis"] == 1
