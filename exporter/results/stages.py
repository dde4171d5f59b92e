"""Results of the stages in PyTorch."""

from __future__ import annotations

from typing import ClassVar

from bench.core.statistics import Interval
from exporter.results.base import Figures, StepResult
from exporter.results.training import Trained, Zeros


def accuracy_text(accuracy: float) -> tuple[str, ...]:
    """An accuracy as a text for a headline."""
    return (f"accuracy {accuracy:.2%}",)


class FromScratch(Trained):
    """Result of the same training from random weights."""

    evaluation_accuracy: float


class FewShotPoint(Figures):
    """One point of the few-shot curve.

    Attributes:
        images: number of training samples per class.
        transfer: accuracy after training from the incoming weights, for each seed.
        from_scratch: accuracy after training from random weights, for each seed.
        gain: mean difference of the two accuracies (a fraction), with its 95 % confidence interval.
    """

    images: int
    transfer: tuple[float, ...]
    from_scratch: tuple[float, ...]
    gain: Interval


class FineTuneResult(StepResult, Trained):
    """Result of a `finetune` stage."""

    kind: ClassVar[str] = "finetune"

    evaluation_accuracy: float
    from_scratch: FromScratch | None = None
    few_shot: tuple[FewShotPoint, ...] = ()

    def headline(self) -> tuple[str, ...]:
        """The accuracy."""
        return accuracy_text(self.evaluation_accuracy)


class PretrainResult(StepResult, Trained):
    """Result of a `pretrain` stage.

    Attributes:
        source_classes: number of classes in the source data.
        source_accuracy: accuracy on the evaluation split of the source data.
        new_head: name of the layer whose weights are random again after the stage, or None.
    """

    kind: ClassVar[str] = "pretrain"

    source_classes: int
    source_accuracy: float
    new_head: str | None

    def headline(self) -> tuple[str, ...]:
        """The accuracy on the source data."""
        return accuracy_text(self.source_accuracy)


class CompressedBytes(Figures):
    """Size of the compressed weights in bytes, if they are stored as float32 or as int8."""

    float: int
    int8: int


class PruneResult(StepResult, Zeros, Trained):
    """Result of a `prune` stage.

    Attributes:
        layers: parameter name -> fraction of its values that is zero.
        compressed_bytes_before: compressed size of the weights before pruning.
        compressed_bytes: compressed size of the weights after pruning.
        int8_compressed_ratio: compressed int8 size after pruning, divided by the size before.
        accuracy_before: accuracy of the incoming network on the evaluation split.
        evaluation_accuracy: accuracy after the stage on the evaluation split.
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
    """Result of a `distill` stage.

    Attributes:
        teacher_accuracy: accuracy of the first teacher on the evaluation split.
        teacher_accuracies: accuracy of each teacher; empty if there is only one teacher.
        unlabelled_samples: number of samples without labels that were added to the training data; None if
            the recipe does not set `unlabelled`.
        accuracy_before: accuracy of the incoming network on the evaluation split.
        evaluation_accuracy: accuracy after the stage on the evaluation split.
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
    """Result of a `reestimate` stage.

    Attributes:
        norms: number of BatchNorm layers whose statistics were computed again.
        largest_shift: largest change of a mean, in standard deviations.
        accuracy_before: accuracy of the incoming network on the evaluation split.
        evaluation_accuracy: accuracy after the stage on the evaluation split.
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
    """Result of a `qat` stage (quantization-aware training).

    Attributes:
        target: the kind of CPU whose rounding was trained.
        float_accuracy: accuracy of the incoming float network on the evaluation split.
        accuracy_before: accuracy of the int8 graph before training.
        evaluation_accuracy: accuracy of the int8 graph after training.
        improved: whether the weights of an epoch were kept; False if all were worse than the start.
        agreement_with_int8: fraction of samples with equal predictions of the trained graph and the int8
            file.
        ranges: number of activation ranges that were trained.
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
        """The accuracy, the fraction of zeros and the target."""
        return (*accuracy_text(self.evaluation_accuracy), *self.zeros_text(), f"for {self.target}")
