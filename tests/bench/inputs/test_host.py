"""Fingerprints of this host and of simulated hosts."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import pytest

from bench.inputs import host
from bench.inputs.host import available_cores, cpu_info, fingerprint, has_vnni, host_target

X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: none
"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (X86, "Intel(R) Xeon(R) Gold", ("avx2", "avx512f", "avx512_vnni")),
        (ARM, "implementer 0x41 part 0xd0b", ("asimd", "asimddp")),
        ("", None, ()),
        (None, "i386", ()),
    ],
)
def test_cpu_name_and_flags_are_read(tmp_path, monkeypatch, text, model, flags):
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(text)
    monkeypatch.setattr(host.platform, "processor", lambda: "i386" if text is None else "wrong")
    assert cpu_info(tmp_path) == (model, flags)


def test_this_host_has_a_fingerprint():
    found = fingerprint()
    assert found == fingerprint()
    assert (found.numpy, found.onnxruntime) == (np.__version__, onnxruntime.__version__)
    assert found.cpu_count == os.cpu_count()
    assert found.memory_bytes is None or found.memory_bytes > 2**20


@pytest.mark.parametrize(
    ("flags", "vnni"),
    [(("avx512_vnni",), True), (("avx2", "avx_vnni"), True), (("avx512f",), False), ((), False)],
)
def test_vnni_is_read_from_the_flags(flags, vnni):
    assert has_vnni(fingerprint().model_copy(update={"cpu_flags": flags})) is vnni


def test_memory_that_cannot_be_read(monkeypatch):
    def refuse(_name):
        raise ValueError

    monkeypatch.setattr(os, "sysconf", refuse)
    assert fingerprint().memory_bytes is None


def test_available_cores_are_sorted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 0, 2}, raising=False)
    assert available_cores() == (0, 2, 3)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() is None


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), "x86-vnni"),
        ("x86_64", ("avx2", "avx_vnni"), "x86-vnni"),
        ("AMD64", ("avx2",), "x86-avx2"),
        ("x86_64", (), "x86-avx2"),
        ("aarch64", ("asimd", "asimddp"), "arm64"),
        ("arm64", (), "arm64"),
        ("riscv64", (), "portable"),
    ],
)
def test_the_kind_of_a_host(machine, flags, name):
    found = fingerprint().model_copy(update={"machine": machine, "cpu_flags": flags})
    assert host_target(found) == name
