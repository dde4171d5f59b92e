"""`ablate`: the prefixes of a recipe, their training and measurement, and the output."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bench.judging.replay import replay
from bench.measuring.result import read_result
from bench.views.tables import plain_text
from exporter.caching.cache import RECORD
from exporter.errors import RecipeError
from exporter.pipeline.ablate import Ablation, ablate, ablation_json, ablation_table, prefixes
from exporter.recipes import read_recipe

EARLY = """
[[stage]]
kind = "prune"
name = "early"
target = { sparsity = 0.1 }

"""
QAT = """
[[stage]]
kind = "qat"
epochs = 1
batch_size = 10

[quantize]"""


def test_the_first_prefix_is_the_shortest_that_trains(project):
    project.edit(
        "recipe.toml",
        '[[stage]]\nkind = "finetune"',
        EARLY + '[[stage]]\nkind = "finetune"',
    )
    found = prefixes(read_recipe(project.recipe), trained=False)
    assert [prefix.stage_names() for prefix in found] == [
        ["early", "finetune"],
        ["early", "finetune", "prune"],
    ]


def test_with_a_checkpoint_the_first_prefix_has_no_stages(project):
    recipe = read_recipe(project.recipe)
    model = recipe.model.model_copy(update={"checkpoint": "weights.safetensors"})
    bare = recipe.model_copy(update={"stage": recipe.stage[1:], "model": model})
    assert [prefix.stage_names() for prefix in prefixes(bare, trained=True)] == [[], ["prune"]]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 5], ids=["its own head", "a new head"])
def test_a_pretrained_network_is_the_first_row(project, tiny, classes):
    """The effect of the first stage shows only in comparison with the incoming network."""
    torch.save(tiny.net(classes=classes).state_dict(), project.folder / "weights.pth")
    project.edit("recipe.toml", "[data]", 'checkpoint = "weights.pth"\n\n[data]')
    found = ablate(project.recipe, blocks=1)
    names = [variant.after for variant in found.variants()[::2]]
    assert names == [*(["pretrained"] if classes == 3 else []), "finetune", "prune"]


@pytest.fixture(scope="module")
def ablated(make_project, tmp_path_factory):
    """The tiny project with a final `qat` stage, the result that the command wrote, and its output."""
    project = make_project(tmp_path_factory.mktemp("ablation") / "project")
    project.edit("recipe.toml", "\n[quantize]", QAT)
    out = project.folder / "out.json"
    process = project.start("--blocks", 7, "--json", "--out", out, command="ablate")
    printed, err = process.communicate()
    assert process.returncode == 0, err
    return project, Ablation("tiny", read_result(out)), printed


@pytest.mark.slow
def test_every_prefix_is_measured_in_both_precisions(ablated):
    variants = ablated[1].variants()
    assert [(v.after, v.precision) for v in variants] == [
        (stage, precision) for stage in ("finetune", "prune", "qat") for precision in ("float", "int8")
    ]
    assert variants[0].time.ratio == 1.0
    for variant in variants:
        assert variant.time.lower <= variant.time.ratio <= variant.time.upper
        assert variant.model.accuracy() > 0.5


@pytest.mark.slow
def test_nothing_is_trained_twice_and_build_uses_the_same_steps(ablated, monkeypatch):
    project = ablated[0]
    monkeypatch.chdir(project.folder)
    done = [line["step"] for line in project.events("done")]
    assert sorted(done) == sorted(["pretrained", "finetune", "prune", "qat"] + ["export", "quantize"] * 3)
    outcome = project.build(out=project.artifact)
    assert outcome.ran == ("parity", "gate")


@pytest.mark.slow
def test_only_the_last_prefix_has_learned_ranges(ablated):
    project = ablated[0]
    entries = [project.cache / line["key"][:2] / line["key"] for line in project.events("done")]
    found = [json.loads((entry / RECORD).read_text()) for entry in entries]
    learned = [entry["metrics"]["learned_ranges"] for entry in found if entry["name"] == "quantize"]
    assert learned[:2] == [0, 0]
    assert learned[2] > 0


@pytest.mark.slow
def test_the_output_can_be_computed_again_from_the_result(ablated):
    project, found, printed = ablated
    content = json.loads(printed)
    assert content == json.loads(json.dumps(ablation_json(found), allow_nan=False))
    assert [entry["after"] for entry in content["variants"][::2]] == ["finetune", "prune", "qat"]
    assert content["variants"][1]["time_ratio"].keys() == {"estimate", "lower", "upper"}
    table = plain_text([ablation_table(found)])
    assert table.count("int8") == table.count("float") == 3
    assert replay(project.folder / "out.json") == (found.result, None)
    models = [
        model.model_copy(update={"made_for": "z80" if index % 2 else None})
        for index, model in enumerate(found.result.models)
    ]
    other = dataclasses.replace(found, result=found.result.model_copy(update={"models": tuple(models)}))
    rows = plain_text([ablation_table(other)]).splitlines()
    assert sum("not measured on z80" in row for row in rows) == 3
    assert not [row for row in rows if "z80" in row and (" ms" in row or row.count("MiB") > 1)]
    assert [entry["made_for"] for entry in ablation_json(other)["variants"]] == [None, "z80"] * 3


def test_invalid_recipes_are_refused(project, tmp_path):
    with pytest.raises(RecipeError):
        ablate(tmp_path / "missing.toml")
    with pytest.raises(RecipeError):
        ablate(project.recipe, overrides=["stage.finetune.epoch=1"])
