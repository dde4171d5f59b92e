"""Quantization with repairs: they are judged on held-out samples, kept or dropped, and reported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.core.errors import DataError, UsageError
from bench.core.progress import SILENT
from bench.inputs.evaluation import read_evaluation
from bench.metrics.parity import sqnr_db
from exporter.errors import ExportError, RecipeError
from exporter.graphs.inference import run_model
from exporter.graphs.targets import TARGETS
from exporter.pipeline.quantize_file import quantize_file
from exporter.quantization.int8 import Int8Settings, quantize_model
from exporter.quantization.int8_repaired import RepairSettings, quantize_repaired
from exporter.quantization.repair import REPAIRS, RepairContext
from exporter.quantization.repair.held_out import RepairSamples, hold_out
from exporter.quantization.repair.score import outputs_of
from exporter.quantization.repair.trial import MIN_GAIN_DB
from exporter.quantization.split import quantize_split
from exporter.recipes import FallbackConfig, QuantizeConfig, recipe_from
from exporter.results import BiasFigures, EqualizeFigures

TARGET = TARGETS["x86-vnni"]
EVERY = ("equalize", "adaround", "bias")


@pytest.fixture
def coarse(onnx_models, tmp_path):
    """The trained network with a very large weight on a dead channel: 8 bits represent the others badly."""
    model = onnx.load(onnx_models.float)
    weight = next(i for i in model.graph.initializer if i.name == "body.weight")
    value = numpy_helper.to_array(weight).copy()
    value[:, 0, 0, 0] = 100
    stem = next(i for i in model.graph.initializer if i.name == "stem.weight")
    dead = numpy_helper.to_array(stem).copy()
    dead[0] = 0
    bias = next(i for i in model.graph.initializer if i.name == "stem.bias")
    shift = numpy_helper.to_array(bias).copy()
    shift[0] = -1
    for initializer, array in ((weight, value), (stem, dead), (bias, shift)):
        initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    path = tmp_path / "coarse.onnx"
    onnx.save(model, path)
    return path


def quantized(model, out, splits, *repair, inputs=None, fallback=None, fixed_batch=None):
    calibration = splits.calibration
    samples = hold_out(inputs or calibration.inputs, calibration.labels, fixed_batch)
    settings = Int8Settings(TARGET, fixed_batch=fixed_batch)
    repairs = RepairSettings(repair, fallback)
    return quantize_repaired(onnx.load(model), out, samples, settings, repairs, progress=SILENT)


def plainly(model, out, splits):
    return quantize_model(onnx.load(model), out, splits.calibration, Int8Settings(TARGET), progress=SILENT)


def test_every_repair_reports_its_effect(coarse, splits, tmp_path):
    out = tmp_path / "int8.onnx"
    found = quantized(coarse, out, splits, *EVERY)
    assert [report.repair for report in found.repairs] == list(EVERY)
    assert (found.samples, found.held_out_samples) == (18, 6)
    kept = [report for report in found.repairs if report.kept]
    assert kept, found.repairs
    assert all(r.sqnr_db_after >= r.sqnr_db_before + MIN_GAIN_DB for r in kept)
    assert all(r.reason for r in found.repairs if not r.kept)
    for before, after in zip(found.repairs, found.repairs[1:], strict=False):
        reached = before.sqnr_db_after if before.kept else before.sqnr_db_before
        assert after.sqnr_db_before == reached
    plain = tmp_path / "plain.onnx"
    plainly(coarse, plain, splits)
    wanted = run_model(coarse, splits.evaluation)
    errors = [float(np.abs(run_model(p, splits.evaluation) - wanted).mean()) for p in (plain, out)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("target", ["x86-avx2", "x86-vnni"])
def test_the_shipped_model_has_the_judged_score(tmp_path, target):
    """AdaRound must round to the reduced levels of saturating channels, or its choice is lost."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
    ]
    weights = {"w0": draw.uniform(-1, 1, (64, 32)), "w1": draw.uniform(-1, 1, (32, 8))}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    # The inputs are correlated, so rounding errors add up.
    inputs = {"x": (draw.uniform(0.5, 1, (96, 1)) * draw.uniform(0.5, 1, 64)).astype(np.float32)}
    held_out = {"x": inputs["x"][::2]}
    found = quantize_repaired(
        model,
        tmp_path / "int8.onnx",
        RepairSamples(inputs, held_out, None),
        Int8Settings(TARGETS[target]),
        RepairSettings(("adaround",)),
        progress=SILENT,
    )
    (report,) = found.repairs
    assert report.kept
    assert bool(found.reduced_channels) is TARGETS[target].saturates
    shipped = outputs_of(onnx.load(tmp_path / "int8.onnx"), held_out, 8)
    reached = sqnr_db(outputs_of(model, held_out, 8), shipped)
    assert reached == pytest.approx(report.sqnr_db_after, abs=0.2)


def test_without_repairs_the_result_is_plain_quantization(onnx_models, splits, tmp_path):
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    config = QuantizeConfig(samples=splits.calibration.count)
    found = quantize_split(
        onnx_models.float, one, splits.calibration, config, TARGET, seed=0, progress=SILENT
    )
    assert not {"repairs", "held_out_samples", "fallback"} & found.as_json().keys()
    plainly(onnx_models.float, other, splits)
    assert one.read_bytes() == other.read_bytes()


def test_equal_inputs_give_equal_bytes(coarse, splits, tmp_path):
    paths = [tmp_path / "one.onnx", tmp_path / "other.onnx"]
    for path in paths:
        quantized(coarse, path, splits, *EVERY)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_repair_that_harms_is_not_kept(onnx_models, splits, tmp_path, monkeypatch):
    def spoilt(model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for initializer in copy.graph.initializer:
            if initializer.name == "head.weight":
                value = -numpy_helper.to_array(initializer)
                initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
        return copy

    figures = {
        "equalize": EqualizeFigures(pairs=1, channels=1, channels_at_a_clip=0),
        "bias": BiasFigures(layers=1, largest_correction=1.0),
    }
    for name, found in figures.items():
        monkeypatch.setitem(REPAIRS, name, lambda model, _context, found=found: (spoilt(model), found))
    found = quantized(onnx_models.float, tmp_path / "int8.onnx", splits, "equalize", "bias")
    preserving, bending = found.repairs
    assert not preserving.kept
    assert "it changed the float model" in preserving.reason
    assert not bending.kept
    assert "it did not improve the SQNR" in bending.reason
    assert (
        run_model(tmp_path / "int8.onnx", splits.evaluation).argmax(1) == splits.evaluation.labels
    ).all()


def test_held_out_samples_do_not_affect_ranges(onnx_models, splits, tmp_path):
    """The held-out samples are multiplied by 1000; the ranges stay small."""
    inputs = {"image": splits.calibration.inputs["image"].copy()}
    wild = np.linspace(0, 23, 6).astype(int)
    inputs["image"][wild] *= 1000
    quantized(onnx_models.float, tmp_path / "int8.onnx", splits, "bias", inputs=inputs)
    model = onnx.load(tmp_path / "int8.onnx")
    scale = next(i for i in model.graph.initializer if i.name == "image_scale")
    assert numpy_helper.to_array(scale) < 0.1


def test_layers_are_left_in_float_until_the_budget_holds(coarse, splits, tmp_path):
    out = tmp_path / "int8.onnx"
    budget = FallbackConfig(max_drop=0.9, min_sqnr_db=24.0, max_layers=4)
    left = quantized(coarse, out, splits, fallback=budget).fallback
    assert left.before.sqnr_db < 24 <= left.after.sqnr_db
    assert "body" in left.exclude
    constants = {i.name: i.data_type for i in onnx.load(out).graph.initializer}
    nodes = {node.name: node for node in onnx.load(out).graph.node}
    assert all(
        constants.get(nodes[n].input[1]) == onnx.TensorProto.FLOAT for n in left.exclude if n == "body"
    )
    assert {"layers", "sqnr_db", "cost_ns"} == left.candidates[0].as_json().keys()


def test_layers_left_in_float_have_their_original_weights(coarse, splits, tmp_path):
    out = tmp_path / "int8.onnx"
    budget = FallbackConfig(max_drop=0.9, min_sqnr_db=35.0, max_layers=4)
    found = quantized(coarse, out, splits, "adaround", fallback=budget)
    assert found.repairs[0].kept
    assert "body" in found.fallback.exclude
    before, after = (
        {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
        for path in (coarse, out)
    )
    np.testing.assert_array_equal(after["body.weight"], before["body.weight"])


def test_no_layer_is_left_in_float_if_int8_meets_the_budget(onnx_models, splits, tmp_path):
    left = quantized(
        onnx_models.float, tmp_path / "int8.onnx", splits, fallback=FallbackConfig(max_drop=0.5)
    ).fallback
    assert (left.exclude, left.tried, left.candidates) == ((), 1, ())


def test_a_budget_that_cannot_be_met(coarse, splits, tmp_path):
    budget = FallbackConfig(max_drop=0.5, min_sqnr_db=200.0, max_layers=1)
    with pytest.raises(ExportError) as caught:
        quantized(coarse, tmp_path / "int8.onnx", splits, fallback=budget)
    assert caught.value.place == "quantize.fallback"
    assert "no configuration meets the budget: the best of 2, with" in caught.value.cause
    assert "requires 200.0 dB" in caught.value.cause
    assert "max_layers (now 1)" in caught.value.fix
    assert not (tmp_path / "int8.onnx").exists()


def test_a_fixed_batch_is_kept(splits, tmp_path, onnx_models):
    model = onnx.load(onnx_models.float)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "fixed.onnx"
    onnx.save(model, path)
    found = quantized(path, tmp_path / "int8.onnx", splits, "adaround", "bias", fixed_batch=4)
    assert (found.samples, found.held_out_samples) == (16, 8)


def test_samples_come_in_full_batches():
    context = RepairContext(
        inputs={"x": np.arange(20)},
        batch_size=5,
        reference=onnx.ModelProto(),
        qdq_model=lambda model: model,
        per_channel=True,
        progress=SILENT,
    )

    def sizes(samples=None):
        return [len(feeds["x"]) for feeds in context.feeds(samples)]

    assert (sizes(), sizes(12), sizes(3), sizes(99)) == ([5] * 4, [5, 5], [5], [5] * 4)
    assert context.batches() == 4


def test_too_few_samples(splits):
    one = splits.calibration.first(1)
    with pytest.raises(DataError, match="1 samples are too few to hold some out"):
        hold_out(one.inputs, one.labels)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("smoothe",), "there is no repair 'smoothe'; choose from: .*equalize"),
        (("bias", "bias"), "repair 'bias' is named twice"),
        (("bias", "equalize"), "repair 'equalize' must come before 'bias'"),
    ],
)
def test_invalid_lists_of_repairs_are_rejected(onnx_models, splits, tmp_path, names, match):
    with pytest.raises(UsageError, match=match):
        quantized(onnx_models.float, tmp_path / "int8.onnx", splits, *names)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"repair": ["bias", "equalize"]}, "must come before"),
        ({"repair": ["polish"]}, "quantize.repair"),
        ({"fallback": {"max_drop": 1.5}}, "quantize.fallback.max_drop"),
        ({"fallback": {"max_layers": 0}}, "quantize.fallback.max_layers"),
    ],
)
def test_invalid_repairs_and_fallbacks_are_rejected_with_the_recipe(table, match):
    content = {"name": "n", "model": {"factory": "a:b", "checkpoint": "c"}, "data": {"factory": "a:b"}}
    with pytest.raises(RecipeError, match=match):
        recipe_from({**content, "quantize": table}, "recipe.toml")


def test_infinite_activations_are_refused(onnx_models, splits, tmp_path):
    model = onnx.load(onnx_models.float)
    for initializer in model.graph.initializer:
        if initializer.name in {"stem.weight", "body.weight"}:
            value = numpy_helper.to_array(initializer) * np.float32(1e30)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    onnx.save(model, tmp_path / "wild.onnx")
    with pytest.raises(DataError, match="holds NaN or infinity"):
        quantized(tmp_path / "wild.onnx", tmp_path / "int8.onnx", splits, *EVERY)


def test_the_command_repairs(command, onnx_models, splits, tmp_path):
    data, out = tmp_path / "calibration.npz", tmp_path / "int8.onnx"
    np.savez(data, **splits.calibration.inputs, labels=splits.calibration.labels)
    arguments = ("quantize", onnx_models.float, "--data", data, "--out", out)
    done = command(*arguments, "--repair", "adaround", "--repair", "bias", "--max-drop", "0.5")
    assert done.code == 0, done.err
    assert "adaround: SQNR" in done.err
    assert "bias: SQNR" in done.err
    refused = command(*arguments, "--repair", "polish")
    assert refused.code == 2
    refused = command(*arguments, "--repair", "bias", "--repair", "equalize")
    assert refused.code == 2
    assert "must come before" in refused.err
    assert read_evaluation(data).labels is not None
    found = quantize_file(onnx_models.float, data, out, repairs=RepairSettings(("bias",)))
    assert found.made.repairs[0].repair == "bias"


def test_a_recipe_repairs(project):
    project.edit("recipe.toml", "samples = 16\n", 'samples = 16\nrepair = ["adaround", "bias"]\n')
    project.edit(
        "recipe.toml",
        "[quantize]\n",
        '[[stage]]\nkind = "reestimate"\n\n[quantize.fallback]\nmax_drop = 0.9\n\n[quantize]\n',
    )
    found = project.build(until="quantize").steps
    assert found["reestimate"].norms == 1
    assert [report.repair for report in found["quantize"].repairs] == ["adaround", "bias"]
    assert found["quantize"].fallback.exclude == ()
    assert project.build(until="quantize").ran == ()
