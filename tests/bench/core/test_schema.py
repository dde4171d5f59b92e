"""Errors of pydantic, explained with the keys of the file."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from bench.core.schema import FrozenModel, explain_validation


class Leaf(FrozenModel):
    size: int


class Other(FrozenModel):
    name: str


class Tree(FrozenModel):
    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    maybe: Leaf | None = None
    either: Leaf | Other | None = None
    table: dict[str, Leaf] | None = None
    renamed: Leaf | None = Field(None, alias="old")


LEAF = {"size": 1}


@pytest.mark.parametrize(
    ("content", "explained"),
    [
        ({}, ("leaf", "is missing", "add it")),
        ({"leaf": {"size": 1, "x": 0}}, ("leaf.x", "unknown key", "use one of: size")),
        (
            {"leaf": LEAF, "x": 0},
            ("x", "unknown key", "use one of: either, leaf, leaves, maybe, old, table"),
        ),
        (
            {"leaf": LEAF, "leaves": ({"size": 1, "x": 0},)},
            ("leaves.0.x", "unknown key", "use one of: size"),
        ),
        ({"leaf": LEAF, "maybe": {"size": 1, "x": 0}}, ("maybe.x", "unknown key", "use one of: size")),
        ({"leaf": LEAF, "old": {"x": 0}}, ("old.size", "is missing", "add it")),
        (
            {"leaf": LEAF, "old": {"size": 1, "x": 0}},
            ("old.x", "unknown key", "use one of: size"),
        ),
        ({"leaf": LEAF, "either": {"size": 1, "x": 0}}, ("either.x", "unknown key", "use one of: size")),
        (
            {"leaf": LEAF, "table": {"k": {"size": 1, "x": 0}}},
            ("table.k.x", "unknown key", "use one of: size"),
        ),
        ({"leaf": {"size": "1"}}, ("leaf.size", "'1' is refused", "input should be a valid integer")),
        ({"leaf": LEAF, "either": {"name": "a", "x": 0}}, ("either.x", "unknown key", "use one of: name")),
        (
            {"leaf": LEAF, "either": 3},
            ("either", "3 is refused", "input should be a valid dictionary or instance of Leaf"),
        ),
        ({"leaf": {"size": LEAF}}, ("leaf.size", "a table is refused", "input should be a valid integer")),
        (
            [LEAF],
            ("the file", "a list is refused", "input should be a valid dictionary or instance of Tree"),
        ),
        (3, ("the file", "3 is refused", "input should be a valid dictionary or instance of Tree")),
    ],
)
def test_the_first_error_is_explained(content, explained):
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(content)
    assert explain_validation(caught.value, Tree) == explained


def test_a_long_value_is_shortened():
    with pytest.raises(ValidationError) as caught:
        Leaf.model_validate({"size": "x" * 1000})
    _, cause, _ = explain_validation(caught.value, Leaf)
    assert cause == f"'{'x' * 58}… is refused"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    class Number(FrozenModel):
        value: float

    with pytest.raises(ValidationError, match="finite"):
        Number(value=value)
