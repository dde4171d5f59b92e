"""The version of an installed package, and without an installation."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

from bench.core import version


def test_the_version_is_unknown_without_an_installation(monkeypatch):
    def absent(_name):
        raise PackageNotFoundError

    monkeypatch.setattr(version, "version", absent)
    assert version.tool_version() == "unknown"
    monkeypatch.setattr(version, "version", lambda _name: "1.2.3")
    assert version.tool_version() == "1.2.3"
