"""Public names of `exporter`: fixed, typed, fast to import, and with examples that run."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import bench
import exporter
from bench.core.errors import UsageError

SOURCE = ast.parse(Path(exporter.__file__).read_text())
FUNCTIONS = [
    "ablate",
    "build",
    "inspect",
    "load_image_folder",
    "load_trained",
    "package_file",
    "quantize",
    "resize_images",
    "stratified_indices",
]
TYPES = [
    "Ablation",
    "BuildOutcome",
    "DataError",
    "EdgeproofError",
    "Inspection",
    "QuantizedFile",
    "Split",
    "Splits",
]


def test_the_public_names():
    """Removing a name breaks users; `docs/stability.md` describes the steps before a removal."""
    assert sorted(["__version__", *FUNCTIONS, *TYPES]) == exporter.__all__
    assert set(exporter.__all__) <= set(dir(exporter))
    assert exporter.__version__ == version("edgeproof") == bench.__version__
    with pytest.raises(AttributeError, match="module 'exporter' has no attribute 'quantise'"):
        exporter.quantise  # noqa: B018


def test_type_checkers_see_the_names_that_exist_at_run_time():
    blocks = [node for node in SOURCE.body if isinstance(node, ast.If)]
    block = next(node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted([*imported, "__version__"]) == exporter.__all__
    for name, module in imported.items():
        assert getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name) is getattr(
            exporter, name
        )


def test_importing_loads_nothing_heavy():
    script = "import exporter, sys; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ran.stdout.split()
    assert [name for name in loaded if name.startswith(("bench", "exporter"))] == ["bench", "exporter"]
    assert {"numpy", "pydantic", "torch", "onnx", "onnxruntime", "rich", "typer"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_has_an_example(name):
    function = getattr(exporter, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert not re.search(r"\bAny\b", str(signature))
    assert ">>> import exporter" in function.__doc__


@pytest.mark.parametrize("name", TYPES)
def test_every_type_has_a_docstring(name):
    assert inspect.getdoc(getattr(exporter, name))


@pytest.fixture
def shelf(built, monkeypatch):
    """A working folder with a built recipe, its artifact, a float model, samples and images."""
    shutil.copytree(built.artifact, "artifact")
    shutil.copyfile(built.artifact / "model.fp32.onnx", "model.onnx")
    shutil.copyfile(built.artifact / "evaluation.npz", "evaluation.npz")
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        folder = Path("pictures", name)
        folder.mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (12, 12), colour).save(folder / f"{index}.png")
    monkeypatch.syspath_prepend(str(built.folder))


@pytest.mark.slow
@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name):
    """Run the example of each function with real models and processes."""
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(exporter, name), name, globs={})
    said = []
    failed, ran = doctest.DocTestRunner().run(example, out=said.append)
    assert ran > 1
    assert failed == 0, "".join(said)


@pytest.mark.slow
@pytest.mark.usefixtures("shelf")
def test_quantize_and_gate_in_five_lines():
    made = exporter.quantize("model.onnx", "int8.onnx", data="evaluation.npz", target="portable")
    policy = {
        "baseline": {
            "latency_p50": None,
            "latency_p90": None,
            "peak_rss": None,
            "accuracy": 0.5,
            "size": 10.0,
        }
    }
    options = bench.GateOptions(pairs=10)
    judgement = bench.gate(made.model, "model.onnx", policy, data="evaluation.npz", options=options)
    assert judgement.verdict is bench.Verdict.PASS


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bits": 5}, "--bits: 5 bits are not supported; choose 8 or 4"),
        (
            {},
            "--data: is missing, but 8 bits need calibration samples; name an .npz with a few hundred",
        ),
        ({"target": "z80"}, "--target: 'z80' is unknown; choose one of: "),
        ({"method": "guess"}, "--method: 'guess' is unknown; choose one of: "),
        (
            {"data": "x.npz", "max_drop": 1.0},
            "--max-drop: 1 is out of range; choose from 0 to below 1",
        ),
        (
            {"bits": 4, "data": "x.npz"},
            "--data: has no effect with 4 bits, because activations stay in float; leave --data out",
        ),
        (
            {"bits": 4, "block_size": 7},
            "--block-size: 7 is not a valid block size; choose 16, 32, 64, 128 or 256",
        ),
    ],
)
def test_invalid_options_are_refused_before_any_work(options, line):
    with pytest.raises(UsageError) as caught:
        exporter.quantize("model.onnx", "int8.onnx", **options)
    assert str(caught.value).startswith(line)
