"""Networks between stages: masks, files, calls, random seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exporter.networks.network import (
    Network,
    accuracy,
    call,
    deterministic,
    load_network,
    matches,
    predict,
    takes_names,
)
from exporter.networks.zero_counts import count_zeros
from exporter.sources.splits import Split


def masked(module, share=0.5):
    weights = {n: p for n, p in module.named_parameters() if n in ("body.weight", "head.weight")}
    generator = torch.Generator().manual_seed(0)
    return Network(
        module, {n: torch.rand(p.shape, generator=generator) >= share for n, p in weights.items()}
    )


def test_masks_zero_only_the_weights_that_they_name(tiny):
    network, before = masked(tiny.net()), tiny.net().state_dict()
    network.apply_masks()
    for name, value in network.module.state_dict().items():
        mask = network.masks.get(name, torch.tensor(True))
        assert torch.equal(value, before[name] * mask)


def test_sparsity_is_the_share_of_masked_weights(tiny):
    assert Network(tiny.net()).sparsity() == 0.0
    network = masked(tiny.net(), 0.4)
    zeros = sum(int((~mask).sum()) for mask in network.masks.values())
    assert network.sparsity() == zeros / (8 * 8 * 9 + 3 * 8)


@pytest.mark.parametrize("dense", [True, False])
def test_a_network_is_loaded_from_its_folder(tiny, tmp_path, dense):
    network = Network(tiny.net(seed=3)) if dense else masked(tiny.net(seed=3))
    network.save(tmp_path)
    loaded = load_network(tiny.net(), tmp_path)
    state = network.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.module.state_dict().items())
    assert loaded.masks.keys() == network.masks.keys()
    assert all(torch.equal(mask, network.masks[name]) for name, mask in loaded.masks.items())


def test_equal_networks_make_equal_files(tiny, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        masked(tiny.net()).save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["masks.safetensors", "weights.safetensors"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_shared_and_strided_weights_are_saved(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    module[0].bias.data = torch.arange(8.0)[::2]
    Network(module).save(tmp_path)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert torch.equal(load_network(other, tmp_path).module[1].weight, module[0].weight)
    assert other[0].bias.tolist() == [0, 2, 4, 6]


class Two(nn.Module):
    def forward(self, left, right):
        return left - right


class Loose(nn.Module):
    def forward(self, *inputs):
        return inputs[0] - inputs[1]


class Many(nn.Module):
    def forward(self, x):
        return x, x


def test_inputs_are_passed_by_name_if_forward_has_the_names():
    inputs = {"right": torch.ones(1, 2), "left": torch.zeros(1, 2)}
    assert takes_names(Two(), inputs)
    assert call(Two(), inputs).tolist() == [[-1, -1]]
    assert not takes_names(Loose(), inputs)
    assert call(Loose(), inputs).tolist() == [[1, 1]]


def test_forward_must_return_one_tensor():
    with pytest.raises(TypeError, match="forward returned tuple, not one tensor of class scores"):
        call(Many(), {"x": torch.zeros(1)})


def test_predictions_do_not_change_the_network(tiny, splits):
    net = tiny.net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    outputs = predict(net, splits.evaluation, batch_size=50)
    assert outputs.shape == (120, 3)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    one_by_one = predict(net, splits.evaluation, batch_size=1)
    assert np.allclose(outputs, one_by_one, atol=1e-6)


def test_accuracy_is_the_share_of_right_answers():
    split = Split({"input": np.float32([[2, 1], [0, 1], [3, 0], [0, 3]])}, np.array([0, 1, 1, 1]))
    assert accuracy(nn.Identity(), split) == 0.75


def test_random_numbers_depend_only_on_seed_and_name():
    def draw(seed, name, noise):
        torch.manual_seed(noise)
        with deterministic(seed, name) as generator:
            return torch.rand(3).tolist(), torch.rand(3, generator=generator).tolist()

    assert draw(0, "a", 1) == draw(0, "a", 2)
    assert len({str(draw(*key, 1)) for key in ((0, "a"), (1, "a"), (0, "b"))}) == 3


@pytest.mark.parametrize("already", [True, False])
def test_the_random_state_outside_does_not_change(already):
    torch.use_deterministic_algorithms(already)
    try:
        torch.manual_seed(9)
        expected = torch.rand(2)
        torch.manual_seed(9)
        with deterministic(0, "a"):
            assert torch.are_deterministic_algorithms_enabled()
            torch.rand(2)
        with pytest.raises(KeyError), deterministic(0, "a"):
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled() is already
        assert torch.equal(torch.rand(2), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "prefixes", "found"),
    [
        ("body", ("body",), True),
        ("body.conv.weight", ("stem", "body"), True),
        ("body.conv.weight", ("body.conv",), True),
        ("body2.weight", ("body",), False),
        ("body", ("body.conv",), False),
        ("body", (), False),
    ],
)
def test_prefixes_end_at_dots(name, prefixes, found):
    assert matches(name, prefixes) is found


def test_zeros_are_counted_among_eligible_and_all_parameters(tiny):
    module = tiny.net()
    everything = sum(parameter.numel() for parameter in module.parameters())
    none = {"zero_share": 0.0, "sparsity": 0.0, "zeros": 0, "eligible_parameters": 0}
    assert Network(module).zero_counts().as_json() == {**none, "parameters": everything}
    mask = module.head.weight.detach() > 0
    zeros = int((~mask).sum())
    assert Network(module, {"head.weight": mask}).zero_counts().as_json() == {
        "zero_share": zeros / everything,
        "sparsity": zeros / 24,
        "zeros": zeros,
        "eligible_parameters": 24,
        "parameters": everything,
    }
    assert count_zeros(nn.Identity(), {}).zero_share == 0.0
