"""Compare a candidate with its baselines, all measured in the same blocks, and give a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.core.errors import MeasurementError, UsageError
from bench.core.files import AnyPath, model_sha256
from bench.core.policy import (
    LOOKS,
    Budgets,
    Criteria,
    Policy,
    ReleaseBudgets,
    criteria,
    policy_from,
    read_policy,
    repeat_looks,
)
from bench.core.progress import SILENT, Progress
from bench.inputs.artifact import MODEL, Subject, own_policy, subject, warn_of_targets
from bench.inputs.host import fingerprint
from bench.inputs.manifest import MANIFEST, Manifest, read_manifest
from bench.judging.certificate import Certificate, read_certificate
from bench.judging.resolution import refuse_unresolvable
from bench.judging.verdicts import (
    PAIRS_WANTED,
    TIMED,
    Flip,
    Metric,
    Verdict,
    confirmed,
    doubts,
    flips_of,
    joint_verdict,
    judge_max_p99,
    judge_min_accuracy,
    judge_pair,
    made_for_others,
    not_measured,
    reasons,
    same_files,
)
from bench.measuring.measure import (
    DEFAULT_CONFIG,
    TIME_LIMIT,
    Interrupted,
    MeasureConfig,
    Measurement,
    WorkerGroup,
)
from bench.measuring.result import Result
from bench.measuring.worker_process import worker_group

# Added to the seed for the repeat that confirms a FAIL: same design, but another order of turns.
_REPEAT_SEED = 1_000_003
# No blocks are added for an undecided metric that needs more than this multiple of the last look's pairs.
_HOPELESS = 4
# Two results are comparable even if they differ in these fields.
_MAY_DIFFER = {"seed", "path", "ids"}
NOT_CERTIFIED = "error rates of this host: not measured; run `edgeproof certify MODEL`"


@dataclass(frozen=True)
class Judgement:
    """A verdict and everything that it is based on.

    Attributes:
        verdict: the joint verdict of all metrics.
        reasons: one sentence for each metric that did not pass, and for each reason not to judge.
        candidate, baseline: paths of the two models.
        metrics: comparison with `baseline`, each metric judged by its budget.
        twin_metrics: comparison with the artifact's float model, if it has one and `baseline` is another
            model; otherwise empty.
        flips: samples whose prediction differs from the baseline's.
        blocks: number of blocks measured, without the blocks of a repeat.
        result: the raw samples, with the criteria used for the verdict.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    candidate: str
    baseline: str
    metrics: Mapping[str, Metric]
    twin_metrics: Mapping[str, Metric]
    flips: tuple[Flip, ...]
    blocks: int
    result: Result

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why measurements on this host are less reliable."""
        return self.result.warnings


@dataclass(frozen=True)
class GateOptions:
    """Options of a gate run, in addition to its budgets.

    Attributes:
        pairs: number of blocks at the last look; more blocks resolve smaller budgets.
        same: allow baseline and candidate to be the same file (an A/A run).
        any_order: allow a baseline that was built after the candidate.
    """

    pairs: int = LOOKS[-1]
    same: bool = False
    any_order: bool = False


def compare(
    baseline: AnyPath,
    candidate: AnyPath,
    *,
    data: AnyPath | None = None,
    budgets: Budgets | None = None,
    options: GateOptions = GateOptions(),
    config: MeasureConfig = DEFAULT_CONFIG,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Judgement:
    """Measure two models in interleaved pairs and judge the candidate by budgets against the baseline.

    Args:
        baseline: an artifact folder or an .onnx file.
        candidate: an artifact folder or an .onnx file.
        data: labelled samples in an `.npz`; by default the artifact's samples. Without samples, accuracy is
            neither measured nor judged.
        budgets: how much worse the candidate may be; by default `ReleaseBudgets()`.
        options: number of pairs, and which unusual inputs are allowed.
        config: settings of the measurement.
        progress: receives progress reports and warnings; `SILENT` shows none.
        workers: starts the measured processes.

    Raises:
        UsageError: a model does not exist.
        ArtifactError: a folder is not a complete artifact.
        ModelError: a model cannot be loaded or run on this host.
        DataError: the samples do not fit the models.
        PolicyError: `options.pairs` is too small.
        Interrupted: Ctrl-C was pressed. The exception holds the complete blocks.

    Examples:
        >>> import bench
        >>> judgement = bench.compare(
        ...     "older.onnx",
        ...     "model.onnx",
        ...     budgets=bench.Budgets(size=0.02),
        ...     options=bench.GateOptions(pairs=10),
        ... )
        >>> judgement.metrics["size"].verdict.value
        'PASS'
        >>> judgement.metrics["latency_p50"].ratio > 0
        True
    """
    first, second = subject(baseline, data), subject(candidate, data)
    evaluation = second.evaluation or first.evaluation
    budgets = budgets or ReleaseBudgets()
    if evaluation is None:
        budgets = budgets.model_copy(update={"accuracy": None})
    judged_by = criteria(Policy(), [budgets], pairs=options.pairs, same=options.same)
    doubt = () if options.any_order else swaps(first, second)
    run = _GateRun(
        [first.model, second.model],
        [first.target, second.target],
        evaluation,
        config,
        progress,
        workers,
        read_certificate(fingerprint()),
        warn_of_targets([first, second], progress),
    )
    return run.judge(judged_by, doubt)


def gate(
    candidate: AnyPath,
    baseline: AnyPath | None = None,
    policy: Policy | Mapping[str, object] | AnyPath | None = None,
    *,
    data: AnyPath | None = None,
    options: GateOptions = GateOptions(),
    config: MeasureConfig = DEFAULT_CONFIG,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Judgement:
    """Judge an artifact against its own float model and, if given, against an earlier release.

    Args:
        candidate: an artifact folder; or an .onnx file, which needs a baseline.
        baseline: an earlier release, as an artifact folder or an .onnx file.
        policy: budgets, as a `Policy`, as nested tables, or as the path of a TOML file; by default the
            budgets of the candidate's recipe.
        data: labelled samples in an `.npz`; by default the artifact's samples.
        options: number of pairs, and which unusual inputs are allowed.
        config: settings of the measurement.
        progress: receives progress reports and warnings; `SILENT` shows none.
        workers: starts the measured processes.

    Raises:
        UsageError: the candidate is an .onnx file and no baseline is given, or a model does not exist.
        ArtifactError: a folder is not a complete artifact.
        PolicyError: the policy is not valid, or this data set or this host cannot resolve a budget.
        ModelError: a model cannot be loaded or run on this host.
        DataError: the samples do not fit the models.
        Interrupted: Ctrl-C was pressed. The exception holds the complete blocks.

    Examples:
        >>> import bench
        >>> policy = {"float_twin": {"latency_p50": None, "accuracy": 0.2}}
        >>> judgement = bench.gate("artifact", policy=policy, options=bench.GateOptions(pairs=10))
        >>> judgement.verdict.value, judgement.verdict.exit_code
        ('PASS', 0)
        >>> judgement.warnings
        ()
    """
    budgets = policy_for(candidate, policy)
    chosen = subject(candidate, data)
    earlier = None if baseline is None else subject(baseline, data)
    refuse_unresolvable(budgets, chosen, earlier, options.pairs)
    return gate_subjects(
        chosen, earlier, budgets, options=options, config=config, progress=progress, workers=workers
    )


def policy_for(candidate: AnyPath, policy: Policy | Mapping[str, object] | AnyPath | None) -> Policy:
    """Read a policy that is given in any form; None selects the policy of the candidate's recipe.

    Raises:
        PolicyError: the file cannot be read, or it has unknown keys or impossible budgets.
        ArtifactError: the candidate's manifest cannot be read.
    """
    if policy is None:
        return own_policy(Path(candidate))
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return policy_from(dict(policy), "policy")
    return read_policy(Path(policy))


def gate_subjects(
    candidate: Subject,
    baseline: Subject | None,
    policy: Policy,
    *,
    options: GateOptions = GateOptions(),
    config: MeasureConfig = DEFAULT_CONFIG,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Judgement:
    """Run `gate` on files that need not be in an artifact folder.

    Unlike `gate`, it accepts budgets that cannot be resolved; their verdict may be INCONCLUSIVE.
    """
    models: list[Path] = []
    targets: list[str | None] = []
    budgets: list[Budgets] = []
    if baseline is not None:
        models.append(baseline.model)
        targets.append(baseline.target)
        budgets.append(policy.baseline)
    if candidate.float_twin is not None:
        models.append(candidate.float_twin)
        targets.append(None)
        budgets.append(policy.float_twin)
    if not models:
        raise UsageError(
            candidate.model,
            "an .onnx file without its artifact has no float model to compare with",
            "add --baseline with the model to compare with",
        )
    models.append(candidate.model)
    targets.append(candidate.target)
    judged_by = criteria(policy, budgets, pairs=options.pairs, same=options.same)
    doubt = () if baseline is None or options.any_order else swaps(baseline, candidate)
    run = _GateRun(
        models,
        targets,
        candidate.evaluation,
        config,
        progress,
        workers,
        read_certificate(fingerprint()),
        warn_of_targets([s for s in (baseline, candidate) if s is not None], progress),
    )
    return run.judge(judged_by, doubt)


def judgement_from(result: Result, judged_by: Criteria) -> Judgement:
    """Judge raw samples: the last model of the result is the candidate, the first is the baseline.

    Args:
        result: the raw samples.
        judged_by: the criteria. `result.criteria` reproduces the original verdict; other criteria may lead
            to a different one.
    """
    *others, candidate = result.models
    doubt = [] if judged_by.same else same_files(result)
    if result.stopped not in (None, TIME_LIMIT):
        doubt.append(f"stopped after {len(candidate.runs)} blocks: {result.stopped}")
    doubt += doubts(result)
    judged = _metrics(result, judged_by) if candidate.runs else [{} for _ in others]
    if (repeat := result.repeat) is not None:
        doubt += [f"in the repeat: {reason}" for reason in doubts(repeat)] + mismatches(result, repeat)
        again = _metrics(repeat, for_repeat(judged_by)) if repeat.models[-1].runs else [{} for _ in others]
        judged = [confirmed(first, second) for first, second in zip(judged, again, strict=True)]
    metrics, twin_metrics = judged[0], judged[1] if len(judged) > 1 else {}
    elsewhere = made_for_others(result)
    verdict = joint_verdict(
        [
            *(metric.verdict for metric in (*metrics.values(), *twin_metrics.values())),
            Verdict.INCONCLUSIVE if elsewhere else None,
        ]
    )
    return Judgement(
        verdict=Verdict.INVALID if doubt else verdict,
        reasons=(
            *(f"INVALID: {reason}" for reason in dict.fromkeys(doubt)),
            *(f"INCONCLUSIVE: {reason}" for reason in elsewhere),
            *reasons(metrics),
            *(f"against float: {reason}" for reason in reasons(twin_metrics)),
            *(
                (f"only {len(candidate.runs)} blocks: {TIME_LIMIT}",)
                if result.stopped == TIME_LIMIT
                else ()
            ),
        ),
        candidate=candidate.path,
        baseline=others[0].path,
        metrics=metrics,
        twin_metrics=twin_metrics,
        flips=flips_of(others[0], candidate, result.data.ids),
        blocks=len(candidate.runs),
        result=result,
    )


def for_repeat(judged_by: Criteria) -> Criteria:
    """The criteria of a repeat: the same budgets, but the full error probability at each of its looks.

    The first measurement alone bounds the rate of false alarms, because a repeat can only withdraw a FAIL.
    So the repeat need not share its error probability among its looks. A repeat with a single look, after
    as many blocks as the FAIL took, withdrew 3 of 31 real slowdowns of 5 %, with estimates of 3.3 to
    4.1 %. Therefore an inconclusive repeat keeps adding blocks.
    """
    return judged_by.model_copy(update={"looks": judged_by.looks[-1:]})


def mismatches(first: Result, second: Result) -> list[str]:
    """Reasons why two results are not comparable: differences in host, settings, data or models."""
    found = []
    for name in ("host", "settings", "data"):
        one, other = (getattr(result, name).model_dump(exclude=_MAY_DIFFER) for result in (first, second))
        found += [
            f"{name}.{key} differs: {one[key]!r} and {other[key]!r}"
            for key in one
            if one[key] != other[key]
        ]
    if [model.sha256 for model in first.models] != [model.sha256 for model in second.models]:
        found.append("the models differ")
    return found


def swaps(baseline: Subject, candidate: Subject) -> tuple[str, ...]:
    """Find signs in manifests and hashes that baseline and candidate were swapped by mistake."""
    if baseline.float_twin is not None and _same_file(baseline.float_twin, candidate.model):
        return (
            "the candidate is the float model of the baseline: they seem swapped; "
            "exchange baseline and candidate",
        )
    before, after = _manifest(baseline), _manifest(candidate)
    if before is None or after is None or before.name != after.name:
        return ()
    if before.created_utc > after.created_utc:
        return (
            f"the baseline was built after the candidate ({before.created_utc}, {after.created_utc}): "
            "they seem swapped; exchange them, or add --any-order if the order is intended",
        )
    return ()


@dataclass(frozen=True)
class _GateRun:
    """One gate run: a first measurement of the models, and a second one if a timed metric fails."""

    models: Sequence[Path]
    targets: Sequence[str | None]
    evaluation: Path | None
    config: MeasureConfig
    progress: Progress
    workers: WorkerGroup
    certificate: Certificate | None
    warnings: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic

    def judge(self, judged_by: Criteria, doubt: Sequence[str]) -> Judgement:
        """Measure look by look, repeat the measurement after a FAIL, and judge.

        If there is a reason to doubt the inputs, nothing is measured and the verdict is INVALID.
        """
        begun = self.clock()
        with self._measurement(self.config) as measurement:
            empty = self._noted(measurement.result(), judged_by)
            early = [*doubt, *([] if judged_by.same else same_files(empty))]
            if early:
                stopped = empty.model_copy(update={"stopped": "; ".join(early)})
                return judgement_from(stopped, judged_by)
            # Times on another kind of CPU are not judged. One block is enough to show that the models run.
            looks = (1,) if made_for_others(empty) else judged_by.looks
            judgement = self._measure(measurement, judged_by, looks)
        if judgement.verdict is not Verdict.INVALID and (failed := _timed(judgement, Verdict.FAIL)):
            repeated = self._repeated(judgement.result, set(failed), judged_by, self.clock() - begun)
            judgement = judgement_from(repeated, judged_by)
        return judgement

    def _repeated(
        self, first: Result, failed: set[tuple[str, str]], judged_by: Criteria, spent_s: float
    ) -> Result:
        """The first result together with an independent repeat.

        The repeat uses fresh processes and another order of turns, within the time that is left.
        """
        self.progress.say("a budget is exceeded: measuring again to confirm the FAIL")
        limit = self.config.time_limit_s
        again = replace(
            self.config,
            seed=self.config.seed + _REPEAT_SEED,
            time_limit_s=None if limit is None else limit - spent_s,
        )
        looks = repeat_looks(judged_by.looks, len(first.models[-1].runs))
        try:
            with self._measurement(again) as measurement:
                repeat = self._measure(measurement, for_repeat(judged_by), looks, failed).result
        except Interrupted as stop:
            raise Interrupted(_with_repeat(first, stop.result)) from None
        return _with_repeat(first, repeat)

    def _measurement(self, config: MeasureConfig) -> Measurement:
        return Measurement(
            self.models,
            self.evaluation,
            config,
            self.progress,
            self.workers,
            targets=self.targets,
            warnings=self.warnings,
        )

    def _measure(
        self,
        measurement: Measurement,
        judged_by: Criteria,
        looks: Sequence[int],
        wanted: set[tuple[str, str]] | None = None,
    ) -> Judgement:
        """Measure look by look until more blocks cannot change the verdict.

        Args:
            measurement: receives the blocks.
            judged_by: the criteria.
            looks: numbers of blocks after which to judge.
            wanted: metrics to decide; the measurement stops when they are decided. By default, all timed
                metrics.
        """

        def judged() -> Judgement:
            return judgement_from(self._noted(measurement.result(), judged_by), judged_by)

        done = 0
        try:
            measurement.predict()
            for look in looks:
                measurement.add_blocks(look - done)
                done = look
                judgement = judged()
                open_ = _may_be_told(judgement, looks[-1])
                if measurement.stopped is not None or not (open_ if wanted is None else open_ & wanted):
                    break
        except MeasurementError:
            return judged()
        except Interrupted as stop:
            raise Interrupted(self._noted(stop.result, judged_by)) from None
        return judgement

    def _noted(self, result: Result, judged_by: Criteria) -> Result:
        """The result with its criteria and the host's error rates added."""
        line = NOT_CERTIFIED if self.certificate is None else self.certificate.line()
        return result.model_copy(update={"criteria": judged_by, "certificate": line})


def _with_repeat(first: Result, repeat: Result) -> Result:
    """Store the repeat in the first result. If the repeat was stopped early, the result states why."""
    stopped = first.stopped
    if repeat.stopped not in (None, TIME_LIMIT):
        stopped = f"in the repeat: {repeat.stopped}"
    return first.model_copy(update={"repeat": repeat, "stopped": stopped})


def _metrics(result: Result, judged_by: Criteria) -> list[dict[str, Metric]]:
    """The metrics of the candidate against each other model, in order.

    Metrics with an absolute limit are in the first entry.
    """
    *others, candidate = result.models
    looks = len(judged_by.looks)
    judged = [
        not_measured(judge_pair(other, candidate, budgets, looks=looks), (other, candidate))
        for other, budgets in zip(others, judged_by.budgets, strict=True)
    ]
    if judged_by.max_p99_ms is not None:
        tail = {"latency_p99": judge_max_p99(candidate, judged_by.max_p99_ms, looks=looks)}
        judged[0] |= not_measured(tail, (candidate,))
    if judged_by.min_accuracy is not None:
        judged[0]["min_accuracy"] = judge_min_accuracy(candidate, judged_by.min_accuracy)
    return judged


def _timed(judgement: Judgement, verdict: Verdict) -> dict[tuple[str, str], Metric]:
    """The timed metrics with this verdict, which more blocks can make more precise.

    Keys are (the model compared with: "baseline" or "float", name of the metric).
    """
    return {
        (against, name): metrics[name]
        for against, metrics in (("baseline", judgement.metrics), ("float", judgement.twin_metrics))
        for name in TIMED
        if name in metrics and metrics[name].verdict is verdict
    }


def _may_be_told(judgement: Judgement, last: int) -> set[tuple[str, str]]:
    """The undecided metrics that a feasible number of blocks could decide, with the keys of `_timed`.

    Stopping early increases neither error probability: the verdict stays INCONCLUSIVE, as it most likely
    would be at the last look.
    """
    if judgement.verdict is Verdict.INVALID:
        return set()
    return {
        key
        for key, metric in _timed(judgement, Verdict.INCONCLUSIVE).items()
        if metric.details.get(PAIRS_WANTED, 0) <= _HOPELESS * last and metric.not_measured_on is None
    }


def _manifest(subject: Subject) -> Manifest | None:
    """The manifest of the artifact that a model belongs to; None for an .onnx file without an artifact."""
    folder = subject.model.parent
    if subject.model.name != MODEL or not (folder / MANIFEST).is_file():
        return None
    return read_manifest(folder)


def _same_file(first: Path, second: Path) -> bool:
    return model_sha256(first) == model_sha256(second)


def with_plain_paths(judgement: Judgement) -> Judgement:
    """The same judgement with file names in place of paths, which would reveal the builder's folders."""
    return replace(
        judgement,
        candidate=Path(judgement.candidate).name,
        baseline=Path(judgement.baseline).name,
        result=_plain(judgement.result),
    )


def _plain(result: Result) -> Result:
    models = tuple(m.model_copy(update={"path": Path(m.path).name}) for m in result.models)
    data = result.data
    if data.path is not None:
        data = data.model_copy(update={"path": Path(data.path).name})
    repeat = None if result.repeat is None else _plain(result.repeat)
    return result.model_copy(update={"models": models, "data": data, "repeat": repeat})
