"""`edgeproof demo`: its data, its files, its text; and once the whole command."""

from __future__ import annotations

import json
from importlib.util import find_spec
from io import StringIO

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from bench import read_result, replay
from bench.core.errors import DataError, UsageError
from bench.inputs.evaluation import read_evaluation
from exporter import extras
from exporter.pipeline import demo as module
from exporter.pipeline.demo import INPUT, PAIRS, demo
from exporter.pipeline.demo_data import (
    CALIBRATION_PER_TYPE,
    EDGE,
    FEWEST,
    PADDING,
    SUFFIXES,
    ShippedModel,
    labelled_files,
    sample_of,
    shipped_model,
)
from tests.house.modules import ROOT

CLASSES = ("csv", "python", "xml")
FILES = {"budgets.toml", "calibration.npz", "evaluation.npz", "int8.onnx", "model.onnx", "result.json"}

needs_package = pytest.mark.skipif(
    find_spec("magika") is None, reason="the package magika is not installed"
)


def write_files(folder, counts):
    """Files of some types, none like another."""
    for suffix, count in counts.items():
        for number in range(count):
            path = folder / f"{suffix[1:]}-{number // 50}" / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{suffix} {number} " * 20)


@pytest.fixture
def installation(tmp_path):
    folder = tmp_path / "python"
    write_files(folder, {".csv": 110, ".py": 110, ".xml": 110, ".json": 9})
    return folder


@pytest.fixture
def small(tmp_path, installation, monkeypatch):
    """The demo with a model of one layer, the files above and a verdict that was given before."""
    weights = np.random.default_rng(0).standard_normal((2 * EDGE, len(CLASSES))).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [INPUT], ["x"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "w"], ["scores"], name="scope/a/b/product"),
        ],
        "g",
        [helper.make_tensor_value_info(INPUT, TensorProto.INT32, ["N", 2 * EDGE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "shipped.onnx")
    shipped = ShippedModel(tmp_path / "shipped.onnx", CLASSES, "magika", "1.0", "Apache-2.0")
    asked = []

    def judged(*models, **options):
        asked.append((models, options))
        return replay(ROOT / "tests" / "data" / "result-3.json")[1]

    monkeypatch.setattr(module, "shipped_model", lambda: shipped)
    monkeypatch.setattr(module, "data_folders", lambda: [installation])
    monkeypatch.setattr(module, "gate", judged)
    monkeypatch.setattr(module, "require", lambda *_: None)
    return asked


def test_a_sample_is_both_ends_of_a_file_without_outer_space(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b" \n" + b"a" * 3000 + b"z" * 3000 + b"\n ")
    assert sample_of(path).tolist() == [ord("a")] * EDGE + [ord("z")] * EDGE
    path.write_bytes(b" ab ")
    sample = sample_of(path)
    assert sample.dtype == np.int32
    assert sample[:3].tolist() == [*b"ab "]
    assert sample[-3:].tolist() == [*b" ab"]
    assert set(sample[4:-4]) == {PADDING}


def test_types_take_turns_and_no_sample_is_in_both_sets(installation):
    found = labelled_files([installation], CLASSES)
    assert found.types == len(CLASSES)  # json is none of them
    assert len(found.calibration) == CALIBRATION_PER_TYPE * found.types
    assert len(found.evaluation) == len(found.ids) == 330 - len(found.calibration)
    assert found.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]
    for name, label in zip(found.ids, found.labels, strict=True):
        assert SUFFIXES["." + name.rpartition(".")[2]] == CLASSES[label]
    rows = [row.tobytes() for row in (*found.calibration, *found.evaluation)]
    assert len(set(rows)) == len(rows)


def test_the_draw_depends_on_names_alone(installation):
    first, again = (labelled_files([installation], CLASSES) for _ in range(2))
    assert first.ids == again.ids
    assert first.ids[0].startswith("python/csv-")


def test_copies_tiny_files_and_other_packages_are_left_out(installation):
    before = labelled_files([installation], CLASSES)
    (installation / "copy.py").write_text((installation / "py-0" / "3.py").read_text())
    (installation / "tiny.py").write_text("x = 1")
    (installation / "lost.py").symlink_to("nowhere")
    write_files(installation / "site-packages", {".py": 60})
    after = labelled_files([installation], CLASSES)
    assert len(after.evaluation) == len(before.evaluation)


def test_too_few_files_are_refused(tmp_path):
    write_files(tmp_path, {".csv": 50, ".py": 50, ".xml": 5})
    with pytest.raises(
        DataError, match=f"only 94 usable files of known types were found, {FEWEST} are needed"
    ):
        labelled_files([tmp_path], CLASSES)


def text_of(parts):
    text = StringIO()
    console = Console(file=text, width=200, color_system=None, soft_wrap=True)
    for part in parts:
        console.print(part)
    return text.getvalue()


def test_each_step_says_why_how_and_what(small):
    parts = []
    found = demo(tell=parts.append)
    lines = text_of(parts).splitlines()
    steps = [line.partition(":")[0] for line in lines if line[:2] in {"1.", "2.", "3.", "4."}]
    assert steps == ["1. quantize", "2. inspect", "3. compare", "4. gate"]
    commands = [line.split()[2] for line in lines if line.startswith("$ ")]
    assert commands == ["quantize", "inspect", "compare", "gate"]
    assert [line.split()[1] for line in lines[-3:]] == ["quantize", "inspect", "gate"]
    assert "PASS" in lines
    assert "The files were removed; --out DIR keeps them." in lines
    assert any(line.startswith("model: magika 1.0 (Apache-2.0)") for line in lines)
    assert found.out is None


def test_nothing_stays_unless_it_is_asked_for(small, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    monkeypatch.chdir(work)
    found = demo()
    assert list(work.iterdir()) == []
    assert found.quantized.model.name == "int8.onnx"


def test_the_files_asked_for_are_kept(small, tmp_path):
    out = tmp_path / "new" / "kept"
    found = demo(out)
    assert {path.name for path in out.iterdir()} == FILES
    assert read_evaluation(out / "evaluation.npz").ids.tolist() == list(found.data.ids)
    assert read_result(out / "result.json") == found.judgement.result
    assert found.quantized.model == out / "int8.onnx"
    assert json.loads(json.dumps(found.as_json()))["quantize"]["model"] == str(out / "int8.onnx")


@pytest.mark.parametrize(("spent_s", "left_s"), [(10.0, 43.0), (50.0, 20.0)])
def test_the_measurement_gets_the_time_that_is_left(small, spent_s, left_s):
    moments = iter([0.0, spent_s, 60.0])
    found = demo(clock=lambda: next(moments))
    ((_, options),) = small
    assert options["config"].time_limit_s == left_s
    assert options["options"].pairs == PAIRS
    assert found.seconds == 60.0


@pytest.mark.parametrize("kind", ["file", "full"])
def test_nothing_is_overwritten(small, tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "full":
        place.mkdir()
        (place / "work").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty; name a new folder"):
        demo(place)
    assert small == []


def test_a_missing_package_is_named_with_the_line_that_installs_it(command, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    ran = command("demo")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: magika: this Python module is not installed; run: pip install")
    assert ran.err.endswith('"edgeproof[demo]"\n')


def test_the_command_prints_one_object(small, command):
    ran = command("demo", "--json")
    content = json.loads(ran.out)
    assert (ran.code, content["verdict"]) == (0, "PASS")
    assert content["out"] is None
    assert content["package"] == {"name": "magika", "version": "1.0", "licence": "Apache-2.0"}
    assert content["data"] == {"calibration": 9, "evaluation": 321, "types": 3}
    assert content["metrics"] == content["gate"]["metrics"]
    assert content["inspect"]["int8_mac_ratio"] == 1.0


@needs_package
def test_the_model_knows_every_type():
    assert set(SUFFIXES.values()) <= set(shipped_model().classes)


@needs_package
@pytest.mark.slow
def test_the_whole_command(command, tmp_path):
    """The verdict depends on the machine, so any of three is right; its parts have to agree."""
    out = tmp_path / "kept"
    ran = command("demo", "--json", "--out", out)
    content = json.loads(ran.out)
    if content["verdict"] == "INVALID" and any("time limit" in reason for reason in content["reasons"]):
        assert ran.code == 4
        pytest.skip("this machine is too busy to measure a single pair in the time of the demo")
    assert (content["verdict"], ran.code) in {("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 3)}
    assert {path.name for path in out.iterdir()} == FILES
    assert content["data"]["evaluation"] >= FEWEST
    assert content["inspect"]["int8_mac_ratio"] > 0.99
    assert content["metrics"]["size"]["verdict"] == "PASS"
    accuracy = content["gate"]["models"][0]["accuracy"]
    assert 0.9 < accuracy <= 1.0
    shown = json.loads(command("show", out / "result.json", "--json").out)
    assert shown["verdict"] == content["verdict"]
    assert shown["metrics"] == content["metrics"]
