"""Untrusted weight files: the forms that are read, and those that are refused."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporter.errors import CheckpointError
from exporter.sources.checkpoint import load_into, read_checkpoint

OPTIMIZER = torch.optim.AdamW([nn.Parameter(torch.zeros(3))]).state_dict()


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


@pytest.fixture
def state(tiny):
    return tiny.net(seed=5).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {**s, "epoch": 3},
        lambda s: {"ema": s, "optimizer": OPTIMIZER},
        lambda s: {"model_ema": {"state_dict": s}, "optimizer": OPTIMIZER},
        lambda s: {**s, "ema": {k: v + 1 for k, v in s.items()}, "optimizer": OPTIMIZER},
        lambda s: {"state_dict": s, "optimizer_states": [OPTIMIZER]},
    ],
)
def test_pytorch_files_in_all_usual_forms(tmp_path, state, wrap):
    torch.save(wrap(dict(state)), tmp_path / "weights.pth")
    assert equal(read_checkpoint(tmp_path / "weights.pth"), state)


def test_safetensors(tmp_path, state):
    save_file(dict(state), tmp_path / "weights.safetensors")
    assert equal(read_checkpoint(tmp_path / "weights.safetensors"), state)


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: {"optimizer": o, "epoch": 3}])
def test_a_file_with_only_an_optimizer_is_refused(tmp_path, tiny, wrap):
    module = tiny.net()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    torch.save(wrap(optimizer.state_dict()), tmp_path / "weights.pth")
    flat = {f"{i}.{k}": v for i, slots in optimizer.state_dict()["state"].items() for k, v in slots.items()}
    save_file(flat, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        with pytest.raises(
            CheckpointError, match=r"contains the state of an optimizer but no weights; save `model"
        ):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {"optimizer": OPTIMIZER, "rng": torch.get_rng_state()},
        {"optimizer": OPTIMIZER, "best": torch.tensor(0.9), "scaler": {"scale": torch.tensor(2.0)}},
        {"optimizer_states": [OPTIMIZER], "epoch": 3},
        {"optimizers": (OPTIMIZER, OPTIMIZER)},
        {"0.sum": torch.zeros(3), "0.step": torch.tensor(1.0)},
        {"0.exp_avg": torch.zeros(3), "1.exp_avg": torch.zeros(3)},
    ],
)
def test_an_optimizer_and_tensors_that_are_not_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="contains the state of an optimizer but no weights"):
        read_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adam, torch.optim.RMSprop])
def test_a_flat_optimizer_state_as_safetensors_is_refused(tmp_path, tiny, kind):
    module = tiny.net()
    optimizer = kind(module.parameters())
    module(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    slots = optimizer.state_dict()["state"].items()
    save_file({f"{i}.{k}": v for i, values in slots for k, v in values.items()}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="contains the state of an optimizer but no weights"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("beside", [{"optimizer": OPTIMIZER}, {"epoch": 3}])
def test_weights_under_an_unusual_name_are_named(tmp_path, state, beside):
    torch.save({"generator": dict(state), **beside}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="under a usual name, but tensors under 'generator'; save"):
        read_checkpoint(tmp_path / "weights.pth")


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.pth: there is no such file"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files(tmp_path, state, suffix, share):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(dict(state), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.place == str(path)
    assert "truncated" in caught.value.cause


class Program:
    """An object whose unpickling runs a shell command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["torch", "nested", "pickle", "zip"])
def test_code_in_a_pickle_does_not_run(tmp_path, state, form):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    program = Program(marker)
    if form == "torch":
        torch.save(program, path)
    elif form == "nested":
        torch.save({"state_dict": dict(state), "extra": program}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps({"stem.weight": program}))
    else:
        torch.save(state, path)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, pickle.dumps(program) if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match="is a pickle that would run code"):
        read_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(program))
    assert marker.exists()  # a plain unpickler runs the code


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"save only `model.state_dict\(\)`"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"model": {"a": 1}}])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="contains no state dict"):
        read_checkpoint(tmp_path / "weights.pth")


def test_weights_are_loaded(tiny, state):
    net = tiny.net(seed=1)
    loaded = load_into(net, state, "file")
    assert (loaded.tensors, loaded.new_head) == (len(state), None)
    assert equal(net.state_dict(), state)


def test_old_checkpoints_without_the_batch_counter_are_loaded(tiny, state):
    older = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert load_into(tiny.net(), older, "file").tensors == len(state) - 1


def test_differences_from_another_architecture_are_listed(tiny, state):
    foreign = {**state, "body.weight": torch.zeros(8, 8, 5, 5), "neck.weight": torch.zeros(3)}
    del foreign["norm.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_into(tiny.net(), foreign, "weights.pth")
    assert caught.value.cause == (
        "belongs to another network: 1 missing (norm.bias); 1 unexpected (neck.weight); "
        "1 of another shape (body.weight [8, 8, 5, 5], expected [8, 8, 3, 3])"
    )


def test_long_lists_are_shortened(tiny):
    foreign = {f"x{index}": torch.zeros(1) for index in range(7)}
    with pytest.raises(CheckpointError, match=r"7 unexpected \(x0, x1, x2, x3, x4 and 2 more\)"):
        load_into(tiny.net(), foreign, "weights.pth")


def test_a_head_for_other_classes_is_left_out_and_named(tiny):
    pretrained, net = tiny.net(classes=1000, seed=5), tiny.net(seed=1)
    fresh = net.head.weight.clone()
    loaded = load_into(net, pretrained.state_dict(), "weights.pth")
    assert (loaded.new_head, loaded.tensors) == ("head", len(net.state_dict()) - 2)
    assert torch.equal(net.head.weight, fresh)
    assert torch.equal(net.stem.weight, pretrained.stem.weight)


def test_a_head_for_other_features_is_another_network(tiny, state):
    foreign = {**state, "head.weight": torch.zeros(3, 9)}
    with pytest.raises(
        CheckpointError, match=r"of another shape \(head.weight \[3, 9\], expected \[3, 8\]\)"
    ):
        load_into(tiny.net(), foreign, "weights.pth")


def test_other_layers_are_never_replaced(tiny, state):
    foreign = {**state, "stem.weight": torch.zeros(4, 1, 3, 3), "head.weight": torch.zeros(5, 8)}
    before = tiny.net().state_dict()
    net = tiny.net()
    with pytest.raises(CheckpointError, match="2 of another shape"):
        load_into(net, foreign, "weights.pth")
    assert equal(net.state_dict(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["body.weight", "norm.running_var"])
def test_numbers_that_are_not_finite_are_refused(tiny, state, key, value):
    spoilt = {name: tensor.clone() for name, tensor in state.items()}
    spoilt[key].view(-1)[1] = value
    spoilt["head.bias"][0] = value
    net, before = tiny.net(), tiny.net().state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_into(net, spoilt, "weights.pth")
    assert str(caught.value) == (
        f"weights.pth: {key!r} contains NaN or infinity; use a checkpoint from before the training diverged"
    )
    assert equal(net.state_dict(), before)


def test_a_number_too_large_for_the_network_is_refused(tiny, state):
    wide = {**state, "head.bias": torch.full((3,), 1e300, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"'head.bias' contains NaN or infinity"):
        load_into(tiny.net(), wide, "weights.pth")


def test_infinity_that_the_new_network_contains_too_is_allowed():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))

    assert load_into(Masked(), Masked().state_dict(), "weights.pth").tensors == 3


def test_a_head_that_is_left_out_may_contain_nan(tiny):
    pretrained = tiny.net(classes=1000).state_dict()
    pretrained["head.bias"][0] = torch.nan
    assert load_into(tiny.net(), pretrained, "weights.pth").new_head == "head"
