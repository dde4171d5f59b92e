"""The error rates of the gate on one host: its false alarms, and the slowdowns that it detects.

A certificate stores the raw scores of every pair that `certify` measured. Later runs, on other days and
after reboots, add their pairs to it. The file is in the user's cache, named after the host's fingerprint.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import ValidationError

from bench.core.errors import ResultError, StorageError
from bench.core.files import write_text
from bench.core.policy import LOOKS, log_budget, repeat_looks
from bench.core.schema import FrozenModel, explain_validation
from bench.core.statistics import (
    planned_count,
    proportion_interval,
    rank_sum_interval,
    robust_spread,
    signed_rank_interval,
)
from bench.inputs.host import HostFingerprint
from bench.judging.verdicts import LATENCY_ALPHA, MEMORY_ALPHA, Verdict, judge_ratio, memory_budget

# History of the format. A reader refuses a version it does not know.
# 1: scores of every pair by condition, with the figures computed from them.
SCHEMA_VERSION: Final = 1
MAX_CERTIFICATE_BYTES = 64 * 2**20
DRAWS = 300
POWER = 0.8
_RATE_ALPHA = 0.05

SAME, REBUILT, SLOWER, LARGER = "same", "rebuilt", "slower", "larger"


class Condition(FrozenModel):
    """One kind of candidate, compared with the baseline in pairs.

    Attributes:
        kind: "same" and "rebuilt" candidates are unchanged; "slower" ones take more time, "larger" ones
            more memory.
        asked: the injected slowdown or extra memory, as a fraction of the baseline's latency or memory.
        latency_p50, latency_p90: the score of every pair, log(candidate / baseline).
        peak_rss: peak memory of baseline and candidate in bytes, for every pair in which both are known.
    """

    kind: Literal["same", "rebuilt", "slower", "larger"]
    asked: float
    latency_p50: tuple[float, ...]
    latency_p90: tuple[float, ...]
    peak_rss: tuple[tuple[int, int], ...] = ()


class FlippedLabels(FrozenModel):
    """How often the accuracy budget detects that a fraction of the predictions became wrong."""

    share: float
    fail_share: float


class Certificate(FrozenModel):
    """The error rates of one host, measured on one model.

    Attributes:
        budget: the relative budget of latency and memory that the rates are valid for.
        accuracy_budget: the accuracy budget that the rates in `flipped` are valid for.
        samples: number of evaluation samples used for `flipped`; 0 without labelled data.
        mde80: the smallest relative slowdown that is detected 8 times in 10 (`detectable`).
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    updated_utc: str
    host: HostFingerprint
    model: str
    sha256: str
    threads: int
    budget: float
    accuracy_budget: float
    conditions: tuple[Condition, ...]
    flipped: tuple[FlippedLabels, ...] = ()
    samples: int = 0
    mde80: float | None = None

    def unchanged(self) -> list[Condition]:
        """The conditions with an unchanged candidate, under which every FAIL is a false alarm."""
        return [c for c in self.conditions if c.kind in (SAME, REBUILT)]

    def false_alarms(self) -> tuple[int, int]:
        """Count the FAILs and the gate runs on unchanged models. No two runs share a pair."""
        verdicts = [v for c in self.unchanged() for v in gate_runs(c.latency_p50, self.budget)]
        return sum(v is Verdict.FAIL for v in verdicts), len(verdicts)

    def spread(self, metric: str) -> float:
        """Standard deviation of a pair's score for unchanged models, from the median deviation."""
        scores = [score for c in self.unchanged() for score in getattr(c, metric)]
        return robust_spread(scores) if scores else 0.0

    def pairs_for(self, metric: str, budget: float) -> int:
        """The number of pairs with which an unchanged model meets a budget in 8 of 10 gate runs."""
        return planned_count(self.spread(metric), log_budget(budget), LATENCY_ALPHA / len(LOOKS), POWER)

    def resolution(self, metric: str, pairs: int) -> float:
        """The smallest relative budget that an unchanged model meets in 8 of 10 gate runs."""
        one = planned_count(1.0, 1e-3, LATENCY_ALPHA / len(LOOKS), POWER) * 1e-6
        return math.expm1(math.sqrt(one / pairs) * self.spread(metric))

    def line(self) -> str:
        """The host's error rates in one line, for the report of every verdict."""
        fails, runs = self.false_alarms()
        most = proportion_interval(fails, runs, _RATE_ALPHA).upper if runs else 1.0
        pairs = len(self.conditions[0].latency_p50) if self.conditions else 0
        catches = (
            "no slowdown is detected 8 times in 10"
            if self.mde80 is None
            else f"a slowdown of {self.mde80:.1%} is detected 8 times in 10"
        )
        return (
            f"error rates of this host ({self.updated_utc[:10]}, {pairs} pairs of {self.model}, "
            f"budget {self.budget:.0%}): "
            f"{fails} FAIL in {runs} runs with an unchanged model (true rate at most {most:.0%}); {catches}"
        )


def gate_runs(scores: Sequence[float], budget: float) -> list[Verdict]:
    """Split scores into complete gate runs, repeats included, and return the verdict of each on p50.

    No two runs share a pair. Pairs at the end that are too few for another run are not used.
    """
    verdicts: list[Verdict] = []
    left = list(scores)
    while True:
        first, used = _in_looks(left, budget)
        left = left[used:]
        if first is Verdict.FAIL:
            first, again = _repeated(left, budget, used)
            left = left[again:]
        if first is None:
            return verdicts
        verdicts.append(first)


def fail_share(scores: Sequence[float], budget: float, draws: int = DRAWS) -> float:
    """Fraction of simulated gate runs that end in a confirmed FAIL.

    Each run draws its pairs from `scores` with replacement (bootstrap of pairs).
    """
    generator = np.random.default_rng(len(scores))
    values = np.asarray(scores, dtype=np.float64)

    def fails() -> bool:
        first, used = _in_looks(generator.choice(values, LOOKS[-1]).tolist(), budget)
        repeat = generator.choice(values, LOOKS[-1]).tolist()
        return first is Verdict.FAIL and _repeated(repeat, budget, used)[0] is Verdict.FAIL

    return sum(fails() for _ in range(draws)) / draws


def memory_fail_share(pairs: Sequence[tuple[int, int]], budget: float, draws: int = DRAWS) -> float:
    """Fraction of simulated gate runs with a confirmed FAIL on peak memory, all at the first look."""
    generator = np.random.default_rng(len(pairs))
    before, after = (np.log(np.asarray(column, dtype=np.float64)) for column in zip(*pairs, strict=True))
    allowed = memory_budget(budget, float(np.exp(np.median(before))))

    def fails(alpha: float) -> bool:
        larger, smaller = (generator.choice(values, LOOKS[0]).tolist() for values in (after, before))
        return judge_ratio(rank_sum_interval(larger, smaller, alpha), allowed) is Verdict.FAIL

    return sum(fails(MEMORY_ALPHA / len(LOOKS)) and fails(MEMORY_ALPHA) for _ in range(draws)) / draws


def detectable(scores: Sequence[float], budget: float) -> float | None:
    """The smallest relative slowdown that is detected 8 times in 10, if it slows every pair equally.

    It is found by bisection. None if even a candidate of three times the latency is not detected.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values - np.median(values)
    low, high = log_budget(budget), math.log(3.0)
    if fail_share((values + high).tolist(), budget) < POWER:
        return None
    while high - low > 5e-4:
        middle = (low + high) / 2
        if fail_share((values + middle).tolist(), budget) >= POWER:
            high = middle
        else:
            low = middle
    return math.expm1(high)


def certificate_path(host: HostFingerprint) -> Path:
    """The path of a host's certificate, in `$XDG_CACHE_HOME/edgeproof/certificates`.

    Raises:
        StorageError: XDG_CACHE_HOME is not set and this user has no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    key = hashlib.sha256(host.model_dump_json().encode()).hexdigest()[:16]
    try:
        folder = Path(cache).expanduser()
    except RuntimeError as error:
        raise StorageError(
            "XDG_CACHE_HOME",
            "is not set, and this user has no home folder",
            "set XDG_CACHE_HOME to a folder",
        ) from error
    return folder / "edgeproof" / "certificates" / f"{key}.json"


def read_certificate(host: HostFingerprint) -> Certificate | None:
    """Read the certificate of a host; None if it has no certificate.

    Raises:
        ResultError: the file is damaged or too large, or its schema is unknown to this version.
    """
    try:
        path = certificate_path(host)
        if path.stat().st_size > MAX_CERTIFICATE_BYTES:
            raise ResultError(
                path, f"is larger than {MAX_CERTIFICATE_BYTES} bytes", "remove the file and certify again"
            )
        content = path.read_bytes()
    except (OSError, StorageError):
        return None
    try:
        certificate = Certificate.model_validate_json(content)
    except ValidationError as error:
        place, cause, _ = explain_validation(error, Certificate)
        raise ResultError(f"{path}: {place}", cause, "remove the file and certify again") from error
    return certificate if certificate.host == host else None


def write_certificate(certificate: Certificate) -> Path:
    """Write a certificate to its place in the cache and return the path."""
    path = certificate_path(certificate.host)
    write_text(path, certificate.model_dump_json(indent=1) + "\n")
    return path


def _in_looks(
    scores: Sequence[float],
    budget: float,
    looks: Sequence[int] = LOOKS,
    alpha: float = LATENCY_ALPHA / len(LOOKS),
) -> tuple[Verdict | None, int]:
    """The verdict of a gate run, and the number of pairs that it used; (None, 0) if there are too few."""
    for look in looks:
        if len(scores) < look:
            return None, 0
        verdict = judge_ratio(signed_rank_interval(scores[:look], alpha), budget)
        if verdict is not Verdict.INCONCLUSIVE:
            return verdict, look
    return Verdict.INCONCLUSIVE, looks[-1]


def _repeated(scores: Sequence[float], budget: float, used: int) -> tuple[Verdict | None, int]:
    """The final verdict: repeat a FAIL on `used` pairs by the rules of `gate.for_repeat`.

    Also returns the number of pairs that the repeat used.
    """
    verdict, taken = _in_looks(scores, budget, repeat_looks(LOOKS, used), LATENCY_ALPHA)
    return Verdict.INCONCLUSIVE if verdict is Verdict.PASS else verdict, taken
