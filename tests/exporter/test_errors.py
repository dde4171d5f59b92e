"""The workstation's errors are derived from `EdgeproofError`."""

from __future__ import annotations

import inspect
import pickle

import pytest

from bench.core.errors import EdgeproofError
from exporter import errors

OWN = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
]


def test_the_docstring_draws_the_tree_of_errors():
    assert len(OWN) == 7
    for kind in OWN:
        assert f"── {kind.__name__} " in errors.__doc__


@pytest.mark.parametrize("kind", OWN)
def test_every_error_is_one_line_with_its_exit_code(kind):
    error = kind("here", "is\nwrong", "fix  it")
    assert isinstance(error, EdgeproofError)
    assert (str(error), error.exit_code) == (
        "here: is wrong; fix it",
        1 if kind is errors.SlowerError else 2,
    )
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
