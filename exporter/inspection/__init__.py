"""What ONNX Runtime really runs, how fast, and how far from float."""
