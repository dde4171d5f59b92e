"""Manifests: every schema is read, and unknown or wrong values are refused."""

from __future__ import annotations

import json

import pytest

from bench.core.errors import ArtifactError
from bench.inputs import manifest as manifest_module
from bench.inputs.artifact import check_hashes, subject
from bench.inputs.manifest import ImageInput, Manifest, SignatureEntry, TensorEntry, read_manifest
from bench.inputs.session import open_session, signature_of

TENSOR = {"name": "x", "dtype": "float32", "shape": ["N", 4]}
SCORES = {"name": "y", "dtype": "float32", "shape": [None, 3]}
PICTURE = {
    "kind": "image",
    "input": "x",
    "layout": "nchw",
    "mean": [127.0],
    "std": [128.0],
    "in_graph": True,
    "channels": "rgb",
    "size": [224, 224],
    "resize": "crop",
    "shorter_side": 256,
    "interpolation": "bicubic",
    "fill": None,
}
TEXT = {
    "kind": "text",
    "input": "x",
    "content": "ids",
    "tokenizer": "golden.npz",
    "max_length": 128,
    "padding": "longest",
    "pad_id": 0,
}
SOUND = {
    "kind": "audio",
    "input": "x",
    "sample_rate_hz": 16000,
    "features": "log_mel",
    "layout": "time_first",
    "samples": 16000,
    "fft_samples": 512,
    "window_samples": 400,
    "hop_samples": 160,
    "bins": 40,
    "low_hz": 20.0,
    "high_hz": 8000.0,
    "mean": [0.5],
    "std": [2.0],
}
TABLE = {
    "kind": "table",
    "input": "x",
    "columns": ["age", "city"],
    "categories": {"city": ["Bonn", "Rome"]},
    "mean": [40.0, 0.0],
    "std": [12.0, 1.0],
}
EVERYTHING = {
    "schema_version": 2,
    "min_onnxruntime": "1.22",
    "task": "classification",
    "labels": ["cat", "dog", "cow"],
    "preprocessing": [PICTURE],
    "metrics": {
        "accuracy": {
            "value": 0.9,
            "baseline": 0.91,
            "direction": "higher",
            "split": "evaluation",
            "samples": 40,
        }
    },
    "licences": {"model.onnx": "Apache-2.0", "torchvision": "BSD-3-Clause"},
    "signature": {"inputs": [TENSOR], "outputs": [SCORES]},
}
OPTIONAL = set(EVERYTHING) - {"schema_version"}


def test_schema_1_has_none_of_the_later_attributes(artifact):
    manifest = read_manifest(artifact.folder)
    assert all(getattr(manifest, name) is None for name in OPTIONAL)
    kept = json.loads(manifest.model_dump_json())
    assert kept == artifact.describe() | dict.fromkeys(OPTIONAL)


def test_schema_2_has_all_attributes(artifact):
    artifact.seal(**EVERYTHING)
    manifest = check_hashes(artifact.folder)
    kept = json.loads(manifest.model_dump_json())
    assert {name: kept[name] for name in EVERYTHING} == EVERYTHING
    assert subject(artifact.folder).target == "portable"


@pytest.mark.parametrize("entry", [PICTURE, TEXT, SOUND, TABLE])
def test_every_kind_of_raw_data(artifact, entry):
    artifact.seal(preprocessing=[entry])
    (read,) = read_manifest(artifact.folder).preprocessing
    assert json.loads(read.model_dump_json()) == entry
    artifact.seal(preprocessing=[{name: value for name, value in entry.items() if value is not None}])
    assert read_manifest(artifact.folder).preprocessing == (read,)


def test_a_manifest_without_optional_attributes_is_written_and_read(artifact, tmp_path):
    manifest = Manifest.model_validate_json(json.dumps(artifact.describe() | {"schema_version": 2}))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.model_dump(mode="json")))
    assert read_manifest(tmp_path) == manifest


def test_a_signature_comes_from_a_session(models):
    entry = SignatureEntry.of(signature_of(open_session(models.dynamic)))
    assert entry.inputs == (TensorEntry(name="x", dtype="float32", shape=("N", 4)),)
    assert entry.outputs == (TensorEntry(name="y", dtype="float32", shape=("N", 3)),)
    assert SignatureEntry.of(signature_of(open_session(models.fixed))).inputs[0].shape == (2, 4)


def test_optional_attributes_of_a_picture():
    entry = ImageInput(input="x", layout="nhwc", mean=(0.0,), std=(255.0,))
    assert (entry.kind, entry.in_graph, entry.size) == ("image", False, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"schema_version": 7},
            "schema_version: 7 is refused; this version reads schemas 1 to 2; install a newer edgeproof",
        ),
        ({"colour": "red"}, "colour: unknown key; use one of: created_utc, edgeproof"),
        ({"name": 3}, "name: 3 is refused; input should be a valid string"),
        ({"files": {"a": {"sha256": "x"}}}, "files.a.size_bytes: is missing; add it"),
        ({"task": ""}, "task: '' is refused; string should have at least 1 character"),
        ({"labels": []}, "labels: [] is refused"),
        ({"labels": ["x" * 201]}, "is refused; string should have at most 200 characters"),
        ({"licences": {"a": "x" * (2**16 + 1)}}, "licences.a: "),
        ({"metrics": {"accuracy": {"value": 1.0}}}, "metrics.accuracy.direction: is missing"),
        (
            {"metrics": EVERYTHING["metrics"] | {"loss": EVERYTHING["metrics"]["accuracy"] | {"p": 1}}},
            "metrics.loss.p: unknown key; use one of: baseline, direction, samples, split, value",
        ),
        ({"signature": {"inputs": [TENSOR], "outputs": []}}, "signature.outputs: [] is refused"),
        (
            {"signature": {"inputs": [TENSOR | {"shape": [-1]}], "outputs": [SCORES]}},
            "signature.inputs.0.shape.0: -1 is refused",
        ),
        (
            {"preprocessing": [PICTURE | {"kind": "video"}]},
            "preprocessing.0.kind: 'video' is refused; choose one of 'image', 'text', 'audio', 'table'",
        ),
        ({"preprocessing": [{"input": "x"}]}, "preprocessing.0.kind: is missing; add it"),
        ({"preprocessing": [PICTURE | {"std": [0.0]}]}, "preprocessing.0.image.std.0: 0.0 is refused"),
        (
            {"preprocessing": [PICTURE | {"hop_samples": 1}]},
            "preprocessing.0.image.hop_samples: unknown key",
        ),
        (
            {"preprocessing": [PICTURE, PICTURE]},
            "preprocessing names an input twice; describe each input once",
        ),
        (
            {"preprocessing": [PICTURE | {"input": "z"}], "signature": EVERYTHING["signature"]},
            "preprocessing names 'z', which is not an input of the model; use a name in signature.inputs",
        ),
        (
            {"preprocessing": [TEXT | {"tokenizer": "../secret"}]},
            "files does not list the tokenizer '../secret'; build the artifact again",
        ),
    ],
)
def test_manifests_that_are_refused(artifact, changes, words):
    artifact.seal(**changes)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(artifact.folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_metric_is_a_number(artifact, number):
    artifact.seal(**EVERYTHING)
    path = artifact.folder / "manifest.json"
    path.write_text(path.read_text().replace("0.91", number))
    with pytest.raises(ArtifactError, match=r"metrics\.accuracy\.baseline: .* is refused"):
        read_manifest(artifact.folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_manifest_is_refused(artifact, content):
    (artifact.folder / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: the file: .* is refused"):
        read_manifest(artifact.folder)


def test_a_too_large_manifest_is_refused(artifact, monkeypatch):
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(ArtifactError, match="is larger than 10 bytes"):
        read_manifest(artifact.folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"manifest\.json: cannot be read .*; pass an artifact folder or"
    ):
        read_manifest(tmp_path)
