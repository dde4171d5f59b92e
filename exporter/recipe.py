"""The recipe: what a person wants, as frozen, strict, documented values read from TOML.

The JSON Schema that `recipe_schema` makes of these classes is published as `docs/recipe.schema.json`;
editors complete and check recipes with it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError, field_validator, model_validator

from bench.policy import Policy
from bench.runtime import OLDEST, required_version
from bench.schema import THE_FILE, FrozenModel, explain_validation
from exporter.choices import (
    PRESERVING_REPAIRS,
    AllocationMethod,
    CalibrationMethod,
    Importance,
    Precision,
    RepairName,
    TargetName,
)
from exporter.errors import RecipeError

MAX_RECIPE_BYTES = 1 << 20

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


def _finite(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse NaN and infinity, which JSON lacks: arguments are hashed and kept as JSON."""
    json.dumps(arguments, allow_nan=False)
    return arguments


def _positive(values: tuple[float, ...]) -> tuple[float, ...]:
    if min(values) <= 0:
        raise ValueError("must be above 0")
    return values


Arguments = Annotated[dict[str, JsonValue], AfterValidator(_finite)]
Axis = Annotated[str, Field(pattern=r"^[1-9]$")]
Channels = Annotated[tuple[Annotated[float, Field(ge=0.0, le=1e6)], ...], Field(min_length=1)]


class ModelConfig(FrozenModel):
    """`[model]`: where the network and its pretrained weights come from."""

    factory: Reference = Field(description="`module:callable` that returns a torch.nn.Module.")
    args: Arguments = Field(default_factory=dict, description="Arguments of the factory.")
    checkpoint: str | None = Field(
        None,
        description="Pretrained weights: a path relative to the recipe, or `pkg://package/path`. "
        "`.safetensors`, or a PyTorch file that holds tensors only.",
    )


class DataConfig(FrozenModel):
    """`[data]`: where the samples come from."""

    factory: Reference = Field(description="`module:callable` that returns exporter.Splits.")
    args: Arguments = Field(default_factory=dict, description="Arguments of the factory.")


class Training(FrozenModel):
    """How weights are fitted: AdamW with a linear warmup and a cosine schedule, best epoch kept."""

    epochs: int = Field(2, ge=1, le=10_000, description="Passes over the training data.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Samples per step, over all devices.")
    learning_rate: float = Field(1e-3, gt=0.0, le=10.0, description="Peak of the cosine schedule.")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="Factor on the learning rate from each layer to the one below it."
    )
    weight_decay: float = Field(1e-2, ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")
    warmup: float = Field(0.1, ge=0.0, lt=1.0, description="Share of all steps spent warming up.")
    validation: Fraction = Field(
        0.1,
        description="Share of the training data held out to choose the best epoch; the evaluation "
        "split is never used to choose anything.",
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="Modules that learn nothing, norm statistics included; by name or dotted prefix.",
    )
    unfreeze_epoch: int | None = Field(
        None, ge=1, description="Epoch (from 0) at which frozen modules begin to learn too."
    )
    unfreeze_every: int | None = Field(
        None,
        ge=1,
        description="Epochs between one frozen module and the next to learn, the last named first; by "
        "default all begin at unfreeze_epoch.",
    )
    probe_epochs: int = Field(
        0,
        ge=0,
        description="Epochs, of all, at the start in which the last layer alone learns; the rest has a "
        "schedule of its own.",
    )
    norm_statistics: Literal["batch", "frozen"] = Field(
        "batch",
        description="What BatchNorm divides by while training: `frozen` keeps the statistics it came with, "
        "which small batches need.",
    )
    ema: float = Field(
        0.0, ge=0.0, lt=1.0, description="Decay of a running average of the weights, kept instead of them."
    )
    patience: int | None = Field(
        None, ge=1, description="Epochs without a better validation accuracy after which training stops."
    )
    mixup: float = Field(
        0.0, ge=0.0, le=10.0, description="Alpha of mixup's Beta distribution; 0 mixes nothing."
    )

    @model_validator(mode="after")
    def _epochs_fit_together(self) -> Training:
        if 0 < self.epochs <= self.probe_epochs:
            raise ValueError(
                f"probe_epochs ({self.probe_epochs}) leaves no epoch of {self.epochs} to train the rest; "
                "raise epochs"
            )
        if self.unfreeze_every is not None and self.unfreeze_epoch is None:
            raise ValueError("unfreeze_every needs unfreeze_epoch; set the epoch at which the first learns")
        if self.unfreeze_epoch is not None and not self.freeze:
            raise ValueError("unfreeze_epoch has nothing to unfreeze; name modules in freeze")
        if self.unfreeze_epoch is not None and 0 < self.epochs <= self.unfreeze_epoch:
            raise ValueError(
                f"unfreeze_epoch ({self.unfreeze_epoch}) is never reached in {self.epochs} epochs; "
                "lower it, or leave it out"
            )
        return self


def _without_effect(config: FrozenModel, keys: Sequence[str], condition: str) -> None:
    """Refuse keys that say something nobody would hear.

    Raises:
        ValueError: the first whose value is not its default.
    """
    for key in keys:
        if getattr(config, key) != type(config).model_fields[key].default:
            raise ValueError(f"{key} has no effect {condition}; leave it out")


class SupervisedConfig(Training):
    """Training on labels alone."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Share spread over all classes.")
    class_weights: Literal["equal", "balanced"] = Field(
        "equal",
        description="Weight of each class in the loss: `balanced` makes rare classes count as much as "
        "frequent ones.",
    )


class StageConfig(FrozenModel):
    """What all stages have in common."""

    name: Name | None = Field(None, description="How later stages call this one; else its kind.")


class FewShotConfig(FrozenModel):
    """The few-shot curve: transfer against random weights, at several sizes of data."""

    images: tuple[int, ...] = Field(
        (10, 30, 100), min_length=1, description="Training samples of each class, one point each."
    )
    seeds: int = Field(3, ge=2, le=100, description="Trainings of each kind and size; intervals need two.")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="Epochs of each; by default the stage's. Small data need more."
    )

    @field_validator("images")
    @classmethod
    def _two_of_each(cls, images: tuple[int, ...]) -> tuple[int, ...]:
        if min(images) < 2:
            raise ValueError(
                "one sample of a class cannot be both learnt and held out; ask for two or more"
            )
        if list(images) != sorted(set(images)):
            raise ValueError("the sizes do not grow; write each once, the smallest first")
        return images


class FineTuneConfig(StageConfig, SupervisedConfig):
    """`kind = "finetune"`: fit the pretrained network to the data."""

    kind: Literal["finetune"]
    head: str | None = Field(
        None, description="Module to initialise anew, such as `fc`; its old classes are forgotten."
    )
    from_scratch: bool = Field(
        False,
        description="Also train the same network from random weights on the same budget, and report "
        "both: what the pretrained weights bought.",
    )
    few_shot: FewShotConfig | None = Field(
        None, description="Do so on a few samples of each class too, and report the curve."
    )

    @model_validator(mode="after")
    def _probe_fits_few_shots(self) -> FineTuneConfig:
        if self.few_shot is not None and self.probe_epochs >= (self.few_shot.epochs or self.epochs):
            raise ValueError("few_shot.epochs leaves no epoch after probe_epochs; raise it")
        return self


class PretrainConfig(StageConfig, SupervisedConfig):
    """`kind = "pretrain"`: fit the network to other, source data first."""

    kind: Literal["pretrain"]
    data: DataConfig = Field(description="The source data.")


class PruneTarget(FrozenModel):
    """How far to prune: one of these."""

    sparsity: Fraction | None = Field(
        None,
        description="Share of the prunable weights, not of all parameters, that become zero: those of "
        "smallest magnitude.",
    )
    threshold: float | None = Field(
        None,
        gt=0.0,
        le=1e6,
        description="Magnitude below which weights become zero; with scope `layer`, in standard deviations "
        "of the layer's weights.",
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[0-9]{1,2}:[0-9]{1,2}$",
        description="`N:M` keeps the N largest of every M weights along the input channels, such as `2:4`.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> PruneTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of sparsity, threshold, pattern; there are {len(given)}")
        if self.pattern is not None:
            kept, group = self.kept_and_group()
            if not 0 < kept < group:
                raise ValueError(f"pattern {self.pattern!r} keeps {kept} of {group}; write such as 2:4")
        return self

    def kept_and_group(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, group = (self.pattern or "").partition(":")
        return int(kept), int(group)


class GradualConfig(Training):
    """Pruning while training; the learning rate's schedule spans all of it."""

    begin: float = Field(0.0, ge=0.0, lt=1.0, description="Share of all steps at which pruning begins.")
    end: float = Field(
        0.75, gt=0.0, lt=1.0, description="Share of all steps at which it ends; the rest recovers."
    )
    updates: int = Field(20, ge=1, le=10_000, description="Instants at which weights go, in between.")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> GradualConfig:
        if self.end <= self.begin:
            raise ValueError(f"end ({self.end}) is not after begin ({self.begin}); raise end")
        return self


class PruneConfig(StageConfig):
    """`kind = "prune"`: set weights to zero, and keep them there."""

    kind: Literal["prune"]
    method: Literal["magnitude", "movement"] = Field(
        "magnitude",
        description="What ranks weights: their magnitude, or (while training) whether it moves them away "
        "from zero.",
    )
    target: PruneTarget
    scope: Literal["global", "layer"] = Field(
        "global", description="Whether weights of all layers are ranked together, or each layer's alone."
    )
    exclude: tuple[str, ...] = Field((), description="Modules that stay dense, by name or dotted prefix.")
    gradual: GradualConfig | None = Field(
        None, description="Prune step by step while training, along a cubic schedule; else at once."
    )

    @model_validator(mode="after")
    def _methods_fit_targets(self) -> PruneConfig:
        if self.method == "movement" and self.gradual is None:
            raise ValueError("movement is seen while training alone; add gradual = { epochs = 3 }")
        if self.gradual is not None and self.target.sparsity is None:
            raise ValueError("gradual pruning runs up to a sparsity; set target.sparsity")
        if self.target.pattern is not None:
            _without_effect(self, ("scope",), "with a pattern, which ranks within groups")
        return self


class TeacherConfig(FrozenModel):
    """Another network to learn from."""

    factory: Reference = Field(description="`module:callable` that returns a torch.nn.Module.")
    args: Arguments = Field(default_factory=dict, description="Arguments of the factory.")
    checkpoint: str = Field(description="Its weights: a path relative to the recipe, or `pkg://`.")


class OnnxTeacherConfig(FrozenModel):
    """A finished model to learn from, run by ONNX Runtime."""

    model: str = Field(
        description="An .onnx file, or another recipe's artifact, whose float model is taken; a path "
        "relative to the recipe, or `pkg://`."
    )


Teacher = Annotated[
    str | TeacherConfig | OnnxTeacherConfig,
    Field(description="The name of an earlier stage (or `pretrained`), another checkpoint, or a model."),
]


class TransferConfig(FrozenModel):
    """Features of the first teacher to follow."""

    student: str = Field(description="Module of the student, by name.")
    teacher: str | None = Field(None, description="Module of the teacher; by default of the same name.")
    kind: Literal["hint", "attention"] = Field(
        "hint",
        description="`hint`: features, through a learned projection; `attention`: where they are large.",
    )
    weight: float = Field(1.0, gt=0.0, le=1e6, description="Factor on this part of the loss.")


class DistillConfig(StageConfig, Training):
    """`kind = "distill"`: fit to teachers' outputs and features, and to the labels."""

    kind: Literal["distill"]
    teacher: Teacher | tuple[Teacher, ...] = Field(
        description="Whom to learn from; of several the mean of what they say."
    )
    method: Literal["logits", "decoupled"] = Field(
        "logits", description="`decoupled` weighs the labelled class and the others apart."
    )
    temperature: float = Field(4.0, ge=1.0, le=100.0, description="Softness of both outputs.")
    hard_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the labels; the teacher has the rest."
    )
    target_weight: float = Field(
        1.0, ge=0.0, le=1e3, description="Of the labelled class, where decoupled (alpha)."
    )
    other_weight: float = Field(
        8.0, ge=0.0, le=1e3, description="Of the other classes among themselves, where decoupled (beta)."
    )
    features: tuple[TransferConfig, ...] = Field((), description="Inner features to follow too.")
    unlabelled: DataConfig | None = Field(
        None,
        description="More training data without labels; the factory returns input name -> array [N, ...].",
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DistillConfig:
        if not self.teachers():
            raise ValueError("teacher is empty; name one")
        if self.unlabelled is not None and self.mixup:
            raise ValueError("samples without labels cannot be mixed; set mixup = 0")
        if self.unlabelled is not None and self.hard_weight == 1.0 and not self.features:
            raise ValueError("with hard_weight 1 nothing is learnt from unlabelled samples; lower it")
        if self.method != "decoupled":
            _without_effect(self, ("target_weight", "other_weight"), f"with method {self.method!r}")
        return self

    def teachers(self) -> tuple[str | TeacherConfig | OnnxTeacherConfig, ...]:
        """All of them."""
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)


class ShrinkTarget(FrozenModel):
    """How small or fast the network shall become; one of these. Ratios are to the network as it came in."""

    latency_ms: float | None = Field(None, gt=0.0, description="Median time of one sample on this CPU.")
    latency_ratio: Fraction | None = Field(None, description="Of that time.")
    float_latency_ratio: Fraction | None = Field(
        None, description="Of the time that the network as it came in takes in float."
    )
    macs_ratio: Fraction | None = Field(None, description="Of the multiply-adds.")
    params_ratio: Fraction | None = Field(None, description="Of the parameters.")
    size_ratio: Fraction | None = Field(None, description="Of the bytes of the exported model.")

    @model_validator(mode="after")
    def _one_of_them(self) -> ShrinkTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}; there are {len(given)}")
        return self

    def chosen(self) -> tuple[str, float]:
        """Which one, and how much."""
        return next((name, value) for name in type(self).model_fields if (value := getattr(self, name)))


class ShrinkConfig(StageConfig, Training):
    """`kind = "shrink"`: structured pruning. Cut channels, blocks and pixels, and recover."""

    kind: Literal["shrink"]
    target: ShrinkTarget | None = Field(
        None, description="How far to narrow; without one, only `drop` and `resolution` act."
    )
    allocation: AllocationMethod = Field(
        "latency",
        description="What decides which channels go: measured time, multiply-adds, or an equal share.",
    )
    importance: Importance = Field("taylor", description="What decides which channels of a layer stay.")
    precision: Precision = Field("int8", description="The numbers whose time and size count.")
    epochs: int = Field(2, ge=0, le=10_000, description="Passes over the training data after each round.")
    rounds: int = Field(1, ge=1, le=100, description="Narrow in so many steps, and recover after each.")
    multiple: int = Field(
        16,
        ge=1,
        le=1024,
        description="Widths are multiples of this. ONNX Runtime's int8 depthwise kernel is 3 to 4 times "
        "slower at other widths than multiples of 16.",
    )
    min_kept: Fraction = Field(0.1, description="Share of a layer's channels that always stays.")
    depth: int = Field(0, ge=0, le=1000, description="Blocks that may be dropped to meet the target.")
    drop: tuple[str, ...] = Field((), description="Blocks to drop, by name.")
    resolution: int | None = Field(
        None, ge=8, le=8192, description="Side that pictures are scaled to inside the network."
    )
    samples: int = Field(256, ge=2, description="Held-out training samples that damage is judged on.")
    exclude: tuple[str, ...] = Field((), description="Modules that keep their channels and stay.")
    teacher: Teacher | None = Field(None, description="Recover by distillation from this one.")
    temperature: float = Field(4.0, ge=1.0, le=100.0, description="Softness of both outputs.")
    hard_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the labels; the teacher has the rest."
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> ShrinkConfig:
        if self.target is None and not self.drop and self.resolution is None:
            raise ValueError("nothing to do: give target, drop or resolution")
        if self.target is None:
            narrowing = ("depth", "rounds", "allocation", "importance", "multiple", "min_kept", "samples")
            _without_effect(self, narrowing, "without a target")
        if self.allocation == "uniform":
            _without_effect(self, ("depth",), "with equal shares of all layers")
        if self.teacher is None:
            _without_effect(self, ("temperature", "hard_weight"), "without a teacher")
        return self

    def distillation(self) -> DistillConfig | None:
        """How it recovers from a teacher, if it has one."""
        if self.teacher is None:
            return None
        return DistillConfig(
            kind="distill",
            teacher=self.teacher,
            temperature=self.temperature,
            hard_weight=self.hard_weight,
        )


def trains(stage: object) -> bool:
    """Whether a stage fits weights to data."""
    if isinstance(stage, Training):
        return stage.epochs > 0
    return getattr(stage, "gradual", None) is not None


def teachers_of(stage: object) -> tuple[str | TeacherConfig | OnnxTeacherConfig, ...]:
    """Whom a stage learns from; most learn from none."""
    if isinstance(stage, ShrinkConfig):
        stage = stage.distillation()
    return stage.teachers() if isinstance(stage, DistillConfig) else ()


class ReestimateConfig(StageConfig):
    """`kind = "reestimate"`: average the BatchNorm statistics anew over the training data."""

    kind: Literal["reestimate"]
    batch_size: int = Field(64, ge=2, le=65_536, description="Samples per batch.")
    freeze: tuple[str, ...] = Field(
        (), description="Modules whose statistics stay, by name or dotted prefix."
    )


class QatConfig(StageConfig, Training):
    """`kind = "qat"`: train under the rounding to 8 bits of the recipe's target; the last stage."""

    kind: Literal["qat"]
    batch_size: int = Field(
        64, ge=1, le=65_536, description="Samples per step; norms keep their statistics, so one will do."
    )
    learning_rate: float = Field(
        1e-4, gt=0.0, le=10.0, description="Peak of the cosine schedule; far below that of fine-tuning."
    )
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")
    norm_statistics: Literal["frozen"] = Field(
        "frozen", description="Norms are folded into the weights, as in the int8 graph."
    )
    temperature: float = Field(2.0, ge=1.0, le=100.0, description="Softness of both outputs.")
    hard_weight: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the labels; the float network as teacher has the rest."
    )
    range_share: float = Field(
        0.75, ge=0.0, le=1.0, description="Share of all steps in which activation ranges learn too."
    )


Stage = Annotated[
    FineTuneConfig
    | PretrainConfig
    | PruneConfig
    | ShrinkConfig
    | DistillConfig
    | ReestimateConfig
    | QatConfig,
    Field(discriminator="kind"),
]


class PreprocessConfig(FrozenModel):
    """`[export.preprocess]`: pictures enter the graph as bytes; it makes (byte - mean) / std of them."""

    input: str | None = Field(None, description="The input that holds pictures; by default the only one.")
    mean: Channels = Field((127.0,), description="Of 0 to 255; one number, or one per channel.")
    std: Annotated[Channels, AfterValidator(_positive)] = Field(
        (128.0,), description="Of 0 to 255; one number, or one per channel."
    )
    layout: Literal["nhwc", "nchw"] = Field(
        "nhwc", description="Order of the axes of the bytes; cameras and decoders give `nhwc`."
    )


class PostprocessConfig(FrozenModel):
    """`[export.postprocess]`: what the graph makes of the network's class scores."""

    kind: Literal["softmax", "argmax", "topk"] = Field(
        description="`softmax`: probabilities; `argmax`: the class; `topk`: the k best classes and scores."
    )
    k: int = Field(5, ge=1, le=100_000, description="How many classes `topk` gives.")

    @model_validator(mode="after")
    def _k_counts(self) -> PostprocessConfig:
        if self.kind != "topk":
            _without_effect(self, ("k",), f"with {self.kind}")
        return self


class ExportConfig(FrozenModel):
    """`[export]`: the way to ONNX."""

    opset: int = Field(
        20,
        ge=18,
        le=23,
        description="ONNX opset; the device's runtime must know it, and an old one knows only low numbers.",
    )
    dynamic: dict[str, dict[Axis, Name]] = Field(
        default_factory=dict,
        description="Axes whose size the model leaves open, besides the batch: input, axis (from 1) and a "
        'name for the size, as in `{ input_ids = { 1 = "sequence" } }`. Equal names are equal sizes.',
    )
    preprocess: PreprocessConfig | None = Field(
        None, description="Take pictures as bytes; the graph normalises them. Off by default."
    )
    postprocess: PostprocessConfig | None = Field(
        None, description="Give probabilities or classes instead of scores. Off by default."
    )
    min_sqnr_db: float = Field(
        50.0, ge=0.0, le=200.0, description="Parity of torch and ONNX below which the build stops."
    )

    def network_alone(self) -> ExportConfig:
        """The same, with nothing done before and after the network: it takes what the data hold."""
        return self.model_copy(update={"preprocess": None, "postprocess": None})


class FallbackConfig(FrozenModel):
    """`[quantize.fallback]`: leave layers in float until a budget holds on held-out calibration samples."""

    max_drop: float = Field(
        0.01,
        ge=0.0,
        lt=1.0,
        description="Accuracy that int8 may lose, as a share of the samples; without labels, the share "
        "of samples on which it may disagree with float.",
    )
    min_sqnr_db: float | None = Field(
        None, ge=0.0, le=200.0, description="SQNR of the output that must be reached too, in dB."
    )
    max_layers: int = Field(8, ge=1, le=1000, description="Layers that may stay in float.")


# What has no meaning where activations stay in float.
_OF_ACTIVATIONS = frozenset({"samples", "method", "repair", "fallback"})


class QuantizeConfig(FrozenModel):
    """`[quantize]`: static int8, or weights alone in 4 bits, by ONNX Runtime."""

    target: TargetName = Field("auto", description="The CPU kind to ship to; `auto` is this one.")
    onnxruntime: str | None = Field(
        None,
        description='The ONNX Runtime to ship to, such as ">=1.28". Rewrites that need a newer one are '
        "left out, and a network that needs a newer one is refused. By default rewrites run on every "
        f"version that edgeproof supports, from {OLDEST} on, and the network may need a newer one.",
    )
    samples: int | None = Field(
        None, ge=1, description="Calibration samples to use; by default up to 256, as there are."
    )
    method: CalibrationMethod = Field(
        "minmax", description="How activation ranges are chosen from the calibration samples."
    )
    exclude: tuple[str, ...] = Field((), description="Nodes to leave in float, by name.")
    bits: Literal[4, 8] = Field(
        8,
        description="8: weights and activations. 4: weights of products alone, block by block, for "
        "networks whose size is that of these; nothing is calibrated.",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="Weights of 4 bits that share a scale: fewer are nearer to float, and larger."
    )
    min_int8_ratio: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="The build fails if a smaller share of multiply-adds runs in int8, after fusion on "
        "this CPU, or if the share is only an upper bound because an operator cannot be counted.",
    )
    repair: tuple[RepairName, ...] = Field(
        (),
        description="Accuracy repairs, in this order; each is kept only if it brings the int8 output "
        "nearer to float on held-out calibration samples.",
    )
    fallback: FallbackConfig | None = None

    @field_validator("onnxruntime")
    @classmethod
    def _is_a_requirement(cls, value: str | None) -> str | None:
        if value is not None:
            required_version(value)
        return value

    @model_validator(mode="after")
    def _repairs_fit_together(self) -> QuantizeConfig:
        if (problem := repair_order_problem(self.repair)) is not None:
            raise ValueError(problem)
        if self.bits == 4 and (unused := self.model_fields_set & _OF_ACTIVATIONS):
            raise ValueError(f"bits = 4 rounds no activations: leave out {', '.join(sorted(unused))}")
        if self.bits == 8 and "block_size" in self.model_fields_set:
            raise ValueError("block_size goes with bits = 4: 8 bits have a scale for each channel")
        return self


def repair_order_problem(names: Sequence[str]) -> str | None:
    """What is wrong with a list of repairs, or None."""
    for index, name in enumerate(names):
        if name in names[:index]:
            return f"repair {name!r} is named twice"
        bending = [n for n in names[:index] if n not in PRESERVING_REPAIRS]
        if name in PRESERVING_REPAIRS and bending:
            return f"repair {name!r} must stand before {bending[0]!r}, whose work it would undo"
    return None


class TrainConfig(FrozenModel):
    """`[train]`: the hardware that stages train on. Other than one CPU process: extra `train`."""

    accelerator: Literal["cpu", "gpu", "auto"] = Field(
        "cpu", description="`auto` is the GPU where there is one. GPUs do not give the CPU's very numbers."
    )
    devices: int = Field(
        1, ge=1, le=1024, description="Processes a machine, a GPU each; they share a batch."
    )
    nodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Machines, with one file system between them; on each but the first runs "
        "`edgeproof follow`.",
    )
    main: str = Field(
        "127.0.0.1:29500",
        pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$",
        description="`host:port` of the first machine, for the others; the port after it is used too.",
    )
    precision: Literal["32", "bf16-mixed"] = Field(
        "32", description="Of forward and backward pass; weights stay at 32 bit."
    )


class BenchConfig(FrozenModel):
    """`[bench]`: how the build measures."""

    threads: int = Field(1, ge=1, le=1024, description="Threads of each session.")


RESERVED_NAMES = ("pretrained", "export", "quantize", "parity", "gate")


class Recipe(FrozenModel):
    """The whole way from a checkpoint to a gated artifact."""

    name: Name = Field(description="Name of the artifact.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of everything random in the build.")
    model: ModelConfig
    data: DataConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    stage: tuple[Stage, ...] = Field((), description="Stages in PyTorch, in the order they run.")
    export: ExportConfig = Field(default_factory=ExportConfig)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)
    bench: BenchConfig = Field(default_factory=BenchConfig)
    gate: Policy = Field(default_factory=Policy)

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Recipe:
        names = self.stage_names()
        for index, name in enumerate(names):
            if name in RESERVED_NAMES or name in names[:index]:
                raise ValueError(f"stage name {name!r} is taken; give the stage another name")
            stage = self.stage[index]
            earlier = ["pretrained", *names[:index]]
            for teacher in teachers_of(stage):
                if isinstance(teacher, str) and teacher not in earlier:
                    raise ValueError(
                        f"teacher {teacher!r} of stage {name!r} is no earlier stage; "
                        f"there are: {', '.join(earlier)}"
                    )
                if teacher == "pretrained" and self.model.checkpoint is None:
                    raise ValueError(
                        f"teacher 'pretrained' of stage {name!r} has random weights; set model.checkpoint, "
                        "or name a stage that trains"
                    )
            untrained = self.model.checkpoint is None and not any(map(trains, self.stage[:index]))
            if untrained and isinstance(stage, FineTuneConfig) and (stage.from_scratch or stage.few_shot):
                raise ValueError(
                    f"stage {name!r} would compare random weights with random weights; set "
                    "model.checkpoint or pretrain first, or leave from_scratch and few_shot out"
                )
            if isinstance(stage, QatConfig):
                self._check_qat(index, name)
            if isinstance(stage, ShrinkConfig) and stage.precision == "int8" and self.quantize.bits != 8:
                raise ValueError(f'stage {name!r} measures 8 bits; set its precision = "fp32"')
        if self.model.checkpoint is None and not any(trains(s) for s in self.stage):
            raise ValueError("nothing was ever trained: name model.checkpoint or add a stage that trains")
        return self

    def _check_qat(self, index: int, name: str) -> None:
        if index + 1 < len(self.stage):
            raise ValueError(f"stage {name!r} must be the last: others would undo what it learned")
        if self.quantize.repair or self.quantize.fallback is not None:
            raise ValueError(
                f"stage {name!r} trains the plain int8 model; remove quantize.repair and quantize.fallback"
            )
        if self.quantize.bits != 8:
            raise ValueError(f"stage {name!r} trains for 8 bits; remove quantize.bits")

    def stage_names(self) -> list[str]:
        """The name of each stage: its own, or its kind, numbered from the second of a kind on."""
        return _numbered([(stage.name, stage.kind) for stage in self.stage])


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file.
        overrides: `table.key=value` texts that replace values; a stage is named by its position or
            name, as in `stage.finetune.epochs=5`.

    Raises:
        RecipeError: with file, key and what to do.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(path, "is larger than a recipe can be", "check the path")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise RecipeError(path, f"is no TOML ({error})", "mend the line") from error
    for override in overrides:
        _apply_override(content, override)
    return recipe_from(content, path)


def recipe_from(content: Mapping[str, Any], place: object) -> Recipe:
    """Validate nested tables.

    Raises:
        RecipeError: with `place`, key and what to do.
    """
    try:
        # By way of JSON, whose arrays may become tuples where Python's strict lists may not.
        return Recipe.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        key, cause, fix = explain_validation(error, Recipe)
        raise RecipeError(place if key == THE_FILE else f"{place}: {key}", cause, fix) from error
    except RecursionError as error:
        raise RecipeError(place, "its tables are nested too deeply", "flatten them") from error


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes (draft 2020-12)."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _numbered(stages: Sequence[tuple[str | None, str]]) -> list[str]:
    names: list[str] = []
    for index, (name, kind) in enumerate(stages):
        before = sum(n is None and k == kind for n, k in stages[:index])
        names.append(name or (f"{kind}-{before + 1}" if before else kind))
    return names


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Replace one value in nested tables, making tables on the way where there are none."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}", "is no table.key=value", "write such as stage.0.epochs=3")
    table: Any = content
    for part in parts[:-1]:
        table = _enter(table, part, override)
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}", f"{parts[-2]!r} is no table", "check the key")
    table[parts[-1]] = _toml_value(text.strip())


def _enter(table: Any, part: str, override: str) -> Any:
    if isinstance(table, dict):
        return table.setdefault(part, {})
    if isinstance(table, list):
        stages = [t if isinstance(t, dict) else {} for t in table]
        names = _numbered([(t.get("name"), str(t.get("kind"))) for t in stages])
        if part.isdecimal() and int(part) < len(table):
            return table[int(part)]
        if part in names:
            return table[names.index(part)]
        raise RecipeError(
            f"--set {override}", f"there is no stage {part!r}", f"there are: {', '.join(map(str, names))}"
        )
    raise RecipeError(f"--set {override}", f"{part!r} lies in no table", "check the key")


def _toml_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: `--set name=test` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
