"""Every command ends with at most one line, one exit code and, with --json, one object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bench.core.command import EXIT_INTERRUPTED, run
from bench.core.errors import MeasurementError, ModelError
from bench.core.faults import EXIT_FAULT

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def end(monkeypatch, capsys):
    """A function that runs a command; returns exit code, standard output and standard error."""

    def ended(act, *arguments):
        app = typer.Typer()

        @app.command()
        def command(json: bool = False, count: int = 0) -> None:
            act()

        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as caught:
            run(app)
        return caught.value.code, *capsys.readouterr()

    return ended


def raising(error):
    def act():
        raise error

    return act


def test_other_systems_than_linux_are_refused_before_the_command_starts(end, monkeypatch):
    started = []
    monkeypatch.setattr(sys, "platform", "darwin")
    code, out, err = end(lambda: started.append(True))
    assert (code, out, started) == (2, "", [])
    assert err == "error: operating system: darwin is not supported; run edgeproof on Linux\n"


ENDS = [
    (ModelError("m.onnx", "is bad", "fix it"), 2, "error: m.onnx: is bad; fix it\n"),
    (MeasurementError("worker", "died", "see"), 4, "error: worker: died; see\n"),
    (KeyboardInterrupt(), 130, "interrupted: finished work is kept, run the command again to continue\n"),
    (OSError(28, "No space left on device", "a"), 2, "error: a: the disk is full; free some space"),
    (MemoryError(), 2, "error: memory: is not sufficient; free some"),
    (ZeroDivisionError("by zero"), 70, "error: bench/core/command.py, line "),
    (RecursionError(), 70, "error: bench/core/command.py, line "),
    (BrokenPipeError(), 70, "error: bench/core/command.py, line "),
    (EOFError(), 70, "error: edgeproof: raised EOFError"),
    (SystemExit(0), 70, "error: bench/core/command.py, line "),
    (SystemExit(1), 70, "error: bench/core/command.py, line "),
]


@pytest.mark.parametrize(("error", "code", "words"), ENDS)
def test_every_end_has_its_code_and_one_line(end, error, code, words):
    found, out, err = end(raising(error))
    assert (found, out) == (code, "")
    assert err.lstrip("\n").startswith(words)
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(("error", "code", "words"), ENDS)
def test_json_output_is_one_object_for_every_end(end, error, code, words):
    found, out, err = end(raising(error), "--json")
    content = json.loads(out)
    assert content.keys() == {"error", "exit_code"}
    assert content["error"].keys() == {"kind", "place", "cause", "fix"}
    assert found == content["exit_code"] == code
    assert err.lstrip("\n").startswith(words)


def test_a_bug_report_names_the_exception(end):
    code, _, err = end(raising(ZeroDivisionError("by zero")))
    assert code == EXIT_FAULT
    assert "raised ZeroDivisionError (by zero) in test_command.py, line " in err
    assert err.endswith("this is a bug in edgeproof: report it with the output of --debug\n")


@pytest.mark.parametrize("arguments", [("--debug",), ("--count", "1", "--debug", "--json")])
def test_debug_shows_the_traceback(end, arguments):
    code, _, err = end(raising(ZeroDivisionError("by zero")), *arguments)
    assert code == EXIT_FAULT
    assert err.startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError: by zero\nerror: " in err


def test_arguments_after_two_dashes_are_not_options(end):
    code, out, err = end(raising(ZeroDivisionError), "--", "--debug", "--json")
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_no_second_object_is_printed(end):
    def act():
        sys.stdout.write('{"verdict": "PASS"}\n')
        raise ModelError("r.json", "cannot be written", "fix it")

    code, out, err = end(act, "--json")
    assert (code, json.loads(out)) == (2, {"verdict": "PASS"})
    assert err == "error: r.json: cannot be written; fix it\n"


@pytest.mark.parametrize(
    ("arguments", "place"),
    [(("--json", "--juggle"), "command line"), (("--json", "--count", "x"), "--count")],
)
def test_a_wrong_command_line_is_reported_as_json_too(end, arguments, place):
    code, out, err = end(lambda: None, *arguments)
    content = json.loads(out)
    assert (code, content["exit_code"]) == (2, 2)
    assert (content["error"]["kind"], content["error"]["fix"]) == ("UsageError", "see --help")
    assert place in content["error"]["place"]
    assert "Usage: " in err


def test_a_verdict_is_not_reported_as_a_bug(end):
    assert end(raising(typer.Exit(3))) == (3, "", "")
    assert end(lambda: None, "--json") == (0, "", "")
    assert end(raising(typer.Exit(EXIT_INTERRUPTED)))[0] == EXIT_INTERRUPTED


def bench(tail, folder=ROOT, **environment):
    """Run `python -m bench` in a shell; return exit code, standard output and standard error."""
    line = f"exec {sys.executable} -m bench {tail}"
    variables = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, cwd=folder, env=variables, check=False
    )
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


FULL = "error: standard output: cannot be written (No space left on device); redirect it"


@pytest.mark.parametrize(
    ("tail", "code", "words"),
    [
        ("--help >/dev/full", 2, FULL),
        ("bench --help >/dev/full", 2, FULL),
        ("--help >&-", 2, "error: standard output: is closed; redirect it to a file or to /dev/null\n"),
        ("--help >&- 2>&-", 2, ""),
        ("--help <&- 2>&-", 0, ""),
        ("bench none.onnx 2>/dev/full", 2, ""),
        ("bench none.onnx 2>&-", 2, ""),
        ("bench none.onnx --json >/dev/full", 2, "error: none.onnx: there is no such file"),
        ("juggle 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_cannot_be_written(tail, code, words):
    found, _, err = bench(tail)
    assert found == code
    assert err.startswith(words)
    assert err.count("\n") == (1 if words else 0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_encodings_that_lack_characters(tmp_path, encoding):
    code, out, err = bench("verify ×–≤ --json", PYTHONIOENCODING=encoding)
    assert (code, json.loads(out)["error"]["kind"]) == (2, "UsageError")
    assert err.startswith("error: ")
    assert bench("--help", PYTHONIOENCODING=encoding)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "bench {}",
        "bench none.onnx --out {}",
        "compare {} {}",
        "gate {}",
        "show {}",
        "verify {}",
        "certify {}",
    ],
)
def test_too_long_file_names_are_reported_in_one_line(arguments):
    code, out, err = bench(f"{arguments.replace('{}', 'x' * 300)} --json")
    content = json.loads(out)
    assert (code, content["error"]["place"]) == (2, "x" * 300)
    assert "File name too long" in content["error"]["cause"]
    assert err.count("\n") == 1


def test_a_removed_working_folder_is_reported_in_one_line(tmp_path):
    script = f"cd {tmp_path} && mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m bench"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{script} bench none.onnx"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: none.onnx: there is no such file or folder; check the path\n"
