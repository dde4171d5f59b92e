"""Each message that the troubleshooting page explains is in the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.house.modules import ROOT, modules

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


@cache
def texts():
    """Every text in the code; the values inside an f-string stand as an ellipsis."""
    found = set()
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_in_the_code(message):
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
    assert any(pattern.search(text) for text in texts()), message


def test_a_message_that_nothing_prints_would_be_found():
    assert not any("the moon is full" in text for text in texts())
    assert len(MESSAGES) > 10
