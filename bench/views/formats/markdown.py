"""Markdown for a comment on a pull request: the tables of the command line, and the reasons.

Names and reasons are in code spans, in which GitHub interprets no markup, HTML, links or mentions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bench.core.errors import one_line
from bench.judging.gate import Judgement
from bench.judging.verdicts import Metric
from bench.measuring.result import Result
from bench.views.tables import (
    METRIC_OF_ROW,
    bounds_text,
    budget_text,
    change_text,
    figure_rows,
    short_names,
)


def render(result: Result, judgement: Judgement | None) -> str:
    """Convert a result to GitHub-flavoured Markdown."""
    metrics = {} if judgement is None else judgement.metrics
    measured = all(model.runs for model in result.models)
    parts = [_figures(result, metrics)] if measured else []
    if judgement is not None:
        parts.insert(0, f"### edgeproof: {judgement.verdict}")
        if measured:
            parts.append(_verdicts(judgement.metrics))
        if judgement.twin_metrics:
            parts += ["Against its own float model:", _verdicts(judgement.twin_metrics)]
        if judgement.reasons:
            parts.append("\n".join(f"- {code(reason)}" for reason in judgement.reasons))
    if result.certificate:
        parts.append(code(result.certificate))
    if result.data.synthetic:
        parts.append("Feeds: synthetic, made from the input signature; no accuracy.")
    host, settings = result.host, result.settings
    facts = [f"{len(result.models[0].runs)} processes per model", f"{settings.threads} threads"]
    facts += [code(host.cpu_model)] if host.cpu_model else []
    facts += [f"ONNX Runtime {code(host.onnxruntime)}", f"edgeproof {code(result.tool_version)}"]
    parts.append(f"<sub>{', '.join(facts)}</sub>")
    return "\n\n".join(parts) + "\n"


def code(text: str) -> str:
    """Return a code span with any `text`, which is safe in a table as well.

    The fence is longer than any run of backticks in the text (CommonMark 0.31, section 6.1). A bar is
    escaped, because it ends the cell of a table even in a code span (GitHub Flavored Markdown, section
    4.10).
    """
    plain = one_line(text).replace("|", "\\|") or " "
    runs = [len(run) for run in re.findall("`+", plain)]
    fence = "`" * (max(runs, default=0) + 1)
    space = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _figures(result: Result, metrics: Mapping[str, Metric]) -> str:
    models = short_names(result.models)
    heads = ["", *(code(name) for name in models)] + ["change"] * bool(metrics)
    rows = []
    for label, texts in figure_rows(models, judged=bool(metrics)):
        change = [change_text(metrics.get(METRIC_OF_ROW.get(label, "")))] * bool(metrics)
        rows.append([label, *texts, *change])
    return _table(heads, rows)


def _verdicts(metrics: Mapping[str, Metric]) -> str:
    return _table(
        ["metric", "estimate", "bounds", "budget", "verdict"],
        [
            [
                name,
                change_text(metric),
                bounds_text(metric),
                budget_text(metric),
                metric.verdict or "not judged",
            ]
            for name, metric in metrics.items()
        ],
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = [":--", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
