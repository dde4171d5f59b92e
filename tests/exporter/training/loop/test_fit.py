"""The training loop: frozen and pruned weights, the best epoch, schedules, and refused inputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bench.core.progress import SILENT, SilentProgress
from exporter import Split
from exporter.errors import StageError
from exporter.networks.network import Network, accuracy, predict
from exporter.recipes import FineTuneConfig
from exporter.training.loop import Hook, check_classes, class_notes, fit, hold_out, warmup_cosine
from exporter.training.loop.engine import OneCpu
from exporter.training.loop.mixup import mixup
from exporter.training.stages.labelled_loss import cross_entropy


def settings(**changes):
    return FineTuneConfig(
        **{"kind": "finetune", "epochs": 2, "batch_size": 10, "learning_rate": 0.05} | changes
    )


def train(network, splits, *, seed=0, name="stage", loss=None, progress=SILENT, **changes):
    return fit(
        network,
        splits,
        settings(**changes),
        loss or cross_entropy(),
        seed=seed,
        name=name,
        progress=progress,
    )


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_network_learns(tiny, splits):
    network = Network(tiny.net())
    fitted = train(network, splits, epochs=4)
    assert accuracy(network.module, splits.evaluation) > 0.9
    assert fitted.curves[-1].train_loss < fitted.curves[0].train_loss
    assert not network.module.training
    assert [line.epoch for line in fitted.curves] == [0, 1, 2, 3]
    assert fitted.validation_accuracy == fitted.curves[fitted.best_epoch].validation_accuracy


def test_equal_seeds_give_equal_weights_for_any_random_state(tiny, splits):
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        network = Network(tiny.net())
        train(network, splits)
        states.append(network.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "other"}])
def test_other_seeds_and_names_give_other_weights(tiny, splits, change):
    one, other = Network(tiny.net()), Network(tiny.net())
    train(one, splits)
    train(other, splits, **change)
    assert not torch.equal(one.module.stem.weight, other.module.stem.weight)


def test_pruned_weights_stay_zero(tiny, splits):
    module = tiny.net()
    mask = torch.rand(module.body.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    network = Network(module, {"body.weight": mask})
    network.apply_masks()
    before = snapshot(module)
    train(network, splits, weight_decay=0.5)
    assert torch.equal(module.body.weight[~mask], torch.zeros(int((~mask).sum())))
    assert not torch.equal(module.body.weight[mask], before["body.weight"][mask])


def test_frozen_modules_keep_weights_and_statistics(tiny, splits):
    network = Network(tiny.net())
    before = snapshot(network.module)
    train(network, splits, freeze=("stem", "norm"))
    for name, value in network.module.state_dict().items():
        frozen = name.startswith(("stem.", "norm."))
        assert torch.equal(value, before[name]) is frozen, name
    assert all(parameter.requires_grad for parameter in network.module.parameters())


def test_statistics_change_if_nothing_is_frozen(tiny, splits):
    network = Network(tiny.net())
    before = snapshot(network.module)
    train(network, splits, epochs=1)
    assert not torch.equal(network.module.norm.running_mean, before["norm.running_mean"])


def test_frozen_modules_are_unfrozen(tiny, splits):
    seen = []

    class Watch(SilentProgress):
        def task(self, description, total):
            return super().task(description, total)

    def loss(inputs, outputs, labels):
        seen.append((network.module.stem.weight.requires_grad, network.module.norm.training))
        return cross_entropy()(inputs, outputs, labels)

    network = Network(tiny.net())
    before = snapshot(network.module)
    train(network, splits, epochs=3, freeze=("stem", "norm"), unfreeze_epoch=2, loss=loss, progress=Watch())
    steps = len(seen) // 3
    assert seen == [(False, False)] * (2 * steps) + [(True, True)] * steps
    assert not torch.equal(network.module.stem.weight, before["stem.weight"])


def test_freezing_everything_is_refused(tiny, splits):
    with pytest.raises(StageError, match=r"stage.freeze: all weights are frozen in epoch 0"):
        train(Network(tiny.net()), splits, freeze=("stem", "norm", "body", "head"))


def test_unknown_frozen_modules_are_refused(tiny, splits):
    with pytest.raises(StageError, match=r"no module 'neck'; it has: stem, norm, body, head"):
        train(Network(tiny.net()), splits, freeze=("neck",))
    with pytest.raises(StageError, match=r"no module 'bod'"):
        train(Network(tiny.net()), splits, freeze=("bod",))


def test_the_best_epoch_is_kept_and_of_equals_the_latest(tiny, splits):
    """The loss changes its sign after the first epoch, so each later epoch is worse."""
    calls = []

    def loss(inputs, outputs, labels):
        calls.append(0)
        sign = 1 if len(calls) <= 5 else -1
        return sign * cross_entropy()(inputs, outputs, labels)

    network = Network(tiny.net())
    fitted = train(network, splits, epochs=6, loss=loss, warmup=0.0, learning_rate=0.1)
    accuracies = [line.validation_accuracy for line in fitted.curves]
    assert accuracies[-1] < max(accuracies)
    assert fitted.best_epoch == max(e for e, a in enumerate(accuracies) if a == max(accuracies))
    _, validation = hold_out(splits.train, 0.1, 0, "stage")
    assert accuracy(network.module, validation) == max(accuracies)


@pytest.mark.parametrize("at", [0, 7])
def test_a_loss_that_is_not_a_number_stops_the_stage(tiny, splits, at):
    calls = []

    def loss(inputs, outputs, labels):
        calls.append(0)
        value = cross_entropy()(inputs, outputs, labels)
        return value * float("nan") if len(calls) == at + 1 else value

    with pytest.raises(StageError) as caught:
        train(Network(tiny.net()), splits, loss=loss)
    epoch, step = divmod(at, 5)
    assert caught.value.cause == f"the loss became nan at epoch {epoch}, step {step}"
    assert caught.value.fix == "lower learning_rate"


def test_an_overflow_stops_the_stage(splits):
    loud = Split({"input": splits.train.inputs["image"] * np.float32(1e38)}, splits.train.labels)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 3)))
    with pytest.raises(StageError, match=r"the loss became (nan|inf) at epoch 0, step \d"):
        train(network, replace(splits, train=loud), learning_rate=10.0)


def test_augmentation_sees_every_training_batch_and_a_seeded_generator(tiny, splits):
    draws = []

    def augment(inputs, generator):
        assert not torch.is_inference(inputs["image"])
        draws.append((inputs["image"].shape[0], torch.rand((), generator=generator).item()))
        return {"image": inputs["image"] + 0.1}

    for _ in range(2):
        train(Network(tiny.net()), replace(splits, augment=augment))
    assert draws[:10] == draws[10:]
    assert [count for count, _ in draws[:10]] == [10] * 10


def test_training_data_smaller_than_a_batch_give_one_step(tiny, splits):
    few = replace(splits, train=splits.train.take(np.arange(6)))
    fitted = train(Network(tiny.net()), few, batch_size=64)
    assert len(fitted.curves) == 2


def test_progress_counts_every_step(tiny, splits):
    told = []

    class Progress(SilentProgress):
        def task(self, description, total):
            told.append((description, total))
            return super().task(description, total)

    train(Network(tiny.net()), splits, progress=Progress())
    assert told == [("stage", 10)]


def test_only_matrices_decay(tiny, splits):
    """The loss has no gradient, but weight decay still shrinks weights of two dimensions and more."""
    network = Network(tiny.net())
    before = snapshot(network.module)

    def nothing(inputs, outputs, labels):
        return outputs.sum() * 0

    train(network, splits, loss=nothing, weight_decay=1.0, learning_rate=0.01, warmup=0.0)
    after = network.module.state_dict()
    assert after["stem.weight"].norm() < 0.99 * before["stem.weight"].norm()
    for name in ("norm.weight", "body.bias", "head.bias"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (8, 0.5), (12, 0.0), (20, 0.0)],
)
def test_warmup_and_half_a_cosine(step, factor):
    assert warmup_cosine(step, warmup=4, steps=12) == pytest.approx(factor)


def test_every_step_has_the_scheduled_learning_rate(tiny, splits):
    """With a constant gradient, Adam changes a weight by exactly the learning rate."""
    places = []

    class Watch(Hook):
        def begin(self, network, steps, steps_per_epoch):
            self.bias = network.module.head.bias
            places.append(self.bias.detach().clone())

        def after_step(self, step):
            places.append(self.bias.detach().clone())

    config = settings(epochs=4, warmup=0.25)
    options = {"seed": 0, "name": "stage", "progress": SILENT, "hooks": [Watch()]}
    fitted = fit(
        Network(tiny.net()), splits, config, lambda inputs, outputs, labels: outputs.sum(), **options
    )
    moved = [(before - after).tolist() for before, after in pairwise(places)]
    rates = [0.05 * warmup_cosine(step, warmup=5, steps=20) for step in range(20)]
    assert rates[0] < 0.5 * rates[4]
    assert rates[-1] < 0.1 * rates[4]
    assert moved == [pytest.approx([rate] * 3, rel=1e-3, abs=1e-6) for rate in rates]
    assert [line.learning_rate for line in fitted.curves] == pytest.approx(rates[::5])


def test_lower_layers_change_less_with_layer_decay(tiny, splits):
    """The first step of Adam has the size of the learning rate, for every gradient."""
    network = Network(tiny.net())
    before = snapshot(network.module)
    train(network, splits, epochs=1, batch_size=54, warmup=0.0, layer_decay=0.1, weight_decay=0.0)
    for name, depth in {"head.weight": 0, "body.weight": 1, "stem.weight": 2, "norm.bias": 2}.items():
        moved = (network.module.state_dict()[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(0.05 * 0.1**depth, rel=0.01), name


def test_a_schedule_of_warmup_alone():
    assert warmup_cosine(5, warmup=5, steps=5) == 1.0


@given(st.integers(2, 60), st.floats(0.001, 0.999))
def test_held_out_samples_leave_some_on_both_sides(count, share):
    split = Split({"x": np.arange(count, dtype=np.float32)[:, None]}, np.arange(count) % 2)
    if round(count * share) >= count:
        with pytest.raises(StageError, match=f"{count} labelled training samples are too few"):
            hold_out(split, share, 0, "stage")
        return
    training, validation = hold_out(split, share, 0, "stage")
    assert training.count >= 1
    assert validation.count == max(1, round(count * share))
    both = np.concatenate([training.inputs["x"], validation.inputs["x"]])
    assert sorted(both.ravel().tolist()) == list(range(count))


def test_classes_are_counted(tiny, splits):
    assert check_classes(tiny.net(classes=5), splits, "stage") == 5


@pytest.mark.parametrize("name", ["train", "evaluation"])
def test_labels_out_of_range(tiny, splits, name):
    split = getattr(splits, name)
    other = replace(splits, **{name: Split(split.inputs, split.labels + 5)})
    with pytest.raises(StageError) as caught:
        check_classes(tiny.net(), other, "model")
    assert caught.value.cause == f"label 7 in {name} is out of range for the network's 3 classes"
    assert "model.args" in caught.value.fix


def test_outputs_that_are_not_class_scores_are_refused(splits):
    with pytest.raises(
        StageError, match=r"the network's output has shape \[2, 1, 8, 8\]; return class scores"
    ):
        check_classes(nn.ReLU(), splits, "model")


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Conv2d(3, 3, 3)])
def test_a_network_that_does_not_run_on_the_data_is_refused(splits, module):
    with pytest.raises(StageError, match=r"not run on inputs of shapes \{'image': \[1, 8, 8\]\}"):
        check_classes(module, splits, "model")


def test_predictions_after_training_are_those_of_evaluation_mode(tiny, splits):
    network = Network(tiny.net())
    train(network, splits)
    assert np.array_equal(
        predict(network.module, splits.evaluation), predict(network.module.eval(), splits.evaluation)
    )


def test_the_average_of_the_weights_is_kept(tiny, splits):
    """After a single epoch the network has the average, computed here by its definition."""
    states = []

    class Watch(Hook):
        def begin(self, network, steps, steps_per_epoch):
            self.module = network.module
            states.append(snapshot(network.module))

        def after_step(self, step):
            states.append(snapshot(self.module))

    network = Network(tiny.net())
    fit(
        network,
        splits,
        settings(epochs=1, ema=0.3),
        cross_entropy(),
        seed=0,
        name="stage",
        progress=SILENT,
        hooks=[Watch()],
    )
    average = states[0]
    for step, state in enumerate(states[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {
            name: decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
            for name, value in state.items()
        }
    for name, value in network.module.state_dict().items():
        assert torch.allclose(value.float(), average[name].float(), atol=1e-6), name
    assert not torch.equal(network.module.stem.weight, states[-1]["stem.weight"])


def test_pruned_weights_are_zero_in_the_average_too(tiny, splits):
    module = tiny.net()
    mask = torch.rand(module.body.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    network = Network(module, {"body.weight": mask})  # the masks are first applied after a step
    train(network, splits, ema=0.9)
    assert not module.body.weight[~mask].any()


def test_patience_ends_a_training_that_gains_nothing(tiny, splits):
    """The loss changes its sign after two epochs, so each later epoch is worse."""
    calls = []

    def loss(inputs, outputs, labels):
        calls.append(0)
        sign = 1 if len(calls) <= 10 else -1
        return sign * cross_entropy()(inputs, outputs, labels)

    fitted = train(Network(tiny.net()), splits, epochs=20, loss=loss, warmup=0.0, patience=3)
    accuracies = [line.validation_accuracy for line in fitted.curves]
    gained = accuracies.index(max(accuracies))
    assert len(accuracies) == gained + 1 + 3 < 20
    assert len(calls) == 5 * len(accuracies)


def test_patience_waits_for_the_probe(tiny, splits):
    def nothing(inputs, outputs, labels):
        return outputs.sum() * 0

    fitted = train(Network(tiny.net()), splits, epochs=9, loss=nothing, patience=1, probe_epochs=4)
    assert len(fitted.curves) == 6


def test_patience_waits_for_unfreezing(tiny, splits):
    """Everything is trained only from the fifth epoch on; earlier epochs do not count for patience."""

    def nothing(inputs, outputs, labels):
        return outputs.sum() * 0

    options = {"freeze": ("stem", "body"), "unfreeze_epoch": 3, "unfreeze_every": 1}
    fitted = train(Network(tiny.net()), splits, epochs=9, loss=nothing, patience=1, **options)
    assert len(fitted.curves) == 6


def test_epochs_that_are_not_settled_are_not_kept(tiny, splits):
    class Late(Hook):
        def __init__(self, step):
            self.step = step

        def settled(self, step):
            return step >= self.step

    def run(hook):
        network = Network(tiny.net())
        return fit(
            network,
            splits,
            settings(epochs=4),
            cross_entropy(),
            seed=0,
            name="stage",
            progress=SILENT,
            hooks=[hook],
        )

    assert run(Late(19)).best_epoch == 3
    with pytest.raises(StageError, match="no epoch ended after the last pruning update; raise epochs"):
        run(Late(20))


def test_mixup_mixes_pictures_and_labels(splits):
    batch = splits.train.take(np.arange(8))
    inputs, labels = {"image": torch.from_numpy(batch.inputs["image"])}, torch.from_numpy(batch.labels)
    mixed, shares = mixup(
        inputs, labels, classes=3, alpha=1.0, generator=np.random.default_rng(0), place="stage"
    )
    twin = np.random.default_rng(0)
    share, order = float(twin.beta(1.0, 1.0)), twin.permutation(8)
    assert 0.05 < share < 0.95
    expected = share * inputs["image"] + (1 - share) * inputs["image"][order]
    assert torch.equal(mixed["image"], expected)
    assert shares.sum(dim=1).tolist() == pytest.approx([1.0] * 8)
    for row, (own, other) in enumerate(zip(labels, labels[order], strict=True)):
        if own != other:
            assert shares[row, own].item() == pytest.approx(share)
            assert shares[row, other].item() == pytest.approx(1 - share)
    with pytest.raises(StageError, match=r"stage.mixup: input 'ids' has integers"):
        mixup(
            {"ids": labels}, labels, classes=3, alpha=1.0, generator=np.random.default_rng(0), place="stage"
        )


def test_the_network_learns_from_mixed_samples(tiny, splits):
    network = Network(tiny.net())
    seen = []

    def loss(inputs, outputs, labels):
        seen.append(labels.dtype)
        return cross_entropy(0.1)(inputs, outputs, labels)

    train(network, splits, epochs=6, mixup=0.4, loss=loss)
    assert set(seen) == {torch.float32}
    assert accuracy(network.module, splits.evaluation) > 0.9


def test_parameters_of_a_loss_are_trained(tiny, splits):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

        def forward(self, inputs, outputs, labels):
            return cross_entropy()(inputs, outputs + self.shift, labels)

    loss = Loss()
    train(Network(tiny.net()), splits, loss=loss)
    assert loss.shift.detach().abs().max() > 0


@pytest.mark.parametrize(
    ("counts", "notes"),
    [
        ([40, 40, 40], []),
        ([100, 9, 40], ["class 1 has few training samples (9, the largest class has 100)"]),
        ([100, 3, 2], ["classes 1, 2 have few training samples (2 to 3, the largest class has 100)"]),
        ([50, 0, 50], ["class 1 has no training samples: add some, or lower the number of classes"]),
        ([6, 6, 6], ["2 validation samples for 3 classes are too few to choose the best epoch"]),
    ],
)
def test_too_few_samples_give_warnings(counts, notes):
    found = class_notes(np.repeat(np.arange(3), counts), 3, 0.1)
    assert len(found) == len(notes)
    assert all(line.startswith(start) for line, start in zip(found, notes, strict=True))


class TwoChannels(nn.Module):
    """A network that flattens with a given function."""

    def __init__(self, flatten):
        super().__init__()
        self.stem, self.head, self.flatten = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(192, 3), flatten

    def forward(self, image):
        return self.head(self.flatten(self.stem(image)))


@pytest.mark.parametrize(
    ("flatten", "last"), [(lambda x: x.flatten(1), True), (lambda x: x.view(len(x), -1), False)]
)
def test_pictures_have_channels_last_if_the_network_accepts_it(splits, flatten, last):
    # With a single channel, both layouts are the same.
    twice = {"image": splits.train.inputs["image"].repeat(2, axis=1)}
    data = replace(splits, train=replace(splits.train, inputs=twice))
    seen = set()

    def loss(inputs, outputs, labels):
        if outputs.requires_grad:
            seen.add(inputs["image"].is_contiguous(memory_format=torch.channels_last))
        return cross_entropy()(inputs, outputs, labels)

    network = Network(TwoChannels(flatten))
    train(network, data, loss=loss, epochs=1)
    assert seen == {last}


def test_processes_need_a_sample_each(tiny, splits):
    class Many(OneCpu):
        world = 60

    with pytest.raises(StageError) as caught:
        fit(
            Network(tiny.net()),
            splits,
            settings(),
            cross_entropy(),
            seed=0,
            name="stage",
            progress=SILENT,
            engine=Many(),
        )
    assert caught.value.cause == "54 training samples are too few for 60 processes"
