"""constraints.txt pins each dependency of pyproject.toml, and is written again by one command."""

from __future__ import annotations

import re
import tomllib
from itertools import chain

from tests.house import constraints
from tests.house.constraints import FILE, canonical, kept, rendered
from tests.house.modules import ROOT

PINS = "# A comment with == in it.\ntorch==2.0\nscipy-stubs==1.0\nRich==15.0\n"


def test_the_pins_of_named_packages_are_lifted():
    assert kept(PINS, []) == PINS
    assert kept(PINS, ["scipy_stubs", "rich"]) == "# A comment with == in it.\ntorch==2.0\n"


def test_all_lifts_every_pin_but_that_of_torch():
    assert kept(PINS, ["all"]) == "# A comment with == in it.\ntorch==2.0\n"
    assert kept(PINS, ["all", "torch"]) == "# A comment with == in it.\n"


def test_comments_stay_and_pins_are_sorted():
    assert rendered(PINS, {"b": "1", "A": "2"}) == "# A comment with == in it.\nA==2\nb==1\n"


def test_the_command_writes_the_file_and_prints_the_changes(tmp_path, monkeypatch, capsys):
    file = tmp_path / "constraints.txt"
    file.write_text(PINS)
    asked = []

    def resolved(content):
        asked.append(content)
        return {"torch": "2.0", "rich": "16.0"}

    monkeypatch.setattr(constraints, "FILE", file)
    monkeypatch.setattr(constraints, "resolved", resolved)
    constraints.main(["rich"])
    assert asked == ["# A comment with == in it.\ntorch==2.0\nscipy-stubs==1.0\n"]
    assert file.read_text() == "# A comment with == in it.\nrich==16.0\ntorch==2.0\n"
    assert capsys.readouterr().out == "- Rich==15.0\n- scipy-stubs==1.0\n+ rich==16.0\n"


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {canonical(re.split(r"[\[<>=~! ]", line)[0]) for line in wanted} - {"edgeproof"}
    pinned = {canonical(line.partition("==")[0]) for line in FILE.read_text().splitlines() if "==" in line}
    assert names - pinned == set()
