"""Notes of a data factory are shown by the build."""

from __future__ import annotations

import dataclasses

import pytest

from bench.core.errors import DataError
from bench.core.progress import SilentProgress
from exporter.pipeline.plan import plan_steps
from exporter.pipeline.resolved_recipe import resolve_recipe
from exporter.recipes import read_recipe
from exporter.sources.splits import check_splits, fingerprint

NOTED = """

import dataclasses

def noted(note):
    return dataclasses.replace(make_splits(), notes=(note, "another\\nnote"))
"""
PRETRAIN = """
[[stage]]
kind = "pretrain"
epochs = 1
data = { factory = "shapes:noted", args = { note = "one note" } }
"""


class Listening(SilentProgress):
    """Collects all messages."""

    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


@pytest.fixture
def noted(project):
    """A project with a data factory that returns two notes."""
    source = project.folder / "shapes.py"
    source.write_text(source.read_text() + NOTED)
    return project


def test_a_build_shows_each_note_of_its_data_in_one_line(noted):
    progress = Listening()
    recipe = read_recipe(noted.recipe, ["data.factory=shapes:noted", "data.args={note='one note'}"])
    resolve_recipe(recipe, noted.folder, progress)
    assert progress.said == ["reading data", "note: data: one note", "note: data: another note"]


def test_a_build_shows_the_notes_of_source_data(noted):
    noted.recipe.write_text(noted.recipe.read_text() + PRETRAIN)
    progress = Listening()
    for step in plan_steps(resolve_recipe(read_recipe(noted.recipe), noted.folder, progress)):
        step.ingredients()
    assert "note: pretrain.data: one note" in progress.said


@pytest.mark.parametrize("notes", ["one text", ["a list"], (1,)])
def test_notes_are_a_tuple_of_texts(splits, notes):
    with pytest.raises(DataError, match=r"data: notes: are .*; make them a tuple of texts"):
        check_splits(dataclasses.replace(splits, notes=notes), "data")


def test_notes_do_not_change_the_fingerprint(splits):
    assert fingerprint(dataclasses.replace(splits, notes=("odd",))) == fingerprint(splits)
