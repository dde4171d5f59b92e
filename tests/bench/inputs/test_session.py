"""Models that do not load and feeds that do not fit: one line each, with place, cause and fix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.core.errors import DataError, ModelError
from bench.inputs.session import (
    RuntimeOptions,
    Signature,
    TensorSpec,
    check_feeds,
    model_error,
    open_session,
    signature_of,
)


def test_a_model_runs(models, samples):
    session = open_session(models.dynamic, RuntimeOptions(threads=2, arena=False))
    (scores,) = session.run(None, {"x": samples.x})
    assert scores.argmax(axis=1)[10:].tolist() == samples.labels[10:].tolist()
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.enable_cpu_mem_arena) == (2, False)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("dynamic", "float32", (None, 4)), ("fixed", "float32", (2, 4)), ("integers", "int64", (None, 4))],
)
def test_a_signature_names_types_and_shapes(models, name, dtype, shape):
    signature = signature_of(open_session(getattr(models, name)))
    assert signature.inputs == (TensorSpec("x", dtype, shape),)
    assert signature.outputs == (TensorSpec("y", "float32", (shape[0], 3)),)


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("none", "there is no such file", "check the path"),
        ("truncated", "is truncated or not an ONNX model", "copy or export it again"),
        ("opset_99", "needs opset 99, which this ONNX Runtime does not", "export with a lower opset or"),
        ("ir_99", "its IR version is newer than this ONNX Runtime", "export with an older onnx or"),
        ("external", "its external data cannot be read", "put the data file back next to the model"),
    ],
)
def test_models_that_do_not_load(models, name, cause, fix):
    path = models.folder / f"{name}.onnx"
    with pytest.raises(ModelError) as caught:
        open_session(path)
    error = caught.value
    assert error.place == str(path)
    assert error.cause.startswith(cause)
    assert error.fix.startswith(fix)
    assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 100])
def test_files_that_are_not_models(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        open_session(path)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("opset is under development", "needs an opset, which"),
        ("No kernel\nfor Foo", "ONNX Runtime cannot load it (No kernel for Foo)"),
        ("Error No Op registered for Foo with domain_version of 18", "uses the operator Foo, which this"),
        ("Fatal error: my.ops:Foo(-1) is not a registered function/op", "uses the operator my.ops:Foo, "),
    ],
)
def test_other_messages_of_the_runtime(words, cause):
    assert model_error(Path("model.onnx"), RuntimeError(words)).cause.startswith(cause)


SIGNATURE = Signature((TensorSpec("x", "float32", (None, 4)), TensorSpec("m", "int64", (1, None))), ())
GOOD = {"x": np.zeros((5, 4), np.float32), "m": np.zeros((5, 9), np.int64)}


def test_feeds_that_fit_pass():
    assert check_feeds("feeds.npz", SIGNATURE, GOOD) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"m": None}, "feeds.npz: lacks the model's input 'm'; use the names ['m', 'x']"),
        ({"z": GOOD["x"]}, "feeds.npz: 'z' is not an input of the model; use the names ['m', 'x']"),
        ({"x": np.zeros((5, 4))}, "feeds.npz: feed 'x' has dtype float64; convert it to float32"),
        (
            {"x": np.zeros((5, 3), np.float32)},
            "feeds.npz: feed 'x' has shape [5, 3]; change its shape to ['N', 4]",
        ),
        (
            {"m": np.zeros(5, np.int64)},
            "feeds.npz: feed 'm' has shape [5]; change its shape to ['N', 'any']",
        ),
    ],
)
def test_feeds_that_do_not_fit(changes, line):
    feeds = {name: array for name, array in (GOOD | changes).items() if array is not None}
    with pytest.raises(DataError) as caught:
        check_feeds("feeds.npz", SIGNATURE, feeds)
    assert str(caught.value) == line
