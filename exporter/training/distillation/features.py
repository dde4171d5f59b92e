"""Transfer of a teacher's inner features: by a learned projection, or by attention maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import StageError
from exporter.networks.network import call
from exporter.recipes import TransferConfig
from exporter.training.loop import check_modules


class Transfer(nn.Module):
    """weight * distance between the latest outputs of a module of the student and one of the teacher.

    kind "hint": the mean squared difference of the features; a linear layer over the channels, which is
    trained too, first projects the student's features (Romero et al., "FitNets", 2015, equation 3).
    kind "attention": the squared distance between the attention maps, mean over samples. An attention map
    is the sum over channels of |feature|^2, scaled to length one (Zagoruyko & Komodakis, "Paying More
    Attention to Attention", 2017, equation 2 with p = 2).

    Features are pictures [N, C, H, W], tokens [N, T, C], or vectors [N, C]; vectors have no attention map.
    Pictures of different sizes are averaged down to the smaller size.
    """

    def __init__(self, config: TransferConfig, student: Tensor, teacher: Tensor, place: str) -> None:
        super().__init__()
        self.config = config
        self.student: Tensor | None = None
        self.teacher: Tensor | None = None
        shapes = f"{list(student.shape[1:])} and {list(teacher.shape[1:])}"
        tokens = student.ndim == 3 and student.shape[1] != teacher.shape[1]
        if student.ndim != teacher.ndim or student.ndim not in {2, 3, 4} or tokens:
            raise StageError(place, f"features of shapes {shapes} cannot be compared", "use other modules")
        if config.kind == "attention" and student.ndim == 2:
            raise StageError(
                place,
                f"attention maps need pictures or tokens, not vectors of shapes {shapes}",
                'use kind = "hint"',
            )
        axis = _channel_axis(student)
        self.projection: nn.Module = nn.Identity()
        if config.kind == "hint":
            self.projection = nn.Linear(student.shape[axis], teacher.shape[axis])

    def forward(self) -> Tensor:
        """The weighted distance between the two latest features."""
        assert self.student is not None
        assert self.teacher is not None
        ours, theirs = _same_size(self.student.float(), self.teacher.float())
        if self.config.kind == "hint":
            axis = _channel_axis(ours)
            projected = self.projection(ours.movedim(axis, -1)).movedim(-1, axis)
            return self.config.weight * functional.mse_loss(projected, theirs)
        difference = _attention(ours) - _attention(theirs)
        return self.config.weight * difference.pow(2).sum(dim=1).mean()

    def keep_student(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        """Store the output of the student's module, as its forward hook."""
        self.student = output

    def keep_teacher(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        """Store the output of the teacher's module, as its forward hook."""
        self.teacher = output


@contextmanager
def transfers(
    configs: Sequence[TransferConfig],
    student: nn.Module,
    teacher: nn.Module,
    inputs: Mapping[str, Tensor],
    place: str,
) -> Iterator[list[Transfer]]:
    """Create transfers, with hooks on both networks while the context is open.

    Args:
        configs: the modules to compare, and the kind and weight of each transfer.
        student: the network to train.
        teacher: the network that the student learns from.
        inputs: a small batch, to find the shapes of the features.
        place: the stage or key that error messages name.

    Raises:
        StageError: a module does not exist, or the outputs cannot be compared.
    """
    made, hooks = [], []
    try:
        for index, config in enumerate(configs):
            where = f"{place}.features.{index}"
            names = (config.student, config.teacher or config.student)
            found = []
            for network, name, whose in ((student, names[0], "student"), (teacher, names[1], "teacher")):
                check_modules(network, (name,), f"{where}.{whose}")
                found.append(_output(network, name, inputs, f"{where}.{whose}"))
            transfer = Transfer(config, found[0], found[1], where)
            hooks.append(student.get_submodule(names[0]).register_forward_hook(transfer.keep_student))
            hooks.append(teacher.get_submodule(names[1]).register_forward_hook(transfer.keep_teacher))
            made.append(transfer)
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def _output(network: nn.Module, name: str, inputs: Mapping[str, Tensor], place: str) -> Tensor:
    """The output of a module inside a network for a batch."""
    seen: list[object] = []
    hook = network.get_submodule(name).register_forward_hook(lambda _m, _i, output: seen.append(output))
    modes = {child: child.training for child in network.modules()}
    try:
        with torch.no_grad():
            call(network.eval(), inputs)
    finally:
        hook.remove()
        for child, training in modes.items():
            child.training = training
    newest = seen[-1] if seen else None
    if not isinstance(newest, Tensor):
        raise StageError(
            place, f"module {name!r} does not return a tensor", "choose a module whose output is a tensor"
        )
    return newest


def _channel_axis(feature: Tensor) -> int:
    return 1 if feature.ndim == 4 else -1


def _same_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    if ours.ndim < 4 or ours.shape[2:] == theirs.shape[2:]:
        return ours, theirs
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    return functional.adaptive_avg_pool2d(ours, size), functional.adaptive_avg_pool2d(theirs, size)


def _attention(feature: Tensor) -> Tensor:
    """Attention maps [N, positions], each of length one."""
    return functional.normalize(feature.pow(2).sum(dim=_channel_axis(feature)).flatten(1), dim=1)
