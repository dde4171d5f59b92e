"""Kinds of CPU: the hosts that they match, and the types that they require."""

from __future__ import annotations

import pytest

from bench.inputs.host import fingerprint, host_target
from exporter.graphs.targets import TARGETS, find_target


def host(machine, *flags):
    return fingerprint().model_copy(update={"machine": machine, "cpu_flags": flags})


def test_auto_is_the_kind_of_the_host():
    assert find_target("auto", host=host("x86_64", "avx2", "avx_vnni")) is TARGETS["x86-vnni"]
    assert find_target("auto", host=host("riscv64")) is TARGETS["portable"]


def test_auto_without_a_host_is_the_kind_of_this_host():
    assert find_target("auto").name == host_target(fingerprint())


@pytest.mark.parametrize("name", TARGETS)
def test_a_named_target_does_not_depend_on_the_host(name):
    assert find_target(name, host=host("riscv64")).name == name


def test_targets_have_the_types_that_kernels_require():
    assert all(target.per_channel for target in TARGETS.values())
    assert {name for name, target in TARGETS.items() if target.signed_activations} == {"arm64"}
    assert {name for name, target in TARGETS.items() if target.saturates} == {"x86-avx2", "portable"}
