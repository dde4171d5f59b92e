"""No function is longer than `MAX_FUNCTION` lines."""

from __future__ import annotations

from tests.house.sizes import main

MAX_FUNCTION = 90


def test_no_function_is_too_long(capsys):
    assert main(["--max-function", str(MAX_FUNCTION)]) == 0, capsys.readouterr().out


def test_a_function_above_the_limit_fails(capsys):
    assert main(["--max-function", "1"]) == 1
    assert "functions: median" in capsys.readouterr().out
