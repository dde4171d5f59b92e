"""A pytest plugin: assert the verdict of a gate, and benchmark an .onnx through pytest-benchmark.

    def test_release(edgeproof_gate):
        edgeproof_gate("artifacts/digits", baseline="releases/digits")

    def test_speed(edgeproof_benchmark):
        assert edgeproof_benchmark("artifacts/digits").accuracy() > 0.97

pytest loads this module at every start (entry point `pytest11`), so it imports no heavy modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.core.files import AnyPath
    from bench.core.policy import Policy
    from bench.inputs.artifact import Subject
    from bench.judging.gate import Judgement
    from bench.measuring.result import ModelResult

VERDICT_PROPERTY = "edgeproof_verdict"
DEFAULT_ROUNDS = 100
WARMUP_ROUNDS = 20


def pytest_configure(config: pytest.Config) -> None:
    """Register `edgeproof_benchmark`; without pytest-benchmark, the fixture fails with a message."""
    present = config.pluginmanager.hasplugin("benchmark")
    config.pluginmanager.register(_WithBenchmark() if present else _WithoutBenchmark())


@pytest.fixture
def edgeproof_gate(request: pytest.FixtureRequest) -> Callable[..., Judgement]:
    """Return a function that measures and judges a candidate; the test passes only with the verdict PASS.

    `edgeproof_gate(candidate, baseline=None, policy=None, *, data=None, threads=1, same=False, out=None,
    inconclusive="fail")` measures the same as `edgeproof gate` and returns the judgement. `policy` is a
    path, a dictionary of budgets like the parsed TOML, or a `Policy`; the default is the policy of the
    artifact's recipe. `same` allows the same file as candidate and baseline. `out` is a path where the raw
    result is written for `edgeproof show`. With `inconclusive="skip"` the test is skipped if the verdict is
    INCONCLUSIVE; INVALID always fails. The message starts with the verdict, which is also recorded as the
    property `edgeproof_verdict` of the test.
    """

    def gate(
        candidate: AnyPath,
        baseline: AnyPath | None = None,
        policy: Policy | Mapping[str, object] | AnyPath | None = None,
        *,
        data: AnyPath | None = None,
        threads: int = 1,
        same: bool = False,
        out: AnyPath | None = None,
        inconclusive: Literal["fail", "skip"] = "fail",
    ) -> Judgement:
        from bench.core.policy import Policy
        from bench.judging.gate import GateOptions
        from bench.judging.gate import gate as measure_and_judge
        from bench.measuring.measure import MeasureConfig
        from bench.measuring.result import check_result_place, write_result
        from bench.views.tables import judgement_view, plain_text

        with _readable_errors(request):
            if out is not None:
                policy_file = None if isinstance(policy, (Policy, Mapping)) else _path(policy)
                check_result_place(Path(out), [Path(candidate), _path(baseline), policy_file, _path(data)])
            judgement = measure_and_judge(
                candidate,
                baseline,
                policy,
                data=data,
                options=GateOptions(same=same),
                config=MeasureConfig(threads=threads),
            )
        verdict = judgement.verdict.value
        _record(request, verdict)
        words = f"edgeproof {verdict}: {'; '.join(judgement.reasons) or 'nothing was judged'}"
        if out is not None:
            with _readable_errors(request, words):
                write_result(out, judgement.result)
        if verdict == "INCONCLUSIVE" and inconclusive == "skip":
            pytest.skip(words)
        if verdict != "PASS":
            pytest.fail(f"{words}\n\n{plain_text(judgement_view(judgement))}", pytrace=False)
        return judgement

    return gate


class _WithBenchmark:
    """The fixture if pytest-benchmark is active.

    It requests `benchmark` by name, because `--benchmark-only` and `--benchmark-skip` look for that name.
    """

    @pytest.fixture
    def edgeproof_benchmark(
        self, request: pytest.FixtureRequest, benchmark: BenchmarkFixture
    ) -> Callable[..., ModelResult]:
        """Return a function that times a model in this process through `benchmark.pedantic`.

        `edgeproof_benchmark(model, *, data=None, threads=1, rounds=100)` takes an artifact folder or an
        .onnx, runs one inference per round on the feeds in turn, and returns the model's result. A separate
        process measures peak memory and accuracy, because this process includes pytest. All known figures
        are added to `benchmark.extra_info`, under names with units.
        """

        def run(
            model: AnyPath, *, data: AnyPath | None = None, threads: int = 1, rounds: int = DEFAULT_ROUNDS
        ) -> ModelResult:
            from bench.inputs.artifact import subject
            from bench.views.formats.figures import flat_figures

            with _readable_errors(request):
                chosen = subject(model, data)
                measured = _measure_apart(chosen, threads)
                times_ns = _times_ns(benchmark, chosen, threads, rounds)
            if times_ns:
                runs = (measured.runs[0].model_copy(update={"rounds_ns": (times_ns,)}),)
                measured = measured.model_copy(update={"runs": runs})
            feeds = "synthetic" if chosen.evaluation is None else "real"
            benchmark.extra_info.update(flat_figures(measured))
            benchmark.extra_info.update(sha256=measured.sha256, threads=threads, feeds=feeds)
            return measured

        return run


class _WithoutBenchmark:
    """The fixture if pytest-benchmark is not installed or disabled."""

    @pytest.fixture
    def edgeproof_benchmark(self) -> None:
        """Fail with the command that installs pytest-benchmark."""
        from bench.core.errors import MissingExtraError

        pytest.fail(str(MissingExtraError("pytest-benchmark", "pytest")), pytrace=False)


def _measure_apart(chosen: Subject, threads: int) -> ModelResult:
    """Measure memory and accuracy in a fresh process, as `edgeproof bench` does."""
    from bench.measuring.measure import MeasureConfig, measure

    # The times of this one short burst are used only if benchmarks are disabled.
    config = MeasureConfig(threads=threads, rounds=1)
    return measure(chosen.model, data=chosen.evaluation, blocks=1, config=config).models[0]


def _times_ns(benchmark: BenchmarkFixture, chosen: Subject, threads: int, rounds: int) -> tuple[int, ...]:
    """Time inferences in this process, in ns; return nothing if benchmarks are disabled."""
    from itertools import cycle

    from bench.inputs.evaluation import read_evaluation
    from bench.inputs.session import RuntimeOptions, open_session, signature_of
    from bench.measuring.measure import TIMED_FEEDS
    from bench.measuring.worker import fixed_batch, synthetic_feeds

    session = open_session(chosen.model, RuntimeOptions(threads=threads))
    signature = signature_of(session)
    if chosen.evaluation is None:
        samples = [synthetic_feeds(chosen.model, signature)]
    else:
        evaluation = read_evaluation(chosen.evaluation, rows=TIMED_FEEDS)
        size = fixed_batch(signature) or 1
        samples = [
            {name: array[start : start + size] for name, array in evaluation.feeds.items()}
            for start in range(0, evaluation.count - size + 1, size)
        ]
    turns = cycle(samples)
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        session.run,
        setup=lambda: ((None, next(turns)), {}),
        rounds=rounds,
        warmup_rounds=WARMUP_ROUNDS,
    )
    if benchmark.stats is None:
        return ()
    return tuple(max(1, round(seconds * 1e9)) for seconds in benchmark.stats.stats.data)


def _path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)


@contextmanager
def _readable_errors(request: pytest.FixtureRequest, verdict: str = "") -> Iterator[None]:
    """Fail the test with one line for an error that the user can fix; a bug keeps its traceback.

    If nothing was measured, the recorded verdict is INVALID.

    Args:
        request: the request of the test.
        verdict: message of an earlier verdict, which is shown before the error.
    """
    from bench.core.errors import EXIT_INVALID
    from bench.core.faults import foreseen

    try:
        yield
    except Exception as error:
        known = foreseen(error)
        if known is None:
            raise
        invalid = known.exit_code == EXIT_INVALID
        if invalid:
            _record(request, "INVALID")
        before = f"{verdict}\n" if verdict else ""
        pytest.fail(f"{before}edgeproof {'INVALID' if invalid else 'error'}: {known}", pytrace=False)


def _record(request: pytest.FixtureRequest, verdict: str) -> None:
    request.node.user_properties.append((VERDICT_PROPERTY, verdict))
