"""The shrink stage: targets are met, the network is trained again, and a killed stage continues.

The tests use fake times: a multiply-add takes 1 ns, and each layer 50 ns more.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.errors import UsageError
from exporter.errors import ExportError, RecipeError, StageError
from exporter.networks.network import Network, accuracy, load_network, predict
from exporter.recipes import ShrinkConfig, read_recipe
from exporter.sources.splits import Split, Splits
from exporter.training.distillation.losses import hinton, soft_targets
from exporter.training.distillation.onnx_teacher import OnnxTeacher
from exporter.training.loop import Checkpoints, hold_out
from exporter.training.loop.hardware import check_hardware
from exporter.training.shrinking.allocation import Allocation
from exporter.training.shrinking.importance import unit_scores, weakest
from exporter.training.shrinking.kernel_table import KernelTable
from exporter.training.shrinking.layer_costs import State, count_macs, count_parameters, find_layers
from exporter.training.shrinking.meter import Measured
from exporter.training.shrinking.narrowing import search
from exporter.training.shrinking.structure import find_structure

# Private names: no result shows which samples measure the damage.
from exporter.training.stages.shrink import _judges, cut, shrink, shrink_with

OVERHEAD_NS = 50


class Meter:
    """Returns fake latencies and sizes."""

    def __init__(self, inputs, factor=1.0):
        self.inputs, self.factor = inputs, factor

    def table(self):
        return KernelTable(lambda kernels: [float(kernel.macs) for kernel in kernels])

    def export(self, module):
        layers = find_layers(module, self.inputs, ())
        ns = count_macs(module, self.inputs) + OVERHEAD_NS * len(layers)
        return Measured(self.factor * ns / 1e6, 1000 + count_parameters(module))

    def export_float(self, module):
        return Measured(1.25 * self.export(module).latency_ms, 4000)

    def measure(self, exported):
        return list(exported)


@pytest.fixture
def data(shapes):
    images = shapes.pictures(90)["image"].numpy()
    labels = np.arange(90) % 5
    images[np.arange(90), 0] += labels[:, None, None]
    split = Split({"image": images}, labels)
    return Splits(split.take(np.arange(60)), split.take(np.arange(60, 70)), split.take(np.arange(60, 90)))


@pytest.fixture
def run(shapes, data, context):
    """Run the stage on a network by name, or on a network that a test created."""

    def stage(which, config, made=None, meter=None):
        network = Network(shapes.build(which)) if isinstance(which, str) else which
        return shrink_with(meter or Meter(shapes.pictures()), network, config, data, made or context())

    return stage


def settings(**config):
    target = (
        {} if "target" in config or "drop" in config or "resolution" in config else {"latency_ratio": 0.5}
    )
    narrowed = {"multiple": 1, "samples": 6} if target or "target" in config else {}
    content = {"epochs": 0, "validation": 0.2} | narrowed | config
    content |= {"target": target} if target else {}
    return ShrinkConfig.model_validate_json(json.dumps({"kind": "shrink", **content}))


@pytest.mark.parametrize("allocation", ["latency", "macs", "uniform"])
@pytest.mark.parametrize(
    "target",
    [
        {"latency_ms": 0.1},
        {"latency_ratio": 0.4},
        {"float_latency_ratio": 0.32},
        {"macs_ratio": 0.5},
        {"params_ratio": 0.3},
        {"size_ratio": 0.6},
    ],
    ids=lambda target: next(iter(target)),
)
def test_targets_are_met(run, shapes, data, target, allocation):
    module = shapes.build("residual")
    dense = copy.deepcopy(module)
    config = settings(target=target, allocation=allocation)
    network, result = run(Network(module), config)
    (name, limit), before, after = *target.items(), result.before, result.after
    reached = {
        "latency_ms": after.latency_ms,
        "latency_ratio": after.latency_ms / before.latency_ms,
        "float_latency_ratio": after.latency_ms / (1.25 * before.latency_ms),
        "macs_ratio": after.macs / before.macs,
        "params_ratio": after.params / before.params,
        "size_ratio": after.size_bytes / before.size_bytes,
    }[name]
    assert reached <= 1.05 * limit
    assert reached >= 0.8 * limit
    assert after.macs == count_macs(network.module, shapes.pictures())
    assert before.params == count_parameters(dense)
    assert result.goal == target
    assert result.accuracy_before == accuracy(dense, data.evaluation)
    assert result.evaluation_accuracy == accuracy(network.module, data.evaluation)
    assert result.rounds[0].measured == pytest.approx(reached)


def dear(kernel):
    """A time that contradicts the multiply-adds: 1 x 1 convolutions take a thousand times as long."""
    return kernel.macs * (1000.0 if kernel.window == (1, 1) else 1.0)


class Contrary(Meter):
    """Returns the times of `dear`."""

    def table(self):
        return KernelTable(lambda kernels: [dear(kernel) for kernel in kernels])

    def export(self, module):
        layers = find_layers(module, self.inputs, ())
        return Measured(sum(dear(layer.kernel) for layer in layers) / 1e6, 1)


def test_channels_are_removed_by_saved_time_or_by_saved_macs(run, shapes):
    """Channels of `right` save less work than those of `left`, and much more time."""
    kept = {}
    for allocation in ("latency", "macs"):
        config = settings(target={"macs_ratio": 0.9}, allocation=allocation)
        _, result = run("concat", config, meter=Contrary(shapes.pictures()))
        kept[allocation] = result.rounds[0].kept
    assert kept["latency"]["right"] < kept["macs"]["right"]
    assert kept["latency"]["left"] == 8 > kept["macs"]["left"]


@pytest.mark.parametrize("kind", ["taylor", "magnitude", "bn_scale"])
def test_the_most_important_channels_are_kept(run, shapes, data, context, kind):
    config = settings(importance=kind, target={"macs_ratio": 0.5})
    module = shapes.build("residual")
    groups = find_structure(module, shapes.pictures(), (), "stage").groups
    scores = unit_scores(module, groups, kind, _judges(config, data, context()))
    network, result = run("residual", config)
    gone = {name: weakest(scores[name], width) for name, width in result.rounds[0].kept.items()}
    assert any(gone.values())
    for name in filter(gone.get, gone):
        assert {*network.plan.modules[name].outputs} == {*range(len(scores[name]))} - {*gone[name]}


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_networks_are_measured_in_the_deployed_precision(shapes, data, context, monkeypatch, precision):
    """With a wrong number of bytes per weight, the prediction would differ from the measurement."""
    asked, weight_bytes = [], {"int8": 1, "fp32": 4}[precision]

    class Sized(Meter):
        def export(self, module):
            return Measured(1.0, 1000 + weight_bytes * count_parameters(module))

    def host_meter(*, precision, **_others):
        asked.append(precision)
        return Sized(shapes.pictures())

    # The function `shrink` hides the module of the same name, so the attribute is set in its globals.
    monkeypatch.setitem(shrink.__globals__, "HostMeter", host_meter)
    config = settings(target={"size_ratio": 0.5}, precision=precision)
    _, result = shrink(Network(shapes.build("residual")), config, data, context())
    assert asked == [precision]
    predicted, measured = result.rounds[0].tries[0]
    assert predicted == pytest.approx(measured, rel=0.03)


def test_a_wrong_prediction_is_corrected(run, shapes):
    """The cost of a network depends only on its parameters here, not on the times of its layers."""

    class Other(Meter):
        def export(self, module):
            return Measured(count_parameters(module) ** 0.5, 1)

    _, result = run("residual", settings(), meter=Other(shapes.pictures()))
    (line,) = result.rounds
    assert len(line.tries) > 1
    assert abs(line.measured / 0.5 - 1) <= 0.05


def closing_in(truth, limit, least=0.0):
    """Tries of a search whose allocations use the whole budget, but whose true cost differs from it."""
    return search(
        lambda budget: Allocation(State({"a": max(budget, least)}), met=budget >= least, damage=0.0),
        lambda state: state.kept["a"],
        lambda state: truth(state.kept["a"]),
        limit,
    )


def test_a_search_closes_in_from_both_sides():
    tries = closing_in(lambda budget: budget**2, 0.5)
    assert [found.predicted for found in tries] == pytest.approx([0.5, 1.0, 2 / 3, 0.7, 12 / 17])
    assert [found.miss(0.5) <= 0.015 for found in tries] == [False, False, False, False, True]
    assert len(closing_in(lambda budget: 1.01 * budget, 0.5)) == 1


def test_a_search_ends_when_nothing_new_can_be_tried():
    assert len(closing_in(lambda _budget: 0.9, 0.5, least=0.9)) == 1
    two = search(
        lambda budget: Allocation(State({"a": 1 + (budget > 0.7)}), met=True, damage=0.0),
        lambda state: state.kept["a"],
        lambda state: {1: 0.4, 2: 0.9}[state.kept["a"]],
        0.5,
    )
    assert [found.measured for found in two] == [0.4, 0.9]


def test_a_try_within_the_tolerance_is_preferred_to_a_closer_one_beyond_it(run):
    """Of 0.4 and 0.55, the second is nearer to 0.5 but too slow."""

    class Coarse(Meter):
        def export(self, module):
            full = (
                module.stem.out_channels
                + module.first.widen.out_channels
                + module.second.widen.out_channels
            )
            return Measured(1.0 if full == 72 else 0.55 if full > 40 else 0.4, 1)

    _, result = run("residual", settings(), meter=Coarse({"image": torch.zeros(2, 3, 16, 16)}))
    (line,) = result.rounds
    assert {measured for _, measured in line.tries} == {0.4, 0.55}
    assert line.measured == 0.4


def test_an_unreachable_target_reports_the_best_value_reached(run, shapes):
    network = Network(shapes.build("residual"))
    with pytest.raises(StageError) as caught:
        run(network, settings(target={"latency_ratio": 0.01}, min_kept=0.5))
    assert caught.value.place == "stage.target"
    assert caught.value.cause.startswith("latency_ratio 0.01 cannot be met; the best reached is 0.26")
    assert "min_kept" in caught.value.fix


def test_widths_are_rounded(run):
    config = settings(multiple=8, target={"macs_ratio": 0.6})
    network, result = run("residual", config)
    assert result.widths
    assert all(width % 8 == 0 for width in result.widths.values())
    assert network.module.second.widen.out_channels == result.widths["second.widen"]


def test_attention_heads_are_rounded_as_whole_heads(run):
    """A head has 4 channels: with a multiple of 4 heads are removed one by one, with 16 four at a time."""
    config = settings(multiple=4, target={"macs_ratio": 0.7}, exclude=("patch", "up"))
    network, _ = run("attention", config)
    assert network.module.attention.num_heads in {1, 2, 3}
    with pytest.raises(StageError, match="cannot be met; the best reached is 1"):
        run("attention", settings(multiple=16, target={"macs_ratio": 0.7}, exclude=("patch", "up")))


def test_each_round_cuts_its_part_of_the_way(run, shapes):
    config = settings(rounds=2, target={"macs_ratio": 0.25}, epochs=1, batch_size=16)
    network, result = run("residual", config)
    first, second = result.rounds
    assert first.limit == 0.5
    assert second.limit == pytest.approx(0.25)
    assert second.measured == result.after.macs / result.before.macs
    assert len(first.curves) == len(second.curves) == 1
    assert result.curves == second.curves
    again = load_built(shapes, network)
    assert torch.equal(again.head.weight, network.module.head.weight)


def load_built(shapes, network):
    from exporter.networks.rebuild import rebuild

    module = rebuild(shapes.build("residual"), network.plan)
    module.load_state_dict(network.module.state_dict())
    return module


def test_blocks_are_dropped_to_meet_a_target(run):
    config = settings(depth=1, multiple=64, target={"latency_ratio": 0.9})
    network, result = run("residual", config)
    assert len(result.dropped) == 1
    assert isinstance(network.module.get_submodule(result.dropped[0]), nn.Identity)


def test_listed_blocks_are_dropped_and_pictures_are_scaled(run):
    config = settings(drop=["first"], resolution=8)
    network, result = run("residual", config)
    assert result.dropped == ("first",)
    assert result.goal is None
    assert result.after.macs < result.before.macs / 4
    assert network.plan.resolution == (8, 8)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"drop": ["third"]}, "stage: the network has no module 'third'"),
        (
            {"drop": ["head"]},
            "stage.drop: 'head' cannot be dropped: the network's outputs would change their shape",
        ),
        ({"drop": ["first.widen"]}, "stage.drop: 'first.widen' cannot be dropped: the network no"),
        ({"exclude": ["neck"]}, "stage: the network has no module 'neck'"),
        (
            {"exclude": ["stem", "first", "second"]},
            "no channels of the network can be removed (head: the network's outputs would change their",
        ),
        ({"epochs": 1, "batch_size": 1}, "the BatchNorm 'norm' cannot compute statistics from"),
    ],
)
def test_impossible_configurations_are_refused(run, config, line):
    with pytest.raises(StageError) as caught:
        run("residual", settings(**config))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blocks_that_cannot_be_dropped_together_are_refused(run, shapes):
    class Either(shapes.Residual):
        def forward(self, image):
            x = torch.relu(self.norm(self.stem(image)))
            y = self.second(self.first(x))
            if y is x:
                raise ValueError("a block is needed")
            return self.head(y.mean(dim=(2, 3)))

    with pytest.raises(StageError) as caught:
        run(Network(shapes.build(Either)), settings(drop=["first", "second"]))
    assert (caught.value.place, caught.value.fix) == ("stage.drop", "list fewer blocks in drop")
    assert "cannot be dropped together: the network no longer runs (a block is needed)" in str(caught.value)


def test_pictures_can_be_too_small(run):
    with pytest.raises(StageError, match=r"stage.resolution: 8 is not possible: the network no longer"):
        run("attention", settings(resolution=8))


def test_single_samples_recover_with_frozen_statistics(run):
    config = settings(epochs=1, batch_size=1, norm_statistics="frozen", learning_rate=1e-4)
    _, result = run("residual", config)
    assert len(result.curves) == 1


def test_masks_are_cut_with_their_weights(run, shapes):
    module = shapes.build("residual")
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(p.shape, generator=generator) > 0.5
        for name, p in module.named_parameters()
        if name in ("first.widen.weight", "second.narrow.weight", "head.weight")
    }
    network = Network(module, masks)
    network.apply_masks()
    config = settings(target={"macs_ratio": 0.4}, drop=["first"], epochs=1, batch_size=16)
    network, result = run(network, config)
    assert set(network.masks) == {"second.narrow.weight", "head.weight"}
    for name, mask in network.masks.items():
        assert mask.dtype == torch.bool
        assert torch.equal(network.module.get_parameter(name) != 0, mask)
    assert 0.4 < result.sparsity < 0.6


def test_a_cut_keeps_what_it_does_not_name(shapes):
    network = Network(shapes.build("residual"), trained_qparams="kept")
    assert cut(network, settings_plan(network, shapes)).trained_qparams == "kept"


def settings_plan(network, shapes):
    from exporter.training.shrinking.structure import removal

    group = find_structure(network.module, shapes.pictures(), (), "stage").groups[0]
    return removal({group: [0]})


def test_it_trains_with_a_teacher(run, shapes, context, monkeypatch):
    asked = []
    answer = OnnxTeacher.forward

    def count(self, image):
        asked.append(len(image))
        return answer(self, image)

    monkeypatch.setattr(OnnxTeacher, "forward", count)
    config = settings(epochs=1, batch_size=16, teacher="finetune", hard_weight=0.0)
    made = context(teacher={"finetune": shapes.build("residual")})
    _, result = run("residual", config, made)
    assert sum(asked) >= 48
    assert len(result.curves) == 1
    other = shapes.build("residual")
    other.head = nn.Linear(16, 7)
    with pytest.raises(StageError, match="the teacher has 7 classes, the student 5"):
        run("residual", config, context(teacher={"finetune": other}))


def test_teacher_and_labels_have_the_configured_weights(run, shapes, data, context):
    """With one batch of all samples and frozen norm statistics, the loss can be computed beforehand."""
    config = settings(
        drop=["first"],
        epochs=1,
        batch_size=48,
        norm_statistics="frozen",
        teacher="finetune",
        temperature=2.0,
        hard_weight=0.2,
    )
    student, teacher = shapes.build("residual"), shapes.build("residual")
    student.first = nn.Identity()
    nn.init.normal_(teacher.head.weight, generator=torch.Generator().manual_seed(0))  # a confident teacher
    training, _ = hold_out(data.train, config.validation, 0, "stage")
    ours, theirs = (torch.from_numpy(predict(module, training)) for module in (student, teacher))
    hard = nn.functional.cross_entropy(ours, torch.from_numpy(training.labels))
    expected = 0.2 * hard + 0.8 * hinton(ours, soft_targets([theirs], 2.0), 2.0)
    _, result = run("residual", config, context(teacher={"finetune": teacher}))
    assert result.curves[0].train_loss == pytest.approx(expected.item(), rel=1e-3)


def test_a_killed_stage_continues_with_the_same_cuts(run, shapes, context, tmp_path):
    """The stage is killed in its second round; after the restart, all measured times are different."""
    config = settings(rounds=2, target={"latency_ms": 0.1}, epochs=1, batch_size=16)

    def started(folder, meter):
        made = replace(context(), checkpoints=Checkpoints(folder, interval_s=0.0))
        return run("residual", config, made, meter)

    class Killed(Meter):
        def measure(self, exported):
            if (tmp_path / "killed" / "stage-round-2-cut.safetensors").is_file():
                raise KeyboardInterrupt
            return super().measure(exported)

    whole, expected = started(tmp_path / "whole", Meter(shapes.pictures()))
    with pytest.raises(KeyboardInterrupt):
        started(tmp_path / "killed", Killed(shapes.pictures()))
    network, result = started(tmp_path / "killed", Meter(shapes.pictures(), factor=1.5))
    assert network.plan == whole.plan
    state = whole.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.module.state_dict().items())
    assert [line.measured for line in result.rounds] == [line.measured for line in expected.rounds]


def test_value_dependent_control_flow_is_named(shapes, data, context):
    class Dynamic(shapes.Residual):
        def forward(self, image):
            return super().forward(image if image.sum() > 0 else -image)

    with pytest.raises(ExportError) as caught:
        shrink(Network(shapes.build(Dynamic)), settings(), data, context())
    assert caught.value.cause == "branches on the values of a tensor"
    assert "all stages except shrink, qat and export work" in caught.value.fix


def test_a_shrunk_network_is_loaded_from_its_folder(run, shapes, data, tmp_path):
    network, _ = run("depthwise", settings())
    network.save(tmp_path)
    again = load_network(shapes.build("depthwise"), tmp_path)
    assert again.plan == network.plan
    assert accuracy(again.module, data.evaluation) == accuracy(network.module, data.evaluation)


def test_a_stage_needs_something_to_do_and_at_most_one_target():
    with pytest.raises(ValueError, match="nothing to do; set target, drop or resolution"):
        ShrinkConfig(kind="shrink")
    with pytest.raises(ValueError, match=r"2 of its keys are set; set exactly one of latency_ms, "):
        settings(target={"latency_ms": 1.0, "macs_ratio": 0.5})
    with pytest.raises(ValueError, match="0 of its keys are set"):
        settings(target={})
    with pytest.raises(ValueError, match="less than 1"):
        settings(target={"macs_ratio": 1.0})


STAGE = """

[[stage]]
kind = "shrink"
target = { macs_ratio = 0.5 }
multiple = 1
epochs = 2
batch_size = 10
teacher = "finetune"

[[stage]]
kind = "qat"
epochs = 1
batch_size = 10
"""


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stage.shrink.teacher=nobody", "teacher 'nobody' of stage 'shrink' is not an earlier stage"),
        (
            "quantize={ bits = 4 }",
            "stage 'shrink' measures int8 models, but quantize.bits is 4; set its precision = \"fp32\"",
        ),
        ("stage.shrink.target={ latency = 0.5 }", "unknown key"),
        ("stage.shrink.importance=luck", "'luck' is refused"),
    ],
)
def test_invalid_shrink_recipes_are_refused(project, override, line):
    project.edit("recipe.toml", "target = { sparsity = 0.25 }\n", f"target = {{ sparsity = 0.25 }}{STAGE}")
    with pytest.raises(RecipeError) as caught:
        read_recipe(project.recipe, [override])
    assert line in str(caught.value)


def test_shrinking_with_several_processes_is_refused(project):
    project.edit("recipe.toml", "target = { sparsity = 0.25 }\n", f"target = {{ sparsity = 0.25 }}{STAGE}")
    pytest.importorskip("lightning_fabric")
    for overrides in (["train.devices=2"], ["train.nodes=2"]):
        with pytest.raises(StageError, match=r"shrink.epochs: each of the 2 processes would shrink"):
            check_hardware(read_recipe(project.recipe, overrides))
    check_hardware(read_recipe(project.recipe, ["train.devices=2", "stage.shrink.epochs=0"]))


@pytest.mark.slow
def test_a_recipe_that_shrinks_ends_in_a_gated_artifact(project, tiny, tmp_path):
    """Build an int8 artifact with pruning, shrinking and quantization-aware training."""
    from exporter import load_trained

    project.edit("recipe.toml", "target = { sparsity = 0.25 }\n", f"target = {{ sparsity = 0.25 }}{STAGE}")
    outcome = project.build()
    assert outcome.artifact is not None
    found = outcome.steps["shrink"]
    assert found.after.macs <= 0.525 * found.before.macs
    assert outcome.steps["qat"].agreement_with_int8 > 0.9
    assert outcome.steps["quantize"].size_bytes < outcome.steps["export"].size_bytes * 2
    assert list((project.cache / "tables").glob("*.json"))
    assert project.build().ran == ()
    outcome = project.build(until="shrink", out=tmp_path / "shrunk")
    assert outcome.ran == ()
    network = load_trained(tiny.net(), tmp_path / "shrunk")
    assert network.stem.out_channels < 8
    assert project.build(until="shrink", out=tmp_path / "shrunk").ran == ()
    with pytest.raises(UsageError, match=r"is not empty and has no .* of an earlier build"):
        project.build(out=tmp_path / "shrunk")
    with pytest.raises(UsageError, match=r"is not empty and has no .* of an earlier build"):
        project.build(until="shrink", out=project.artifact)


class Steps(nn.Module):
    """Blocks of one convolution: the residual channels are the only channels."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

        def forward(self, x):
            return x + torch.relu(self.norm(self.conv(x)))

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), self.Step(), self.Step()
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        return self.head(self.second(self.first(self.stem(image))).mean(dim=(2, 3)))


def test_blocks_are_dropped_if_no_channel_can_be_removed(run, shapes):
    config = settings(target={"macs_ratio": 0.6}, depth=1, exclude=("stem",))
    network, result = run(Network(shapes.build(Steps)), config)
    assert (len(result.dropped), result.widths) == (1, {})
    assert isinstance(network.module.get_submodule(result.dropped[0]), nn.Identity)
    with pytest.raises(StageError, match="no channels of the network can be removed") as caught:
        run(Network(shapes.build(Steps)), settings(target={"macs_ratio": 0.6}, exclude=("stem",)))
    assert caught.value.fix == "shorten exclude, set depth, or set resolution without a target"


def test_a_target_that_is_already_met_is_reported(run):
    _, result = run("residual", settings(target={"latency_ms": 100.0}))
    assert result.warnings == (
        "stage: the network meets the target already, nothing was removed: lower the target",
    )
    assert run("residual", settings())[1].warnings == ()


def test_pictures_are_not_scaled_up(run):
    with pytest.raises(StageError, match=r"stage.resolution: 64 is larger than the data's pictures"):
        run("residual", settings(resolution=64))
