"""The version, installed or not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

from bench.core import version


def test_a_tool_that_is_not_installed_has_no_version(monkeypatch):
    def absent(_name):
        raise PackageNotFoundError

    monkeypatch.setattr(version, "version", absent)
    assert version.tool_version() == "unknown"
    monkeypatch.setattr(version, "version", lambda _name: "1.2.3")
    assert version.tool_version() == "1.2.3"
