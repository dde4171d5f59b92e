"""An interrupted training resumes and ends with exactly the same weights."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.core.progress import SILENT, SilentProgress
from exporter.errors import StageError
from exporter.networks.network import Network, deterministic
from exporter.recipes import FineTuneConfig
from exporter.training.loop import Checkpoints, Hook, fit
from exporter.training.loop.checkpoints import Saved, Values
from exporter.training.stages.labelled_loss import cross_entropy

EVERYTHING = {"ema": 0.9, "mixup": 0.4, "patience": 5, "probe_epochs": 1, "layer_decay": 0.7}


class Dropping(nn.Module):
    """A network with dropout, which draws from PyTorch's generator."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, image):
        return self.net(nn.functional.dropout(image, 0.2, self.training))


class Drift(Hook):
    """A hook with a tensor that depends on all earlier steps."""

    def begin(self, network, steps, steps_per_epoch):
        self.network, self.memory = network, torch.zeros(8)

    def after_backward(self, step):
        gradient = self.network.module.net.norm.bias.grad
        self.memory = 0.9 * self.memory + (0.0 if gradient is None else gradient)

    def after_step(self, step):
        with torch.no_grad():
            self.network.module.net.norm.bias.add_(0.01 * self.memory)

    def tensors(self):
        return {"memory": self.memory}

    def restore(self, tensors):
        self.memory = tensors["memory"]


class Learning(nn.Module):
    """A loss with its own trainable weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs, outputs, labels):
        return cross_entropy()(inputs, outputs * self.scale, labels)


def noisy(inputs, generator):
    return {"image": inputs["image"] + 0.1 * torch.randn(inputs["image"].shape, generator=generator)}


def train(tiny, splits, checkpoints=None, *, stop_at=None, progress=SILENT, **changes):
    """Train; with `stop_at`, raise KeyboardInterrupt when that step begins."""
    network = Network(Dropping(tiny.net()))
    config = FineTuneConfig(
        **{"kind": "finetune", "epochs": 4, "batch_size": 10, "learning_rate": 0.05} | EVERYTHING | changes
    )
    steps = []
    loss = Learning()

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = loss

        def forward(self, inputs, outputs, labels):
            steps.append(0)
            if len(steps) - 1 == stop_at:
                raise KeyboardInterrupt
            return self.inner(inputs, outputs, labels)

    fitted = fit(
        network,
        replace(splits, augment=noisy),
        config,
        Counted(),
        seed=3,
        name="a stage",
        progress=progress,
        hooks=[Drift()],
        checkpoints=checkpoints,
    )
    return network.module.state_dict(), fitted, len(steps)


@pytest.mark.parametrize("stop_at", [1, 5, 12, 19])
def test_a_resumed_training_ends_with_equal_weights(tiny, splits, tmp_path, stop_at):
    expected, curves, steps = train(tiny, splits)
    assert steps == 20
    with pytest.raises(KeyboardInterrupt):
        train(tiny, splits, Checkpoints(tmp_path, interval_s=0), stop_at=stop_at)
    said = []

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    found, resumed, left = train(tiny, splits, Checkpoints(tmp_path, interval_s=0), progress=Progress())
    assert left == 20 - stop_at
    assert said == [f"a stage: continues at step {stop_at} of 20"]
    assert resumed == curves
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_finished_training_is_not_trained_again(tiny, splits, tmp_path):
    expected, curves, _ = train(tiny, splits, Checkpoints(tmp_path, interval_s=0))
    found, again, steps = train(tiny, splits, Checkpoints(tmp_path, interval_s=0))
    assert (again, steps) == (curves, 0)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoints_are_written_at_intervals(tiny, splits, tmp_path):
    """The clock advances one second per read, and a checkpoint is written every seven seconds."""
    seconds = iter(range(1000))
    written = []

    class Watched(Checkpoints):
        def write(self, name, saved):
            written.append(saved.values.step)
            super().write(name, saved)

    train(tiny, splits, Watched(tmp_path, interval_s=7, clock=lambda: float(next(seconds))))
    assert written == [7, 14]


@pytest.mark.parametrize("damage", ["empty", "short", "foreign", "old", "absent"])
def test_a_damaged_checkpoint_is_not_read(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write("a", Saved({"x": torch.ones(3)}, Values()))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "short": content[:-3],
            "foreign": content.replace(b"edgeproof", b"somebodys"),
            "old": content.replace(b'format\\": 1', b'format\\": 9'),
            "absent": content,
        }[damage]
    )
    if damage == "absent":
        path.unlink()
    assert checkpoints.read("a", Values) is None


def test_tied_weights_can_be_stored(tmp_path):
    weight = torch.ones(3)
    Checkpoints(tmp_path).write("a", Saved({"x": weight, "y": weight}, Values()))
    assert torch.equal(Checkpoints(tmp_path).read("a", Values).tensors["y"], weight)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
torch.set_num_threads(1)
from bench.core.progress import SILENT
from conftest import Net, make_splits
from exporter.networks.network import Network, deterministic
from exporter.recipes import FineTuneConfig
from exporter.training.stages.labelled_loss import cross_entropy
from exporter.training.loop import Checkpoints, Hook, fit

class Kill(Hook):
    def after_backward(self, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

with deterministic(0, "tiny"):
    network = Network(Net())
config = FineTuneConfig(kind="finetune", epochs=3, batch_size=10, learning_rate=0.05)
checkpoints = Checkpoints(Path(sys.argv[1]), interval_s=0)
fit(network, make_splits(), config, cross_entropy(), seed=0, name="x", progress=SILENT, hooks=[Kill()],
    checkpoints=checkpoints)
"""


def test_resuming_after_sigkill(tiny, splits, tmp_path):
    from pathlib import Path

    here = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(here), str(here.parents[1])], check=False
    )
    assert done.returncode == -signal.SIGKILL
    config = FineTuneConfig(kind="finetune", epochs=3, batch_size=10, learning_rate=0.05)

    def run(checkpoints):
        with deterministic(0, "tiny"):
            network = Network(tiny.net())
        steps = []

        class Count(Hook):
            def after_step(self, step):
                steps.append(step)

        fit(
            network,
            splits,
            config,
            cross_entropy(),
            seed=0,
            name="x",
            progress=SILENT,
            hooks=[Count()],
            checkpoints=checkpoints,
        )
        return network.module.state_dict(), steps

    found, steps = run(Checkpoints(tmp_path))
    expected, _ = run(None)
    assert steps == list(range(7, 15))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_loss_of_nan_keeps_the_best_weights(tiny, splits, tmp_path):
    class Poison(Hook):
        def __init__(self, at):
            self.at, self.states = at, []

        def begin(self, network, steps, steps_per_epoch):
            self.network = network

        def after_step(self, step):
            if step % 5 == 4:
                self.states.append({k: v.clone() for k, v in self.network.module.state_dict().items()})
            if step == self.at:
                with torch.no_grad():
                    self.network.module.head.weight.fill_(float("nan"))

    config = FineTuneConfig(kind="finetune", epochs=4, batch_size=10, learning_rate=0.05)
    for at, cause in (
        (11, "the loss became nan at epoch 2, step 2"),
        (14, "the weights became infinite or NaN in the last step of epoch 2"),
        (2, "the loss became nan at epoch 0, step 3"),
    ):
        folder = tmp_path / str(at)
        poison = Poison(at)
        with pytest.raises(StageError) as caught:
            fit(
                Network(tiny.net()),
                splits,
                config,
                cross_entropy(),
                seed=0,
                name="stage",
                progress=SILENT,
                hooks=[poison],
                checkpoints=Checkpoints(folder),
            )
        assert caught.value.cause == cause
        kept = folder / "stage.last-good.safetensors"
        if at == 2:  # no epoch had ended
            assert caught.value.fix == "lower learning_rate"
            assert not kept.exists()
            continue
        epoch = int(caught.value.fix.partition("the weights of epoch ")[2][0])
        assert caught.value.fix.endswith(f"are saved in {kept}")
        found = load_file(kept)
        assert all(torch.equal(found[name], value) for name, value in poison.states[epoch].items())
        assert all(np.isfinite(value.numpy()).all() for value in found.values())
