"""Standard output and error that are full or closed, or whose encoding lacks characters."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from bench.core.errors import StorageError, UsageError
from bench.core.streams import Output, steady_streams, write_out


def text_stream(encoding, errors="strict"):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("ascii", b"1 ? 2 ?"), ("latin-1", b"1 \xd7 2 ?"), ("utf-8", "1 × 2 ≤".encode())],
)
def test_characters_that_an_encoding_lacks_are_replaced(encoding, content):
    stream = text_stream(encoding)
    Output(stream, needed=True).write("1 × 2 ≤")
    assert stream.buffer.getvalue() == content


def test_halves_of_surrogate_pairs_are_replaced():
    stream = text_stream("utf-8")
    Output(stream, needed=True).write("a\udc80b")
    assert stream.buffer.getvalue() == b"a?b"


def test_the_error_handler_of_a_stream_is_kept():
    stream = text_stream("ascii", "backslashreplace")
    Output(stream, needed=False).write("×")
    assert stream.buffer.getvalue() == b"\\xd7"


def test_a_full_disk_raises_one_error():
    with Path("/dev/full").open("w") as stream:
        output = Output(stream, needed=True)
        with pytest.raises(StorageError, match="standard output: cannot be written \\(No space left"):
            output.write("lost")
        output.write("dropped")  # closing the stream raises nothing either


def test_a_failed_write_to_an_unneeded_stream_is_ignored():
    with Path("/dev/full").open("w") as stream:
        assert Output(stream, needed=False).write("lost") == 4


def test_a_closed_stream_is_an_error_only_if_it_is_needed():
    stream = text_stream("utf-8")
    stream.close()
    with pytest.raises(StorageError, match="cannot be written"):
        Output(stream, needed=True).write("lost")
    Output(stream, needed=False).write("lost")


def test_used_records_whether_text_was_written():
    output = Output(text_stream("utf-8"), needed=True)
    output.write("")
    assert not output.used
    output.write("x")
    assert output.used


def test_streams_are_restored_at_the_end(capsys):
    before = sys.stdout, sys.stderr
    with steady_streams() as output:
        assert sys.stdout is output
        write_out("to out\n")
        sys.stderr.write("to err\n")
    assert (sys.stdout, sys.stderr) == before
    assert tuple(capsys.readouterr()) == ("to out\n", "to err\n")


def test_a_standard_output_that_was_closed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with steady_streams() as output:
        sys.stderr.write("dropped\n")
        with pytest.raises(UsageError, match="standard output: is closed; redirect it to"):
            output.check_open()


def test_closed_descriptors_are_opened_on_the_null_device(monkeypatch):
    opened = []

    def fstat(descriptor):
        if descriptor == 2:
            raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        patch.setattr(os, "open", lambda path, flags: opened.append((path, flags)))
        with steady_streams():
            pass
    assert opened == [(os.devnull, os.O_RDWR)]
