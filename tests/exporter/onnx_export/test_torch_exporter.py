"""Only PyTorch's exporter is silenced, not other threads and loggers."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

from exporter.onnx_export.torch_exporter import torch_exporter

NAMES = ("torch", "onnxscript", "onnx_ir")


def test_output_of_other_threads_is_shown(capsys):
    def speak():
        sys.stderr.write("of another thread\n")

    with torch_exporter():
        sys.stderr.write("of the exporter\n")
        sys.stderr.flush()
        warnings.warn("of the exporter", UserWarning, stacklevel=1)
        thread = threading.Thread(target=speak)
        thread.start()
        thread.join()
    sys.stderr.write("afterwards\n")
    assert capsys.readouterr().err == "of another thread\nafterwards\n"


def test_messages_of_other_loggers_are_shown(caplog):
    levels = [logging.getLogger(name).level for name in NAMES]
    with torch_exporter():
        for name in (*NAMES, "somebody"):
            logging.getLogger(name).warning("of %s", name)
    assert [record.message for record in caplog.records] == ["of somebody"]
    assert [logging.getLogger(name).level for name in NAMES] == levels
    assert logging.root.manager.disable == logging.NOTSET
