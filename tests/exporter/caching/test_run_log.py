"""The run log: one JSON line for each event of a build."""

from __future__ import annotations

import json
import os
from datetime import datetime

import pytest

from bench.core.errors import StorageError
from exporter.caching.run_log import FILE, RunLog


def test_lines_are_appended(tmp_path):
    RunLog(tmp_path, "tiny").write("start", step="a\nb", key="é")
    RunLog(tmp_path, "other").write("done")
    first, second = (json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())
    assert (first["recipe"], first["event"], first["step"], first["key"]) == ("tiny", "start", "a\nb", "é")
    assert (second["recipe"], second["event"], second["pid"]) == ("other", "done", os.getpid())
    assert datetime.fromisoformat(first["utc"]).utcoffset().total_seconds() == 0


def test_a_full_disk_is_reported(tmp_path):
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        RunLog(tmp_path, "tiny").write("start")
