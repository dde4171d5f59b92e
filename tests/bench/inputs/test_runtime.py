"""Every command refuses a model that needs a newer ONNX Runtime, in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import bench
from bench.core.errors import ArtifactError, ModelError
from bench.inputs.artifact import subject
from bench.inputs.runtime import (
    METADATA_KEY,
    OLDEST,
    RuntimeVersion,
    check_runtime,
    required_version,
    stated_version,
)
from bench.measuring.self_test import self_test
from tests.bench import onnx_bytes

ROOT = Path(bench.__file__).parent.parent
REFUSAL = "needs ONNX Runtime 99.1, but "


def test_the_oldest_version_is_that_of_the_dependencies():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"onnxruntime>={OLDEST}" in content["project"]["dependencies"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.28", (1, 28)),
        ("1.24.4", (1, 24)),
        ("1.33.0.dev1", (1, 33)),
        ("", None),
        ("1", None),
        ("x1.2", None),
    ],
)
def test_major_and_minor_version_are_parsed(text, version):
    assert RuntimeVersion.parse(text) == version


def test_versions_are_ordered_as_numbers():
    assert RuntimeVersion(1, 9) < RuntimeVersion(1, 22) < RuntimeVersion(2, 0)
    assert str(RuntimeVersion(1, 22)) == "1.22"


@pytest.mark.parametrize("text", [">=1.28", " >= 1.28 ", ">=1.28.1"])
def test_a_requirement_names_the_oldest_version(text):
    assert required_version(text) == (1, 28)


@pytest.mark.parametrize(
    "text", ["", "1.28", "==1.28", ">1.28", ">=1", ">=1.28,<2", ">=1.28 ;x", ">=latest"]
)
def test_other_requirements_are_refused(text):
    with pytest.raises(ValueError, match=r'is not a requirement on ONNX Runtime: write it as ">=1.22"'):
        required_version(text)


def test_versions_that_edgeproof_does_not_support_are_refused():
    with pytest.raises(ValueError, match=r"1.17 is older than 1.22, the oldest ONNX Runtime"):
        required_version(">=1.17")


@pytest.mark.parametrize(
    ("needed", "installed"),
    [(None, "1.22.0"), ((1, 28), "1.28.0"), ((1, 28), "1.30.1"), ((1, 28), "2.0"), ((1, 28), "nightly")],
)
def test_a_new_enough_runtime_passes(needed, installed):
    check_runtime(Path("m.onnx"), None if needed is None else RuntimeVersion(*needed), installed)


def test_an_older_runtime_is_refused():
    with pytest.raises(ModelError) as caught:
        check_runtime(Path("m.onnx"), RuntimeVersion(1, 28), "1.24.4")
    assert str(caught.value).startswith(
        "m.onnx: needs ONNX Runtime 1.28, but 1.24.4 is installed; upgrade ONNX Runtime, or build"
    )
    assert ">=1.24" in caught.value.fix


@pytest.fixture
def newer(models, tmp_path):
    """A model whose metadata require a version that does not exist yet."""
    path = tmp_path / "newer.onnx"
    path.write_bytes(models.rounded.read_bytes() + onnx_bytes.metadata({METADATA_KEY: "99.1"}))
    return path


def test_a_model_states_what_it_needs(newer, models):
    assert stated_version(newer) == (99, 1)
    assert stated_version(models.rounded) is None


def test_a_lone_model_that_needs_a_newer_version_is_refused(newer):
    with pytest.raises(ModelError, match=REFUSAL):
        subject(newer)


def test_an_artifact_that_needs_a_newer_version_is_refused(artifact):
    artifact.seal(schema_version=2, min_onnxruntime="99.1")
    for refuses in (subject, self_test):
        with pytest.raises(ModelError, match=REFUSAL):
            refuses(artifact.folder)


def test_an_artifact_that_needs_an_installed_version_passes(artifact):
    artifact.seal(schema_version=2, min_onnxruntime=str(OLDEST))
    assert subject(artifact.folder).model.name == "model.onnx"
    assert self_test(artifact.folder).agreement == 1.0


@pytest.mark.parametrize("stated", ["", "soon", "1.28; rm", "1", 1.28, ["1.28"]])
def test_a_manifest_with_a_malformed_version_is_refused(artifact, stated):
    artifact.seal(schema_version=2, min_onnxruntime=stated)
    with pytest.raises(ArtifactError, match="min_onnxruntime"):
        subject(artifact.folder)


@pytest.mark.parametrize("name", ["bench", "compare", "gate", "verify", "certify"])
def test_every_command_refuses_in_one_line(command, artifact, models, newer, name):
    artifact.seal(schema_version=2, min_onnxruntime="99.1")
    others = {"compare": [models.dynamic], "gate": [], "verify": []}.get(name, [])
    ran = command(name, *others, artifact.folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {artifact.folder}: {REFUSAL}")
    assert ran.err.count("\n") == 1
    if name in {"bench", "compare", "certify"}:
        assert command(name, *others, newer).err.startswith(f"error: {newer}: {REFUSAL}")
