"""The table of kernel times: measured widths, interpolation, and the stored file. Nothing is timed here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from exporter.graphs.targets import TARGETS
from exporter.training.shrinking.kernel_table import KernelTable

# The tests check the timed models without timing them.
from exporter.training.shrinking.kernel_timing import Setting, _model, _open
from exporter.training.shrinking.layer_costs import CostModel, Kernel, Layer, State, count_macs, find_layers
from exporter.training.shrinking.structure import find_structure

ONE_BY_ONE = {"window": (1, 1), "stride": (1, 1), "dilation": (1, 1)}
POINT = Kernel(inputs=64, outputs=128, groups=1, size=(8, 8), out_size=(8, 8), **ONE_BY_ONE)
DEPTH = Kernel(
    inputs=64,
    outputs=64,
    groups=0,
    size=(8, 8),
    out_size=(4, 4),
    window=(3, 3),
    stride=(2, 2),
    dilation=(1, 1),
)
GROUPED = Kernel(
    inputs=48, outputs=96, groups=3, size=(9,), out_size=(9,), window=(5,), stride=(1,), dilation=(1,)
)
LINEAR = Kernel(inputs=64, outputs=10, groups=1, size=(7,), out_size=(7,))


def by_macs(seen=None):
    """A fake timer: each multiply-add takes a nanosecond."""

    def timer(kernels):
        if seen is not None:
            seen.extend(kernels)
        return [float(kernel.macs) for kernel in kernels]

    return timer


def layer(kernel, inputs=(), outputs=()):
    return Layer("layer", kernel, dict(inputs), dict(outputs))


def test_layers_are_measured_at_a_few_widths_of_each_side():
    seen = []
    table = KernelTable(by_macs(seen))
    assert table.prepare([layer(POINT, {"a": 1}, {"b": 1})], {"a": range(64, 0, -16), "b": [128, 64]}) == 20
    assert {kernel.inputs for kernel in seen} == {64, 48, 32, 16}
    assert {kernel.outputs for kernel in seen} == {128, 96, 64, 32, 16}
    assert table.prepare([layer(POINT, {"a": 1}, {"b": 1})], {}) == 0


def test_sides_outside_all_groups_are_measured_at_full_width():
    seen = []
    KernelTable(by_macs(seen)).prepare([layer(POINT, {"a": 1})], {"a": [64, 32]})
    assert {kernel.outputs for kernel in seen} == {128}


def test_depthwise_layers_are_measured_at_every_requested_width():
    seen = []
    KernelTable(by_macs(seen)).prepare([layer(DEPTH, {"a": 1}, {"a": 1})], {"a": [64, 60, 4]})
    assert sorted(kernel.outputs for kernel in seen) == [4, 60, 64]
    assert all(kernel.inputs == kernel.outputs == kernel.group_count for kernel in seen)


def test_grouped_layers_are_measured_at_multiples_of_their_groups():
    seen = []
    KernelTable(by_macs(seen)).prepare([layer(GROUPED, {"a": 3}, {"b": 3})], {"a": [16], "b": [32]})
    assert all(kernel.inputs % 3 == kernel.outputs % 3 == 0 for kernel in seen)


@pytest.mark.parametrize("kernel", [POINT, GROUPED, LINEAR], ids=["point", "grouped", "linear"])
def test_times_between_measured_widths_are_bilinear(kernel):
    """Multiply-adds are linear in each side, so the interpolation must be exact at every width."""
    table = KernelTable(by_macs())
    table.prepare([layer(kernel, {"a": 1}, {"b": 1})], {})
    for inputs in range(3, kernel.inputs + 1, 3):
        for outputs in range(3, kernel.outputs + 1, 3):
            other = kernel.with_channels(inputs, outputs)
            assert table(other) == pytest.approx(other.macs / 1e6)


def test_a_layer_measured_at_one_width_scales_in_proportion():
    table = KernelTable(by_macs())
    table.prepare([layer(POINT)], {})
    assert table(POINT.with_channels(64, 32)) == pytest.approx(POINT.macs / 4e6)


def test_times_are_kept_in_a_file(tmp_path):
    path, seen = tmp_path / "tables" / "host.json", []
    first = KernelTable(by_macs(seen), path)
    first.prepare([layer(POINT, {"a": 1})], {"a": [64, 32]})
    count = len(seen)
    again = KernelTable(by_macs(seen), path)
    assert again.prepare([layer(POINT, {"a": 1})], {"a": [64, 32]}) == 0
    assert len(seen) == count
    assert again(POINT) == first(POINT)
    for content in ("", "[1]", '{"a": "b"}', '{"a": null}', "\udc80"):
        path.write_bytes(content.encode(errors="surrogateescape"))
        assert KernelTable(by_macs(), path).prepare([layer(POINT, {"a": 1})], {"a": [64, 32]}) == count


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("target", ["x86-vnni", "arm64"])
@pytest.mark.parametrize(
    "kernel", [POINT, DEPTH, GROUPED, LINEAR], ids=["point", "depth", "grouped", "linear"]
)
def test_kernels_are_models_of_one_node_that_run(kernel, target, precision):
    if precision == "int8" and kernel is GROUPED:
        flat = {"size": (9, 9), "out_size": (5, 5), "window": (5, 5), "stride": (2, 2), "dilation": (1, 1)}
        kernel = replace(GROUPED, **flat)
    model = _model(kernel, Setting(precision, TARGETS[target], 1))
    assert len(model.graph.node) == 1
    session, feeds = _open(model, 1)
    assert isinstance(session, onnxruntime.InferenceSession)
    (output,) = session.run(None, feeds)
    sizes = [*kernel.out_size, kernel.outputs]
    assert sorted(output.shape) == sorted([*sizes] if not kernel.window else [1, *sizes])
    kind = {"fp32": np.float32}.get(precision, np.int8 if target == "arm64" else np.uint8)
    assert output.dtype == kind


def test_costs_add_up_layer_by_layer(shapes, name):
    module, inputs = shapes.build(name), {"image": shapes.pictures()["image"][:1]}
    groups = find_structure(module, shapes.pictures(), (), "stage").groups
    layers = find_layers(module, inputs, groups)
    costs = CostModel(layers, groups, lambda kernel: kernel.macs)
    assert costs(State({})) == count_macs(module, inputs) == count_macs(module, shapes.pictures())
    rest = CostModel(layers, groups, lambda kernel: 0.0, constant=2.0)
    assert rest(State({}, frozenset([layers[0].name]))) == 2.0 * (len(layers) - 1)


def test_costs_of_a_state_are_those_of_the_rebuilt_network(shapes, name):
    from exporter.networks.rebuild import rebuild
    from exporter.training.shrinking.structure import removal

    module, inputs = shapes.build(name), shapes.pictures()
    groups = find_structure(module, inputs, (), "stage").groups
    costs = CostModel(find_layers(module, inputs, groups), groups, lambda kernel: kernel.macs)
    kept = {group.name: len(group.units) // 2 for group in groups}
    cut = rebuild(module, removal({group: range(len(group.units) // 2) for group in groups}))
    assert costs(State(kept)) == count_macs(cut, inputs)


def test_transposed_convolutions_count_their_work(shapes):
    from torch import nn

    module = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2))
    (found,) = find_layers(module, shapes.pictures(), ())
    assert found.kernel.macs == 3 * 8 * 4 * 16 * 16
