"""ONNX graphs: files, names, attributes, kernels, rewrites, and running them."""
