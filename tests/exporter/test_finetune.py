"""Fine-tuning: the head, the comparison with random weights, the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from exporter.errors import StageError
from exporter.network import Network, accuracy
from exporter.recipe import FineTuneConfig
from exporter.stages.finetune import cross_entropy, finetune, reset_head


def settings(**changes):
    return FineTuneConfig(
        **{"kind": "finetune", "epochs": 2, "batch_size": 10, "learning_rate": 0.05} | changes
    )


def test_metrics_describe_the_network_that_comes_back(tiny, splits, context):
    network, metrics = finetune(Network(tiny.net()), settings(), splits, context())
    assert metrics["evaluation_accuracy"] == accuracy(network.module, splits.evaluation)
    assert len(metrics["curves"]) == 2
    assert "from_scratch" not in metrics


def test_the_same_stage_twice_gives_the_same_weights(tiny, splits, context):
    one, other = (
        finetune(Network(tiny.net()), settings(), splits, context())[0].module.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_head_starts_anew(tiny, splits, context):
    module = tiny.net(seed=4)
    before = module.head.weight.clone(), module.stem.weight.clone()
    reset_head(module, "head", context(seed=1))
    assert not torch.equal(module.head.weight, before[0])
    assert torch.equal(module.stem.weight, before[1])
    other = tiny.net(seed=5)
    reset_head(other, "head", context(seed=1))
    assert torch.equal(module.head.weight, other.head.weight)


def test_the_stage_resets_the_head_before_it_trains(tiny, splits, context):
    """With all else frozen and a rate of almost zero, the head that comes out is the fresh one."""
    config = settings(
        head="head", freeze=("stem", "norm", "body"), learning_rate=1e-9, epochs=1, weight_decay=0.0
    )
    expected = tiny.net()
    reset_head(expected, "head", context())
    network, _ = finetune(Network(tiny.net()), config, splits, context())
    assert torch.allclose(network.module.head.weight, expected.head.weight, atol=1e-6)


def test_heads_that_cannot_be_reset(tiny, splits, context):
    with pytest.raises(StageError, match=r"stage.head: the network has no module 'fc'; it has: stem, norm"):
        finetune(Network(tiny.net()), settings(head="fc"), splits, context())
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(StageError, match=r"stage.head: '0' has no weights"):
        finetune(Network(module), settings(head="0"), splits, context())


def test_long_lists_of_modules_are_shortened(context):
    module = nn.Sequential(*[nn.ReLU() for _ in range(20)])
    with pytest.raises(StageError, match=r"10, 11 …$"):
        reset_head(module, "fc", context())


def test_from_scratch_trains_a_second_random_network(tiny, splits, context):
    pretrained, _ = finetune(Network(tiny.net()), settings(epochs=3), splits, context(name="first"))
    config = settings(epochs=1, learning_rate=1e-4, from_scratch=True, freeze=("stem", "norm", "body"))
    network, metrics = finetune(pretrained, config, splits, context())
    scratch = metrics["from_scratch"]
    assert metrics["evaluation_accuracy"] > 0.9
    assert scratch["evaluation_accuracy"] < metrics["evaluation_accuracy"]
    assert len(scratch["curves"]) == 1
    assert accuracy(network.module, splits.evaluation) == metrics["evaluation_accuracy"]


def test_label_smoothing_spreads_a_share(splits):
    outputs, labels = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
    logs = torch.log_softmax(outputs, dim=1)[0]
    expected = -(0.9 * logs[0] + 0.1 * logs.mean())
    assert cross_entropy(0.1)({}, outputs, labels).item() == pytest.approx(expected.item())
    assert cross_entropy()({}, outputs, labels).item() == pytest.approx(-logs[0].item())


def test_labels_beyond_the_classes_stop_the_stage(tiny, splits, context):
    with pytest.raises(StageError, match="label 2 in train is out of range for the network's 2 classes"):
        finetune(Network(tiny.net(classes=2)), settings(), splits, context())
