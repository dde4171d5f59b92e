"""Fine-tuning: a new head, the comparison with random weights, the few-shot curve, the loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.progress import SilentProgress
from exporter.errors import StageError
from exporter.networks.network import Network, accuracy, predict
from exporter.recipes import FewShotConfig, FineTuneConfig
from exporter.training.loop import hold_out
from exporter.training.stages.few_shot import few_of_each
from exporter.training.stages.finetune import finetune
from exporter.training.stages.labelled_loss import balanced, cross_entropy
from exporter.training.stages.starts import random_network, reset_head, unfrozen


def settings(**changes):
    return FineTuneConfig(
        **{"kind": "finetune", "epochs": 2, "batch_size": 10, "learning_rate": 0.05} | changes
    )


def test_metrics_describe_the_returned_network(tiny, splits, context):
    network, result = finetune(Network(tiny.net()), settings(), splits, context())
    assert result.evaluation_accuracy == accuracy(network.module, splits.evaluation)
    assert len(result.curves) == 2
    assert "from_scratch" not in result.as_json()


def test_the_same_stage_twice_gives_the_same_weights(tiny, splits, context):
    one, other = (
        finetune(Network(tiny.net()), settings(), splits, context())[0].module.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_head_is_initialised_again(tiny, splits, context):
    module = tiny.net(seed=4)
    before = module.head.weight.clone(), module.stem.weight.clone()
    reset_head(module, "head", context(seed=1))
    assert not torch.equal(module.head.weight, before[0])
    assert torch.equal(module.stem.weight, before[1])
    other = tiny.net(seed=5)
    reset_head(other, "head", context(seed=1))
    assert torch.equal(module.head.weight, other.head.weight)


def test_the_stage_resets_the_head_before_it_trains(tiny, splits, context):
    """With everything else frozen and a learning rate near zero, the result has the newly reset head."""
    config = settings(
        head="head", freeze=("stem", "norm", "body"), learning_rate=1e-9, epochs=1, weight_decay=0.0
    )
    expected = tiny.net()
    reset_head(expected, "head", context())
    network, _ = finetune(Network(tiny.net()), config, splits, context())
    assert torch.allclose(network.module.head.weight, expected.head.weight, atol=1e-6)


def test_heads_that_cannot_be_reset_are_refused(tiny, splits, context):
    with pytest.raises(StageError, match=r"stage.head: the network has no module 'fc'; it has: stem, norm"):
        finetune(Network(tiny.net()), settings(head="fc"), splits, context())
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(StageError, match=r"stage.head: nothing in '0' can be initialised again"):
        finetune(Network(module), settings(head="0"), splits, context())


def test_long_lists_of_modules_are_shortened(context):
    module = nn.Sequential(*[nn.ReLU() for _ in range(20)])
    with pytest.raises(StageError, match=r"10, 11 …$"):
        reset_head(module, "fc", context())


def test_from_scratch_trains_a_second_random_network(tiny, splits, context):
    pretrained, _ = finetune(Network(tiny.net()), settings(epochs=3), splits, context(name="first"))
    config = settings(epochs=1, learning_rate=1e-4, from_scratch=True, freeze=("stem", "norm", "body"))
    network, result = finetune(pretrained, config, splits, context())
    scratch = result.from_scratch
    assert result.evaluation_accuracy > 0.9
    assert scratch.evaluation_accuracy < result.evaluation_accuracy
    assert len(scratch.curves) == 1
    assert accuracy(network.module, splits.evaluation) == result.evaluation_accuracy


def test_the_random_network_is_not_frozen(tiny, splits, context):
    """`freeze` keeps the pretrained layers, but the random network must train all its layers."""
    config = settings(freeze=("stem", "norm", "body"), from_scratch=True, probe_epochs=1, layer_decay=0.5)
    free = unfrozen(config)
    assert (free.freeze, free.probe_epochs, free.layer_decay) == ((), 0, 1.0)
    assert (free.epochs, free.learning_rate) == (config.epochs, config.learning_rate)
    _, frozen = finetune(Network(tiny.net()), config, splits, context())
    _, open_ = finetune(Network(tiny.net()), settings(from_scratch=True), splits, context())
    assert frozen.from_scratch == open_.from_scratch


def test_a_few_shot_curve(tiny, splits, context):
    pretrained, _ = finetune(Network(tiny.net()), settings(epochs=4), splits, context(name="first"))
    before = {name: value.clone() for name, value in pretrained.module.state_dict().items()}
    config = settings(
        epochs=1, few_shot=FewShotConfig(images=(3, 8), seeds=3, epochs=2), learning_rate=1e-4
    )
    again = Network(copy.deepcopy(pretrained.module))
    random = replace(context(), fresh_module=type(tiny.net()))
    network, result = finetune(again, config, splits, random)
    assert [line.images for line in result.few_shot] == [3, 8]
    for line in result.few_shot:
        assert len(line.transfer) == len(line.from_scratch) == 3
        gains = [a - b for a, b in zip(line.transfer, line.from_scratch, strict=True)]
        assert line.gain.estimate == pytest.approx(sum(gains) / 3)
        assert line.gain.lower > 0
    # The curve does not change the result of the stage itself.
    plain = config.model_copy(update={"few_shot": None})
    other, expected = finetune(pretrained, plain, splits, context())
    assert all(torch.equal(v, network.module.state_dict()[n]) for n, v in other.module.state_dict().items())
    assert expected.model_copy(update={"few_shot": result.few_shot}) == result
    assert before.keys() == network.module.state_dict().keys()


@pytest.mark.parametrize(("epochs", "steps"), [(3, 3), (None, 2)])
def test_few_shot_trainings_have_their_own_epochs_and_images_for_each_seed(
    tiny, splits, context, epochs, steps
):
    """One of the 9 images is held out, and the other 8 are a batch."""
    trainings = {}

    class Progress(SilentProgress):
        def task(self, description, total):
            trainings[description] = [total]
            return super().task(description, total)

    def augment(inputs, generator):
        list(trainings.values())[-1].append({image.numpy().tobytes() for image in inputs["image"]})
        return inputs

    config = settings(few_shot=FewShotConfig(images=(3,), seeds=2, epochs=epochs))
    finetune(
        Network(tiny.net()),
        config,
        replace(splits, augment=augment),
        replace(context(), progress=Progress()),
    )
    short = [found for name, found in trainings.items() if "a class" in name]
    assert [total for total, *_ in short] == [steps] * 4
    assert all(len(batches) == steps for _, *batches in short)
    one, one_from_scratch, other, other_from_scratch = (batches for _, *batches in short)
    assert len(one[0]) == 8
    assert one == one_from_scratch
    assert other == other_from_scratch
    assert one[0] != other[0]


def test_few_of_each_class(splits):
    drawn = few_of_each(splits.train, 5, seed=1, place="stage")
    assert np.bincount(drawn.labels).tolist() == [5, 5, 5]
    assert not np.array_equal(
        drawn.inputs["image"], few_of_each(splits.train, 5, seed=2, place="stage").inputs["image"]
    )
    with pytest.raises(StageError) as caught:
        few_of_each(splits.train, 21, seed=1, place="stage")
    assert caught.value.place == "stage.few_shot.images"
    assert caught.value.cause == "class 0 has 20 training samples, but 21 are requested"


def test_label_smoothing_spreads_a_share(splits):
    outputs, labels = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
    logs = torch.log_softmax(outputs, dim=1)[0]
    expected = -(0.9 * logs[0] + 0.1 * logs.mean())
    assert cross_entropy(0.1)({}, outputs, labels).item() == pytest.approx(expected.item())
    assert cross_entropy()({}, outputs, labels).item() == pytest.approx(-logs[0].item())


def test_the_stage_learns_from_smoothed_labels(tiny, splits, context):
    """With one batch of all samples and frozen norm statistics, the loss can be computed beforehand."""
    config = settings(epochs=1, batch_size=54, norm_statistics="frozen", label_smoothing=0.3)
    training, _ = hold_out(splits.train, config.validation, 0, "stage")
    logs = torch.from_numpy(predict(tiny.net(), training)).log_softmax(dim=1)
    own = logs[torch.arange(54), torch.from_numpy(training.labels)]
    _, result = finetune(Network(tiny.net()), config, splits, context())
    expected = -float((0.7 * own + 0.3 * logs.mean(dim=1)).mean())
    assert result.curves[0].train_loss == pytest.approx(expected, rel=1e-4)


def test_labels_beyond_the_classes_stop_the_stage(tiny, splits, context):
    with pytest.raises(StageError, match="label 2 in train is out of range for the network's 2 classes"):
        finetune(Network(tiny.net(classes=2)), settings(), splits, context())


def test_balanced_weights_give_classes_the_same_total():
    labels = np.repeat([0, 2], [30, 10])
    weights = balanced(labels, 4)
    assert weights.tolist() == pytest.approx([40 / 60, 0.0, 2.0, 0.0])
    assert float(weights[labels].mean()) == pytest.approx(1.0)
    outputs = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    plain = torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    assert cross_entropy(0.0, torch.tensor([3.0, 1.0]))({}, outputs, torch.tensor([0, 1])) == plain


def test_rare_classes_are_learnt_with_balanced_weights(tiny, splits, context):
    """4 of 44 samples are of class 2: with equal weights the network ignores this class."""
    chosen = np.concatenate(
        [np.flatnonzero(splits.train.labels < 2), np.flatnonzero(splits.train.labels == 2)[:4]]
    )
    thin = replace(splits, train=splits.train.take(chosen))
    said = []

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    recall = {}
    for kind in ("equal", "balanced"):
        config = settings(epochs=3, learning_rate=0.03, class_weights=kind)
        network, result = finetune(
            Network(tiny.net()), config, thin, replace(context(), progress=Progress())
        )
        rare = splits.evaluation.take(np.flatnonzero(splits.evaluation.labels == 2))
        recall[kind] = accuracy(network.module, rare)
        advice = "" if kind == "balanced" else ', or set class_weights = "balanced"'
        assert result.warnings == (
            f"stage: class 2 has few training samples (4, the largest class has 20): add more{advice}",
        )
    assert recall["balanced"] > recall["equal"] + 0.3
    assert said[-1] == f"warning: {result.warnings[0]}"


def test_few_shot_training_uses_no_class_weights(tiny, splits, context):
    """Class weights of the uneven training data would be wrong for few-shot samples, which are even."""
    labels = splits.train.labels
    thin = replace(
        splits, train=splits.train.take(np.concatenate([np.flatnonzero(labels < 2), [2, 5, 8, 11]]))
    )
    curves = []
    for kind in ("equal", "balanced"):
        config = settings(few_shot=FewShotConfig(images=(3,), seeds=2), class_weights=kind)
        _, result = finetune(Network(tiny.net()), config, thin, context())
        curves.append(result.few_shot)
    assert curves[0] == curves[1]


def test_too_many_few_shot_images_are_refused_before_training(tiny, splits, context):
    config = settings(few_shot=FewShotConfig(images=(3, 21), seeds=2))
    told = []

    class Progress(SilentProgress):
        def task(self, description, total):
            told.append(description)
            return super().task(description, total)

    with pytest.raises(StageError, match="21 are requested"):
        finetune(Network(tiny.net()), config, splits, replace(context(), progress=Progress()))
    assert told == []


def test_a_sparse_network_is_compared_with_a_sparse_one(tiny, splits, context):
    network = Network(tiny.net(), {"stem.weight": torch.rand(tiny.net().stem.weight.shape) > 0.5})
    random = random_network(network, "scratch", context())
    assert torch.equal(random.module.stem.weight == 0, ~network.masks["stem.weight"])
