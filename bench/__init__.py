"""Measure, compare and gate ONNX models: numpy and ONNX Runtime are all it needs.

Importing this package turns ONNX Runtime's telemetry off, for this process and those that it starts.
"""

import os

# From 1.29 on, ONNX Runtime on Linux writes a device id and an event store into the home folder, looks up
# a host on the network, and keeps a thread for it. It reads these variables while it is imported; what
# `onnxruntime.disable_telemetry_events` does afterwards comes too late. So they are set before any module
# of edgeproof can import it: every one of them imports this package first.
TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1"}
os.environ.update(TELEMETRY_OFF)
