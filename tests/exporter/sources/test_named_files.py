"""Files that the arguments of factories name, and the steps that run again when they change."""

from __future__ import annotations

import os

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.core.progress import SILENT
from exporter.errors import LookupFailed
from exporter.pipeline.plan import plan_steps
from exporter.pipeline.resolved_recipe import resolve_recipe
from exporter.recipes import read_recipe
from exporter.sources import named_files as named_files_module
from exporter.sources.named_files import named_files


@pytest.fixture
def root(tmp_path):
    """A folder with a file `w.bin` and a folder `shards` of two files."""
    folder = tmp_path / "root"
    (folder / "shards" / "deep").mkdir(parents=True)
    (folder / "w.bin").write_bytes(b"one")
    (folder / "shards" / "a.bin").write_bytes(b"a")
    (folder / "shards" / "deep" / "b.bin").write_bytes(b"b")
    return folder


@pytest.mark.parametrize(
    "value",
    ["absent.bin", "", "\0", "x" * 5000, "w.bin/x", "pkg://absent/x", "~nobody/x", 3, None, True, {}],
)
def test_texts_that_name_no_file_are_left_out(root, value):
    assert named_files({"x": value, "y": [value]}, [root]) == {}


@pytest.mark.parametrize("nest", [lambda x: x, lambda x: [1, x], lambda x: {"a": [{"b": x}]}])
def test_a_file_counts_by_its_content_however_deep_it_is_named(root, nest):
    arguments = {"weights": nest("w.bin")}
    before = named_files(arguments, [root])
    assert list(before) == ["w.bin"]
    os.utime(root / "w.bin", ns=(0, 0))
    assert named_files(arguments, [root]) == before
    (root / "w.bin").write_bytes(b"two")
    assert named_files(arguments, [root]) != before


def test_a_new_file_changes_the_hashes(root):
    arguments = {"weights": "later.bin"}
    assert named_files(arguments, [root]) == {}
    (root / "later.bin").write_bytes(b"")
    assert list(named_files(arguments, [root])) == ["later.bin"]


def test_all_roots_are_searched_and_each_file_is_hashed_once(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    first = named_files({"x": "w.bin"}, [root, other, root])
    assert [len(hashes) for hashes in first.values()] == [1]
    (other / "w.bin").write_bytes(b"theirs")
    both = named_files({"x": "w.bin"}, [root, other])
    assert both["w.bin"][0] == first["w.bin"][0] != both["w.bin"][1]


def test_absolute_paths_homes_and_packages_are_followed(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    texts = [str(root / "w.bin"), "~/w.bin", "pkg://exporter/py.typed"]
    found = named_files({"x": texts}, [tmp_path])
    assert found.keys() == set(texts)
    assert found[texts[0]] == found[texts[1]]


@pytest.mark.parametrize("change", ["content", "name", "new", "gone"])
def test_a_folder_counts_by_its_names_and_content(root, change):
    before = named_files({"x": "shards"}, [root])
    assert list(before) == ["shards"]
    inner = root / "shards" / "deep" / "b.bin"
    if change == "content":
        inner.write_bytes(b"B")
    elif change == "name":
        inner.rename(inner.with_name("c.bin"))
    elif change == "new":
        (root / "shards" / "c.bin").write_bytes(b"")
    else:
        inner.unlink()
    assert named_files({"x": "shards"}, [root]) != before


def test_hidden_and_generated_files_of_a_folder_do_not_count(root):
    before = named_files({"x": "shards"}, [root])
    for name in (".cache", "__pycache__"):
        (root / "shards" / name).mkdir()
        (root / "shards" / name / "x.bin").write_bytes(b"x")
    (root / "shards" / ".lock").write_bytes(b"x")
    (root / "shards" / "nowhere").symlink_to("absent")
    os.mkfifo(root / "shards" / "pipe")
    assert named_files({"x": "shards"}, [root]) == before


def test_circular_links_are_followed_once(root, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "c.bin").write_bytes(b"c")
    (root / "shards" / "far").symlink_to(tmp_path / "far")
    (root / "shards" / "round").symlink_to(root / "shards")
    (root / "shards" / "above").symlink_to(tmp_path)
    before = named_files({"x": "shards"}, [root])
    (tmp_path / "far" / "c.bin").write_bytes(b"C")
    after = named_files({"x": "shards"}, [root])
    assert after != before
    (tmp_path / "beside").write_bytes(b"a file that is reached only by a link to a folder above the recipe")
    assert named_files({"x": "shards"}, [root]) == after


@pytest.mark.parametrize("text", [".", "..", "/", "./", "../root"])
def test_folders_that_a_build_writes_into_do_not_count(root, text):
    assert named_files({"x": text}, [root]) == {}


def test_devices_and_pipes_are_not_read(root):
    os.mkfifo(root / "pipe")
    assert named_files({"x": ["pipe", "/dev/zero"]}, [root]) == {}


def test_unreadable_files_do_not_stop_a_build(root, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(named_files_module, "sha256_of", refuse)
    assert named_files({"x": "w.bin"}, [root]) == {"w.bin": ["unreadable"]}


def test_large_folders_count_by_sizes_and_times(root, monkeypatch):
    monkeypatch.setattr(named_files_module, "MAX_FOLDER_BYTES", 1)
    before = named_files({"x": "shards"}, [root])
    assert named_files({"x": "shards"}, [root]) == before
    os.utime(root / "shards" / "a.bin", ns=(0, 0))
    assert named_files({"x": "shards"}, [root]) != before


def test_folders_with_too_many_files_are_refused(root, monkeypatch):
    monkeypatch.setattr(named_files_module, "MAX_FOLDER_FILES", 1)
    with pytest.raises(LookupFailed, match=r"shards: is a folder with more than 1 files, .*; name a"):
        named_files({"x": "shards"}, [root])


LOADING = """

from pathlib import Path
from safetensors.torch import load_file

def loaded(weights, **others):
    net = Net(3)
    for path in [weights] if isinstance(weights, str) else weights["paths"]:
        net.load_state_dict(load_file(Path(__file__).parent / path if others else path))
    return net
"""
AUGMENTED = """

def augmented(path, **others):
    given = make_splits(**others)
    return Splits(given.train, given.calibration, given.evaluation, lambda inputs, generator: inputs)
"""
DISTILL = """
[[stage]]
kind = "distill"
epochs = 1
teacher = [{ factory = "net:loaded", args = { weights = "t.safetensors" }, checkpoint = "w.safetensors" }]
"""
PRETRAIN = """
[[stage]]
kind = "pretrain"
epochs = 1
data = { factory = "shapes:augmented", args = { path = "noise.bin", seed = 5 } }
"""


@pytest.fixture
def reading(project, tiny):
    """A project whose factories may read files that their arguments name."""
    for name, text in (("net.py", LOADING), ("shapes.py", AUGMENTED)):
        (project.folder / name).write_text((project.folder / name).read_text() + text)
    write_weights(project, tiny, 0)
    return project


def write_weights(project, tiny, seed, name="w.safetensors"):
    save_file(tiny.net(seed=seed).state_dict(), project.folder / name)


def ingredients(project, *overrides):
    recipe = read_recipe(project.recipe, overrides)
    steps = plan_steps(resolve_recipe(recipe, project.folder, SILENT))
    return {step.name: step.ingredients() for step in steps}


def test_files_of_the_data_are_hashed_once_for_all_steps(reading, monkeypatch):
    asked = []

    def counted(arguments, roots):
        asked.append(arguments)
        return named_files(arguments, roots)

    monkeypatch.setattr("exporter.pipeline.resolved_recipe.named_files", counted)
    found = ingredients(reading, "data.factory=shapes:augmented", "data.args={path='noise.bin'}")
    assert all("augment" in one for one in found.values())
    assert len(found) > 3
    assert asked.count({"path": "noise.bin"}) == 1


@pytest.mark.parametrize("weights", ["'w.safetensors'", "{paths=['w.safetensors']}"])
def test_a_network_that_loads_its_own_weights_is_built_again_if_they_change(reading, tiny, weights):
    chosen = ["model.factory=net:loaded", f"model.args={{weights={weights}}}"]
    first = reading.build(until="pretrained", overrides=chosen)
    assert reading.build(until="pretrained", overrides=chosen).ran == ()
    write_weights(reading, tiny, 1)
    assert first.ran == reading.build(until="pretrained", overrides=chosen).ran == ("pretrained",)
    found = load_file(reading.entry("pretrained") / "weights.safetensors")
    expected = load_file(reading.folder / "w.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_beside_a_factory_counts_from_anywhere(reading, tiny, tmp_path, monkeypatch):
    (reading.folder / "deep").mkdir()
    (reading.folder / "deep" / "there.py").write_text((reading.folder / "net.py").read_text())
    write_weights(reading, tiny, 0, "deep/v.safetensors")
    monkeypatch.chdir(tmp_path)
    chosen = ["model.factory=deep.there:loaded", "model.args={weights='v.safetensors', beside=true}"]
    before = ingredients(reading, *chosen)["pretrained"]
    write_weights(reading, tiny, 1, "deep/v.safetensors")
    assert ingredients(reading, *chosen)["pretrained"] != before


def test_arguments_that_name_no_file_add_nothing(project):
    assert not any("files" in found for found in ingredients(project).values())


def test_files_of_an_augmentation_count(reading):
    chosen = ["data.factory=shapes:augmented", "data.args={path='noise.bin'}"]
    before = ingredients(reading, *chosen)
    (reading.folder / "noise.bin").write_bytes(b"1")
    created = ingredients(reading, *chosen)
    (reading.folder / "noise.bin").write_bytes(b"2")
    changed = ingredients(reading, *chosen)
    assert before["finetune"] != created["finetune"] != changed["finetune"] != before["finetune"]


@pytest.mark.parametrize(("stage", "name"), [(DISTILL, "t.safetensors"), (PRETRAIN, "noise.bin")])
def test_files_of_teachers_and_of_source_data_count_for_their_stage_alone(reading, tiny, stage, name):
    reading.recipe.write_text(reading.recipe.read_text() + stage)
    write_weights(reading, tiny, 0, "t.safetensors")
    before = ingredients(reading)
    write_weights(reading, tiny, 1, name)
    after = ingredients(reading)
    assert {step for step in after if after[step] != before[step]} == {stage.split('"')[1]}


def test_the_second_file_of_a_models_weights_counts_too(reading, onnx_models):
    model = onnx.load(onnx_models.float)
    path = reading.folder / "t.onnx"
    onnx.save(model, path, save_as_external_data=True, location="t.onnx.data", size_threshold=0)
    stage = DISTILL.partition("teacher")[0] + 'teacher = { model = "t.onnx" }\n'
    reading.recipe.write_text(reading.recipe.read_text() + stage)
    before = ingredients(reading)["distill"]
    weights = reading.folder / "t.onnx.data"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    assert ingredients(reading)["distill"] != before
