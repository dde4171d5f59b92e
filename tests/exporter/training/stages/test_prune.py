"""Pruning: it sets exactly the requested number of weights to zero, those of smallest magnitude."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exporter.errors import StageError
from exporter.networks.network import Network, accuracy
from exporter.recipes import GradualConfig, PruneConfig, PruneTarget
from exporter.training.sparsity.gradual import Gradual, cubic
from exporter.training.sparsity.masks import (
    lowest_masks,
    magnitude_masks,
    pattern_masks,
    prunable_weights,
    threshold_masks,
)
from exporter.training.sparsity.sizes import compressed_bytes
from exporter.training.stages.prune import prune

PRUNABLE = ("stem.weight", "body.weight", "head.weight")


def settings(sparsity, exclude=()):
    return PruneConfig(kind="prune", target=PruneTarget(sparsity=sparsity), exclude=exclude)


def gradual(sparsity=0.6, method="magnitude", scope="global", **changes):
    training = {"epochs": 4, "batch_size": 10, "learning_rate": 0.02, "end": 0.6, "updates": 5} | changes
    return PruneConfig(
        kind="prune",
        target=PruneTarget(sparsity=sparsity),
        method=method,
        scope=scope,
        gradual=GradualConfig(**training),
    )


def magnitudes(module, names=PRUNABLE):
    return sorted(
        (abs(value), name, index)
        for name in names
        for index, value in enumerate(module.get_parameter(name).flatten().tolist())
    )


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5, 0.99])
def test_exactly_the_smallest_weights_are_pruned(tiny, splits, context, sparsity):
    ranked = magnitudes(tiny.net())
    doomed = {(name, index) for _, name, index in ranked[: round(sparsity * len(ranked))]}
    network, result = prune(Network(tiny.net()), settings(sparsity), splits, context())
    zeros = {
        (name, index)
        for name in PRUNABLE
        for index, value in enumerate(network.module.get_parameter(name).flatten().tolist())
        if value == 0
    }
    assert zeros == doomed
    assert result.sparsity == len(doomed) / len(ranked) == network.sparsity()


def test_remaining_weights_do_not_change(tiny, splits, context):
    before = tiny.net().state_dict()
    network, result = prune(Network(tiny.net()), settings(0.5), splits, context())
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name] * network.masks.get(name, True))
    assert result.accuracy_before == accuracy(tiny.net(), splits.evaluation)
    assert result.evaluation_accuracy == accuracy(network.module, splits.evaluation)
    assert result.layers.keys() == set(PRUNABLE)
    assert result.layers["body.weight"] == pytest.approx(
        float((network.module.body.weight == 0).float().mean())
    )


@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_ties_do_not_change_the_count(rows, data):
    weights = {str(index): torch.tensor(row, dtype=torch.float32) for index, row in enumerate(rows)}
    sparsity = data.draw(st.floats(0.01, 0.99))
    masks = magnitude_masks(weights, sparsity)
    flat = torch.cat(list(weights.values())).abs()
    kept = torch.cat(list(masks.values()))
    assert int((~kept).sum()) == round(sparsity * len(flat))
    if kept.any() and not kept.all():
        assert flat[kept].min() >= flat[~kept].max()
    assert all(masks[name].shape == weights[name].shape for name in weights)


def test_excluded_modules_stay_dense(tiny, splits, context):
    network, _ = prune(Network(tiny.net()), settings(0.9, exclude=("stem", "head")), splits, context())
    assert set(network.masks) == {"body.weight"}
    assert int((network.module.body.weight == 0).sum()) == round(0.9 * 8 * 8 * 9)
    assert torch.equal(network.module.stem.weight, tiny.net().stem.weight)


def test_impossible_exclusions(tiny, splits, context):
    with pytest.raises(StageError, match=r"stage.exclude: the network has no module 'neck'"):
        prune(Network(tiny.net()), settings(0.5, exclude=("neck",)), splits, context())
    with pytest.raises(StageError, match="no convolution or linear layer to prune; check exclude"):
        prune(Network(tiny.net()), settings(0.5, exclude=("stem", "body", "head")), splits, context())


def test_pruning_again_only_adds_zeros(tiny, splits, context):
    once, _ = prune(Network(tiny.net()), settings(0.3), splits, context())
    first = {name: mask.clone() for name, mask in once.masks.items()}
    twice, result = prune(once, settings(0.6), splits, context())
    assert result.sparsity == pytest.approx(0.6, abs=1e-3)
    assert all(not (twice.masks[name] & ~first[name]).any() for name in first)
    less, result = prune(twice, settings(0.1), splits, context())
    assert result.sparsity == pytest.approx(0.6, abs=1e-3)
    assert all(torch.equal(less.masks[name], twice.masks[name]) for name in first)


def test_masks_of_layers_that_are_now_excluded_still_apply(tiny, splits, context):
    once, _ = prune(Network(tiny.net()), settings(0.5, exclude=("head",)), splits, context())
    body = once.masks["body.weight"].clone()
    twice, _ = prune(once, settings(0.5, exclude=("body",)), splits, context())
    assert set(twice.masks) == set(PRUNABLE)
    assert torch.equal(twice.masks["body.weight"], body)


def test_a_single_layer_is_a_network():
    assert set(prunable_weights(nn.Linear(2, 2), (), "stage")) == {"weight"}


def test_scope_layer_prunes_each_layer_separately(tiny, splits, context):
    config = PruneConfig(kind="prune", target=PruneTarget(sparsity=0.5), scope="layer")
    network, result = prune(Network(tiny.net()), config, splits, context())
    for name in PRUNABLE:
        weight = network.module.get_parameter(name)
        assert int((weight == 0).sum()) == weight.numel() // 2
        assert result.layers[name] == pytest.approx(0.5)


def test_thresholds(tiny, splits, context):
    module = tiny.net()
    before = {name: module.get_parameter(name).detach().clone() for name in PRUNABLE}
    config = PruneConfig(kind="prune", target=PruneTarget(threshold=0.1))
    network, _ = prune(Network(module), config, splits, context())
    for name, weight in before.items():
        assert torch.equal(network.module.get_parameter(name), weight * (weight.abs() >= 0.1))
    masks = threshold_masks(before, 0.7, "layer")
    for name, weight in before.items():
        assert torch.equal(masks[name], weight.abs() >= 0.7 * weight.std())
        assert 0.2 < float((~masks[name]).float().mean()) < 0.8


def test_a_threshold_that_empties_layers_gives_a_warning(tiny, splits, context):
    config = PruneConfig(kind="prune", target=PruneTarget(threshold=100.0))
    _, result = prune(Network(tiny.net()), config, splits, context())
    assert result.sparsity == 1.0
    assert "stage: all weights of body.weight were pruned: exclude it, or prune less" in result.warnings


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (3, 8)])
def test_patterns_keep_the_largest_of_every_group(tiny, kept, group):
    weights = {name: tiny.net().get_parameter(name).detach() for name in PRUNABLE}
    masks = pattern_masks(weights, kept, group)
    assert set(masks) == {"body.weight", "head.weight"}  # the stem has a single input channel
    body, mask = weights["body.weight"], masks["body.weight"]
    for out, row, column in ((0, 0, 0), (5, 2, 1)):
        for start in range(0, 8, group):
            values = body[out, start : start + group, row, column].abs()
            flags = mask[out, start : start + group, row, column]
            assert int(flags.sum()) == kept
            assert values[flags].min() >= values[~flags].max()


def test_the_pattern_stage(tiny, splits, context):
    config = PruneConfig(kind="prune", target=PruneTarget(pattern="2:4"), exclude=("head",))
    network, result = prune(Network(tiny.net()), config, splits, context())
    assert set(network.masks) == {"body.weight"}
    assert result.sparsity == 0.5


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.floats(0.0, 1.0))
def test_of_equal_scores_the_first_are_masked(values, share):
    scores = torch.tensor(values, dtype=torch.float32)
    count = round(share * len(values))
    expected = torch.ones(len(values), dtype=torch.bool)
    expected[torch.argsort(scores, stable=True)[:count]] = False
    assert torch.equal(lowest_masks({"x": scores}, share)["x"], expected)


def tied(first):
    """A network whose last layer shares the weight of its first."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle = first, nn.Linear(4, 4)
            self.out = nn.Linear(4, 10, bias=False)
            self.out.weight = first.weight

    return Tied()


@pytest.mark.parametrize("first", [nn.Embedding(10, 4), nn.Linear(4, 10)], ids=["table", "layer"])
def test_shared_weights_are_not_pruned(first):
    assert set(prunable_weights(tied(first), (), "stage")) == {"middle.weight"}


def test_the_cubic_schedule_equals_the_paper_s_formula():
    assert [cubic(done, 0.1, 0.9) for done in (0.0, 1.0)] == pytest.approx([0.1, 0.9])
    assert cubic(0.5, 0.0, 0.8) == pytest.approx(0.8 - 0.8 * 0.125)


class Recorder(nn.Module):
    """Cross entropy that records the fraction of zeros before every step."""

    def __init__(self, module):
        super().__init__()
        self.module, self.zeros = [module], []

    def forward(self, inputs, outputs, labels):
        weights = [self.module[0].get_parameter(name) for name in PRUNABLE]
        self.zeros.append(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))
        return nn.functional.cross_entropy(outputs, labels)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_sparsity_follows_the_cubic_schedule(tiny, splits, context, method):
    config = gradual(method=method, begin=0.2).gradual
    network = Network(tiny.net(), {})
    loss = Recorder(network.module)
    hook = Gradual(list(PRUNABLE), 0.6, scope="global", method=method, config=config)
    context().fit(network, splits, config, loss, hooks=[hook])
    first, last = round(0.2 * 19), round(0.6 * 19)  # 20 steps
    assert loss.zeros[: first + 1] == [0.0] * (first + 1)
    assert loss.zeros[first + 1] == pytest.approx(cubic(1 / 5, 0.0, 0.6), abs=1e-3)
    assert loss.zeros[last] < 0.6 - 1e-3
    assert loss.zeros[last + 1 :] == pytest.approx([0.6] * (19 - last), abs=1e-3)
    assert sorted(loss.zeros) == loss.zeros
    assert network.sparsity() == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_pruning_while_training_learns(tiny, splits, context, method, scope):
    network, result = prune(Network(tiny.net()), gradual(0.5, method, scope, epochs=6), splits, context())
    assert result.evaluation_accuracy > max(0.8, result.accuracy_before)
    assert result.evaluation_accuracy == accuracy(network.module, splits.evaluation)
    assert result.sparsity == pytest.approx(0.5, abs=2e-3)
    assert result.best_epoch >= 3  # the first epochs end before the last pruning update
    for name in PRUNABLE:
        weight = network.module.get_parameter(name)
        assert not weight[~network.masks[name]].any()


def zeros_of(module):
    return {name: int((module.get_parameter(name) == 0).sum()) for name in PRUNABLE}


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_gradual_pruning_ranks_each_layer_alone_or_all_together(tiny, splits, context, method):
    sizes = {name: tiny.net().get_parameter(name).numel() for name in PRUNABLE}
    zeros = {}
    for scope in ("layer", "global"):
        network, _ = prune(Network(tiny.net()), gradual(0.5, method, scope), splits, context())
        zeros[scope] = zeros_of(network.module)
    assert zeros["layer"] == {name: size // 2 for name, size in sizes.items()}
    assert zeros["global"] != zeros["layer"]
    assert sum(zeros["global"].values()) == sum(zeros["layer"].values())


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_gradual_pruning_leaves_excluded_modules_dense(tiny, splits, context, method):
    config = gradual(0.5, method).model_copy(update={"exclude": ("stem", "head")})
    network, result = prune(Network(tiny.net()), config, splits, context())
    body = network.module.body.weight.numel()
    assert zeros_of(network.module) == {"stem.weight": 0, "body.weight": body // 2, "head.weight": 0}
    assert set(network.masks) == set(result.layers) == {"body.weight"}


def test_movement_scores_are_the_sum_of_gradient_times_weight(tiny):
    """One linear layer, computed directly: scores, pruned weights, and a weight that returns."""
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0, -3.0, 4.0]]))
    network = Network(module, {})
    config = GradualConfig(epochs=1, begin=0.0, end=0.5, updates=2)
    hook = Gradual(["weight"], 0.5, scope="global", method="movement", config=config)
    hook.begin(network, 5, 5)  # pruning updates after steps 0 and 2
    gradients = [[1.0, -1.0, 1.0, 0.0], [-9.0, 0.0, 0.0, 1.0], [-9.0, 0.0, 0.0, 1.0]]
    dense, scores = torch.tensor([1.0, 2.0, -3.0, 4.0]), torch.zeros(4)
    seen = []
    for step, gradient in enumerate(gradients):
        module.weight.grad = torch.tensor([gradient])
        scores -= torch.tensor(gradient) * dense
        hook.after_backward(step)
        hook.after_step(step)
        seen.append(module.weight.detach().flatten().tolist())
    # Step 0: scores -1, 2, 3, 0. The cubic prunes 7/16 of four weights, rounded to two: the first and last.
    assert seen[0] == [0.0, 2.0, -3.0, 0.0]
    assert seen[1] == [0.0, 2.0, -3.0, 0.0]
    # Step 2: scores 17, 2, 3, -8. The first weight returns with its old value, the second is pruned.
    assert scores.tolist() == [17.0, 2.0, 3.0, -8.0]
    assert seen[2] == [1.0, 0.0, -3.0, 0.0]
    assert hook.settled(2)
    assert not hook.settled(1)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_earlier_pruned_weights_stay_pruned(tiny, splits, context, method):
    once, _ = prune(Network(tiny.net()), settings(0.3), splits, context())
    first = {name: mask.clone() for name, mask in once.masks.items()}
    twice, result = prune(once, gradual(0.6, method), splits, context())
    assert result.sparsity == pytest.approx(0.6, abs=2e-3)
    assert all(not (twice.masks[name] & ~first[name]).any() for name in first)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_gradual_pruning_resumes_with_the_same_bytes(tiny, splits, context, tmp_path, method):
    from dataclasses import replace

    from exporter.training.loop import Checkpoints

    config = gradual(0.6, method)
    expected, _ = prune(Network(tiny.net()), config, splits, context())

    class Stop(nn.Module):
        """A network that is killed in its ninth step."""

        def __init__(self, net, limit):
            super().__init__()
            self.net, self.left = net, limit

        def forward(self, image):
            self.left -= self.training
            if self.left < 0:
                raise KeyboardInterrupt
            return self.net(image)

    kept = replace(context(), checkpoints=Checkpoints(tmp_path, interval_s=0))
    reference, _ = prune(Network(Stop(tiny.net(), 99)), config, splits, context())
    with pytest.raises(KeyboardInterrupt):
        prune(Network(Stop(tiny.net(), 8)), config, splits, kept)
    assert list(tmp_path.iterdir())
    found, _ = prune(Network(Stop(tiny.net(), 99)), config, splits, kept)
    for name, value in found.module.net.state_dict().items():
        assert torch.equal(value, reference.module.net.state_dict()[name])
        assert torch.equal(value, expected.module.state_dict()[name])
    assert all(torch.equal(found.masks[name], mask) for name, mask in reference.masks.items())


def test_zeros_are_exact_zeros_in_the_int8_file(tiny, splits, context, tmp_path):
    """Prune, fine-tune with masks, export with folded norms, and quantize, as a build does."""
    import onnx
    from onnx import numpy_helper

    from bench.core.progress import SILENT
    from exporter.graphs.targets import TARGETS
    from exporter.onnx_export.export import export
    from exporter.quantization.split import quantize_split
    from exporter.recipes import ExportConfig, FineTuneConfig, QuantizeConfig
    from exporter.training.stages.finetune import finetune

    network, _ = prune(Network(tiny.net()), gradual(0.6, "movement"), splits, context())
    config = FineTuneConfig(
        kind="finetune", epochs=2, batch_size=10, learning_rate=0.05, ema=0.5, mixup=0.2
    )
    network, _ = finetune(network, config, splits, context())
    export(network.module, splits.calibration, tmp_path / "float.onnx", ExportConfig(), {})
    many = tiny.splits(calibration=160).calibration
    for target, repair in (
        ("x86-vnni", ()),
        ("x86-avx2", ()),
        ("arm64", ()),
        ("x86-vnni", ("equalize", "adaround", "bias")),
    ):
        quantize_split(
            tmp_path / "float.onnx",
            tmp_path / "int8.onnx",
            many,
            QuantizeConfig(samples=128, repair=repair),
            TARGETS[target],
            seed=0,
            progress=SILENT,
        )
        stored = [
            numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer
        ]
        stored = [
            array
            for array in stored
            if array.dtype.kind in "iu" and array.dtype.itemsize == 1 and array.ndim > 1
        ]
        for name in PRUNABLE:
            mask = network.masks[name].numpy()
            (array,) = [a for a in stored if a.size == mask.size]
            array = array if array.shape == mask.shape else array.T
            assert (~mask).any()
            assert not array[~mask].any(), (target, name)
            assert array[mask].any()


def test_zeros_compress(tiny, splits, context):
    module = tiny.net(width=64)
    dense = compressed_bytes(prunable_weights(module, (), "stage"))
    network, result = prune(Network(module), settings(0.8), splits, context())
    assert result.compressed_bytes_before == dense
    sparse = result.compressed_bytes
    assert sparse == compressed_bytes(prunable_weights(network.module, (), "stage"))
    assert sparse.float < 0.5 * dense.float
    assert sparse.int8 < 0.6 * dense.int8
    assert result.int8_compressed_ratio == sparse.int8 / dense.int8
    assert sparse.int8 < 64 * 64 * 9 / 2 < dense.int8


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"pattern": "3:7"}, "the pattern 3:7 does not divide the input channels of any layer"),
        ({"threshold": 1e-6}, "no weight is below the threshold 1e-06"),
    ],
    ids=["pattern", "threshold"],
)
def test_a_stage_that_pruned_nothing_gives_a_warning(tiny, splits, context, target, words):
    config = PruneConfig(kind="prune", target=PruneTarget(**target))
    _, result = prune(Network(tiny.net()), config, splits, context())
    assert result.warnings == (f"stage: no weight was pruned: {words}",)


@pytest.mark.parametrize("apart", [False, True], ids=["in one", "apart"])
def test_projections_of_fused_attention_are_pruned_too(apart):
    attention = nn.MultiheadAttention(8, 2, kdim=6 if apart else None, batch_first=True)
    weights = prunable_weights(nn.ModuleDict({"attention": attention}), (), "stage")
    projections = [f"{part}_proj_weight" for part in "qkv"] if apart else ["in_proj_weight"]
    assert set(weights) == {f"attention.{name}" for name in (*projections, "out_proj.weight")}
    assert prunable_weights(attention, ("out_proj",), "stage").keys() == set(projections)


def test_the_share_of_zeros_counts_all_parameters(tiny, splits, context):
    """Half of the prunable weights is little if a table holds nearly all parameters."""
    module = tiny.net()
    module.register_parameter("table", torch.nn.Parameter(torch.ones(500, 1000)))
    eligible = sum(module.get_parameter(name).numel() for name in PRUNABLE)
    everything = sum(parameter.numel() for parameter in module.parameters())
    _, result = prune(Network(module), settings(0.5), splits, context())
    assert result.sparsity == 0.5
    assert (result.zeros, result.eligible_parameters) == (eligible // 2, eligible)
    assert result.parameters == everything > 500_000
    assert result.zero_share == eligible // 2 / everything < 0.001
    # The share of all parameters comes first, so readers see it before the sparsity of prunable weights.
    keys = list(result.as_json())
    assert keys.index("zero_share") < keys.index("sparsity")
