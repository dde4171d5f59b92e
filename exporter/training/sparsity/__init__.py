"""Set single weights to zero: choose them, schedule the pruning, and compute the savings.

All shapes remain the same. ONNX Runtime's dense kernels multiply by zeros like by any other number, so
zeros save no time. They save bytes: the file compresses better for its transfer to the device.
"""
