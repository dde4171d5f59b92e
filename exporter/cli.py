"""The command `edgeproof`: the device commands of `bench.cli`, and the commands for the workstation.

This module imports nothing heavy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import JsonOption, OutOption, error_progress, print_json, print_rich, show_then_write
from bench.cli import app as device_app
from bench.core.command import run
from bench.core.errors import UsageError
from exporter.options import CalibrationMethod, Goal, TargetName

if TYPE_CHECKING:
    from bench.core.schema import Json
    from exporter.pipeline.build import BuildOutcome
    from exporter.results import Audit, Fidelity, LayerError, QuantizedFile

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="TABLE.KEY=VALUE", help="Replace a value of the recipe; may be repeated."
    ),
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make an int8 ONNX model for a CPU from a PyTorch checkpoint or an .onnx file, and prove it "
    "before release. With --debug, an error shows its traceback.",
)


def _version(asked: bool) -> None:
    if asked:
        from bench.core.version import tool_version

        print(f"edgeproof {tool_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself; its help is that of `app`."""
    del version


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write the artifact to.", show_default="artifacts/NAME"),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Stop after this stage or step; its files are written to --out."
        ),
    ] = None,
    overrides: SetOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every stage; do not read the cache.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: fine-tune, compress, export, quantize, measure and judge."""
    from exporter.pipeline.build import build as build_recipe

    outcome = build_recipe(
        recipe, out=out, until=until, overrides=overrides or (), fresh=fresh, progress=error_progress()
    )
    if as_json:
        print_json(_outcome_json(outcome))
    else:
        _print_outcome(outcome)
    if outcome.judgement is not None:
        raise typer.Exit(outcome.judgement.verdict.exit_code)


@app.command()
def ablate(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    blocks: Annotated[int, typer.Option(min=1, max=1000, help="Number of fresh processes per model.")] = 10,
    overrides: SetOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the effect of each stage of a recipe on accuracy, time, size and memory.

    Builds the recipe with its first stage only, with its first two, and so on, and measures all models
    together.
    """
    from bench.measuring.result import check_result_place, write_result
    from exporter.pipeline.ablate import ablate as ablate_recipe
    from exporter.pipeline.ablate import ablation_json, ablation_table

    if out is not None:
        check_result_place(out, [recipe])
    found = ablate_recipe(recipe, blocks=blocks, overrides=overrides or (), progress=error_progress())
    show_then_write(
        lambda: print_json(ablation_json(found)) if as_json else print_rich(ablation_table(found)),
        out,
        lambda path: write_result(path, found.result),
    )


@app.command()
def follow(
    recipe: Annotated[Path, typer.Argument(help="The recipe, on a file system that all machines share.")],
    node: Annotated[
        int, typer.Option(min=1, help="Index of this machine, from 1; the build runs on machine 0.")
    ],
) -> None:
    """Take part in the trainings of a build that runs on another machine, until this command is stopped.

    The build decides which code runs here. This command therefore follows a build only if it runs as the
    same user, and only if no other user except root can write to the recipe's folder, the cache, the
    working directory or a folder above them.
    """
    from exporter.caching.cache import cache_root
    from exporter.extras import require

    if not recipe.is_file():
        raise UsageError(
            recipe, "there is no such file", "check the path, and that the file system is shared"
        )
    for module, extra in (("torch", "export"), ("lightning_fabric", "train")):
        require(module, extra)
    from exporter.training.loop.hardware import follow as take_part

    take_part(cache_root(recipe), node, folder=recipe.resolve().parent)


app.add_typer(device_app)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="An .onnx file or an artifact folder.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Samples: .npz, one array per model input; default: the artifact's evaluation samples."
        ),
    ] = None,
    min_int8: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Exit with 1 unless at least this fraction of the multiply-adds is known to run in int8.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also show the error and range of each layer; needs samples.")
    ] = False,
    float_model: Annotated[
        Path | None,
        typer.Option(
            "--float", help="Float model to compare layers with; default: the artifact's float model."
        ),
    ] = None,
    target: Annotated[
        TargetName | None,
        typer.Option(
            help="CPU kind to inspect for, auto for this CPU; default: the one that the model is made for. "
            "Layers that may saturate are shown for x86-avx2 and portable."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which operators ONNX Runtime runs in int8, which stay in float, and which may saturate.

    Fractions refer to multiply-adds. Convolutions, matrix products, recurrent layers and attention count;
    elementwise operators, norms, pooling and reductions do not.
    """
    from exporter.inspection.inspect import inspect as inspect_model

    found = inspect_model(model, data=data, layers=layers, float_model=float_model, target=target)
    if as_json:
        print_json(found.as_json())
    else:
        _print_audit(found.audit)
        if found.layers is not None:
            _print_layers(found.layers)
        if found.fidelity is not None:
            _print_fidelity(found.fidelity)
    if min_int8 is not None:
        from exporter.inspection.audit import coverage_failure

        if (failure := coverage_failure(found.audit, min_int8)) is not None:
            print(f"FAIL: {failure}", file=sys.stderr)
            raise typer.Exit(1)


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A float .onnx file, or a .pt2 program (with torch).")],
    out: Annotated[Path, typer.Option(help="The quantized .onnx file to write.")],
    data: Annotated[
        Path | None, typer.Option(help="Calibration samples: .npz, one array per model input.")
    ] = None,
    bits: Annotated[
        int,
        typer.Option(
            min=4,
            max=8,
            help="8: weights and activations. 4: only weights of matrix products; needs no samples.",
        ),
    ] = 8,
    block_size: Annotated[
        int, typer.Option(help="With 4 bits: number of weights that share a scale (16, 32, 64, 128, 256).")
    ] = 32,
    target: Annotated[TargetName, typer.Option(help="CPU kind that the model will run on.")] = "auto",
    onnxruntime: Annotated[
        str | None,
        typer.Option(
            metavar="'>=1.28'",
            help="Versions of ONNX Runtime that the model must run on; by default every supported one.",
        ),
    ] = None,
    method: Annotated[
        CalibrationMethod, typer.Option(help="Method that chooses the activation ranges.")
    ] = "minmax",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE",
            help="Keep a node of the given file in float, all nodes of a module, or those that match a "
            "pattern with *; may be repeated.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Store activation ranges here and reuse stored ones.")
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Repair: equalize, smooth, adaround or bias. It is kept only if it helps on held-out "
            "samples. May be repeated.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.99,
            help="Largest accuracy loss on held-out samples, a fraction; layers stay in float to meet it.",
        ),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=SIZE",
            help="Fix an open axis of the inputs, by name or as input:number; may be repeated.",
        ),
    ] = None,
    goal: Annotated[
        Goal,
        typer.Option(help="speed: if int8 is slower than float here, write nothing and exit with 1."),
    ] = "speed",
    as_json: JsonOption = False,
) -> None:
    """Quantize a float model without a recipe: statically to int8, or only its weights to 4 bits."""
    from exporter.pipeline.quantize import quantize as quantize_model

    found = quantize_model(
        model,
        out,
        data=data,
        bits=bits,
        block_size=block_size,
        target=target,
        onnxruntime=onnxruntime,
        method=method,
        exclude=exclude or (),
        cache=cache,
        repair=repair or (),
        max_drop=max_drop,
        pin=pin or (),
        goal=goal,
        progress=error_progress(),
    )
    _print_quantized(found, as_json=as_json)


def _print_quantized(found: QuantizedFile, *, as_json: bool) -> None:
    from rich.markup import escape

    from exporter.results import Int8Model

    if as_json:
        print_json(found.as_json())
        return
    made = found.made
    what = (
        f"{made.samples} samples"
        if isinstance(made, Int8Model)
        else f"{made.products} matrix products in 4 bits"
    )
    print_rich(
        escape(
            f"wrote {found.model} ({found.size_bytes:,} bytes) for {made.target}, "
            f"ONNX Runtime {made.min_onnxruntime} and later: {what}, {found.seconds:.1f} s"
        )
    )
    if isinstance(made, Int8Model):
        print_rich(escape(f"  {made.speed_text()}"))
        if made.pays == "float":
            print(
                "warning: int8 is slower than float on this CPU; only the file is smaller", file=sys.stderr
            )
    if isinstance(made, Int8Model) and made.fallback is not None and made.fallback.exclude:
        print_rich(escape(f"  in float: {', '.join(made.fallback.exclude)}"))
    if isinstance(made, Int8Model) and made.fidelity is not None:
        _print_fidelity(made.fidelity)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _print_fidelity(fidelity: Fidelity) -> None:
    from rich.markup import escape

    for line in fidelity.lines():
        print_rich(escape(f"  {line}"))
    if (warning := fidelity.warning()) is not None:
        print(f"warning: {warning}", file=sys.stderr)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
) -> None:
    """Write a commented recipe with an example model and data; it builds without changes."""
    from rich.markup import escape

    from exporter.pipeline.scaffold import scaffold

    recipe = scaffold(folder)
    print_rich(escape(f"wrote {folder}; next: edgeproof build {recipe}"))


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the files in this new folder; by default they are removed."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize, inspect, compare and gate a model from the package magika, in about one minute.

    The labelled data are files of this Python installation. Nothing is downloaded. The verdict sets the
    exit code.
    """
    from exporter.pipeline.demo import demo as run_demo

    if as_json:
        found = run_demo(out, progress=error_progress())
        print_json(found.as_json())
    else:
        found = run_demo(out, progress=error_progress(), tell=print_rich)
    raise typer.Exit(found.judgement.verdict.exit_code)


def _print_audit(found: Audit) -> None:
    from rich.markup import escape

    from exporter.inspection.audit import share_text

    if found.target != found.host_target:
        print_rich(
            f"made for {found.target}: operators are fused as ONNX Runtime fuses them there; "
            f"its kernels were not run, because this CPU is {found.host_target}"
        )
    print_rich(escape(share_text(found)))
    for unknown in found.uncounted:
        print_rich(escape(f"  not counted: {unknown.name} ({unknown.op_type}): {unknown.reason}"))
    for operator in found.float_ops:
        share = operator.macs / found.macs if found.macs else 0.0
        print_rich(escape(f"  float: {operator.name} ({operator.op_type}, {share:.1%}): {operator.reason}"))
    for name in found.quantized_at_load:
        print_rich(
            escape(f"  int8: {name} (float in the file; ONNX Runtime quantizes its weights at load)")
        )
    for pair in found.needless_pairs:
        before, after = pair.between
        print_rich(
            escape(
                f"  needless conversion to int8 and back: {pair.name}, between {before} and {after}: "
                f"{pair.reason}"
            )
        )
    for layer in found.saturation:
        seen = "not observed"
        if layer.observed_share is not None:
            seen = (
                f"{layer.observed_share:.3%} of its sums saturate on {found.samples} samples, "
                f"SQNR {layer.drift_sqnr_db:.1f} dB"
            )
        print_rich(escape(f"  may saturate without VNNI: {layer.name} ({layer.channels} channels; {seen})"))


def _print_layers(errors: Sequence[LayerError]) -> None:
    from rich.markup import escape

    if not errors:
        print_rich("  no layers: this model rounds no tensor of the float model")
    for error in errors:
        low, high = error.range
        ends = f"values {error.lowest:.3g} to {error.highest:.3g}, int8 range {low:.3g} to {high:.3g}"
        print_rich(escape(f"  {error.sqnr_db:6.1f} dB  {error.layer} ({error.op}): {ends}"))


def _outcome_json(outcome: BuildOutcome) -> Json:
    from bench.views.tables import metrics_json, model_json

    judgement = outcome.judgement
    return {
        "artifact": None if outcome.artifact is None else str(outcome.artifact),
        "verdict": None if judgement is None else judgement.verdict.value,
        "reasons": [] if judgement is None else list(judgement.reasons),
        "metrics": {} if judgement is None else metrics_json(judgement.metrics),
        "models": [] if judgement is None else [model_json(m) for m in judgement.result.models],
        "stages": {name: result.as_json() for name, result in outcome.steps.items()},
        "ran": list(outcome.ran),
    }


def _print_outcome(outcome: BuildOutcome) -> None:
    from rich.markup import escape

    from bench.views.tables import figures_table, styled_verdict, verdict_table

    judgement = outcome.judgement
    if judgement is None:
        print_rich(f"stopped after {list(outcome.steps)[-1]} because of --until")
        return
    float_model, int8_model = judgement.result.models
    print_rich(figures_table({"float": float_model, "int8": int8_model}, judgement.metrics))
    print_rich("")
    print_rich(verdict_table(judgement.metrics))
    print_rich("")
    if not outcome.ran and not outcome.packaged:
        print_rich("nothing to do: every stage is unchanged and the artifact is up to date")
    for reason in judgement.reasons:
        print_rich(escape(f"  {reason}"))
    print_rich(f"{styled_verdict(judgement.verdict)}  {escape(str(outcome.artifact))}")


def main() -> None:
    """Run the command `edgeproof`."""
    run(app)
