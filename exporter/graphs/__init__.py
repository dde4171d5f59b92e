"""ONNX graphs: files, names, attributes, kernels, rewrites and inference."""
