"""The overused words stay rare, and the script finds them."""

from __future__ import annotations

import pytest

from tests.house.plain_words import TELLS, finds, main

# A quotation or a plain use of one of the words is fine now and then.
MAX = 3


def test_the_words_are_rare(capsys):
    assert main(["--max", str(MAX)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "tell"),
    [
        ("the value is no number", "is no X"),
        ("the layers behind it", "behind"),
        ("measured anew", "anew"),
        ("mend the line", "mend"),
        ("its share hangs on the host", "hang on"),
        ('"""What a build found."""', "What ..."),
        ("It is small. What it saves is time.", "What ..."),
        ("| What the key does |", "What ..."),
    ],
)
def test_each_word_is_found(line, tell):
    assert [find.tell for find in finds([("file.py", line)])] == [tell]


@pytest.mark.parametrize(
    "line",
    [
        "there is no such file",
        "it is no longer used",
        "int8 is no faster than float",
        "What is a block?",
        "recommended, Whatever, WhatsApp",
    ],
)
def test_plain_uses_are_not_found(line):
    assert not list(finds([("file.py", line)]))


def test_above_the_limit_the_script_fails(capsys):
    assert main(["--max", "-1", "--counts"]) == 1
    printed = capsys.readouterr().out
    assert all(repr(tell) in printed for tell in TELLS)
