"""The scenarios of `bench` and their options.

The command line imports this module at every start, so it imports nothing heavy.
"""

from __future__ import annotations

from enum import StrEnum

from bench.core.errors import UsageError

# Fresh processes per model.
DEFAULT_BLOCKS = 5
MAX_BATCH = 4096
DEFAULT_BATCHES = (1, 2, 4, 8, 16, 32)


class Scenario(StrEnum):
    """Load pattern of a measurement, after the scenarios of MLPerf Inference (Reddi et al., 2020)."""

    SINGLE_STREAM = "single-stream"
    MULTI_STREAM = "multi-stream"
    OFFLINE = "offline"
    SUSTAINED = "sustained"


def check_options(scenario: Scenario, **given: object) -> None:
    """Refuse options that have no effect in a scenario.

    Args:
        scenario: the chosen scenario.
        given: name and value of each option; None if the user did not set it.

    Raises:
        UsageError: an option that was set has no effect. The first such option is named.
    """
    meant = {
        Scenario.SINGLE_STREAM: {"blocks"},
        Scenario.MULTI_STREAM: {"blocks", "streams", "duration"},
        Scenario.OFFLINE: {"blocks", "batches", "duration"},
        Scenario.SUSTAINED: {"duration"},
    }[scenario]
    for name, value in given.items():
        if value is not None and name not in meant:
            raise UsageError(
                f"--{name}", f"has no effect in the scenario {scenario}", f"leave --{name} out"
            )


def parse_batches(text: str) -> tuple[int, ...]:
    """Parse a list of batch sizes, for example `1,4,16`; returns each size once, in ascending order.

    Raises:
        UsageError: the text is not a list of integers from 1 to `MAX_BATCH`.
    """
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1 or sizes[-1] > MAX_BATCH:
        raise UsageError(
            "--batches",
            f"{text!r} is not a list of batch sizes from 1 to {MAX_BATCH}",
            "write integers separated by commas, for example 1,4,16",
        )
    return sizes
