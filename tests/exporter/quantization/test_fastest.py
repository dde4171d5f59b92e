"""Timing before a model ships; the stopwatch is replaced except in the last test."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.inputs.host import fingerprint, host_target
from exporter.errors import SlowerError
from exporter.graphs.float_reasons import stated_reasons
from exporter.inspection.operator_times import OperatorTime, operator_times
from exporter.inspection.paired_times import cpu_times
from exporter.pipeline.quantize_file import quantize_file
from exporter.quantization import fastest


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def given(tmp_path):
    """Two convolutions with an AveragePool between them, and samples."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("AveragePool", ["r"], ["p"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p", "v"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["n", 16, 24, 24])],
        [helper.make_tensor_value_info("y", 1, ["n", 16, 24, 24])],
        [numpy_helper.from_array(draw(16, 16, 3, 3), name) for name in ("w", "v")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    np.savez(tmp_path / "x.npz", x=draw(8, 16, 24, 24))
    return path, tmp_path / "x.npz", tmp_path / "int8.onnx"


def pool_of(us):
    return OperatorTime(name="pool", op_type="AveragePool", median_us=us, share=0.0)


class FakeHost:
    """A stopwatch with given times for float and int8; a pool in int8 takes a time of its own.

    Its profile of the int8 model shows a slow pool as long as the pool runs in int8.
    """

    def __init__(self, *, base=1.0, int8=0.5, pool=0.0):
        self.base, self.int8, self.pool, self.calls = base, int8, pool, 0

    def time_of(self, path):
        model = onnx.load(path)
        if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            return self.base
        return self.int8 + (0 if "pool" in stated_reasons(model) else self.pool)

    def times(self, models, feeds, *, seconds=0.0):
        self.calls += 1
        return np.array([[1e6 * self.time_of(path) for path in models]] * 11)

    def profile(self, path, feeds):
        slow = self.time_of(path) > self.int8 and self.time_of(path) != self.base
        return (pool_of(300.0 if slow else 10.0),)


@pytest.fixture
def host(monkeypatch):
    def use(**times):
        made = FakeHost(**times)
        monkeypatch.setattr(fastest, "HOST", fastest.Stopwatch(made.times, made.profile))
        return made

    return use


def test_a_faster_model_is_written_with_its_figures(given, host):
    host()
    found = quantize_file(*given).as_json()
    assert found["pays"] == "int8"
    assert found["speed"]["ratio"] == pytest.approx(0.5)
    assert found["speed"]["upper"] == pytest.approx(0.5)


def test_a_slower_model_is_not_written(given, host):
    host(int8=1.3)
    with pytest.raises(SlowerError, match=r"takes 1\.30 x the CPU time of float .*use the float model"):
        quantize_file(*given)
    assert not given[2].exists()


def test_for_its_size_a_model_keeps_slow_regions_in_int8(given, host):
    host(int8=0.5, pool=0.2)
    assert quantize_file(*given, goal="size").made.speed.ratio == pytest.approx(0.7)
    assert quantize_file(*given).made.speed.ratio == pytest.approx(0.5)


def test_a_tiny_model_is_written_with_a_warning(given, host, command):
    host(base=0.04, int8=0.05)
    model, data, out = given
    ran = command("quantize", model, "--data", data, "--out", out)
    assert (ran.code, out.exists()) == (0, True)
    assert "warning: int8 is slower than float on this CPU" in ran.err


def test_the_command_ends_as_after_a_failed_verdict(given, host, command):
    host(int8=1.3)
    model, data, out = given
    ran = command("quantize", model, "--data", data, "--out", out, "--json")
    assert (ran.code, json.loads(ran.out)["error"]["kind"]) == (1, "SlowerError")
    assert not out.exists()
    sized = command("quantize", model, "--data", data, "--out", out, "--goal", "size")
    assert (sized.code, out.exists()) == (0, True)
    assert "warning: int8 is slower than float on this CPU" in sized.err
    assert "pays: float: the model takes 1.30 x the CPU time of float" in sized.out


def test_an_unclear_result_ships(given, host):
    host(int8=1.0)
    found = quantize_file(*given)
    assert (found.made.pays, found.made.speed.is_clear) == ("int8", False)
    assert "neither is clearly faster" in found.made.speed_text()


def test_a_slow_region_returns_to_float(given, host):
    host(int8=0.6, pool=1.0)
    found = quantize_file(*given).made
    assert found.pays == "mixed"
    assert found.in_float == {"pool": "int8 took 30.00 x its float time on this CPU"}
    assert stated_reasons(onnx.load(given[2]))["pool"] == found.in_float["pool"]
    assert found.speed.ratio == pytest.approx(0.6)


def test_a_region_stays_in_int8_without_proof(given, host, monkeypatch):
    made = host(int8=0.6)
    monkeypatch.setattr(
        fastest,
        "HOST",
        fastest.Stopwatch(
            made.times, lambda path, feeds: (pool_of(300.0 if "int8" in path.name else 10.0),)
        ),
    )
    assert quantize_file(*given).made.pays == "int8"
    assert made.calls == 1  # the round in which nothing changed also gives the verdict


def test_another_kind_of_cpu_is_not_timed(given, host):
    made = host(int8=1.3)
    other = "arm64" if host_target(fingerprint()) != "arm64" else "x86-vnni"
    found = quantize_file(*given, target=other)
    assert made.calls == 0
    assert found.as_json()["pays"] is None
    assert found.made.speed_text().startswith("not timed")


def test_a_portable_model_is_timed(given, host):
    host()
    assert quantize_file(*given, target="portable").made.pays == "int8"


def test_a_second_run_times_nothing(given, host, tmp_path):
    made = host(int8=0.6, pool=1.0)
    one = quantize_file(*given, cache=tmp_path / "cache")
    calls = made.calls
    two = quantize_file(*given, cache=tmp_path / "cache")
    assert calls == made.calls > 0
    assert (one.sha256, one.made) == (two.sha256, two.made)
    (kept,) = (tmp_path / "cache").glob("times-*")
    kept.write_text("{")
    assert quantize_file(*given, cache=tmp_path / "cache").sha256 == one.sha256
    assert made.calls > calls


@pytest.mark.slow
def test_a_pool_that_is_slow_in_int8_is_found(given, monkeypatch):
    monkeypatch.setattr(fastest, "HOST", fastest.Stopwatch(cpu_times, operator_times))
    found = quantize_file(*given).made
    assert found.speed.blocks >= 11
    assert found.in_float.keys() == {"pool"}


@pytest.mark.slow
def test_pools_around_convolutions_return_to_float(tmp_path, monkeypatch):
    """MaxPool, Conv, Relu and AveragePool three times: 2.7 times float's time, 0.8 times afterwards."""
    monkeypatch.setattr(fastest, "HOST", fastest.Stopwatch(cpu_times, operator_times))
    window = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
    body, value = "", "x"
    for n in range(3):
        body += f"m{n} = MaxPool{window}({value})  c{n} = Conv<pads = [1, 1, 1, 1]>(m{n}, w)"
        body += f"  r{n} = Relu(c{n})  p{n} = AveragePool{window}(r{n})  "
        value = f"p{n}"
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[N, 32, 48, 48] x)'
        f" => (float[N, 32, 48, 48] y) {{ {body} y = Identity(p2) }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(draw(32, 32, 3, 3) / 17, "w"))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=draw(8, 32, 48, 48))
    found = quantize_file(tmp_path / "net.onnx", tmp_path / "x.npz", tmp_path / "int8.onnx").made
    assert (found.pays, found.speed.upper < 1) == ("mixed", True)
    assert {"p0", "p1"} <= found.in_float.keys()
