"""Measure, compare and gate ONNX models: numpy and ONNX Runtime are all it needs."""
