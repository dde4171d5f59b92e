"""Every error message is one line, and every error can be pickled in a worker process."""

from __future__ import annotations

import pickle

import pytest

from bench.core import errors
from bench.core.errors import EdgeproofError, MeasurementError, MissingExtraError, one_line

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgeproofError)
]
PLAIN = [kind for kind in KINDS if kind is not MissingExtraError]


@pytest.mark.parametrize("kind", PLAIN)
def test_a_message_is_one_line_of_place_cause_and_fix(kind):
    error = kind("my  file\n.onnx", "is\n  broken\tbadly", "fix\r\nit")
    assert str(error) == "my  file .onnx: is broken badly; fix it"


@pytest.mark.parametrize(
    "error", [*(kind("place", "cause", "fix") for kind in PLAIN), MissingExtraError("x", "y")]
)
def test_an_error_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_in_the_module_docstring(kind):
    assert kind.__name__ in errors.__doc__
    assert kind.exit_code == (4 if kind is MeasurementError else 2)


def test_a_missing_extra_names_the_command():
    error = MissingExtraError("torch", "export")
    assert str(error) == (
        "torch: this Python module is not installed; "
        'run: pip install -c constraints.txt "edgeproof[export]"'
    )


@pytest.mark.parametrize(
    ("text", "line"), [("a\n b  c", "a b c"), ("x" * 10, "x" * 10), ("x" * 11, "x" * 9 + "…"), ("", "")]
)
def test_one_line_joins_and_shortens(text, line):
    assert one_line(text, limit=10) == line
