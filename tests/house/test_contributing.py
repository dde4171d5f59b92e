"""The examples of CONTRIBUTING.md run, each in the registry that its section names."""

from __future__ import annotations

import csv
import re
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bench
from bench.core.progress import SILENT
from bench.views.formats import markdown
from exporter.graphs import rewrites
from exporter.graphs.targets import TARGETS
from exporter.networks.network import Network
from exporter.quantization.int8 import Int8Settings
from exporter.quantization.repair import trial
from exporter.quantization.repair.qdq_models import calibrated
from exporter.quantization.repair.score import Judge, outputs_of
from exporter.sources.splits import Split, Splits
from exporter.training.stages import STAGES, Context, Loaders
from tests.house.modules import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## Write a (\w+)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def example(section):
    """The names that the example of a section defines."""
    (code,) = BLOCK.findall(dict(SECTION.findall(PAGE))[section])
    names = {"__name__": f"example_of_a_{section}"}
    exec(compile(code, f"CONTRIBUTING.md: {section}", "exec", dont_inherit=True), names)
    return SimpleNamespace(**names)


def test_every_kind_of_part_has_an_example():
    assert [name for name, _ in SECTION.findall(PAGE)] == ["stage", "rewrite", "repair", "metric", "format"]
    assert len(BLOCK.findall(PAGE)) == 5


def test_the_stage(monkeypatch):
    made = example("stage")
    monkeypatch.setitem(STAGES, "clip", made.clip)
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.copy_(torch.arange(12.0).reshape(3, 4) - 6)
        module.bias.zero_()
    x = np.eye(4, dtype=np.float32)
    data = Splits(*(Split({"input": x}, np.array([2, 2, 2, 2])),) * 3)
    nothing = Loaders(teacher=None, data=None, unlabelled=None)
    context = Context(name="clip", seed=0, progress=SILENT, fresh_module=nn.Identity, load=nothing)
    config = made.ClipConfig(kind="clip", limit=2.5)
    network, result = STAGES["clip"](Network(module), config, data, context)
    assert result.clipped == 7
    assert network.module.weight.abs().max().item() == 2.5
    assert result.as_json() == {"clipped": 7, "evaluation_accuracy": 1.0}


def parse(text):
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))


def test_the_rewrite(monkeypatch):
    made = example("rewrite")
    model = ir.from_proto(
        parse(
            """<ir_version: 9, opset_import: ["" : 18]>
            g (float[N, 3] x) => (float[N, 3] y) { a = Relu(x)  b = Relu(a)  y = Neg(b) }"""
        )
    )
    # `rewrite_for_cpu` takes its passes by their names in this module.
    monkeypatch.setattr(rewrites, "SoftmaxGuardPass", made.DoubleReluPass)
    rewrites.rewrite_for_cpu(model)
    assert [node.op_type for node in model.graph] == ["Relu", "Neg"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_the_repair(monkeypatch):
    made = example("repair")
    monkeypatch.setitem(trial.REPAIRS, "outliers", made.cut_outliers)
    monkeypatch.setitem(trial.REPORTS, "outliers", made.OutlierReport)
    model = parse(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[N, 64] x) => (float[N, 8] y) { y = MatMul(x, w) }"""
    )
    random = np.random.default_rng(0)
    weight = random.standard_normal((64, 8)).astype(np.float32)
    weight[3] = 40.0  # one row that the other weights' steps grow with, for an input that is always zero
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model.graph.node[0].name = "product"
    x = random.standard_normal((64, 64)).astype(np.float32)
    x[:, 3] = 0.0
    models = calibrated(model, {"x": x[:32]}, Int8Settings(TARGETS["portable"]), SILENT)
    judge = Judge(model, {"x": x[32:]}, None, 8)
    repaired = trial.try_repairs(model, ["outliers"], models, judge, SILENT)
    (report,) = repaired.reports
    assert report.weights == 8
    assert report.kept, report.reason
    assert outputs_of(repaired.model, {"x": x}, 8).shape == (64, 8)


def test_the_metric():
    made = example("metric")
    outputs = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    assert made.mean_cosine(outputs, 3 * outputs) == pytest.approx(1.0)
    assert made.mean_cosine(outputs, -outputs) == pytest.approx(-1.0)
    assert made.mean_cosine(outputs, np.zeros_like(outputs)) == 0.0


def test_the_format(monkeypatch):
    made = example("format")
    monkeypatch.setattr(markdown, "render", made.render)
    result, judgement = bench.replay(ROOT / "tests" / "data" / "result-3.json")
    rows = list(csv.DictReader(bench.convert(result, judgement, bench.Format.MARKDOWN).splitlines()))
    assert {row["model"] for row in rows} == {"model.fp32.onnx", "model.onnx"}
    (size,) = (
        row["value"] for row in rows if row["model"] == "model.onnx" and row["figure"] == "size_bytes"
    )
    assert int(size) == result.models[1].size_bytes
