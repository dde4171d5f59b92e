"""Budgets: how much worse a candidate may be before a release is refused."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from bench.core.errors import PolicyError
from bench.core.schema import FrozenModel, explain_validation

MAX_POLICY_BYTES = 1 << 20

# Numbers of blocks at which the data are looked at. The error allowed is shared equally among the looks
# (union bound), so that stopping early is free. The signed-rank test can reject at 0.01 / 4 from 9 on.
LOOKS = (10, 15, 20, 30)

# A relative budget x allows candidate <= baseline * (1 + x): 0.02 is "at most 2 % more", -0.4 is "at
# least 40 % less". Below -0.99 nothing could pass; beyond +10 nothing could fail.
Relative = Annotated[float, Field(ge=-0.99, le=10.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Budgets(FrozenModel):
    """Budgets against one other model. A metric whose budget is absent is reported, not judged."""

    latency_p50: Relative | None = Field(None, description="Relative change of the median latency.")
    latency_p90: Relative | None = Field(None, description="Relative change of the 90th percentile.")
    peak_rss: Relative | None = Field(None, description="Relative change of peak memory.")
    size: Relative | None = Field(None, description="Relative change of the file's size.")
    accuracy: Share | None = Field(None, description="Accuracy that may be lost; 0.01 is one point.")
    agreement: Share | None = Field(None, description="Share of predictions that must stay the same.")


class TwinBudgets(Budgets):
    """Against the artifact's own float model: int8 has to earn its place."""

    latency_p50: Relative | None = Field(0.0, description="Relative change of the median latency.")
    size: Relative | None = Field(0.0, description="Relative change of the file's size.")
    accuracy: Share | None = Field(0.01, description="Accuracy that may be lost; 0.01 is one point.")


class ReleaseBudgets(Budgets):
    """Against an earlier release: no worse, within what a noisy machine can tell apart."""

    latency_p50: Relative | None = Field(0.02, description="Relative change of the median latency.")
    latency_p90: Relative | None = Field(0.10, description="Relative change of the 90th percentile.")
    peak_rss: Relative | None = Field(0.02, description="Relative change of peak memory.")
    size: Relative | None = Field(0.02, description="Relative change of the file's size.")
    accuracy: Share | None = Field(0.01, description="Accuracy that may be lost; 0.01 is one point.")


class Policy(FrozenModel):
    """Everything that a gate judges by: the recipe's `[gate]`, or a file of its own."""

    min_accuracy: Share | None = Field(
        None,
        description="The accuracy that the int8 model must reach, whatever the float one does.",
    )
    max_p99_ms: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="The 99th percentile of latency that must be kept, in milliseconds."
    )
    float_twin: TwinBudgets = Field(
        default_factory=TwinBudgets, description="Budgets against the artifact's own float model."
    )
    baseline: ReleaseBudgets = Field(
        default_factory=ReleaseBudgets, description="Budgets against an earlier release."
    )


class Criteria(FrozenModel):
    """What one verdict was judged by; kept beside the raw samples, so that it can be given again.

    Attributes:
        budgets: one for each model but the last, the candidate, in order.
        looks: after how many blocks the data are looked at; the error allowed is shared among them.
        same: that baseline and candidate are the same file is meant: an A/A run.
    """

    budgets: tuple[Budgets, ...]
    min_accuracy: Share | None = None
    max_p99_ms: float | None = None
    looks: tuple[int, ...] = Field(LOOKS, min_length=1, max_length=1000)
    same: bool = False


def repeat_looks(looks: Sequence[int], blocks: int) -> tuple[int, ...]:
    """After how many blocks a repeat is looked at: as many as the FAIL took, then as the first one was."""
    return (blocks, *(look for look in looks if look > blocks))


def criteria(
    policy: Policy, budgets: Sequence[Budgets], *, pairs: int = LOOKS[-1], same: bool = False
) -> Criteria:
    """What to judge by: a policy, the budgets of it that apply, and the number of pairs at the last look.

    Raises:
        PolicyError: fewer pairs than the first look needs.
    """
    if pairs < LOOKS[0]:
        raise PolicyError("pairs", f"{pairs} allow no bound", f"take at least {LOOKS[0]}")
    return Criteria(
        # Subclasses differ in their defaults alone; what is kept are the values.
        budgets=tuple(Budgets.model_validate(budget.model_dump()) for budget in budgets),
        min_accuracy=policy.min_accuracy,
        max_p99_ms=policy.max_p99_ms,
        looks=(*(look for look in LOOKS[:-1] if look < pairs), pairs),
        same=same,
    )


def read_policy(path: Path) -> Policy:
    """Read a policy from TOML.

    Raises:
        PolicyError: the file is missing, is not TOML, or holds an unknown key or an impossible budget.
    """
    try:
        if path.stat().st_size > MAX_POLICY_BYTES:
            raise PolicyError(path, "is larger than a policy can be", "check the path")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise PolicyError(path, f"cannot be read ({error})", "mend the file") from error
    return policy_from(content, path)


def policy_from(content: object, place: object) -> Policy:
    """Validate a policy that was read from somewhere.

    Args:
        content: nested tables, as TOML or JSON give them.
        place: what to name in an error.
    """
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        key, cause, fix = explain_validation(error, Policy)
        raise PolicyError(f"{place}: {key}", cause, fix) from error


def log_budget(relative: float) -> float:
    """A relative budget on the scale of log ratios, where +x and its undoing are symmetric."""
    return math.log1p(relative)
