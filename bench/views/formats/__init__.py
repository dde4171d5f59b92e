"""Conversion of results to the formats of other tools, one module per format.

Every format is a pure function of a result and its judgement. Names include units, unknown figures are
omitted, and text from paths or files is escaped according to the format.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.judging.gate import Judgement
    from bench.measuring.result import Result

__all__ = ["Format", "convert"]


class Format(enum.StrEnum):
    """The output formats, named after the tools that read them."""

    BENCHER = "bencher"
    CUSTOM_SMALLER_IS_BETTER = "customSmallerIsBetter"
    JUNIT = "junit"
    MARKDOWN = "markdown"
    PYPERF = "pyperf"
    PYTEST_BENCHMARK = "pytest-benchmark"


def convert(result: Result, judgement: Judgement | None, target: Format) -> str:
    """Convert a result to the text of a file in another format.

    Args:
        result: the result of a measurement.
        judgement: the judgement of the same result, or None if it was not judged.
        target: the format.

    Raises:
        UsageError: the format needs a verdict or figures, and the result has none.

    Examples:
        >>> import bench
        >>> result = bench.measure("model.onnx", blocks=1)
        >>> text = bench.convert(result, None, bench.Format.MARKDOWN)
        >>> "latency p50" in text
        True
    """
    from bench.core.errors import UsageError
    from bench.views.formats import (
        bencher,
        custom_smaller_is_better,
        junit,
        markdown,
        pyperf,
        pytest_benchmark,
    )

    render = {
        Format.BENCHER: bencher.render,
        Format.CUSTOM_SMALLER_IS_BETTER: custom_smaller_is_better.render,
        Format.JUNIT: junit.render,
        Format.MARKDOWN: markdown.render,
        Format.PYPERF: pyperf.render,
        Format.PYTEST_BENCHMARK: pytest_benchmark.render,
    }[target]
    if target not in (Format.JUNIT, Format.MARKDOWN) and not all(model.runs for model in result.models):
        raise UsageError(target.value, "the result contains no figures", "measure again")
    return render(result, judgement)
