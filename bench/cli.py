"""The commands of the base installation: `bench`, `compare`, `gate`, `certify`, `show`, `verify`.

`python -m bench` offers only these, for a device; `edgeproof` adds the commands of the workstation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.core.command import run
from bench.core.errors import UsageError
from bench.core.streams import write_out
from bench.measuring.scenario import DEFAULT_BATCHES, DEFAULT_BLOCKS, Scenario, check_options, parse_batches
from bench.views.formats import Format

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bench.core.progress import Progress
    from bench.judging.gate import Judgement
    from bench.measuring.result import Result
    from bench.measuring.scenario_result import ScenarioResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure, compare and gate ONNX models on this CPU. With --debug, an error shows its traceback.",
)

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Labelled samples (.npz); default: the artifact's own.", show_default=False
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, max=1024, help="Intra-op threads of ONNX Runtime.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Write the result with its raw samples to this file.")
]
PairsOption = Annotated[int, typer.Option(min=10, max=1000, help="Largest number of pairs of processes.")]
LimitOption = Annotated[
    float | None, typer.Option("--time-limit", min=1, help="Time limit in seconds, including a repeat.")
]
SameOption = Annotated[bool, typer.Option("--same", help="Allow the same file twice (an A/A run).")]
OrderOption = Annotated[
    bool, typer.Option("--any-order", help="Allow a baseline that was built after the candidate.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; progress is printed on standard error.")
]


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(help="Artifact folders or .onnx files.")],
    data: DataOption = None,
    threads: ThreadsOption = 1,
    blocks: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help=f"Fresh processes per model; default: {DEFAULT_BLOCKS}."),
    ] = None,
    scenario: Annotated[Scenario, typer.Option(help="Load pattern.")] = Scenario.SINGLE_STREAM,
    streams: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Concurrent streams; default: one per core.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Offline: batch sizes, for example 1,4,16.", show_default=False)
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, max=86_400, help="Seconds per load.", show_default=False)
    ] = None,
    arena: Annotated[bool, typer.Option(help="Use ONNX Runtime's memory arena.")] = True,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure latency, memory, size and accuracy of one or more models."""
    from bench.measuring.measure import MeasureConfig, measure
    from bench.measuring.result import check_result_place, write_result
    from bench.measuring.scenario_run import ScenarioConfig, measure_scenario

    check_options(scenario, streams=streams, batches=batches, duration=duration, blocks=blocks)
    sizes = DEFAULT_BATCHES if batches is None else parse_batches(batches)
    if out is not None:
        check_result_place(out, [*models, data])
    blocks, progress = blocks or DEFAULT_BLOCKS, error_progress()
    if scenario is Scenario.SINGLE_STREAM:
        config = MeasureConfig(threads=threads, arena=arena)
        with _written_on_interrupt(out):
            result = measure(*models, data=data, blocks=blocks, config=config, progress=progress)
        show_then_write(lambda: _show_result(result, as_json), out, lambda path: write_result(path, result))
        return
    load = ScenarioConfig(
        scenario, streams, sizes, duration_s=duration, processes=blocks, threads=threads, arena=arena
    )
    with _written_on_interrupt(out):
        loaded = measure_scenario(*models, data=data, config=load, progress=progress)
    show_then_write(lambda: _show_scenario(loaded, as_json), out, lambda path: write_result(path, loaded))


@app.command()
def compare(
    baseline: Annotated[Path, typer.Argument(help="Artifact folder or .onnx file.")],
    candidate: Annotated[Path, typer.Argument(help="Artifact folder or .onnx file.")],
    data: DataOption = None,
    threads: ThreadsOption = 1,
    pairs: PairsOption = 30,
    time_limit: LimitOption = None,
    same: SameOption = False,
    any_order: OrderOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure two models in interleaved pairs and judge the candidate by the default budgets."""
    from bench.judging.gate import GateOptions
    from bench.judging.gate import compare as compare_models
    from bench.measuring.measure import MeasureConfig
    from bench.measuring.result import check_result_place

    if out is not None:
        check_result_place(out, [baseline, candidate, data])
    with _written_on_interrupt(out):
        judgement = compare_models(
            baseline,
            candidate,
            data=data,
            options=GateOptions(pairs=pairs, same=same, any_order=any_order),
            config=MeasureConfig(threads=threads, time_limit_s=time_limit),
            progress=error_progress(),
        )
    _report(judgement, out, as_json)


@app.command()
def gate(
    candidate: Annotated[Path, typer.Argument(help="Artifact folder, or .onnx with --baseline.")],
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier release: artifact folder or .onnx.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="TOML file of budgets; default: those of the recipe.")
    ] = None,
    data: DataOption = None,
    threads: ThreadsOption = 1,
    pairs: PairsOption = 30,
    time_limit: LimitOption = None,
    same: SameOption = False,
    any_order: OrderOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a release: exit code 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 INVALID."""
    from bench.judging.gate import GateOptions
    from bench.judging.gate import gate as judge
    from bench.measuring.measure import MeasureConfig
    from bench.measuring.result import check_result_place

    if out is not None:
        check_result_place(out, [candidate, baseline, policy, data])
    with _written_on_interrupt(out):
        judgement = judge(
            candidate,
            baseline,
            policy,
            data=data,
            options=GateOptions(pairs=pairs, same=same, any_order=any_order),
            config=MeasureConfig(threads=threads, time_limit_s=time_limit),
            progress=error_progress(),
        )
    _report(judgement, out, as_json)


@app.command()
def certify(
    model: Annotated[Path, typer.Argument(help="Artifact folder or .onnx to measure.")],
    data: DataOption = None,
    threads: ThreadsOption = 1,
    blocks: Annotated[int, typer.Option(min=10, max=10_000, help="Pairs of processes per condition.")] = 30,
    budget: Annotated[float, typer.Option(min=0.001, max=1.0, help="Relative budget to certify.")] = 0.02,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the pairs of earlier days.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how often the gate fails an unchanged model on this host, and which slowdowns it detects."""
    from bench.judging.certificate import certificate_path
    from bench.judging.certify import CertifyOptions
    from bench.judging.certify import certify as measure_host
    from bench.measuring.measure import MeasureConfig
    from bench.views.tables import certificate_rows

    certificate = measure_host(
        model,
        data=data,
        options=CertifyOptions(blocks=blocks, budget=budget, fresh=fresh),
        config=MeasureConfig(threads=threads),
        progress=error_progress(),
    )
    if as_json:
        print_json({"line": certificate.line(), **certificate.model_dump(mode="json")})
        return
    for label, share in certificate_rows(certificate):
        print_rich(f"{label:<44} FAIL in {share}")
    print_rich(certificate.line())
    print_rich(f"stored in {certificate_path(certificate.host)}")


@app.command()
def show(
    result: Annotated[Path, typer.Argument(help="Result file that `--out` wrote.")],
    as_format: Annotated[
        Format | None,
        typer.Option("--format", help="Print in the format of another tool.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write that format to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute all figures and the verdict of a result again; exit with the code of the verdict."""
    from bench.core.files import check_writable, write_text
    from bench.judging.replay import replay
    from bench.measuring.scenario_result import holds_scenario, read_scenario
    from bench.views.formats import convert

    if out is not None and as_format is None:
        raise UsageError("--out", "needs a format", "add --format")
    if as_json and as_format is not None and out is None:
        raise UsageError("--json", "cannot share standard output with --format", "add --out")
    if out is not None:
        check_writable(out, [result])
    if holds_scenario(result):
        if as_format is not None:
            raise UsageError("--format", "cannot convert the result of a scenario", "use --json")
        _show_scenario(read_scenario(result), as_json)
        return
    measured, judgement = replay(result)
    text = ""
    if as_format is not None:
        text = convert(measured, judgement, as_format)
        if out is None:
            write_out(text)
            raise typer.Exit(0 if judgement is None else judgement.verdict.exit_code)

    def show_all() -> None:
        if judgement is None:
            _show_result(measured, as_json)
        else:
            _show_judgement(judgement, as_json)

    show_then_write(show_all, out, lambda path: write_text(path, text))


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    as_json: JsonOption = False,
) -> None:
    """Check an artifact's hashes, and that its outputs on this CPU match those of the build."""
    from bench.measuring.self_test import verify as check
    from bench.views.tables import verification_json, verification_view

    verification = check(artifact, progress=error_progress())
    if as_json:
        print_json(verification_json(verification))
        return
    for part in verification_view(verification):
        print_rich(part)


def print_json(value: object) -> None:
    """Print one JSON object on standard output. NaN raises a ValueError."""
    write_out(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_rich(value: RenderableType) -> None:
    """Print a rich renderable, or a line of plain text, on standard output."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as text:
        console.print(value)
    write_out(text.get())


def error_progress() -> Progress:
    """Return a progress display on standard error: bars on a terminal, otherwise lines."""
    from rich.console import Console

    from bench.core.console import progress_for

    return progress_for(Console(stderr=True))


@contextmanager
def _written_on_interrupt(out: Path | None) -> Iterator[None]:
    """On Ctrl-C, write the measured part of the result, which is marked as incomplete."""
    from bench.measuring.measure import Interrupted
    from bench.measuring.result import write_result

    try:
        yield
    except Interrupted as stop:
        if out is not None:
            write_result(out, stop.result)
        raise


def _report(judgement: Judgement, out: Path | None, as_json: bool) -> None:
    from bench.measuring.result import write_result

    show_then_write(
        lambda: _show_judgement(judgement, as_json),
        out,
        lambda path: write_result(path, judgement.result),
    )


def show_then_write(show: Callable[[], None], out: Path | None, write: Callable[[Path], None]) -> None:
    """Show a result, then write it to `out`, even if showing it fails."""
    try:
        show()
    finally:
        if out is not None:
            write(out)


def _show_result(result: Result, as_json: bool) -> None:
    from bench.views.tables import result_json, result_view

    if as_json:
        print_json(result_json(result))
        return
    for part in result_view(result):
        print_rich(part)


def _show_scenario(result: ScenarioResult, as_json: bool) -> None:
    from bench.views.scenario_tables import scenario_json, scenario_view

    if as_json:
        print_json(scenario_json(result))
        return
    for part in scenario_view(result):
        print_rich(part)


def _show_judgement(judgement: Judgement, as_json: bool) -> None:
    from bench.views.tables import judgement_json, judgement_view

    if as_json:
        print_json(judgement_json(judgement))
    else:
        for part in judgement_view(judgement):
            print_rich(part)
    raise typer.Exit(judgement.verdict.exit_code)


def main() -> None:
    """Entry point of `python -m bench`."""
    run(app)
