"""The command `edgeproof`: the device's commands, and those of the workstation.

Nothing heavy is imported here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import JsonOption, error_progress, print_json, print_rich, run
from bench.cli import app as device_app
from exporter.choices import CalibrationMethod, TargetName

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a pretrained PyTorch checkpoint to a small, fast, proven int8 .onnx for a CPU.",
)


def _version(asked: bool) -> None:
    if asked:
        from bench.measure import tool_version

        print(f"edgeproof {tool_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a pretrained PyTorch checkpoint to a small, fast, proven int8 .onnx for a CPU."""
    del version


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The artifact's folder.", show_default="artifacts/NAME"),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage; no artifact is written.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Replace a value of the recipe; repeatable."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every stage, whatever is cached.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe: fine-tune, compress, export, quantize, measure and judge."""
    from exporter.build import build as build_recipe

    outcome = build_recipe(
        recipe, out=out, until=until, overrides=overrides or (), fresh=fresh, progress=error_progress()
    )
    if as_json:
        print_json(_outcome_json(outcome))
    else:
        _print_outcome(outcome)
    if outcome.judgement is not None:
        raise typer.Exit(outcome.judgement.verdict.exit_code)


app.add_typer(device_app)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="An .onnx file or an artifact folder.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Samples: .npz, one array per model input; an artifact brings its own."),
    ] = None,
    min_int8: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Exit with 1 if a smaller share of multiply-adds is int8."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what ONNX Runtime really runs: the share of int8, what stayed in float, what may saturate."""
    from bench.artifact import subject
    from exporter.build import require

    require("onnx", "export")
    from exporter.audit import audit, coverage_failure

    chosen = subject(model, data)
    found = audit(chosen.model, chosen.evaluation)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print_audit(found)
    if min_int8 is not None and (failure := coverage_failure(found, min_int8)) is not None:
        print(f"FAIL: {failure}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A float .onnx file.")],
    data: Annotated[Path, typer.Option(help="Calibration samples: .npz, one array per model input.")],
    out: Annotated[Path, typer.Option(help="The int8 .onnx file to write.")],
    target: Annotated[TargetName, typer.Option(help="The CPU kind to make it for.")] = "auto",
    method: Annotated[CalibrationMethod, typer.Option(help="How activation ranges are chosen.")] = "minmax",
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Leave this node in float; repeatable.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep activation ranges here, and use those kept.")
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="equalize, adaround or bias: kept if it helps on held-out samples; repeatable, in order.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=0.99, help="Leave layers in float until int8 loses at most this share of accuracy."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a finished float .onnx statically to int8; needs no torch and no recipe."""
    from rich.markup import escape

    from exporter.build import require

    for module in ("onnx", "onnx_ir", "onnxscript"):
        require(module, "export")
    from exporter.recipe import FallbackConfig
    from exporter.repaired import Repairing, check_repairs
    from exporter.standalone import quantize_file

    fallback = None if max_drop is None else FallbackConfig(max_drop=max_drop)
    found = quantize_file(
        model,
        data,
        out,
        target=target,
        method=method,
        exclude=tuple(exclude or ()),
        cache=cache,
        repairing=Repairing(check_repairs(repair or ()), fallback),
        progress=error_progress(),
    )
    if as_json:
        print_json(found)
        return
    print_rich(
        escape(
            f"wrote {out} ({found['size_bytes']:,} bytes) for {found['target']}: "
            f"{found['samples']} samples, {found['seconds']:.1f} s"
        )
    )
    if left := found.get("fallback", {}).get("exclude"):
        print_rich(escape(f"  in float: {', '.join(left)}"))


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
) -> None:
    """Write a commented recipe with a model and data to start from; it builds as it is."""
    from rich.markup import escape

    from exporter.scaffold import scaffold

    recipe = scaffold(folder)
    print_rich(escape(f"wrote {folder}; next: edgeproof build {recipe}"))


def _print_audit(found: Any) -> None:
    from rich.markup import escape

    print_rich(f"{found.int8_mac_ratio:.1%} of {found.macs:,} multiply-adds run in int8")
    for operator in found.float_ops:
        share = operator.macs / found.macs if found.macs else 0.0
        print_rich(escape(f"  float: {operator.name} ({operator.op_type}, {share:.1%}): {operator.reason}"))
    for name in found.quantized_at_load:
        print_rich(escape(f"  int8 all the same: {name}, whose float weights are quantized at load"))
    for pair in found.needless_pairs:
        before, behind = pair.between
        print_rich(
            escape(f"  needless: to int8 and back, {pair.name}, from {before} to {behind}: {pair.reason}")
        )
    for layer in found.saturation:
        seen = "not observed"
        if layer.observed_share is not None:
            seen = (
                f"{layer.observed_share:.3%} of its sums do on {found.samples} samples, "
                f"SQNR {layer.drift_sqnr_db:.1f} dB"
            )
        print_rich(escape(f"  may saturate without VNNI: {layer.name} ({layer.channels} channels; {seen})"))


def _outcome_json(outcome: Any) -> dict[str, Any]:
    from bench.render import metrics_json, model_json

    judgement = outcome.judgement
    return {
        "artifact": None if outcome.artifact is None else str(outcome.artifact),
        "verdict": None if judgement is None else judgement.verdict.value,
        "reasons": [] if judgement is None else list(judgement.reasons),
        "metrics": {} if judgement is None else metrics_json(judgement.metrics),
        "models": [] if judgement is None else [model_json(m) for m in judgement.result.models],
        "stages": outcome.stages,
        "ran": list(outcome.ran),
    }


def _print_outcome(outcome: Any) -> None:
    from rich.markup import escape

    from bench.render import figures_table, styled_verdict, verdict_table

    judgement = outcome.judgement
    if judgement is None:
        print_rich(f"stopped after {list(outcome.stages)[-1]}, as asked")
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
    """Entry point of the command."""
    run(app)
