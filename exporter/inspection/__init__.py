"""Inspection of a model: the kernels that ONNX Runtime runs, their time, and the error against float."""
