"""The scenarios of `bench`, and which options each takes; light, because the command line reads it."""

from __future__ import annotations

from enum import StrEnum

from bench.core.errors import UsageError

# Fresh processes a model.
DEFAULT_BLOCKS = 5
MAX_BATCH = 4096
DEFAULT_BATCHES = (1, 2, 4, 8, 16, 32)


class Scenario(StrEnum):
    """How a model is asked, after the scenarios of MLPerf Inference (Reddi et al., 2020)."""

    SINGLE_STREAM = "single-stream"
    MULTI_STREAM = "multi-stream"
    OFFLINE = "offline"
    SUSTAINED = "sustained"


def check_options(scenario: Scenario, **given: object) -> None:
    """Refuse options that mean nothing in a scenario.

    Raises:
        UsageError: naming the first of them.
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
                f"--{name}", f"means nothing in the scenario {scenario}", f"leave --{name} out"
            )


def parse_batches(text: str) -> tuple[int, ...]:
    """Batch sizes of a text such as `1,4,16`.

    Raises:
        UsageError: it is not a list of numbers from 1 to `MAX_BATCH`.
    """
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1 or sizes[-1] > MAX_BATCH:
        raise UsageError(
            "--batches", f"{text!r} is no list of sizes", f"write such as 1,4,16; at most {MAX_BATCH}"
        )
    return sizes
