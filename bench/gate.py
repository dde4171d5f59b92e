"""Comparing a candidate with its baselines, all measured in one sitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.artifact import Subject, subject, target_warnings
from bench.errors import UsageError
from bench.host import fingerprint
from bench.judge import (
    Metric,
    Verdict,
    joint_verdict,
    judge_min_accuracy,
    judge_pair,
    reasons,
)
from bench.measure import MeasureConfig, Session, WorkerGroup
from bench.policy import Budgets, Criteria, Policy, ReleaseBudgets, criteria
from bench.process import worker_group
from bench.progress import SILENT, Progress
from bench.result import Result


@dataclass(frozen=True)
class Judgement:
    """A verdict and everything it rests on.

    Attributes:
        metrics: against `baseline`, each judged by its budget.
        twin_metrics: against the artifact's float model, where there is one and `baseline` is another.
        blocks: how many blocks were measured.
        warnings: what makes this host a poor one to measure on.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    candidate: str
    baseline: str
    metrics: Mapping[str, Metric]
    twin_metrics: Mapping[str, Metric]
    blocks: int
    result: Result
    warnings: tuple[str, ...] = ()


def compare(
    baseline: Path,
    candidate: Path,
    *,
    evaluation: Path | None = None,
    budgets: Budgets | None = None,
    config: MeasureConfig | None = None,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Judgement:
    """Measure two models (files or artifacts) side by side and judge the candidate.

    Without an evaluation set, accuracy is neither measured nor judged.
    """
    first, second = subject(baseline, evaluation), subject(candidate, evaluation)
    data = evaluation or second.evaluation or first.evaluation
    budgets = budgets or ReleaseBudgets()
    if data is None:
        budgets = budgets.model_copy(update={"accuracy": None})
    models = [first.model, second.model]
    warnings = warn_of_targets([first, second], progress)
    with Session(models, data, config or MeasureConfig(), progress, workers) as session:
        return replace(_judge_in_looks(session, criteria(Policy(), [budgets])), warnings=warnings)


def gate(
    candidate: Path,
    *,
    baseline: Path | None = None,
    policy: Policy | None = None,
    evaluation: Path | None = None,
    config: MeasureConfig | None = None,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Judgement:
    """Judge an artifact against its own float model and, if given, against an earlier release.

    Raises:
        UsageError: the candidate is a lone .onnx and no baseline is given: nothing to judge by.
    """
    chosen = subject(candidate, evaluation)
    earlier = None if baseline is None else subject(baseline, evaluation)
    return gate_subjects(
        chosen, earlier, policy or Policy(), config=config, progress=progress, workers=workers
    )


def gate_subjects(
    candidate: Subject,
    baseline: Subject | None,
    policy: Policy,
    *,
    config: MeasureConfig | None = None,
    progress: Progress = SILENT,
    workers: WorkerGroup = worker_group,
) -> Judgement:
    """`gate` for files that need not lie in an artifact."""
    models: list[Path] = []
    budgets: list[Budgets] = []
    if baseline is not None:
        models.append(baseline.model)
        budgets.append(policy.baseline)
    if candidate.float_twin is not None:
        models.append(candidate.float_twin)
        budgets.append(policy.float_twin)
    if not models:
        raise UsageError(candidate.model, "a lone model has nothing to be judged against", "add --baseline")
    models.append(candidate.model)
    warnings = warn_of_targets([s for s in (baseline, candidate) if s is not None], progress)
    with Session(models, candidate.evaluation, config or MeasureConfig(), progress, workers) as session:
        return replace(_judge_in_looks(session, criteria(policy, budgets)), warnings=warnings)


def warn_of_targets(subjects: Sequence[Subject], progress: Progress) -> tuple[str, ...]:
    """Say which artifacts were made for another kind of CPU, and return what was said."""
    warnings = target_warnings(subjects, fingerprint())
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return warnings


def judgement_from(result: Result, judged_by: Criteria) -> Judgement:
    """A judgement from raw samples: the last model is the candidate, the first the baseline.

    What `result.criteria` holds gives the verdict that was given; other criteria give another.
    """
    *others, candidate = result.models
    judged = [
        judge_pair(other, candidate, budgets, looks=len(judged_by.looks))
        for other, budgets in zip(others, judged_by.budgets, strict=True)
    ]
    metrics, twin_metrics = judged[0], judged[1] if len(judged) > 1 else {}
    if judged_by.min_accuracy is not None:
        metrics["min_accuracy"] = judge_min_accuracy(candidate, judged_by.min_accuracy)
    all_metrics = [*metrics.values(), *twin_metrics.values()]
    return Judgement(
        verdict=joint_verdict(metric.verdict for metric in all_metrics),
        reasons=(
            *reasons(metrics),
            *(f"against float: {reason}" for reason in reasons(twin_metrics)),
        ),
        candidate=candidate.path,
        baseline=others[0].path,
        metrics=metrics,
        twin_metrics=twin_metrics,
        blocks=len(candidate.runs),
        result=result,
    )


def _judge_in_looks(session: Session, judged_by: Criteria) -> Judgement:
    """Measure until every metric that more blocks can sharpen is decided, or the last look is done."""
    session.predict()
    done = 0
    for look in judged_by.looks:
        session.add_blocks(look - done)
        done = look
        result = session.result().model_copy(update={"criteria": judged_by})
        judgement = judgement_from(result, judged_by)
        if not _more_blocks_may_tell(judgement):
            break
    return judgement


def _more_blocks_may_tell(judgement: Judgement) -> bool:
    """Whether a metric that grows sharper with more blocks is still open."""
    sharpening = ("latency_p50", "latency_p90", "peak_rss")
    return any(
        metrics[name].verdict is Verdict.INCONCLUSIVE
        for metrics in (judgement.metrics, judgement.twin_metrics)
        for name in sharpening
        if name in metrics
    )


def with_plain_paths(judgement: Judgement) -> Judgement:
    """The same judgement with bare file names: an artifact tells nothing of the builder's disk."""
    result = judgement.result
    models = tuple(m.model_copy(update={"path": Path(m.path).name}) for m in result.models)
    data = result.data
    if data.path is not None:
        data = data.model_copy(update={"path": Path(data.path).name})
    return replace(
        judgement,
        candidate=Path(judgement.candidate).name,
        baseline=Path(judgement.baseline).name,
        result=result.model_copy(update={"models": models, "data": data}),
    )
