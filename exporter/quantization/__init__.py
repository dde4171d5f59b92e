"""Quantization of a float graph to int8 or int4: placement, calibration, rounding and accuracy repair."""
