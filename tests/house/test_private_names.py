"""Tests use the public names of the project; a private name needs a comment with the reason."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.house.private_names import main, uses

MAX_UNEXPLAINED = 0


def test_tests_use_private_names_only_with_a_comment_that_gives_the_reason(capsys):
    assert main(["--max", str(MAX_UNEXPLAINED)]) == 0, capsys.readouterr().out


@pytest.fixture
def found(tmp_path):
    """Find the uses of the project's private names `_a` and `_b` in a text that have no comment."""

    def find(text):
        path = tmp_path / "test_shop.py"
        path.write_text(dedent(text))
        return [(use.line, use.name) for use in uses(path, {"_a", "_b"}, tmp_path)]

    return find


@pytest.mark.parametrize(
    "text",
    [
        "from exporter.shop import _a",
        "shop._a()",
        "shop.till()._a = 1",
        "monkeypatch.setattr(shop, '_a', 1)",
        "getattr(shop, '_a')",
        "patch.object(shop, '_a')",
        "monkeypatch.setattr('exporter.shop._a', 1)",
        "run('from exporter.shop import _a')",
        "def test():\n    assert shop.sells(\n        shop._a\n    )",
    ],
)
def test_a_use_is_found(found, text):
    assert [name for _, name in found(text)] == ["_a"]


@pytest.mark.parametrize(
    "text",
    [
        "from exporter.shop import _a  # why",
        "# why\nfrom exporter.shop import _a",
        "shop._a()  # why",
        "# why\nassert shop.sells(\n    shop._a\n)",
    ],
)
def test_a_comment_explains_its_line_and_the_next(found, text):
    assert found(text) == []


def test_a_directive_or_a_comment_two_lines_above_explains_nothing(found):
    assert found("shop._a()  # noqa: SLF001\n# why\nshop._b()\nshop._b()") == [(1, "_a"), (4, "_b")]


@pytest.mark.parametrize(
    "text",
    [
        "shop._c()",
        "self._a = 1",
        "import torch\ntorch._a",
        "class Mine:\n    def _a(self): ...\nMine()._a()",
        "say('_a')",
        "shop.__a__",
        "_, b = 1, 2",
    ],
)
def test_private_names_of_libraries_and_of_the_test_itself_are_allowed(found, text):
    assert found(text) == []
