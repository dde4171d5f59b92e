"""Refuse budgets that this data set or this host cannot resolve, before anything is measured."""

from __future__ import annotations

from bench.core.errors import PolicyError
from bench.core.policy import Budgets, Policy
from bench.core.statistics import sample_size_difference, sample_size_share
from bench.inputs.artifact import Subject
from bench.inputs.evaluation import open_samples
from bench.inputs.host import fingerprint
from bench.judging.certificate import Certificate, read_certificate
from bench.judging.verdicts import ACCURACY_ALPHA


def refuse_unresolvable(policy: Policy, candidate: Subject, baseline: Subject | None, pairs: int) -> None:
    """Refuse budgets that even an unchanged candidate could not pass, before anything is measured.

    Raises:
        PolicyError: a budget needs more evaluation samples than the data set has, or more pairs than
            `pairs`. The message states the number needed.
    """
    judged: list[tuple[str, Budgets]] = []
    if baseline is not None:
        judged.append(("baseline", policy.baseline))
    if candidate.float_twin is not None:
        judged.append(("float_twin", policy.float_twin))
    certificate = read_certificate(fingerprint())
    if certificate is not None:
        for name, budgets in judged:
            _refuse_latency(name, budgets, certificate, pairs)
    if candidate.evaluation is None:
        return
    count = open_samples(candidate.evaluation).count
    for name, budgets in judged:
        if budgets.accuracy is not None:
            if budgets.accuracy == 0.0:
                raise PolicyError(
                    f"{name}.accuracy",
                    "no number of samples can exclude every loss",
                    "set the budget above 0",
                )
            _refuse_few(
                f"{name}.accuracy = {budgets.accuracy:g}",
                count,
                sample_size_difference(budgets.accuracy, ACCURACY_ALPHA),
            )
        _refuse_share(f"{name}.agreement", budgets.agreement, count)
    _refuse_share("min_accuracy", policy.min_accuracy, count)


def _refuse_share(name: str, floor: float | None, count: int) -> None:
    if floor is None:
        return
    if floor == 1.0:
        raise PolicyError(name, "no number of samples can prove a proportion of 1", "set it below 1")
    _refuse_few(f"{name} = {floor:g}", count, sample_size_share(floor, ACCURACY_ALPHA))


def _refuse_few(place: str, count: int, needed: int) -> None:
    if count < needed:
        raise PolicyError(
            place,
            f"{count} evaluation samples are too few: even a perfect candidate could not pass",
            f"use at least {needed} samples, or relax the budget",
        )


def _refuse_latency(name: str, budgets: Budgets, certificate: Certificate, pairs: int) -> None:
    for metric in ("latency_p50", "latency_p90"):
        budget = getattr(budgets, metric)
        needed = None if budget is None or budget <= 0 else certificate.pairs_for(metric, budget)
        if needed is not None and needed > pairs:
            raise PolicyError(
                f"{name}.{metric} = {budget:g}",
                f"on this host, {pairs} pairs resolve budgets of at least "
                f"{certificate.resolution(metric, pairs):.1%}",
                f"measure {needed} pairs (--pairs), or allow a larger change",
            )
