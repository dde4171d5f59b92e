"""What the stages in PyTorch find."""

from __future__ import annotations

from typing import ClassVar

from bench.core.statistics import Interval
from exporter.results.base import Figures, StepResult
from exporter.results.training import Trained, Zeros


def accuracy_text(accuracy: float) -> tuple[str, ...]:
    """An accuracy as a headline."""
    return (f"accuracy {accuracy:.2%}",)


class FromScratch(Trained):
    """The same training from random weights."""

    evaluation_accuracy: float


class FewShotPoint(Figures):
    """One size of data: accuracies by seed, and the mean gain with its bounds.

    Attributes:
        images: training samples of each class.
        transfer: accuracy from the weights at hand, by seed.
        from_scratch: accuracy from random weights, by seed.
        gain: mean of the differences, as a share of the samples.
    """

    images: int
    transfer: tuple[float, ...]
    from_scratch: tuple[float, ...]
    gain: Interval


class FineTuneResult(StepResult, Trained):
    """What `finetune` found."""

    kind: ClassVar[str] = "finetune"

    evaluation_accuracy: float
    from_scratch: FromScratch | None = None
    few_shot: tuple[FewShotPoint, ...] = ()

    def headline(self) -> tuple[str, ...]:
        """The accuracy."""
        return accuracy_text(self.evaluation_accuracy)


class PretrainResult(StepResult, Trained):
    """What `pretrain` found.

    Attributes:
        source_classes: how many classes the source data have.
        source_accuracy: on the evaluation split of the source data.
        new_head: the layer that has random weights again, if any.
    """

    kind: ClassVar[str] = "pretrain"

    source_classes: int
    source_accuracy: float
    new_head: str | None

    def headline(self) -> tuple[str, ...]:
        """The accuracy on the source data."""
        return accuracy_text(self.source_accuracy)


class CompressedBytes(Figures):
    """Bytes of weights after compression, as float32 and as int8."""

    float: int
    int8: int


class PruneResult(StepResult, Zeros, Trained):
    """What `prune` found.

    Attributes:
        layers: parameter -> share of it that is zero.
        int8_compressed_ratio: compressed int8 bytes after pruning by those before.
    """

    kind: ClassVar[str] = "prune"

    layers: dict[str, float]
    compressed_bytes_before: CompressedBytes
    compressed_bytes: CompressedBytes
    int8_compressed_ratio: float
    accuracy_before: float
    evaluation_accuracy: float

    def headline(self) -> tuple[str, ...]:
        """The accuracy and the share of zeros."""
        return (*accuracy_text(self.evaluation_accuracy), *self.zeros_text())


class DistillResult(StepResult, Zeros, Trained):
    """What `distill` found.

    Attributes:
        teacher_accuracy: of the first teacher.
        teacher_accuracies: of all, where there are several.
        unlabelled_samples: how many were added to the training data.
    """

    kind: ClassVar[str] = "distill"

    teacher_accuracy: float
    teacher_accuracies: tuple[float, ...] = ()
    unlabelled_samples: int | None = None
    accuracy_before: float
    evaluation_accuracy: float

    def headline(self) -> tuple[str, ...]:
        """The accuracy and the share of zeros."""
        return (*accuracy_text(self.evaluation_accuracy), *self.zeros_text())


class ReestimateResult(StepResult):
    """What `reestimate` found.

    Attributes:
        norms: how many BatchNorms were re-estimated.
        largest_shift: how far a mean moved at most, in standard deviations.
    """

    kind: ClassVar[str] = "reestimate"

    norms: int
    largest_shift: float
    accuracy_before: float
    evaluation_accuracy: float

    def headline(self) -> tuple[str, ...]:
        """The accuracy."""
        return accuracy_text(self.evaluation_accuracy)


class QatResult(StepResult, Zeros, Trained):
    """What `qat` found.

    Attributes:
        target: the CPU kind whose rounding was trained.
        float_accuracy: of the network as it came in.
        accuracy_before: of the int8 graph before training.
        improved: whether an epoch was kept.
        agreement_with_int8: share of equal predictions of the trained graph and the int8 file.
        ranges: how many activation ranges were learned.
    """

    kind: ClassVar[str] = "qat"

    target: str
    float_accuracy: float
    accuracy_before: float
    evaluation_accuracy: float
    improved: bool
    agreement_with_int8: float
    ranges: int

    def headline(self) -> tuple[str, ...]:
        """The accuracy, the share of zeros and the target."""
        return (*accuracy_text(self.evaluation_accuracy), *self.zeros_text(), f"for {self.target}")
