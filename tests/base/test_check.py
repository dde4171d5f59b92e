"""`make check-base` finds interpreters, and names those that are absent."""

from __future__ import annotations

import sys

from tests.base.check import interpreter, main

HERE = "{}.{}".format(*sys.version_info[:2])


def test_an_interpreter_that_does_not_start_is_not_taken(tmp_path, monkeypatch):
    shim = tmp_path / f"python{HERE}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    real = tmp_path / "real"
    real.mkdir()
    (real / f"python{HERE}").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path}:{real}")
    assert interpreter(HERE) == real / f"python{HERE}"


def test_without_any_interpreter_it_fails(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["3.98", "3.99"], newest=False) == 1
    text = capsys.readouterr()
    assert text.out == "no interpreter here, skipped: Python 3.98, 3.99\n"
    assert text.err == "error: none of these Python versions is present; install one\n"
