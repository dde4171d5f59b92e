"""Several threads of a process use the exporter at the same time; their results do not change."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import exporter
from bench.core.files import sha256_of
from bench.core.progress import SilentProgress

pytestmark = pytest.mark.slow


def test_two_threads_quantize_at_once(built, tmp_path):
    model, data = built.artifact / "model.fp32.onnx", built.artifact / "evaluation.npz"
    targets, together = ("portable", "arm64"), threading.Barrier(2)

    def made(target, folder):
        folder.mkdir()
        out = folder / f"{target}.onnx"
        return exporter.quantize(model, out, data=data, target=target, method="mse").sha256

    def at_once(target):
        together.wait()
        return made(target, tmp_path / f"thread {target}")

    alone = [made(target, tmp_path / f"alone {target}") for target in targets]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(at_once, targets)) == alone
    assert len(set(alone)) == 2


def test_two_threads_build_in_turn(make_project, tmp_path, monkeypatch):
    """The second build waits, reports it, and gives the same result as alone."""
    monkeypatch.chdir(tmp_path)
    projects = [make_project(tmp_path / name) for name in ("one", "two")]
    projects[1].edit("recipe.toml", "epochs = 2", "epochs = 1")
    said, together = [], threading.Barrier(2)

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    def exported(project, place):
        out = project.folder / place
        exporter.build(project.recipe, until="export", out=out, fresh=True, progress=Progress())
        return sha256_of(out / "model.fp32.onnx")

    def at_once(project):
        together.wait()
        return exported(project, "thread")

    alone = [exported(project, "alone") for project in projects]
    assert not any("another thread" in line for line in said)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(at_once, projects)) == alone
    assert alone[0] != alone[1]
    assert said.count("waiting for the build of another thread to finish") == 1


def test_the_next_recipe_of_a_process_imports_its_own_modules(make_project, tmp_path, monkeypatch):
    """Each folder has its own `net.py`; modules edited between two builds are read again."""
    monkeypatch.chdir(tmp_path)
    first, second = (make_project(tmp_path / name) for name in ("one", "two"))
    second.edit("net.py", "width=8", "width=6")

    def parameters(project):
        return exporter.build(project.recipe, until="pretrained").steps["pretrained"].parameters

    wide, narrow = parameters(first), parameters(second)
    assert wide > narrow
    assert parameters(first) == wide
    first.edit("net.py", "width=8", "width=6")
    assert parameters(first) == narrow
