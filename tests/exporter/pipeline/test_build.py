"""Builds: steps that run again, artifacts that are repaired, and recipes that are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file

import exporter
from bench.core.errors import ArtifactError, DataError, MeasurementError, MissingExtraError, UsageError
from bench.core.policy import criteria
from bench.core.progress import SilentProgress
from bench.inputs.artifact import check_hashes
from bench.inputs.evaluation import read_evaluation
from bench.inputs.host import fingerprint, host_target
from bench.inputs.manifest import read_manifest
from bench.inputs.runtime import stated_version
from bench.inputs.session import Signature, TensorSpec
from bench.judging.gate import judgement_from
from bench.measuring.result import read_result
from bench.measuring.self_test import self_test
from exporter import extras
from exporter.errors import CheckpointError, ExportError, LookupFailed
from exporter.extras import TESTED, require_tested
from exporter.pipeline import gate_step, parity_step
from exporter.pipeline.packaging import preprocessing_entries
from exporter.recipes import read_recipe

STEPS = ("pretrained", "finetune", "prune", "export", "quantize", "parity", "gate")
FILES = {
    "model.onnx",
    "model.fp32.onnx",
    "evaluation.npz",
    "golden.npz",
    "result.json",
    "report.html",
    "manifest.json",
}


@pytest.fixture
def measured(built, monkeypatch):
    """A built project whose gate judges the first measurement again instead of measuring."""
    result = read_result(built.artifact / "result.json")

    def judge(subject, baseline, policy, **options):
        return judgement_from(result, criteria(policy, [policy.float_twin]))

    monkeypatch.setattr(gate_step, "gate_subjects", judge)
    return built


def test_the_artifact_is_complete(built_once):
    assert {path.name for path in built_once.artifact.iterdir()} == FILES
    manifest = check_hashes(built_once.artifact)
    assert manifest.min_onnxruntime == str(stated_version(built_once.artifact / "model.onnx")) == "1.22"
    assert "for portable, ONNX Runtime 1.22 and later, by edgeproof" in (
        built_once.artifact / "report.html"
    ).read_text(encoding="utf-8")
    assert set(manifest.files) == FILES - {"manifest.json"}
    assert tuple(stage.name for stage in manifest.stages) == STEPS
    assert manifest.recipe == read_recipe(built_once.recipe).model_dump(mode="json")
    assert (manifest.name, manifest.target, manifest.verdict) == ("tiny", "portable", "PASS")
    assert manifest.libraries["torch"]


def test_the_manifest_describes_the_use_of_the_model(built_once):
    manifest = read_manifest(built_once.artifact)
    assert (manifest.schema_version, manifest.task) == (2, "classification")
    assert (manifest.labels, manifest.preprocessing, manifest.licences) == (None, None, None)
    (taken,), (given,) = manifest.signature.inputs, manifest.signature.outputs
    assert (taken.name, taken.dtype, taken.shape) == ("image", "float32", ("batch", 1, 8, 8))
    assert (given.dtype, given.shape) == ("float32", ("batch", 3))
    int8 = read_result(built_once.artifact / "result.json").models[-1]
    accuracy = manifest.metrics["accuracy"]
    assert (accuracy.value, accuracy.direction) == (int8.accuracy(), "higher")
    assert accuracy.split == "evaluation"
    assert accuracy.samples == len(int8.correct())
    assert accuracy.baseline is not None


def test_the_manifest_describes_the_preprocessing(project):
    overrides = ["export.preprocess.mean=[1.0]", "export.preprocess.std=[2.0]"]
    taken = Signature((TensorSpec("image", "uint8", (None, 8, 8, 1)),), ())
    (image,) = preprocessing_entries(read_recipe(project.recipe, overrides), taken)
    assert (image.input, image.mean, image.std, image.layout) == ("image", (1.0,), (2.0,), "nhwc")
    assert image.in_graph


def test_the_artifact_passes_its_self_test(built_once):
    outcome = self_test(built_once.artifact)
    assert (outcome.agreement, outcome.samples) == (1.0, 8)


def test_the_artifact_contains_the_evaluation_data(built_once, tiny):
    found, given = read_evaluation(built_once.artifact / "evaluation.npz"), tiny.splits().evaluation
    assert np.array_equal(found.feeds["image"], given.inputs["image"])
    assert np.array_equal(found.labels, given.labels)


def test_the_manifest_contains_the_figures_of_every_stage(built_once):
    stages = {stage.name: stage.metrics for stage in read_manifest(built_once.artifact).stages}
    assert stages["pretrained"] == {"parameters": 699, "classes": 3}
    assert stages["finetune"]["evaluation_accuracy"] > 0.9
    assert stages["prune"]["sparsity"] == pytest.approx(0.25, abs=1e-3)
    pruned, exported = stages["prune"], stages["export"]
    assert pruned["zero_share"] == pruned["zeros"] / pruned["parameters"] < pruned["sparsity"]
    assert {key: exported[key] for key in ("zeros", "parameters")} == {
        key: pruned[key] for key in ("zeros", "parameters")
    }
    assert stages["export"]["nodes"] == 7
    assert stages["quantize"]["samples"] == 16
    assert stages["parity"]["export"]["sqnr_db"] > 50
    assert stages["parity"]["layers"]
    assert stages["gate"]["verdict"] == "PASS"
    model = onnx.load(built_once.artifact / "model.fp32.onnx")
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    zeros = sum(int((weights[f"{n}.weight"] == 0).sum()) for n in ("stem", "body", "head"))
    assert zeros == round(0.25 * (8 * 9 + 8 * 8 * 9 + 3 * 8))


def test_the_artifact_contains_no_paths_of_the_builder(built_once):
    for path in built_once.artifact.iterdir():
        content = path.read_bytes()
        assert os.fsencode(built_once.folder) not in content, path.name
        assert os.fsencode(Path.home()) + b"/" not in content, path.name


def test_a_second_build_does_nothing(built):
    before = {path: path.stat().st_mtime_ns for path in built.artifact.iterdir()}
    outcome = built.build()
    assert (outcome.ran, outcome.packaged) == ((), False)
    assert outcome.artifact == built.artifact
    assert outcome.judgement.verdict == "PASS"
    assert {path: path.stat().st_mtime_ns for path in built.artifact.iterdir()} == before


def test_an_edited_stage_reruns_the_later_steps(built):
    built.edit("recipe.toml", "sparsity = 0.25", "sparsity = 0.5")
    outcome = built.build(until="parity")
    assert outcome.ran == ("prune", "export", "quantize", "parity")
    assert outcome.steps["prune"].sparsity == pytest.approx(0.5, abs=1e-3)


QAT = '[[stage]]\nkind = "qat"\nepochs = 1\nbatch_size = 10\n\n[quantize]\n'


def test_weights_and_ranges_of_qat_are_in_the_int8_model(built):
    before = onnx.load(built.entry("export") / "model.fp32.onnx").graph
    built.edit("recipe.toml", "[quantize]\n", QAT)
    outcome = built.build(until="parity")
    assert outcome.ran == ("qat", "export", "quantize", "parity")
    learned = outcome.steps["qat"]
    assert outcome.steps["quantize"].learned_ranges == learned.ranges > 3
    assert learned.agreement_with_int8 >= 0.99
    assert outcome.steps["export"].sparsity == learned.sparsity == pytest.approx(0.25, abs=1e-2)
    model = onnx.load(built.entry("quantize") / "model.onnx")
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert (constants["body.weight_quantized"] == 0).mean() > 0.1
    ends = built.entry("qat") / "learned.safetensors"
    low, high = load_file(ends)["range:image"].tolist()
    assert constants["image_scale"] == np.float32((high - low) / 255)
    # The float baseline is the network before `qat`, because its weights are trained for rounding.
    exported = built.entry("export")
    assert onnx.load(exported / "model.fp32.onnx").graph == before
    assert onnx.load(exported / "trained.onnx").graph != before
    assert outcome.steps["parity"].torch_accuracy == learned.float_accuracy
    # `qat` trains for the quantization settings of the recipe, so it depends on them.
    assert built.build(until="qat", overrides=["quantize.samples=20"]).ran == ("qat",)


def test_an_edited_budget_judges_again_and_packages(measured):
    measured.edit("recipe.toml", "accuracy = 0.5", "accuracy = 0.4")
    outcome = measured.build()
    assert (outcome.ran, outcome.packaged) == (("gate",), True)
    assert outcome.judgement.metrics["accuracy"].budget == 0.4
    assert check_hashes(measured.artifact).recipe["gate"]["float_twin"]["accuracy"] == 0.4


def test_a_failed_gate_still_writes_an_artifact(measured):
    outcome = measured.build(overrides=["gate.float_twin.size=-0.99"])
    assert outcome.judgement.verdict == "FAIL"
    assert check_hashes(measured.artifact).verdict == "FAIL"


def test_a_build_for_another_kind_of_cpu_cannot_pass(built, command):
    here = host_target(fingerprint())
    other = "arm64" if here.startswith("x86") else "x86-vnni"
    ran = command("build", built.recipe, "--set", f"quantize.target={other}")
    assert ran.code == 3
    assert f"warning: quantize.target is {other}, but this CPU is {here}" in ran.err
    assert "int8 is not faster than float on this CPU" not in ran.err
    lines = {line.split("  ")[0]: line for line in ran.out.splitlines()}
    for row in ("latency p50", "peak memory", "latency_p50", "peak_rss"):
        assert f"not measured on {other}" in lines[row]
    manifest = check_hashes(built.artifact)
    gate = next(stage.metrics for stage in manifest.stages if stage.kind == "gate")
    assert (manifest.verdict, manifest.target, gate["verdict"]) == ("INCONCLUSIVE", other, "INCONCLUSIVE")
    assert f"was made for {other}, this CPU is {here}" in gate["reasons"][0]
    assert gate["metrics"]["latency_p50"]["ratio"] is None
    page = (built.artifact / "report.html").read_text()
    assert page.count(f"not measured on {other}") > 10
    assert "INCONCLUSIVE" in page
    # A later gate on this CPU gives the same verdict.
    assert command("gate", built.artifact).code == 3


def test_until_writes_no_artifact(project):
    outcome = project.build(until="finetune")
    assert outcome.ran == ("pretrained", "finetune")
    assert (outcome.artifact, outcome.judgement, outcome.packaged) == (None, None, False)
    assert not project.artifact.exists()
    assert project.build(until="pretrained").ran == ()


def test_until_the_gate_judges_and_packages_nothing(measured):
    before = (measured.artifact / "manifest.json").read_bytes()
    outcome = measured.build(until="gate", overrides=["gate.float_twin.size=-0.99"])
    assert (outcome.artifact, outcome.packaged) == (None, False)
    assert outcome.steps["gate"].verdict == "FAIL"
    assert (measured.artifact / "manifest.json").read_bytes() == before


def test_until_must_be_a_step(project):
    with pytest.raises(UsageError) as caught:
        project.build(until="distill")
    assert caught.value.fix == f"choose one of: {', '.join(STEPS)}"
    assert not project.cache.exists()


def test_fresh_takes_nothing_from_the_cache(project):
    first = project.build(until="finetune")
    again = project.build(until="finetune", fresh=True)
    assert again.ran == ("pretrained", "finetune")
    assert again.steps == first.steps


def test_a_damaged_entry_is_built_again_with_equal_bytes(built):
    weights = built.entry("finetune") / "weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    outcome = built.build()
    assert (outcome.ran, outcome.packaged) == (("finetune",), False)
    assert weights.read_bytes() == good


EDITS = {
    "seed": lambda p: p.edit("recipe.toml", 'name = "tiny"\n', 'name = "tiny"\nseed = 1\n'),
    "data": lambda p: p.edit("shapes.py", "seed=0, classes=3", "seed=1, classes=3"),
    "network": lambda p: p.edit("net.py", "width=8", "width=4"),
    "comment": lambda p: p.edit("net.py", "import torch\nfrom", "# mine\nimport torch\nfrom"),
    "arguments": lambda p: p.edit("recipe.toml", "{ classes = 3 }", "{ classes = 3, width = 4 }"),
    "data's arguments": lambda p: p.edit(
        "recipe.toml", '"shapes:make_splits"', '"shapes:make_splits"\nargs = { calibration = 21 }'
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_that_can_change_the_result_rerun_the_steps(built, name):
    EDITS[name](built)
    assert built.build(until="finetune").ran == ("pretrained", "finetune")


@pytest.mark.parametrize(
    "addition",
    ["\n[quantize.nothing]\n", "\n# a remark\n", "\n[export]\nopset = 20\n\n[bench]\nthreads = 1\n"],
    ids=["unrelated file", "comment", "explicit defaults"],
)
def test_other_edits_rerun_nothing(built, addition):
    if "nothing" in addition:
        (built.folder / "unrelated.py").write_text("x = 1\n")
    else:
        with built.recipe.open("a") as stream:
            stream.write(addition)
    assert built.build().ran == ()


def test_a_module_that_a_factory_imports_when_called_counts(project):
    (project.folder / "helper.py").write_text("WIDTH = 8\n")
    project.edit(
        "net.py", "        super().__init__()\n", "        super().__init__()\n        import helper\n"
    )
    assert project.build(until="pretrained").ran == ("pretrained",)
    assert project.build(until="pretrained").ran == ()
    (project.folder / "helper.py").write_text("WIDTH = 8  # the same\n")
    assert project.build(until="pretrained").ran == ("pretrained",)


AUGMENTING = """

def augmented(strength, **sizes):
    def augment(inputs, generator):
        return {"image": inputs["image"] * strength}
    plain = make_splits(**sizes)
    return Splits(plain.train, plain.calibration, plain.evaluation, augment)
"""


def test_arguments_that_change_only_the_augmentation_count(project):
    with (project.folder / "shapes.py").open("a") as stream:
        stream.write(AUGMENTING)
    project.edit("recipe.toml", '"shapes:make_splits"', '"shapes:augmented"\nargs = { strength = 1.0 }')
    first = project.build(until="finetune")
    assert project.build(until="finetune").ran == ()
    project.edit("recipe.toml", "strength = 1.0", "strength = 0.0")
    again = project.build(until="finetune")
    assert "finetune" in again.ran
    assert again.steps["finetune"].curves != first.steps["finetune"].curves


@pytest.mark.parametrize("damage", ["altered", "missing", "manifest", "gone"])
def test_a_damaged_artifact_is_written_again(built, damage):
    model = built.artifact / "model.onnx"
    good = model.read_bytes()
    if damage == "altered":
        model.write_bytes(good[:-1] + b"x")
    elif damage == "missing":
        (built.artifact / "report.html").unlink()
    elif damage == "manifest":
        (built.artifact / "manifest.json").write_text("{}")
    else:
        shutil.rmtree(built.artifact)
    outcome = built.build()
    assert (outcome.ran, outcome.packaged) == ((), True)
    assert model.read_bytes() == good
    assert set(check_hashes(built.artifact).files) == FILES - {"manifest.json"}


def test_an_artifact_can_be_written_elsewhere(built, tmp_path):
    outcome = built.build(out=tmp_path / "deep" / "release")
    assert (outcome.ran, outcome.packaged) == ((), True)
    assert check_hashes(tmp_path / "deep" / "release").name == "tiny"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_other_files_and_folders_are_not_replaced(project, tmp_path, kind):
    place = tmp_path / "mine"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("years")
    else:
        place.write_text("years")
    with pytest.raises(UsageError, match="choose another --out"):
        project.build(out=place)
    assert (place / "thesis.txt" if kind == "folder" else place).read_text() == "years"
    assert not project.cache.exists()


def test_an_artifact_with_an_added_file_is_not_replaced(built):
    (built.artifact / "notes.txt").write_text("years")
    with pytest.raises(
        UsageError, match="is not a file of the artifact, and replacing the artifact would delete it"
    ):
        built.build()
    assert (built.artifact / "notes.txt").read_text() == "years"
    assert (built.artifact / "model.onnx").is_file()


@pytest.mark.parametrize("read", ["checkpoint", "teacher"])
def test_an_artifact_that_the_recipe_reads_is_not_replaced(built, read):
    """A teacher or a checkpoint may be in an earlier artifact, which a build must not replace."""
    if read == "checkpoint":
        built.edit(
            "recipe.toml",
            "args = { classes = 3 }\n",
            'args = { classes = 3 }\ncheckpoint = "earlier/model.onnx"\n',
        )
    else:
        built.edit(
            "recipe.toml",
            "[quantize]\n",
            '[[stage]]\nkind = "distill"\nepochs = 1\nteacher = { model = "link" }\n\n[quantize]\n',
        )
    built.artifact.rename(built.folder / "earlier")
    (built.folder / "link").symlink_to("earlier")
    before = (built.folder / "earlier" / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="which the recipe reads; choose another --out"):
        built.build(out=built.folder / "earlier")
    assert (built.folder / "earlier" / "manifest.json").read_bytes() == before


def test_an_empty_folder_is_used(built, tmp_path):
    (tmp_path / "empty").mkdir()
    assert built.build(out=tmp_path / "empty").packaged


def test_the_cache_can_be_elsewhere(project, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPROOF_CACHE", str(tmp_path / "shared"))
    assert project.build(until="pretrained").ran == ("pretrained",)
    assert not project.cache.exists()
    assert (tmp_path / "shared" / "builds.jsonl").is_file()


@pytest.mark.parametrize(("module", "extra"), [("torch", "export"), ("matplotlib", "report")])
def test_a_missing_extra_is_reported_before_the_work(project, monkeypatch, module, extra):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == module else find_spec(name))
    with pytest.raises(MissingExtraError) as caught:
        project.build()
    assert str(caught.value) == (
        f"{module}: this Python module is not installed; "
        f'run: pip install -c constraints.txt "edgeproof[{extra}]"'
    )
    assert not project.cache.exists()


def test_too_many_calibration_samples_are_refused_before_the_work(project):
    with pytest.raises(DataError, match="25 samples are requested"):
        project.build(overrides=["quantize.samples=25"])
    assert project.events() == []


def test_progress_is_reported(project):
    said = []

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    project.build(until="finetune", progress=Progress())
    assert said[:2] == ["reading data", "pretrained: done"]
    assert re.fullmatch(r"finetune: done \(accuracy [\d.]+%\)", said[2])


def test_excluding_another_node_needs_no_calibration(built):
    tasks = []

    class Progress(SilentProgress):
        def task(self, description, total):
            tasks.append(description)
            return super().task(description, total)

    excluded = built.build(until="quantize", overrides=['quantize.exclude=["head"]'], progress=Progress())
    assert excluded.ran == ("quantize",)
    assert "calibration" not in tasks
    built.build(until="quantize", overrides=["quantize.samples=8"], progress=Progress())
    assert tasks.count("calibration") == 1
    built.build(until="quantize", fresh=True, progress=Progress())
    assert tasks.count("calibration") == 2


def test_leftovers_of_a_killed_build_are_removed(built):
    half = built.cache / "ab" / ".tmp-1234"
    half.mkdir(parents=True)
    (half / "weights").write_text("half")
    aside = built.artifact.parent / ".tmp-tiny-abcdefgh"
    aside.mkdir()
    other = built.artifact.parent / ".tmp-other-abcdefgh"
    other.mkdir()
    built.build()
    assert not half.exists()
    assert not aside.exists()
    assert other.exists()  # another build may be writing it


def test_the_run_log_records_every_build(built):
    before = len(built.events())
    built.build()
    added = built.events()[before:]
    assert [(line["event"], line["step"]) for line in added] == [("cached", name) for name in STEPS]
    assert len({line["pid"] for line in built.events()}) == 2
    assert all(line["recipe"] == "tiny" for line in added)


DRIFTS = """
    def __getstate__(self):
        return self.__dict__


class Drifting(Net):
    def forward(self, image):
        if torch.onnx.is_in_onnx_export():
            return super().forward(image) + 1
        return super().forward(image)
"""


def test_an_export_with_other_outputs_stops_the_build(project):
    with (project.folder / "net.py").open("a") as stream:
        stream.write(DRIFTS)
    project.edit("recipe.toml", '"net:Net"', '"net:Drifting"')
    with pytest.raises(
        ExportError, match=r"differs from the trained network: .* at least 50.0 dB are required"
    ):
        project.build()
    assert not project.artifact.exists()
    assert project.events("failed")[0]["step"] == "parity"


def test_an_sqnr_below_the_limit_stops_the_build(built):
    with pytest.raises(ExportError, match=r"at least 200\.0 dB are required"):
        built.build(overrides=["export.min_sqnr_db=200.0"])


def test_int8_outputs_must_be_finite(built, monkeypatch):
    real = parity_step.run_scores
    monkeypatch.setattr(
        parity_step, "run_scores", lambda p, s: real(p, s) * (np.nan if p.name == "model.onnx" else 1)
    )
    (built.entry("parity") / "entry.json").unlink()
    with pytest.raises(ExportError, match=r"model.onnx: returns NaN or infinity"):
        built.build(until="parity")


def test_a_network_with_nothing_to_quantize_can_be_built(built):
    names = [node.name for node in onnx.load(built.artifact / "model.fp32.onnx").graph.node]
    outcome = built.build(until="parity", overrides=[f"quantize.exclude={json.dumps(names)}"])
    assert outcome.steps["parity"].layers == ()
    assert outcome.steps["quantize"].quantize_nodes == 0


def test_too_little_in_int8_fails_the_build(built):
    names = [node.name for node in onnx.load(built.artifact / "model.fp32.onnx").graph.node]
    few = [f"quantize.exclude={json.dumps(names[:2])}", "quantize.min_int8_ratio=0.99"]
    with pytest.raises(
        ExportError, match=r"at least 99.0% required; \d operators? stays? in float, the largest is"
    ):
        built.build(until="parity", overrides=few)
    assert built.build(until="parity", overrides=few[1:]).steps["parity"].audit.int8_mac_ratio == 1.0


def test_a_warning_if_calibration_differs_from_evaluation(built):
    said = []

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    found = built.build(until="quantize").steps["quantize"].warnings
    assert not [line for line in found if "calibration" in line]  # int8 may be slower on a tiny network
    line = "    images[labels == 2] += np.float32([1, -1] * 4)[:, None]\n"
    built.edit("shapes.py", line, f"{line}    images += 3 * (count == 24)\n")
    stage = built.build(until="quantize", progress=Progress()).steps["quantize"]
    (warning,) = (line for line in stage.warnings if "calibration" in line)
    assert re.match(
        r"calibration and evaluation samples of input 'image' differ: their distance is 1\.00, .* of 0\.",
        warning,
    )
    assert f"warning: {warning}" in said


def test_a_warning_names_the_operators_if_int8_is_not_faster(measured, monkeypatch):
    judge = gate_step.gate_subjects

    def slower(*arguments, **options):
        judgement = judge(*arguments, **options)
        latency = judgement.metrics["latency_p50"].model_copy(update={"upper": 1.01})
        return dataclasses.replace(judgement, metrics={**judgement.metrics, "latency_p50": latency})

    monkeypatch.setattr(gate_step, "gate_subjects", slower)
    (warning,) = measured.build(overrides=["gate.float_twin.size=9.0"]).steps["gate"].warnings
    assert re.search(r"not faster than float on this CPU; .*: \S+ \(QuantizeLinear, \d+%\)", warning)
    assert warning in (measured.artifact / "report.html").read_text()


FINETUNE = """\
[[stage]]
kind = "finetune"
epochs = 2
batch_size = 10
learning_rate = 0.05
"""


def add_checkpoint(project, tiny, **options):
    """Write a checkpoint next to the recipe, and name it there."""
    from safetensors.torch import save_file

    save_file(dict(tiny.net(**options).state_dict()), project.folder / "weights.safetensors")
    project.edit("recipe.toml", "args = { classes = 3 }\n", 'checkpoint = "weights.safetensors"\n')


def test_a_build_begins_with_the_checkpoint(project, tiny):
    add_checkpoint(project, tiny, seed=3)
    found = project.build(until="pretrained").steps["pretrained"]
    assert (found.tensors, found.new_head) == (len(tiny.net().state_dict()), None)
    weights = project.entry("pretrained") / "weights.safetensors"
    assert weights.read_bytes() == (project.folder / "weights.safetensors").read_bytes()
    assert project.build(until="pretrained").ran == ()


def test_new_weights_in_the_same_file_rerun_the_step(project, tiny):
    from safetensors.torch import save_file

    add_checkpoint(project, tiny, seed=3)
    project.build(until="pretrained")
    save_file(dict(tiny.net(seed=4).state_dict()), project.folder / "weights.safetensors")
    assert project.build(until="pretrained").ran == ("pretrained",)


def test_a_new_head_needs_a_stage_that_trains_it(project, tiny):
    add_checkpoint(project, tiny, classes=7)
    assert project.build(until="pretrained").steps["pretrained"].new_head == "head"
    project.edit("recipe.toml", FINETUNE, "")
    with pytest.raises(
        CheckpointError, match=r"its layer 'head' has other classes, .* add a stage of kind"
    ):
        project.build(until="pretrained")


PRETRAIN = """\
[[stage]]
kind = "pretrain"
epochs = 1
batch_size = 10
data = { factory = "shapes:make_splits", args = { seed = 5 } }

"""


def test_other_source_data_rerun_the_stage(project):
    project.edit("recipe.toml", '[[stage]]\nkind = "finetune"', PRETRAIN + '[[stage]]\nkind = "finetune"')
    outcome = project.build(until="finetune")
    assert outcome.ran == ("pretrained", "pretrain", "finetune")
    assert 0 <= outcome.steps["pretrain"].source_accuracy <= 1
    assert project.build(until="finetune").ran == ()
    project.edit("recipe.toml", "seed = 5", "seed = 6")
    assert project.build(until="finetune").ran == ("pretrain", "finetune")


DISTILL = """\
[[stage]]
kind = "distill"
epochs = 1
batch_size = 10
teacher = {teacher}

[quantize]
"""


def test_an_earlier_stage_is_the_teacher(project):
    project.edit("recipe.toml", "[quantize]\n", DISTILL.format(teacher='"finetune"'))
    outcome = project.build(until="distill")
    taught = outcome.steps["distill"].teacher_accuracy
    assert taught == outcome.steps["finetune"].evaluation_accuracy
    assert outcome.steps["distill"].sparsity == outcome.steps["prune"].sparsity


def test_another_network_is_the_teacher_and_its_weights_count(project, tiny):
    from safetensors.torch import save_file

    teacher = '{ factory = "net:Net", args = { width = 6 }, checkpoint = "teacher.safetensors" }'
    project.edit("recipe.toml", "[quantize]\n", DISTILL.format(teacher=teacher))
    file = project.folder / "teacher.safetensors"
    save_file(dict(tiny.net(width=6).state_dict()), file)
    project.build(until="distill")
    assert project.build(until="distill").ran == ()
    save_file(dict(tiny.net(width=6, seed=2).state_dict()), file)
    assert project.build(until="distill").ran == ("distill",)
    save_file(dict(tiny.net(width=6, classes=5).state_dict()), file)
    with pytest.raises(CheckpointError, match="choose a teacher with the same classes"):
        project.build(until="distill")


@pytest.mark.parametrize("table", ["model", "data"])
def test_factories_must_return_the_right_type(project, table):
    (project.folder / "wrong.py").write_text("def factory(**args):\n    return 3\n")
    old = '"net:Net"' if table == "model" else '"shapes:make_splits"'
    project.edit("recipe.toml", old, '"wrong:factory"')
    kind, words = {
        "model": (LookupFailed, "model.factory: returned int; return a torch.nn.Module"),
        "data": (DataError, r"data: returned int; return exporter.Splits"),
    }[table]
    with pytest.raises(kind, match=words):
        project.build(until="pretrained")


def test_a_float64_network_is_converted_to_float32(project):
    project.edit(
        "net.py",
        "        self.head = nn.Linear(width, classes)\n",
        "        self.head = nn.Linear(width, classes)\n        self.double()\n",
    )
    assert project.build(until="finetune").ran == ("pretrained", "finetune")


def test_a_gate_that_measured_nothing_writes_no_artifact(measured, monkeypatch):
    judge = gate_step.gate_subjects

    def empty(*arguments, **options):
        from dataclasses import replace

        judgement = judge(*arguments, **options)
        models = tuple(model.model_copy(update={"runs": ()}) for model in judgement.result.models)
        return replace(judgement, result=judgement.result.model_copy(update={"models": models}))

    monkeypatch.setattr(gate_step, "gate_subjects", empty)
    with pytest.raises(MeasurementError, match="nothing was measured"):
        measured.build(overrides=["gate.float_twin.accuracy=0.3"])
    with pytest.raises(ArtifactError):
        check_hashes(measured.folder / "nowhere")


@pytest.mark.parametrize("library", TESTED)
def test_only_tested_versions_are_accepted(library):
    content = tomllib.loads((Path(exporter.__file__).parent.parent / "pyproject.toml").read_text())
    oldest, below = TESTED[library]
    wanted = f"{library}>={oldest},<{below}"
    for extra in ("export", "demo"):
        assert wanted in content["project"]["optional-dependencies"][extra]
    require_tested(library, f"{oldest}.0")
    require_tested(library, f"{below.major}.{below.minor - 1}.9+cpu")
    for version, words in (
        (f"{oldest.major}.{oldest.minor - 1}.4", f"{oldest} or later"),
        (f"{below}.0", "a version"),
    ):
        with pytest.raises(UsageError, match=rf"needs {words}.*; version {version} is installed; run: pip"):
            require_tested(library, version)
