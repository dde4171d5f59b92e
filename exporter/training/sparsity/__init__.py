"""Zeros among the weights: which ones, when, and what they save.

The shapes stay as they are: ONNX Runtime's dense kernels multiply by zeros as by any number and gain no
time. What zeros buy is a file that compresses better on its way to the device.
"""
