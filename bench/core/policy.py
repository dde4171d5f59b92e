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

# Numbers of blocks after which the data are evaluated. The looks share the allowed error equally (union
# bound), so stopping early does not raise the error. From 9 blocks on, the signed-rank test can reject at
# 0.01 / 4.
LOOKS = (10, 15, 20, 30)

# A relative budget x allows candidate <= baseline * (1 + x): 0.02 means "at most 2 % more", -0.4 means "at
# least 40 % less". Below -0.99 no candidate could pass; above +10 none could fail.
Relative = Annotated[float, Field(ge=-0.99, le=10.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Budgets(FrozenModel):
    """Budgets against one other model. A metric without a budget is reported but not judged."""

    latency_p50: Relative | None = Field(None, description="Relative change of the median latency.")
    latency_p90: Relative | None = Field(None, description="Relative change of the 90th percentile.")
    peak_rss: Relative | None = Field(None, description="Relative change of peak memory.")
    size: Relative | None = Field(None, description="Relative change of the file's size.")
    accuracy: Share | None = Field(None, description="Accuracy that may be lost; 0.01 is one point.")
    agreement: Share | None = Field(None, description="Fraction of predictions that must stay the same.")


class TwinBudgets(Budgets):
    """Budgets against the artifact's own float model. By default, int8 must not be slower or larger."""

    latency_p50: Relative | None = Field(0.0, description="Relative change of the median latency.")
    size: Relative | None = Field(0.0, description="Relative change of the file's size.")
    accuracy: Share | None = Field(0.01, description="Accuracy that may be lost; 0.01 is one point.")


class ReleaseBudgets(Budgets):
    """Budgets against an earlier release. The defaults allow what a noisy host cannot resolve."""

    latency_p50: Relative | None = Field(0.02, description="Relative change of the median latency.")
    latency_p90: Relative | None = Field(0.10, description="Relative change of the 90th percentile.")
    peak_rss: Relative | None = Field(0.02, description="Relative change of peak memory.")
    size: Relative | None = Field(0.02, description="Relative change of the file's size.")
    accuracy: Share | None = Field(0.01, description="Accuracy that may be lost; 0.01 is one point.")


class Policy(FrozenModel):
    """All budgets of a gate: the recipe's `[gate]`, or a separate file."""

    min_accuracy: Share | None = Field(
        None,
        description="Lowest accuracy allowed for the int8 model, whatever accuracy the float model has.",
    )
    max_p99_ms: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Upper limit for the 99th percentile of latency, in milliseconds."
    )
    float_twin: TwinBudgets = Field(
        default_factory=TwinBudgets, description="Budgets against the artifact's own float model."
    )
    baseline: ReleaseBudgets = Field(
        default_factory=ReleaseBudgets, description="Budgets against an earlier release."
    )


class Criteria(FrozenModel):
    """The criteria of one verdict. The result keeps them, so the verdict can be computed again.

    Attributes:
        budgets: budgets for each model except the last one, in order. The last model is the candidate.
        min_accuracy: lowest accuracy allowed for the candidate.
        max_p99_ms: upper limit for the candidate's 99th percentile of latency, in milliseconds.
        looks: numbers of blocks after which the data are evaluated; the looks share the allowed error.
        same: whether baseline and candidate may be the same file (an A/A run).
    """

    budgets: tuple[Budgets, ...]
    min_accuracy: Share | None = None
    max_p99_ms: float | None = None
    looks: tuple[int, ...] = Field(LOOKS, min_length=1, max_length=1000)
    same: bool = False


def repeat_looks(looks: Sequence[int], blocks: int) -> tuple[int, ...]:
    """Return the looks of a repeat: the number of blocks that led to the FAIL, then all later looks."""
    return (blocks, *(look for look in looks if look > blocks))


def criteria(
    policy: Policy, budgets: Sequence[Budgets], *, pairs: int = LOOKS[-1], same: bool = False
) -> Criteria:
    """Create the criteria from a policy, the budgets that apply, and the number of pairs at the last look.

    Raises:
        PolicyError: there are fewer pairs than the first look needs.
    """
    if pairs < LOOKS[0]:
        raise PolicyError("pairs", f"{pairs} is too few for a verdict", f"use at least {LOOKS[0]}")
    return Criteria(
        # The subclasses of Budgets differ only in their defaults, and only the values are kept.
        budgets=tuple(Budgets.model_validate(budget.model_dump()) for budget in budgets),
        min_accuracy=policy.min_accuracy,
        max_p99_ms=policy.max_p99_ms,
        looks=(*(look for look in LOOKS[:-1] if look < pairs), pairs),
        same=same,
    )


def read_policy(path: Path) -> Policy:
    """Read a policy from TOML.

    Raises:
        PolicyError: the file is missing, is not TOML, or has an unknown key or an impossible budget.
    """
    try:
        if path.stat().st_size > MAX_POLICY_BYTES:
            raise PolicyError(path, f"is larger than {MAX_POLICY_BYTES} bytes", "check the path")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also for thousands of digits
        raise PolicyError(path, f"cannot be read ({error})", "correct the file") from error
    return policy_from(content, path)


def policy_from(content: object, place: object) -> Policy:
    """Validate a policy that is already parsed.

    Args:
        content: nested tables, as a TOML or JSON parser returns them.
        place: file or option that an error names.

    Raises:
        PolicyError: the content has an unknown key or an impossible budget.
    """
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        key, cause, fix = explain_validation(error, Policy)
        raise PolicyError(f"{place}: {key}", cause, fix) from error


def log_budget(relative: float) -> float:
    """Convert a relative budget to a log ratio. There, an increase and its reversal are symmetric."""
    return math.log1p(relative)
