"""What a result depends on besides its recipe."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from exporter import provenance
from exporter.lookup import add_import_roots
from exporter.provenance import library_versions, own_code, user_code


@pytest.fixture
def module(tmp_path):
    add_import_roots(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return write


def test_versions_are_those_that_are_installed(monkeypatch):
    versions = library_versions()
    assert {"python", "torch", "onnxruntime", "edgeproof"} <= versions.keys()
    assert "absent" not in versions.values()
    monkeypatch.setattr(provenance, "LIBRARIES", ("no-such-library",))
    assert library_versions.__wrapped__()["no-such-library"] == "absent"


def test_the_tools_own_code_is_hashed(monkeypatch):
    assert own_code() == own_code.__wrapped__()
    monkeypatch.setattr(provenance, "_OWN_PACKAGES", ("bench",))
    assert own_code.__wrapped__() != own_code()


def test_an_edit_of_a_users_module_shows(module, tmp_path):
    module("mine", "x = 1\n")
    before = user_code((tmp_path,), ())
    assert user_code((tmp_path,), ()) == before
    module("mine", "x = 2\n")
    assert user_code((tmp_path,), ()) != before


def test_modules_that_are_not_loaded_do_not_count(module, tmp_path):
    module("mine", "x = 1\n")
    before = user_code((tmp_path,), ())
    (tmp_path / "other.py").write_text("y = 1\n")
    assert user_code((tmp_path,), ()) == before
    module("other", "y = 1\n")
    assert user_code((tmp_path,), ()) != before


def test_the_place_of_a_project_does_not_count(module, tmp_path):
    module("mine", "x = 1\n")
    before = user_code((tmp_path,), ())
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "mine.py").rename(moved / "mine.py")
    sys.modules["mine"].__file__ = str(moved / "mine.py")
    assert user_code((moved,), ()) == before


def test_installed_modules_count_only_as_factories(module, tmp_path):
    module("mine", "x = 1\n")
    elsewhere = tmp_path / "elsewhere"
    assert user_code((elsewhere,), ()) == user_code((elsewhere,), ("absent:f",))
    assert user_code((elsewhere,), ("mine:f",)) == user_code((tmp_path,), ())
    assert user_code((elsewhere,), ("json:loads",)) != user_code((elsewhere,), ())


def test_modules_without_a_source_are_passed_over(module, tmp_path, monkeypatch):
    before = user_code((tmp_path,), ())
    ghost = types.ModuleType("ghost")
    ghost.__file__ = str(tmp_path / "ghost.py")
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    binary = types.ModuleType("binary")
    binary.__file__ = str(tmp_path / "binary.so")
    monkeypatch.setitem(sys.modules, "binary", binary)
    assert user_code((tmp_path,), ()) == before
