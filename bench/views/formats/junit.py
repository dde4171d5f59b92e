"""JUnit XML for a CI server: one test case per metric, and one for the joint verdict.

FAIL is a failure and INVALID an error. An INCONCLUSIVE metric is skipped, but an INCONCLUSIVE joint verdict
is a failure of type INCONCLUSIVE, because an unproven release must not look successful. Elements and
attributes follow the schema of Ant's JUnit tasks, the strictest schema in use.
"""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from bench.core.errors import UsageError
from bench.judging.gate import Judgement
from bench.judging.verdicts import Metric, Verdict
from bench.measuring.result import Result
from bench.views.tables import (
    bounds_text,
    budget_text,
    change_text,
    judgement_view,
    plain_text,
    short_names,
)


def render(result: Result, judgement: Judgement | None) -> str:
    """Convert a judgement to one test suite.

    Raises:
        UsageError: the result was not judged; a suite without cases would look like a success.
    """
    if judgement is None:
        raise UsageError(
            "junit", "the result contains no verdict", "convert a result of `compare` or `gate`"
        )
    started, ended = _moment(result.started_utc), _moment(result.ended_utc)
    seconds = f"{max((ended - started).total_seconds(), 0):.3f}"
    candidate = list(short_names(result.models))[-1]
    suite = ET.Element("testsuite")
    properties = ET.SubElement(suite, "properties")
    for name, value in _facts(judgement).items():
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    judged = [
        *((name, metric) for name, metric in judgement.metrics.items()),
        *((f"{name} against float", metric) for name, metric in judgement.twin_metrics.items()),
    ]
    for name, metric in judged:
        if metric.verdict is not None:
            case = _case(suite, name, candidate, "0")
            _outcome(case, metric.verdict, _words(metric), skip=True)
    case = _case(suite, "verdict", candidate, seconds)
    _outcome(case, judgement.verdict, "; ".join(judgement.reasons) or "nothing was judged", skip=False)
    ET.SubElement(suite, "system-out").text = _xml(plain_text(judgement_view(judgement)))
    ET.SubElement(suite, "system-err")
    suite.attrib.update(
        name="edgeproof",
        timestamp=started.strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
        tests=str(len(suite.findall("testcase"))),
        failures=str(len(suite.findall("testcase/failure"))),
        errors=str(len(suite.findall("testcase/error"))),
        skipped=str(len(suite.findall("testcase/skipped"))),
        time=seconds,
    )
    suites = ET.Element("testsuites")
    suite.attrib.update(package="edgeproof", id="0")
    suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _facts(judgement: Judgement) -> dict[str, str]:
    result = judgement.result
    models = list(short_names(result.models).items())
    known = {
        "verdict": judgement.verdict.value,
        "blocks": str(judgement.blocks),
        "threads": str(result.settings.threads),
        "cpu_model": result.host.cpu_model,
        "onnxruntime": result.host.onnxruntime,
        "edgeproof": result.tool_version,
    }
    for role, (name, model) in {"baseline": models[0], "candidate": models[-1]}.items():
        known |= {role: name, f"{role}_sha256": model.sha256}
    return {name: value for name, value in known.items() if value}


def _case(suite: ET.Element, name: str, candidate: str, seconds: str) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", name=name, classname=f"edgeproof.{_xml(candidate)}", time=seconds
    )


def _outcome(case: ET.Element, verdict: Verdict, words: str, *, skip: bool) -> None:
    if verdict is Verdict.PASS:
        return
    message = _xml(f"{verdict}: {words}")
    if verdict is Verdict.INCONCLUSIVE and skip:
        ET.SubElement(case, "skipped", message=message)
        return
    tag = "error" if verdict is Verdict.INVALID else "failure"
    ET.SubElement(case, tag, type=verdict.value, message=message).text = message


def _words(metric: Metric) -> str:
    figures = f"{change_text(metric)}, bounds {bounds_text(metric)}, budget {budget_text(metric)}"
    return f"{metric.reason} ({figures})"


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _xml(text: str) -> str:
    """Replace the characters that XML 1.0 cannot represent; the XML writer escapes the others."""
    return "".join(
        letter
        if letter in "\t\n\r"
        or " " <= letter <= "\ud7ff"
        or "\ue000" <= letter <= "\ufffd"
        or letter > "\uffff"
        else "\ufffd"
        for letter in text
    )
