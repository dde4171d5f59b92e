"""No test measures the speed of a quantized model, except those that say so."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest


def steady_times(models, feeds, *, seconds=0.0):
    """The first model takes 2 ms, all others 1 ms: int8 is always faster."""
    return np.array([[2e6, *[1e6] * (len(models) - 1)]] * 11)


@pytest.fixture(scope="session", autouse=True)
def steady_stopwatch():
    """Replace the host's stopwatch, so that results do not depend on the machine."""
    if find_spec("onnx_ir") is None:  # the base install cannot quantize
        yield
        return
    from exporter.quantization import fastest

    stopwatch = fastest.Stopwatch(steady_times, lambda path, feeds: ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastest, "HOST", stopwatch)
        yield
