"""Hashes of code and versions of libraries that a result depends on."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

from exporter.caching import provenance
from exporter.caching.provenance import library_versions, own_code, user_code
from exporter.sources.lookup import add_import_roots


@pytest.fixture
def module(tmp_path):
    add_import_roots(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return write


def test_versions_are_those_of_the_installed_libraries(monkeypatch):
    versions = library_versions()
    assert {"python", "torch", "onnxruntime", "edgeproof"} <= versions.keys()
    assert "absent" not in versions.values()
    monkeypatch.setattr(provenance, "LIBRARIES", ("no-such-library",))
    assert library_versions.__wrapped__()["no-such-library"] == "absent"


def test_the_tools_own_code_is_hashed(monkeypatch):
    assert own_code() == own_code.__wrapped__()
    # An edit of edgeproof's files would affect all tests, so this test hashes fewer packages instead.
    monkeypatch.setattr(provenance, "_OWN_PACKAGES", ("bench",))
    assert own_code.__wrapped__() != own_code()


def test_an_edit_of_a_users_module_changes_the_hash(module, tmp_path):
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


def test_the_path_of_a_project_does_not_count(module, tmp_path):
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


def test_modules_without_a_source_are_skipped(module, tmp_path, monkeypatch):
    before = user_code((tmp_path,), ())
    ghost = types.ModuleType("ghost")
    ghost.__file__ = str(tmp_path / "ghost.py")
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    binary = types.ModuleType("binary")
    binary.__file__ = str(tmp_path / "binary.so")
    monkeypatch.setitem(sys.modules, "binary", binary)
    assert user_code((tmp_path,), ()) == before


def register(monkeypatch, name, file):
    """Write `file`, and register a module `name` as if it had been loaded from it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# {name}\n")
    module = types.ModuleType(name)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)
    return file


def standard_folder(prefix):
    """The folder of the standard library of an interpreter at `prefix`."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return prefix / sys.platlibdir / version


@pytest.mark.parametrize("prefix", ["prefix", "base_prefix"])
def test_a_working_directory_above_the_interpreter_adds_nothing(prefix, tmp_path):
    nowhere = user_code((tmp_path / "nowhere",), ())
    assert user_code((Path(getattr(sys, prefix)),), ()) == nowhere


@pytest.mark.parametrize("attribute", ["prefix", "base_prefix"])
@pytest.mark.parametrize("inside", ["argparse_.py", "json_/decoder.py", "site-packages/numpy_/core.py"])
def test_no_library_of_an_environment_or_its_base_counts(monkeypatch, tmp_path, attribute, inside):
    before = user_code((tmp_path,), ())
    monkeypatch.setattr(sys, attribute, str(tmp_path / "python"))
    register(monkeypatch, "of_a_library", standard_folder(tmp_path / "python") / inside)
    assert user_code((tmp_path,), ()) == before


def test_a_library_reached_by_links_does_not_count(monkeypatch, tmp_path):
    before = user_code((tmp_path,), ())
    register(monkeypatch, "linked", standard_folder(tmp_path / "3.11.7") / "linked.py")
    (tmp_path / "3.11").symlink_to(tmp_path / "3.11.7")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "3.11"))
    assert user_code((tmp_path,), ()) == before
    elsewhere = register(monkeypatch, "customize", tmp_path / "etc" / "customize.py")
    link = standard_folder(tmp_path / "3.11.7") / "customize.py"
    link.symlink_to(elsewhere)
    sys.modules["customize"].__file__ = str(link)
    assert user_code((tmp_path,), ()) == before


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_packages_of_another_interpreter_do_not_count(monkeypatch, tmp_path, folder):
    before = user_code((tmp_path,), ())
    register(monkeypatch, "theirs", tmp_path / "other" / "lib" / folder / "theirs.py")
    assert user_code((tmp_path,), ()) == before


@pytest.mark.parametrize("attribute", ["prefix", "base_prefix"])
def test_a_project_below_a_prefix_counts(monkeypatch, tmp_path, attribute):
    monkeypatch.setattr(sys, attribute, str(tmp_path))
    before = user_code((tmp_path / "src",), ())
    register(monkeypatch, "net_of_mine", tmp_path / "src" / "net_of_mine.py")
    assert user_code((tmp_path / "src",), ()) != before


def test_edgeproof_run_as_main_is_not_the_users_code(monkeypatch, tmp_path):
    package = Path(provenance.__file__).parent
    monkeypatch.delitem(sys.modules, "__main__")
    before = user_code((package,), ())
    started = types.ModuleType("__main__")
    started.__file__ = str(package / "__main__.py")
    monkeypatch.setitem(sys.modules, "__main__", started)
    assert user_code((package,), ()) == before
