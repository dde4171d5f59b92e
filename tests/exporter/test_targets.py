"""CPU kinds: which hosts they are, and which types they need."""

from __future__ import annotations

import pytest

from bench.host import fingerprint
from exporter.targets import TARGETS, find_target, host_target


def host(machine, *flags):
    return fingerprint().model_copy(update={"machine": machine, "cpu_flags": flags})


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
def test_auto_is_the_kind_of_the_host(machine, flags, name):
    assert host_target(host(machine, *flags)) == name
    assert find_target("auto", host(machine, *flags)) is TARGETS[name]


def test_auto_without_a_host_is_this_one():
    assert find_target("auto").name == host_target(fingerprint())


@pytest.mark.parametrize("name", TARGETS)
def test_a_named_target_does_not_ask_the_host(name):
    assert find_target(name, host("riscv64")).name == name


def test_the_types_that_kernels_want():
    assert all(target.per_channel for target in TARGETS.values())
    assert {name for name, target in TARGETS.items() if target.signed_activations} == {"arm64"}
    assert {name for name, target in TARGETS.items() if target.reduce_range} == {"x86-avx2", "portable"}
