"""Lookup of factories and files: missing ones, errors during import, and code that must not run."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from bench.core.errors import DataError
from exporter import package_file
from exporter.errors import LookupFailed
from exporter.sources.lookup import add_import_roots, call_factory, find_factory, find_file


@pytest.fixture
def module(tmp_path):
    """Write a module that can be imported; a dotted name such as `pack.sub` creates a package."""
    add_import_roots(tmp_path)

    def write(name, text):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        return name

    return write


def failure(reference):
    with pytest.raises(LookupFailed) as caught:
        find_factory(reference, "model.factory")
    assert caught.value.place == "model.factory"
    return caught.value


def test_a_factory_is_found(module):
    module("plain", "class Maker:\n    def make():\n        return 3\n")
    assert find_factory("plain:Maker.make", "x")() == 3


def test_import_roots_go_to_the_end_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sys.path.copy()
    add_import_roots(tmp_path)
    add_import_roots(tmp_path)
    assert sys.path == [*before, str(tmp_path)]


def test_a_missing_module(module):
    module("pack.inner", "")
    for name, missing in (("absent_here", "absent_here"), ("pack.other", "pack.other"), ("x1.y", "x1")):
        error = failure(f"{name}:f")
        assert error.cause == f"there is no module {missing!r}"
        assert error.fix.startswith("put it next to the recipe")


def test_a_module_that_needs_another(module):
    module("needy", "import absent_elsewhere\n")
    error = failure("needy:f")
    assert (error.cause, error.fix) == (
        "module 'needy' needs 'absent_elsewhere', which is not installed",
        "install 'absent_elsewhere'",
    )


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("x = 1\nraise RuntimeError('boom')\n", "importing module 'raising' raised RuntimeError: boom", 2),
        ("x = 1\n\ndef f(:\n", "importing module 'raising' raised SyntaxError", 3),
        ("import sys\nsys.exit(0)\n", "importing module 'raising' raised SystemExit", 2),
        ("from sys import nothing\n", "importing module 'raising' raised ImportError", 1),
    ],
)
def test_a_module_that_raises_is_not_missing(module, text, words, line):
    module("raising", text)
    error = failure("raising:f")
    assert words in error.cause
    assert error.fix == f"fix raising.py, line {line}"


def test_a_missing_attribute_comes_with_a_suggestion(module):
    module("named", "def build_network():\n    pass\n")
    error = failure("named:build_netwrok")
    assert error.cause == "module 'named' has no 'build_netwrok'"
    assert error.fix == "did you mean 'build_network'?"
    assert failure("named:zzz").fix == "check the name"


def test_an_attribute_that_cannot_be_called_is_refused(module):
    module("value", "net = 3\n")
    assert failure("value:net").cause == "'value:net' cannot be called"


@pytest.mark.parametrize("reference", ["plain", "plain:", ":f"])
def test_an_invalid_reference_is_refused(reference):
    assert failure(reference).cause == f"{reference!r} does not have the form module:attribute"


def test_an_error_inside_a_factory_names_the_line(module):
    module("broken", "def make(size):\n    return 1 / size\n")
    make = find_factory("broken:make", "x")
    with pytest.raises(LookupFailed, match=r"raised ZeroDivisionError: .*; fix broken.py, line 2"):
        call_factory(make, {"size": 0}, "data.factory")
    with pytest.raises(LookupFailed, match=r"data.factory: raised TypeError: .*'sides'"):
        call_factory(make, {"sides": 1}, "data.factory")
    assert call_factory(make, {"size": 2}, "data.factory") == 0.5


def test_a_factory_that_exits_does_not_end_the_build(module):
    module("ending", "def f():\n    raise SystemExit(0)\n")
    make = find_factory("ending:f", "x")
    with pytest.raises(LookupFailed, match="raised SystemExit"):
        call_factory(make, {}, "data.factory")


def test_edgeproof_errors_of_a_factory_are_not_changed(module):
    module("clear", "from exporter import DataError\ndef f():\n    raise DataError('a', 'b', 'c')\n")
    with pytest.raises(DataError, match="a: b; c"):
        call_factory(find_factory("clear:f", "x"), {}, "data.factory")


def test_files_are_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    for address in ("weights.pth", "./weights.pth", str(tmp_path / "weights.pth"), "~/weights.pth"):
        assert find_file(address, tmp_path, "x").samefile(tmp_path / "weights.pth")


@pytest.mark.parametrize("address", ["absent.pth", ".", "a\0b", "~nobody-of-this-name/x"])
def test_missing_files(tmp_path, address):
    with pytest.raises(LookupFailed) as caught:
        find_file(address, tmp_path, "model.checkpoint")
    assert caught.value.cause == f"there is no file {address!r}"
    assert str(tmp_path) in caught.value.fix


def test_data_of_a_package_is_found_without_running_it(module, tmp_path):
    module("pack.__init__", "raise RuntimeError('this code must not run')\n")
    (tmp_path / "pack" / "weights.bin").write_bytes(b"x")
    assert find_file("pkg://pack/weights.bin", tmp_path, "x") == tmp_path / "pack" / "weights.bin"
    assert package_file("pkg://pack/weights.bin") == tmp_path / "pack" / "weights.bin"
    assert "pack" not in sys.modules


def test_a_package_that_is_not_installed(tmp_path):
    for package in ("absent_package", "sys", "__main__"):
        with pytest.raises(LookupFailed, match=f"package '{package}' is not installed; install it"):
            find_file(f"pkg://{package}/x", tmp_path, "x")


def test_a_module_without_a_spec_is_not_a_package(tmp_path, monkeypatch):
    made_by_hand = types.ModuleType("made_by_hand")
    monkeypatch.setitem(sys.modules, "made_by_hand", made_by_hand)  # its __spec__ is None
    with pytest.raises(LookupFailed, match="package 'made_by_hand' is not installed"):
        find_file("pkg://made_by_hand/x", tmp_path, "x")


def test_a_package_without_the_file():
    with pytest.raises(LookupFailed, match=r"package 'exporter' contains no file 'nothing.bin'"):
        package_file("pkg://exporter/nothing.bin")


@pytest.mark.parametrize(
    "inner",
    [
        "exporter/../bench/core/errors.py",
        "exporter/..",
        "../x",
        "exporter//etc/passwd",
        "exporter",
        "",
        "a.b/c",
    ],
)
def test_a_package_address_stays_in_its_package(tmp_path, inner):
    with pytest.raises(LookupFailed, match="is not a valid package address"):
        find_file(f"pkg://{inner}", tmp_path, "x")


def test_package_file_refuses_other_paths():
    with pytest.raises(LookupFailed, match="is not a valid package address"):
        package_file("exporter/sources/lookup.py")
