"""Remedies for int8 models that differ much from float, on networks that need one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from exporter.inspection.audit import audit
from exporter.pipeline.quantize_file import quantize_file
from exporter.quantization.int8_repaired import RepairSettings

rng = np.random.default_rng


def network(path, body, weights, *, shape="N, 8, 12, 12", out="N, 8, 12, 12"):
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[{shape}] x) => (float[{out}] y) {{ {body} }}'
    )
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    model.graph.initializer.extend(
        numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()
    )
    onnx.save(model, path)
    return path


def amplified(folder):
    """Small values are rounded in 8 bits, and count as much as large ones after a Tanh."""
    weights = {
        "a": np.abs(rng(0).standard_normal((8, 8, 3, 3))) * 0.1,
        "e": np.array(1e3),
        "b": rng(1).standard_normal((8, 8, 3, 3)) * 0.1,
    }
    body = (
        "c = Conv<pads = [1,1,1,1]>(x, a) r = Relu(c) s = Mul(r, e) i = Tanh(s) "
        "y = Conv<pads = [1,1,1,1]>(i, b)"
    )
    x = np.abs(rng(2).standard_normal((96, 8, 12, 12))) * 10.0 ** rng(3).uniform(-3, 0, (96, 1, 1, 1))
    return network(folder / "m.onnx", body, weights), x


def outliers(folder):
    """One value in a million stretches the ranges."""
    weights = {"a": rng(0).standard_normal((8, 8, 1, 1)), "b": rng(1).standard_normal((8, 8, 1, 1))}
    x = rng(2).standard_normal((96, 8, 12, 12))
    x[1, 0, 0, 0] = 3000.0
    return network(folder / "m.onnx", "c = Conv(x, a) r = Relu(c) y = Conv(r, b)", weights), x


def depthwise(folder):
    """The channels of a depthwise convolution differ by orders of magnitude, and all count the same."""
    scale = 10.0 ** np.linspace(-3, 1, 32)
    weights = {
        "a": rng(0).standard_normal((32, 32, 1, 1)) * 0.2,
        "d": rng(1).standard_normal((32, 1, 3, 3)) * scale[:, None, None, None],
        "p": 1 / scale[:, None, None],
        "b": rng(2).standard_normal((32, 32, 1, 1)),
    }
    body = (
        (
            "c = Conv(x, a) r = Relu(c) d = Conv<group = 32, pads = [1,1,1,1]>(r, d) "
            "t = Tanh(d) q = Mul(t, p) h = Tanh(q) y = Conv(h, b)"
        )
        .replace("d = Conv<", "k = Conv<")
        .replace("Tanh(d)", "Tanh(k)")
    )
    x = rng(3).standard_normal((96, 32, 12, 12))
    return network(folder / "m.onnx", body, weights, shape="N, 32, 12, 12", out="N, 32, 12, 12"), x


def channels(folder):
    """The channels after a norm differ by orders of magnitude, and the weights make up for it."""
    scale = 10.0 ** np.linspace(-2.5, 1, 64)
    weights = {
        "g": scale,
        "o": np.zeros(64),
        "a": 0.05 * rng(0).standard_normal((64, 64)) / scale[:, None],
        "b": rng(1).standard_normal((64, 64)),
    }
    body = "n = LayerNormalization(x, g, o) m = MatMul(n, a) t = Sin(m) y = MatMul(t, b)"
    x = rng(3).standard_normal((96, 9, 64))
    return network(folder / "m.onnx", body, weights, shape="N, 9, 64", out="N, 9, 64"), x


def quantized(folder, made):
    model, x = made(folder)
    np.savez(folder / "x.npz", x=x.astype(np.float32))
    return quantize_file(model, folder / "x.npz", folder / "int8.onnx").made


@pytest.mark.parametrize(
    ("made", "remedy"),
    [
        (amplified, "float where the error begins"),
        (outliers, "ranges by percentile"),
        (depthwise, "float where the error begins"),
        (channels, "channels smoothed"),
    ],
)
def test_a_remedy_that_helps_is_kept(tmp_path, made, remedy):
    found = quantized(tmp_path, made).fidelity
    assert remedy in [one.remedy for one in found.remedies if one.kept]
    assert not found.low
    assert found.sqnr_db > 20


def test_a_smoothed_network_stays_in_int8(tmp_path):
    made = quantized(tmp_path, channels)
    assert [one.remedy for one in made.fidelity.remedies if one.kept] == ["channels smoothed"]
    types = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert types.count("LayerNormalization") == 1
    assert "Mul" not in types  # the factors are in the norm
    assert audit(tmp_path / "int8.onnx").int8_mac_ratio == 1.0


def outliers_and_a_sine(folder):
    """Ranges by percentile help, and do not suffice."""
    _, x = outliers(folder)
    weights = {name: rng(n).standard_normal((8, 8, 1, 1)) for n, name in enumerate("abd")}
    weights |= {"k": np.array(2.0), "h": np.array(0.1)}
    body = "c = Conv(x, a) r = Relu(c) e = Conv(r, b) m = Mul(e, k) s = Sin(m)"
    body += " f = Conv(r, d) g = Mul(f, h) y = Add(s, g)"
    return network(folder / "m.onnx", body, weights), x


def test_nodes_return_to_float_only_if_nothing_else_helps(tmp_path):
    first, second, *_ = quantized(tmp_path, outliers_and_a_sine).fidelity.remedies
    assert (first.remedy, first.kept) == ("ranges by percentile", True)
    assert second.before == first.after  # the other changes are tried on the better ranges
    assert second.in_float


def hopeless(folder):
    """A product whose result is multiplied by 1,000 before a sine: no 8 bits hold it."""
    weights = {"a": rng(0).standard_normal((8, 8, 1, 1)), "k": np.array(1000.0)}
    x = rng(2).standard_normal((96, 8, 12, 12))
    return network(folder / "m.onnx", "c = Conv(x, a) m = Mul(c, k) y = Sin(m)", weights), x


def test_without_a_remedy_the_layers_with_the_error_are_named(tmp_path):
    found = quantized(tmp_path, hopeless).fidelity
    assert found.low
    assert found.first_layers == ()
    assert not any(remedy.kept for remedy in found.remedies)
    assert found.warning().startswith("the int8 model differs much from float: SQNR")
    assert "in output 'y' on held-out samples" in found.warning()


def test_the_command_warns_and_prints_the_figures(tmp_path, command):
    model, x = hopeless(tmp_path)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    ran = command("quantize", model, "--data", tmp_path / "x.npz", "--out", tmp_path / "int8.onnx")
    assert "against float on 16 held-out samples: SQNR" in ran.out
    assert "warning: the int8 model differs much from float" in ran.err
    ran = command(
        "quantize", model, "--data", tmp_path / "x.npz", "--out", tmp_path / "int8.onnx", "--json"
    )
    assert json.loads(ran.out)["fidelity"]["low"] is True


def test_inspect_layers_reports_the_fidelity(tmp_path, command):
    model, x = amplified(tmp_path)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    quantize_file(model, tmp_path / "x.npz", tmp_path / "int8.onnx")
    ran = command(
        "inspect",
        tmp_path / "int8.onnx",
        "--layers",
        "--float",
        model,
        "--data",
        tmp_path / "x.npz",
        "--json",
    )
    fidelity = json.loads(ran.out)["fidelity"]
    assert (fidelity["low"], fidelity["output"]) == (False, "y")


def test_chosen_repairs_are_not_followed_by_others(tmp_path):
    model, x = hopeless(tmp_path)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    repairs = RepairSettings(("bias",))
    made = quantize_file(model, tmp_path / "x.npz", tmp_path / "int8.onnx", repairs=repairs).made
    assert made.fidelity.low
    assert made.fidelity.remedies == ()


def test_few_samples_judge_again(tmp_path):
    model, x = outliers(tmp_path)
    np.savez(tmp_path / "x.npz", x=x[2:10].astype(np.float32))
    made = quantize_file(model, tmp_path / "x.npz", tmp_path / "int8.onnx").made
    assert (made.samples, made.fidelity.samples, made.fidelity.held_out) == (8, 8, False)


def test_whole_groups_are_left_out_of_calibration(tmp_path):
    model, x = outliers(tmp_path)
    names = np.repeat(["anna", "bert", "carl"], [40, 36, 20])
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32), groups=names)
    made = quantize_file(model, tmp_path / "x.npz", tmp_path / "int8.onnx").made
    assert (made.samples, made.fidelity.samples) == (76, 20)


def test_groups_of_another_form_are_refused(tmp_path, command):
    model, x = outliers(tmp_path)
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32), groups=np.zeros(96))
    ran = command("quantize", model, "--data", tmp_path / "x.npz", "--out", tmp_path / "int8.onnx")
    assert (ran.code, "store one integer or text for each sample" in ran.err) == (2, True)
