"""Artifacts: files match the manifest, and outputs match those of the build."""

from __future__ import annotations

import numpy as np
import pytest

from bench.core.arrays import write_npz
from bench.core.errors import ArtifactError, DataError, UsageError
from bench.inputs.artifact import Subject, check_hashes, subject, target_warnings
from bench.inputs.host import fingerprint
from bench.measuring.golden import compare_golden, read_golden
from bench.measuring.self_test import self_test


def test_a_whole_artifact_passes(artifact):
    manifest = check_hashes(artifact.folder)
    assert set(manifest.files) == {"model.onnx", "model.fp32.onnx", "evaluation.npz", "golden.npz"}
    outcome = self_test(artifact.folder)
    assert (outcome.agreement, outcome.samples) == (1.0, 8)
    assert outcome.sqnr_db > 100


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "sub/model.onnx", "..", ".hidden", "", "a\nb", "a" * 101]
)
def test_names_that_leave_the_folder_are_refused(artifact, name):
    files = artifact.describe()["files"]
    artifact.seal(files=files | {name: files["model.onnx"]})
    with pytest.raises(ArtifactError, match="which is not a plain file name") as caught:
        check_hashes(artifact.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "evaluation.npz"])
@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_file_is_found(artifact, name, same_size):
    path = artifact.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if same_size else content + b"\0")
    with pytest.raises(ArtifactError, match=f"{name}: differs from the hash in the manifest"):
        check_hashes(artifact.folder)


def test_a_missing_file_is_found(artifact):
    (artifact.folder / "golden.npz").unlink()
    with pytest.raises(ArtifactError, match=r"golden\.npz: is missing from the artifact; copy"):
        check_hashes(artifact.folder)


@pytest.mark.parametrize("name", ["model.fp32.onnx.data", "notes.txt", ".hidden", "folder"])
def test_files_that_the_manifest_does_not_list_are_refused(artifact, name):
    """An extra file beside the float model would count for its size, and so change the budget of size."""
    stranger = artifact.folder / name
    if name == "folder":
        stranger.mkdir()
    else:
        stranger.write_bytes(bytes(1000))
    for refuses in (check_hashes, subject):
        with pytest.raises(ArtifactError, match=f"{name}: is not listed in the manifest; move it out"):
            refuses(artifact.folder)


def test_a_link_in_an_artifact_is_refused(artifact, tmp_path):
    path = artifact.folder / "model.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx: is missing from the artifact"):
        check_hashes(artifact.folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp32.onnx"])
def test_both_models_must_be_listed(artifact, name):
    files = artifact.describe()["files"]
    del files[name]
    artifact.seal(files=files)
    with pytest.raises(ArtifactError, match=f"does not list {name}; build the artifact again"):
        check_hashes(artifact.folder)


@pytest.mark.parametrize("share_wrong", [1.0, 0.25])
def test_outputs_that_differ_from_those_of_the_build_fail(artifact, share_wrong):
    golden = artifact.folder / "golden.npz"
    feeds, expected = read_golden(golden)
    wrong = expected["y"].copy()
    wrong[: int(len(wrong) * share_wrong)] *= -1
    write_npz(golden, feeds | {"expected.y": wrong})
    with pytest.raises(ArtifactError, match=r"its outputs on this CPU differ .*; build it for this CPU"):
        self_test(artifact.folder)
    artifact.seal(target="z80")
    words = r"from the outputs on z80, which it was made for .*; verify it on z80, or build it for this CPU"
    with pytest.raises(ArtifactError, match=words):
        self_test(artifact.folder)


def test_a_changed_prediction_fails_even_if_the_error_is_small(artifact):
    golden = artifact.folder / "golden.npz"
    feeds, expected = read_golden(golden)
    # The sample has tiny values, so its wrong prediction hardly changes the SQNR.
    faint = np.array([[1e-6]] + [[1.0]] * 7, np.float32)
    flipped = np.array([[-1e-6]] + [[1.0]] * 7, np.float32)
    write_npz(golden, {"x": feeds["x"] * faint, "expected.y": expected["y"] * flipped})
    with pytest.raises(ArtifactError, match=r"SQNR 1\d\d\.\d dB, .*; 88% of predictions equal"):
        self_test(artifact.folder)


def test_a_golden_file_needs_feeds_and_outputs(tmp_path):
    path = tmp_path / "golden.npz"
    for arrays in ({"x": np.zeros((2, 2))}, {"expected.y": np.zeros((2, 2))}):
        write_npz(path, arrays)
        with pytest.raises(ArtifactError, match="contains no feeds or no expected outputs"):
            read_golden(path)


def test_a_missing_golden_file(artifact):
    (artifact.folder / "golden.npz").unlink()
    with pytest.raises(DataError, match=r"golden\.npz: there is no such file"):
        self_test(artifact.folder)


@pytest.fixture
def golden(tmp_path):
    path = tmp_path / "golden.npz"
    scores = np.array([[1.0, 2.0], [4.0, 3.0]])
    write_npz(path, {"x": np.zeros((2, 2)), "expected.y": scores, "expected.z": scores})
    return path


@pytest.mark.parametrize(
    "outputs", [{"y": np.zeros((2, 2))}, {"y": np.zeros((2, 2)), "z": np.zeros((3, 2))}]
)
def test_golden_outputs_must_fit(golden, outputs):
    with pytest.raises(ArtifactError, match="expects output 'z' of shape"):
        compare_golden(golden, outputs)


def test_the_worst_output_counts(golden):
    scores = np.array([[1.0, 2.0], [4.0, 3.0]])
    outcome = compare_golden(golden, {"y": scores, "z": scores[:, ::-1]})
    assert outcome.agreement == 0.0
    assert compare_golden(golden, {"y": scores, "z": scores}).agreement == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_golden_outputs_must_be_finite(golden, bad):
    scores = np.array([[1.0, 2.0], [4.0, bad]])
    with pytest.raises(ArtifactError, match="output 'y' holds NaN or infinity"):
        compare_golden(golden, {"y": scores, "z": scores})


def test_an_artifact_includes_its_twin_and_its_data(artifact, models, evaluation):
    folder = artifact.folder
    own = Subject(folder / "model.onnx", folder / "model.fp32.onnx", folder / "evaluation.npz", "portable")
    assert subject(folder) == own
    assert subject(folder, evaluation).evaluation == evaluation
    assert subject(models.dynamic, evaluation) == Subject(models.dynamic, None, evaluation)


def test_data_that_the_manifest_does_not_list_are_not_used(artifact):
    files = artifact.describe()["files"]
    del files["evaluation.npz"]
    artifact.seal(files=files)
    with pytest.raises(ArtifactError, match=r"evaluation\.npz: is not listed in the manifest"):
        subject(artifact.folder)
    (artifact.folder / "evaluation.npz").unlink()  # an artifact may ship without it
    assert subject(artifact.folder).evaluation is None


def test_a_changed_artifact_is_refused(artifact):
    (artifact.folder / "model.fp32.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="differs from the hash"):
        subject(artifact.folder)


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none\.onnx: there is no such file or folder"):
        subject(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("target", "kind", "warned"),
    [
        ("x86-vnni", "x86-vnni", False),
        ("portable", "arm64", False),
        ("arm64", "x86-vnni", True),
        ("x86-vnni", "x86-avx2", True),
        ("odd\x1b[2J\n", "x86-vnni", True),
    ],
)
def test_an_artifact_for_another_kind_of_cpu(artifact, target, kind, *, warned):
    artifact.seal(target=target)
    hosts = {"x86-vnni": ("x86_64", ("avx_vnni",)), "x86-avx2": ("x86_64", ()), "arm64": ("arm64", ())}
    machine, flags = hosts[kind]
    host = fingerprint().model_copy(update={"machine": machine, "cpu_flags": flags})
    warnings = target_warnings([subject(artifact.folder)], host)
    assert len(warnings) == warned
    for line in warnings:
        assert line.startswith(f"{artifact.folder} was made for {target!r}, this CPU is {kind}: ")
        assert line.isprintable()


def test_a_lone_model_was_made_for_any_cpu(models):
    assert target_warnings([subject(models.dynamic)], fingerprint()) == ()
