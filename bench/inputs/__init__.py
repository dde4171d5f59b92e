"""Inputs of a measurement: artifact, evaluation set, ONNX Runtime session, and host."""
