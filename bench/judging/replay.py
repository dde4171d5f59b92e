"""Compute every figure and the verdict of a result file again, from its raw samples alone."""

from __future__ import annotations

from datetime import datetime

from bench.core.errors import ResultError
from bench.core.files import AnyPath
from bench.judging.gate import Judgement, judgement_from
from bench.measuring.result import ModelResult, Result, read_result


def replay(path: AnyPath) -> tuple[Result, Judgement | None]:
    """Read a result and judge it again by the criteria stored in it.

    Args:
        path: a file written by `write_result` or `--out`, with this version or an earlier one.

    Returns:
        The result and its judgement. The judgement is None if the models were only measured, not judged.

    Raises:
        ResultError: the file cannot be read, or its parts contradict each other.

    Examples:
        >>> import bench
        >>> bench.write_result("result.json", bench.measure("model.onnx", blocks=1))
        >>> result, judgement = bench.replay("result.json")
        >>> result.models[0].path, judgement
        ('model.onnx', None)
    """
    result = read_result(path)
    if cause := _misfit(result):
        raise ResultError(path, cause, "measure again, or restore the file")
    return result, None if result.criteria is None else judgement_from(result, result.criteria)


def _misfit(result: Result) -> str | None:
    """Find a contradiction in a result of valid format, and describe it; None if there is none."""
    if not result.models:
        return "contains no models"
    for moment in (result.started_utc, result.ended_utc):
        try:
            datetime.fromisoformat(moment)
        except ValueError:
            return f"{moment[:60]!r} is not a time in ISO 8601 format"
    unfinished = result.stopped is not None
    broken = [cause for model in result.models if (cause := _misfit_of_model(model, unfinished=unfinished))]
    if broken or result.criteria is None:
        return broken[0] if broken else None
    if len(result.criteria.budgets) != len(result.models) - 1:
        return (
            f"contains {len(result.models)} models and {len(result.criteria.budgets)} sets of budgets "
            f"instead of {len(result.models) - 1}"
        )
    shapes = {tuple(len(run.rounds_ns) for run in model.runs) for model in result.models}
    answers = {None if model.predictions is None else len(model.predictions) for model in result.models}
    if len(shapes) > 1 or len(answers) > 1:
        return "its models differ in the number of runs, rounds or predictions"
    return None


def _misfit_of_model(model: ModelResult, *, unfinished: bool) -> str | None:
    if not model.runs and not unfinished:
        return f"contains no runs of {model.path!r}"
    if not all(run.samples_ns().all() for run in model.runs):
        return f"contains a latency of 0 ns of {model.path!r}"
    if model.predictions is None or model.labels is None:
        return None
    if not len(model.predictions) == len(model.labels) > 0:
        return f"predictions and labels of {model.path!r} are empty or differ in number"
    return None
