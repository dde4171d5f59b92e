"""The public names of `bench`: fixed, typed, cheap to import, with examples that run."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

import bench
from bench.core.errors import UsageError

SOURCE = ast.parse(Path(bench.__file__).read_text())
FUNCTIONS = [
    "certify",
    "compare",
    "convert",
    "gate",
    "measure",
    "measure_scenario",
    "read_result",
    "read_scenario",
    "replay",
    "verify",
    "write_result",
]
TYPES = [
    "ArtifactError",
    "Budgets",
    "Certificate",
    "CertifyOptions",
    "DataError",
    "EdgeproofError",
    "Flip",
    "Format",
    "GateOptions",
    "HostError",
    "Interrupted",
    "Judgement",
    "LatencySummary",
    "Manifest",
    "MeasureConfig",
    "MeasurementError",
    "Metric",
    "ModelError",
    "ModelResult",
    "Parity",
    "Policy",
    "PolicyError",
    "Progress",
    "ReleaseBudgets",
    "Result",
    "ResultError",
    "Run",
    "Scenario",
    "ScenarioConfig",
    "ScenarioModel",
    "ScenarioResult",
    "StorageError",
    "TwinBudgets",
    "UsageError",
    "Verdict",
    "Verification",
]


def test_the_public_names():
    """Removing a name breaks users; `docs/stability.md` describes the steps before that."""
    assert sorted(["__version__", *FUNCTIONS, *TYPES]) == bench.__all__
    assert set(bench.__all__) <= set(dir(bench))
    assert bench.__version__ == version("edgeproof")
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'mesure'"):
        bench.mesure  # noqa: B018


def test_names_for_type_checkers_match_those_at_run_time():
    blocks = [node for node in SOURCE.body if isinstance(node, ast.If)]
    (block,) = (node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted([*imported, "__version__"]) == bench.__all__
    for name, module in imported.items():
        home = getattr(bench, name)
        assert vars(sys.modules[module])[name] is home
        assert getattr(home, "__module__", module) == module


def test_importing_the_package_loads_no_modules():
    script = "import bench, sys; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = ran.stdout.split()
    assert [name for name in loaded if name.startswith("bench")] == ["bench"]
    assert {"numpy", "pydantic", "onnxruntime", "rich", "typer"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_has_an_example(name):
    function = getattr(bench, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert not re.search(r"\bAny\b", str(signature))
    assert "Args:" in function.__doc__
    assert "Raises:" in function.__doc__
    assert ">>> import bench" in function.__doc__


@pytest.mark.parametrize("name", TYPES)
def test_every_type_has_a_docstring(name):
    assert inspect.getdoc(getattr(bench, name))


@pytest.fixture
def working_folder(models, evaluation, artifact, tmp_path, monkeypatch):
    """A working folder with a model, an older one, labelled data and an artifact."""
    shutil.copyfile(models.dynamic, tmp_path / "model.onnx")
    shutil.copyfile(models.rounded, tmp_path / "older.onnx")
    shutil.copyfile(evaluation, tmp_path / "evaluation.npz")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name):
    """The examples of the docstrings run with real processes."""
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(bench, name), name, globs={})
    said = []
    failed, ran = doctest.DocTestRunner().run(example, out=said.append)
    assert ran > 1
    assert failed == 0, "".join(said)


def test_two_threads_measure_at_once(models, evaluation, samples):
    """Each thread gets its own figures; a wrong call in a third thread disturbs neither."""
    together = threading.Barrier(3)

    def measured(model):
        together.wait()
        config = bench.MeasureConfig(rounds=2, burst_target_ns=100_000)
        return bench.measure(model, data=evaluation, blocks=2, config=config)

    with ThreadPoolExecutor(3) as pool:
        paths = [models.dynamic, models.rounded, models.folder / "none.onnx"]
        first, second, wrong = (pool.submit(measured, path) for path in paths)
        for path, future in ((models.dynamic, first), (models.rounded, second)):
            (model,) = future.result().models
            assert (model.path, len(model.runs)) == (str(path), 2)
            assert model.size_bytes == path.stat().st_size
            assert all(run.samples_ns().min() > 0 for run in model.runs)
            assert len(model.predictions) == len(samples.labels)
        assert first.result().models[0].accuracy() == pytest.approx(samples.accuracy)
        with pytest.raises(UsageError, match=r"none\.onnx: there is no such file"):
            wrong.result()


def test_two_threads_judge_at_once(models, scripted, tmp_path):
    """Gate and replay in two threads return the same verdicts as in one."""
    config = bench.MeasureConfig(rounds=3)
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    together = threading.Barrier(2)

    def judged(slowdown, path):
        together.wait()
        judgement = bench.compare(
            models.dynamic,
            models.rounded,
            budgets=bench.Budgets(latency_p50=0.02),
            config=config,
            workers=scripted(slowdown={"rounded.onnx": slowdown}),
        )
        bench.write_result(path, judgement.result)
        return judgement.verdict, bench.replay(path)[1].verdict

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(judged, [1.0, 1.5], files))
    assert verdicts == [(bench.Verdict.PASS,) * 2, (bench.Verdict.FAIL,) * 2]
