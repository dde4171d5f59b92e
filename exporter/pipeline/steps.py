"""The steps of a build: from the recipe's stages to the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from bench.core.arrays import Array, write_npz
from bench.core.errors import MeasurementError
from bench.core.files import model_sha256, model_size, sha256_of
from bench.core.progress import Progress
from bench.inputs.artifact import EVALUATION, EXPECTED_PREFIX, FLOAT_MODEL, GOLDEN, MODEL, RESULT, Subject
from bench.inputs.evaluation import EvaluationSet, write_evaluation
from bench.inputs.host import fingerprint, host_target, other_target
from bench.inputs.session import open_session, signature_of
from bench.judging.gate import gate_subjects, with_plain_paths
from bench.measuring.measure import MeasureConfig
from bench.measuring.result import write_result
from bench.metrics.parity import Parity, parity
from bench.views.tables import metrics_json
from exporter.caching.cache import content_key
from exporter.caching.steps import Run, Step
from exporter.errors import CheckpointError, ExportError, StageError
from exporter.graphs.inference import run_model, run_scores
from exporter.graphs.kernels import check_runtime_asked
from exporter.graphs.rewrites.processing import as_shipped
from exporter.inspection.audit import audit, coverage_failure
from exporter.inspection.drift import drifts
from exporter.inspection.layer_errors import LAYER_SAMPLES, layer_errors
from exporter.inspection.operator_times import blamed, operator_times
from exporter.networks.network import (
    Network,
    accuracy,
    deterministic,
    load_network,
    load_trained_qparams,
    predict,
)
from exporter.onnx_export.export import check_opset, export, open_axes
from exporter.pipeline.context import Workshop, say_notes
from exporter.quantization.calibration import RangeStore
from exporter.quantization.split import quantize_split, sample_count
from exporter.recipes import (
    DistillConfig,
    OnnxTeacherConfig,
    PretrainConfig,
    QatConfig,
    Recipe,
    ShrinkConfig,
    Stage,
    Teacher,
    TeacherConfig,
    teachers_of,
    trains,
)
from exporter.results import StepResult
from exporter.sources.checkpoint import load_into, read_checkpoint
from exporter.sources.lookup import find_file
from exporter.sources.splits import Split, Splits, fingerprint_arrays, stratified_indices, with_unlabelled
from exporter.training.loop import ONE_CPU, Checkpoints, Engine, check_classes
from exporter.training.loop.hardware import Job, check_hardware, hardware_ingredients, open_engine
from exporter.training.sparsity.sizes import compressed_size
from exporter.training.stages import STAGES, Context, Loaders, Settings

PARITY_SAMPLES = 256
GOLDEN_SAMPLES = 8
# What is quantized, where that is not the float twin.
TRAINED_MODEL = "trained.onnx"


def recipe_steps(shop: Workshop, *, kept: Path | None = None) -> list[Step]:
    """All steps of a recipe, in order; what cannot work at the end is refused before the start.

    `kept` is the folder where activation ranges and times of layers go from one build to the next.
    """
    recipe = shop.recipe
    if (other := other_target(shop.target().name, here := fingerprint())) is not None:
        shop.progress.say(
            f"warning: quantize.target is {other}, this CPU is {host_target(here)}: what stages time, they "
            "time here, and the gate stays INCONCLUSIVE until it runs on the target"
        )
    check_hardware(recipe)
    _check_teachers(shop)
    sample_count(shop.data.calibration, recipe.quantize)
    check_opset(recipe.export.opset)
    open_axes(shop.data.calibration, recipe.export)
    for split in (shop.data.calibration, shop.data.evaluation):
        as_shipped(split, recipe.export.preprocess)
    common = {"seed": recipe.seed, "data": shop.data_fingerprint, "code": shop.code}
    if shop.data.augment is not None:  # what it does may hang on arguments that leave the samples alone
        common["augment"] = {**recipe.data.model_dump(mode="json"), **shop.files_of(recipe.data)}
    model = recipe.model.model_dump(mode="json")
    checkpoint = shop.checkpoint()
    weights = None if checkpoint is None else sha256_of(checkpoint)
    steps = [
        Step(
            "pretrained",
            "pretrained",
            {
                **common,
                "model": model,
                "weights": weights,
                "trained_later": _trains(recipe),
                **shop.files_of(recipe.model),
            },
            (),
            lambda _folders, out, _unfinished: _load_pretrained(shop, out),
        )
    ]
    names = ["pretrained"]
    for name, config in zip(recipe.stage_names(), recipe.stage, strict=True):
        parents = [names[-1]]
        for teacher in teachers_of(config):
            if isinstance(teacher, str) and teacher not in parents:
                parents.append(teacher)
        steps.append(
            Step(
                name,
                config.kind,
                {
                    **common,
                    "config": config.model_dump(mode="json"),
                    **_hardware(recipe, config),
                    **_others_read(shop, name, config),
                },
                tuple(parents),
                _stage_runner(shop, name, config, kept),
            )
        )
        names.append(name)
    trained = names[-1]
    # Weights that learned to be rounded are worse than before where nothing rounds them: int8 would win
    # against them whatever it lost. What would ship in its place is the network that `qat` began with.
    twin = names[-2] if any(isinstance(stage, QatConfig) for stage in recipe.stage) else trained
    target = shop.target()
    tail: list[Step] = [
        Step(
            "export",
            "export",
            {**common, "config": recipe.export.model_dump(mode="json"), "name": recipe.name},
            tuple(dict.fromkeys((trained, twin))),
            lambda folders, out, _unfinished: _export(shop, folders[trained], folders[twin], out),
        ),
        Step(
            "quantize",
            "quantize",
            {**common, "config": recipe.quantize.model_dump(mode="json"), "target": target.name},
            ("export",),
            lambda folders, out, _unfinished: _quantize(shop, folders["export"], out, kept),
        ),
        Step(
            "parity",
            "parity",
            {**common, "config": recipe.export.model_dump(mode="json")},
            (*dict.fromkeys((trained, twin)), "export", "quantize"),
            lambda folders, out, _unfinished: _parity(shop, folders, trained, twin, out),
        ),
        Step(
            "gate",
            "gate",
            {
                **common,
                "policy": recipe.gate.model_dump(mode="json"),
                "bench": recipe.bench.model_dump(mode="json"),
                "host": fingerprint().model_dump(mode="json"),
            },
            ("export", "quantize", "parity"),
            lambda folders, out, _unfinished: _gate(shop, folders, out),
        ),
    ]
    return steps + tail


def _check_teachers(shop: Workshop) -> None:
    """Refuse the checkpoint as a teacher if its head does not fit, and what it says would be random."""
    asked = [
        name
        for name, stage in zip(shop.recipe.stage_names(), shop.recipe.stage, strict=True)
        if "pretrained" in teachers_of(stage)
    ]
    if asked and (head := shop.new_head()) is not None:
        raise StageError(
            f"{asked[0]}.teacher",
            f"'pretrained' has a new {head!r}, for its classes are others: it knows nothing yet",
            "name a stage that trains it",
        )


def _load_pretrained(shop: Workshop, out: Path) -> dict[str, Any]:
    with deterministic(shop.recipe.seed, "model"):
        module = shop.fresh_module()
    path = shop.checkpoint()
    metrics: dict[str, Any] = {"parameters": sum(p.numel() for p in module.parameters())}
    if path is not None:
        loaded = load_into(module, read_checkpoint(path), path)
        if loaded.new_head is not None and not _trains(shop.recipe):
            raise CheckpointError(
                path,
                f"its {loaded.new_head!r} has other classes and no stage would train a new one",
                'add a stage of kind "finetune"',
            )
        metrics |= {"tensors": loaded.tensors, "new_head": loaded.new_head}
    metrics["classes"] = check_classes(module, shop.data, "model")
    Network(module).save(out)
    return metrics


def _trains(recipe: Recipe) -> bool:
    return any(trains(stage) for stage in recipe.stage)


def _stage_runner(shop: Workshop, name: str, config: Stage, kept: Path | None) -> Run:
    def run(folders: Mapping[str, Path], out: Path, unfinished: Path) -> dict[str, Any]:
        if not trains(config):
            network, found = run_stage(shop, name, folders, ONE_CPU, None, kept=kept)
        else:
            job = Job(shop.recipe, shop.folder, name, folders, unfinished)
            with open_engine(job) as engine:
                network, found = run_stage(shop, name, folders, engine, Checkpoints(unfinished), kept=kept)
        network.save(out)
        return found.as_json()

    return run


def run_stage(
    shop: Workshop,
    name: str,
    folders: Mapping[str, Path],
    engine: Engine,
    checkpoints: Checkpoints | None,
    *,
    kept: Path | None = None,
) -> tuple[Network, StepResult]:
    """Run one stage of a recipe on the network of the one before it.

    Args:
        shop: of the build.
        name: of the stage.
        folders: of all earlier steps, by name.
        engine: the hardware.
        checkpoints: where trainings are kept while they run.
        kept: folder of what was timed before.
    """
    names = ["pretrained", *shop.recipe.stage_names()]
    index = names.index(name)
    config = shop.recipe.stage[index - 1]

    def teacher(which: Teacher, data: Splits) -> nn.Module:
        if isinstance(which, str):
            return load_network(shop.fresh_module(), folders[which]).module
        if isinstance(which, OnnxTeacherConfig):
            return shop.model_teacher(which, data, f"{name}.teacher.model")
        return shop.other_network(which, f"{name}.teacher")

    context = Context(
        name=name,
        seed=shop.recipe.seed,
        progress=shop.progress,
        fresh_module=shop.fresh_module,
        load=Loaders(teacher=teacher, data=shop.load_data, unlabelled=shop.load_unlabelled),
        settings=Settings(
            export=shop.recipe.export,
            quantize=shop.recipe.quantize,
            threads=shop.recipe.bench.threads,
            timings=None if kept is None else kept / "tables",
        ),
        engine=engine,
        checkpoints=checkpoints,
    )
    network = load_network(shop.fresh_module(), folders[names[index - 1]])
    return STAGES[config.kind](network, config, shop.data, context)


def _others_read(shop: Workshop, name: str, config: Stage) -> dict[str, Any]:
    """What a stage reads beside its own table and the recipe's model and data; files as hashes."""
    from exporter.sources.splits import fingerprint as data_fingerprint

    if isinstance(config, PretrainConfig):
        source = shop.load_data(config.data, "stage.data")
        say_notes(source, f"{name}.data", shop.progress)
        # Samples are hashed themselves; what alters them in training may depend on files.
        files = {} if source.augment is None else shop.files_of(config.data)
        return {"source": data_fingerprint(source), **files}
    found = _teacher_files(shop, name, config)
    if isinstance(config, DistillConfig) and config.unlabelled is not None:
        extra = shop.load_unlabelled(config.unlabelled, "stage.unlabelled")
        both = with_unlabelled(shop.data, extra, "stage.unlabelled")
        found["unlabelled"] = fingerprint_arrays(sorted(both.inputs.items()))
    if isinstance(config, ShrinkConfig):  # what it cuts hangs on times measured here
        found |= {
            "export": shop.recipe.export.model_dump(mode="json"),
            "exclude": shop.recipe.quantize.exclude,
            "target": shop.target().name,
            "onnxruntime": str(shop.target().runtime),
            "threads": shop.recipe.bench.threads,
            "host": fingerprint().model_dump(mode="json"),
        }
    if isinstance(config, QatConfig):
        return {
            "export": shop.recipe.export.model_dump(mode="json"),
            "quantize": shop.recipe.quantize.model_dump(mode="json"),
            "target": shop.target().name,
        }
    return found


def _teacher_files(shop: Workshop, name: str, config: Stage) -> dict[str, Any]:
    hashes: list[str] = []
    named: list[dict[str, Any]] = []
    for teacher in teachers_of(config):
        if isinstance(teacher, TeacherConfig):
            place = f"{name}.teacher.checkpoint"
            hashes.append(sha256_of(find_file(teacher.checkpoint, shop.folder, place)))
            named.append(shop.files_of(teacher))
        elif isinstance(teacher, OnnxTeacherConfig):
            hashes.append(model_sha256(shop.model_file(teacher, f"{name}.teacher.model")))
    found: dict[str, Any] = {"teachers": hashes} if hashes else {}
    return {**found, "files": named} if any(named) else found


def _hardware(recipe: Recipe, config: Stage) -> dict[str, Any]:
    """What a training's numbers hang on beside recipe and data."""
    if not trains(config):
        return {}
    return {"train": hardware_ingredients(recipe.train)}


def _export(shop: Workshop, trained: Path, twin: Path, out: Path) -> dict[str, Any]:
    """Write the float twin and, where it has other weights, what is quantized."""
    network = load_network(shop.fresh_module(), trained)
    if trained == twin:
        nodes = _export_as(FLOAT_MODEL, shop, trained, network, out)
    else:
        nodes = _export_as(TRAINED_MODEL, shop, trained, network, out)
        _export_as(FLOAT_MODEL, shop, twin, load_network(shop.fresh_module(), twin), out)
    network.save_trained_qparams(out)
    return {
        "nodes": nodes,
        "opset": shop.recipe.export.opset,
        **network.zero_counts().as_json(),
        "size_bytes": model_size(out / FLOAT_MODEL),
    }


def _export_as(name: str, shop: Workshop, stage: Path, network: Network, out: Path) -> int:
    metadata = {
        "edgeproof.name": shop.recipe.name,
        "edgeproof.version": shop.code["libraries"]["edgeproof"],
        "edgeproof.weights": sha256_of(stage / "weights.safetensors"),
    }
    return export(network.module, shop.data.calibration, out / name, shop.recipe.export, metadata)


def _to_quantize(exported: Path) -> Path:
    """The float model that int8 is made from."""
    trained = exported / TRAINED_MODEL
    return trained if trained.exists() else exported / FLOAT_MODEL


def _quantize(shop: Workshop, exported: Path, out: Path, kept: Path | None) -> dict[str, Any]:
    drawn = {
        "data": shop.data_fingerprint,
        "seed": shop.recipe.seed,
        "samples": sample_count(shop.data.calibration, shop.recipe.quantize),
    }
    if shop.recipe.quantize.onnxruntime is not None:
        for model in dict.fromkeys((_to_quantize(exported), exported / FLOAT_MODEL)):
            check_runtime_asked(onnx.load(model), shop.target().runtime, "quantize.onnxruntime")
    made = quantize_split(
        _to_quantize(exported),
        out / MODEL,
        as_shipped(shop.data.calibration, shop.recipe.export.preprocess),
        shop.recipe.quantize,
        shop.target(),
        seed=shop.recipe.seed,
        progress=shop.progress,
        store=None if kept is None else RangeStore(kept, content_key(drawn)),
        trained_qparams=load_trained_qparams(exported),
    )
    far = [
        f"calibration and evaluation samples of {drift.name!r} differ: distance {drift.distance:.2f}, "
        f"{drift.own:.2f} between two halves of the calibration samples"
        for drift in drifts(shop.data.calibration.inputs, shop.data.evaluation.inputs)
        if drift.is_far
    ]
    return {
        **made.as_json(),
        "size_bytes": model_size(out / MODEL),
        "compressed_bytes": compressed_size(sorted(out.iterdir())),
        **_warned(far, shop.progress),
    }


def _parity(
    shop: Workshop, folders: Mapping[str, Path], trained: str, twin: str, out: Path
) -> dict[str, Any]:
    """Compare torch, float ONNX and int8 ONNX on real samples; write evaluation and golden sets.

    Torch gets what the data factory gave, ONNX what a device feeds; compared are the network's own outputs,
    before any postprocessing. int8 is compared with the float twin, and layer by layer with what was
    quantized.
    """
    float_model, int8_model = folders["export"] / FLOAT_MODEL, folders["quantize"] / MODEL
    quantized = _to_quantize(folders["export"])
    evaluation = shop.data.evaluation
    chosen = _spread(evaluation, PARITY_SAMPLES, shop.recipe.seed)
    shipped = as_shipped(evaluation, shop.recipe.export.preprocess)
    sample = shipped.take(chosen)

    def outputs_of(path: Path, stage: str) -> tuple[nn.Module, Array, Parity]:
        module = load_network(shop.fresh_module(), folders[stage]).module
        outputs = run_scores(path, sample)
        found = parity(predict(module, evaluation.take(chosen)), outputs)
        wanted = shop.recipe.export.min_sqnr_db
        if not np.isfinite(outputs).all() or found.sqnr_db < wanted:
            raise ExportError(
                path.name,
                f"is not the network that was trained: SQNR {found.sqnr_db:.1f} dB to torch, "
                f"{wanted:.1f} dB wanted",
                "look for operators that behave otherwise in ONNX (dropout left on, custom rounding)",
            )
        return module, outputs, found

    if trained != twin:
        outputs_of(quantized, trained)
    module, float_outputs, exported = outputs_of(float_model, twin)
    int8_outputs = run_scores(int8_model, sample)
    if not np.isfinite(int8_outputs).all():
        raise ExportError(MODEL, "gives NaN or infinity", "look at the calibration data")
    write_evaluation(out / EVALUATION, evaluation_set(shipped))
    found = audit(int8_model, out / EVALUATION, shop.target().name)
    if failure := coverage_failure(found, shop.recipe.quantize.min_int8_ratio):
        raise ExportError(
            "quantize.min_int8_ratio", failure, "mend what it names, or be content with a lower ratio"
        )
    _write_golden(out / GOLDEN, sample, int8_model, int8_outputs)
    return {
        "torch_accuracy": accuracy(module, evaluation),
        "export": asdict(exported),
        "int8": asdict(parity(float_outputs, int8_outputs)),
        "layers": [
            error.model_dump(mode="json")
            for error in layer_errors(
                quantized, int8_model, sample.take(_spread(sample, LAYER_SAMPLES, shop.recipe.seed))
            )
        ],
        "audit": found.model_dump(mode="json"),
    }


def _spread(split: Split, count: int, seed: int) -> Array:
    """Where a few samples are, of all classes: data may be sorted by class."""
    return stratified_indices(split.labels, {"few": min(count, split.count)}, seed, "parity")["few"]


def evaluation_set(split: Split) -> EvaluationSet:
    """A split as a device reads it."""
    return EvaluationSet(split.inputs, split.labels.astype(np.int64), split.ids)


def _write_golden(path: Path, sample: Split, model: Path, scores: Array) -> None:
    """Keep the samples that the model is surest of: their class must not hang on a rounding."""
    ranked = np.sort(scores.reshape(len(scores), -1), axis=1)
    margin = ranked[:, -1] - ranked[:, -2]
    chosen = sample.take(np.sort(np.argsort(-margin, kind="stable")[:GOLDEN_SAMPLES]))
    name = signature_of(open_session(model)).outputs[0].name
    write_npz(path, {**chosen.inputs, f"{EXPECTED_PREFIX}{name}": run_model(model, chosen)})


def _gate(shop: Workshop, folders: Mapping[str, Path], out: Path) -> dict[str, Any]:
    subject = Subject(
        folders["quantize"] / MODEL,
        folders["export"] / FLOAT_MODEL,
        folders["parity"] / EVALUATION,
        shop.target().name,
    )
    judgement = with_plain_paths(
        gate_subjects(
            subject,
            None,
            shop.recipe.gate,
            config=MeasureConfig(threads=shop.recipe.bench.threads),
            progress=shop.progress,
        )
    )
    if not judgement.result.models[-1].runs:
        cause = "; ".join(judgement.reasons) or "nothing was measured"
        raise MeasurementError("gate", cause, "mend it and run again")
    write_result(out / RESULT, judgement.result)
    latency = judgement.metrics.get("latency_p50")
    faster = latency is not None and latency.upper is not None and latency.upper < 1
    measured = latency is not None and latency.not_measured_on is None
    slow = [_slow(shop, subject.model)] if measured and not faster else []
    return {
        "verdict": judgement.verdict.value,
        "reasons": list(judgement.reasons),
        "metrics": metrics_json(judgement.metrics),
        "blocks": judgement.blocks,
        **_warned(slow, shop.progress),
    }


def _warned(warnings: Sequence[str], progress: Progress) -> dict[str, list[str]]:
    """Metrics of what a person should look at, who is told of it at once."""
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return {"warnings": list(warnings)} if warnings else {}


def _slow(shop: Workshop, model: Path) -> str:
    """That int8 is no faster than float on this CPU, and what keeps it from that."""
    shipped = as_shipped(shop.data.evaluation.first(1), shop.recipe.export.preprocess)
    one = next(shipped.batches(1))
    times = operator_times(model, one, threads=shop.recipe.bench.threads)
    worst = ", ".join(f"{t.name} ({t.op_type}, {t.share:.0%})" for t in blamed(times))
    return f"int8 is not faster than float on this CPU; what takes time outside int8 kernels: {worst}"
