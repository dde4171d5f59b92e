"""The page that a person reads: whole in itself, and deaf to what a recipe says."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bench.artifact import read_manifest
from bench.gate import judgement_from
from bench.policy import Policy, TwinBudgets, criteria
from bench.result import read_result
from exporter.report import few_shot_rows, render_report, stage_summary, training_runs, transfer_rows

pytestmark = pytest.mark.slow

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, every text; unbalanced tags are an error."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def manifest(built_once):
    return read_manifest(built_once.artifact)


@pytest.fixture(scope="module")
def judgement(built_once):
    result = read_result(built_once.artifact / "result.json")
    budgets = TwinBudgets(accuracy=0.5, latency_p50=10.0, size=10.0)
    return judgement_from(result, criteria(Policy(), [budgets]))


def with_stage(manifest, name, **metrics):
    stages = tuple(
        stage.model_copy(update={"metrics": {**stage.metrics, **metrics}}) if stage.name == name else stage
        for stage in manifest.stages
    )
    return manifest.model_copy(update={"stages": stages})


def test_the_page_is_whole_in_itself(built_once):
    text = (built_once.artifact / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "img", "a", "base"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has {name}"
            if name.startswith("xmlns"):
                continue
            assert "//" not in (value or ""), f"{tag} {name} names {value}"
            if name in {"href", "src", "xlink:href"}:
                assert value.startswith("#")
    style = "".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_shows_what_counts(built_once, manifest):
    page = Page((built_once.artifact / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    for stage in manifest.stages:
        assert stage.name in text
    for name, entry in manifest.files.items():
        if name != "report.html":
            assert entry.sha256 in text
    assert ("span", {"class": f"verdict {manifest.verdict}"}) in page.tags
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert "What transfer bought" not in text


HOSTILE = '</pre><script>alert("x")</script>&<b onclick=x>'


def test_hostile_texts_are_escaped(manifest, judgement):
    recipe = {**manifest.recipe, "model": {**manifest.recipe["model"], "args": {"x": HOSTILE}}}
    parity = next(s.metrics for s in manifest.stages if s.kind == "parity")
    layers = [{**parity["layers"][0], "layer": HOSTILE, "op": HOSTILE}]
    hostile = with_stage(manifest, "parity", layers=layers).model_copy(
        update={"name": HOSTILE, "recipe": recipe, "libraries": {HOSTILE: HOSTILE}}
    )
    hostile = with_stage(hostile, "finetune", remark=HOSTILE)
    text = render_report(hostile, judgement)
    assert "<script" not in text
    assert "<b " not in text
    page = Page(text)
    assert not any("onclick" in attributes for _, attributes in page.tags)
    assert any(HOSTILE in data for data in page.texts)


def test_transfer_is_shown_where_it_was_measured(manifest, judgement):
    curves = next(s.metrics["curves"] for s in manifest.stages if s.name == "finetune")
    scratch = {"evaluation_accuracy": 0.5, "curves": curves}
    with_scratch = with_stage(manifest, "finetune", from_scratch=scratch, evaluation_accuracy=0.75)
    assert list(transfer_rows(with_scratch)) == [("finetune", "75.00%", "50.00%", "+25.00 points")]
    assert [name for name, _ in training_runs(with_scratch)] == ["finetune", "finetune, from scratch"]
    text = render_report(with_scratch, judgement)
    assert "What transfer bought" in text
    assert "+25.00 points" in text


def test_the_few_shot_curve_is_shown(manifest, judgement):
    lines = [
        {
            "images": images,
            "transfer": [0.5, 0.75],
            "from_scratch": [0.25, 0.25],
            "gain": {"estimate": 0.375, "lower": 0.1, "upper": 0.65},
        }
        for images in (10, 100)
    ]
    assert few_shot_rows(lines)[1] == {
        "images": "100",
        "seeds": "2",
        "transfer": "62.50%",
        "from_scratch": "25.00%",
        "gain": "+37.50 points",
        "bounds": "+10.00 … +65.00",
    }
    page = Page(render_report(with_stage(manifest, "finetune", few_shot=lines), judgement))
    assert "+10.00 … +65.00" in " ".join(page.texts)
    assert "training images a class" in " ".join(page.texts)
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_charts_without_data_are_left_out(manifest, judgement):
    stages = tuple(
        stage.model_copy(update={"metrics": {k: v for k, v in stage.metrics.items() if k != "curves"}})
        for stage in manifest.stages
    )
    bare = with_stage(manifest.model_copy(update={"stages": stages}), "parity", layers=[])
    page = Page(render_report(bare, judgement))
    assert sum(tag == "svg" for tag, _ in page.tags) == 2


def test_equal_figures_give_equal_pages(manifest, judgement):
    assert render_report(manifest, judgement) == render_report(manifest, judgement)


def test_reasons_are_listed(built_once, manifest):
    result = read_result(built_once.artifact / "result.json")
    failed = judgement_from(result, criteria(Policy(), [TwinBudgets(size=-0.99)]))
    page = Page(render_report(manifest, failed))
    assert ("span", {"class": f"verdict {failed.verdict}"}) in page.tags
    assert any(data.startswith("size FAIL: ") for data in page.texts)


def test_a_stage_is_told_in_one_line():
    metrics = {
        "accuracy_before": 0.123456,
        "target": "arm64",
        "samples": 3,
        "curves": [1],
        "int8": {"a": 1},
    }
    assert stage_summary(metrics) == "accuracy before 0.1235, target arm64, samples 3"


def test_what_repairs_bought_is_shown(manifest, judgement):
    assert "What repairs bought" not in render_report(manifest, judgement)
    row = {"sqnr_db_before": 12.4, "sqnr_db_after": 20.3, "agreement_before": 0.9, "agreement_after": 0.95}
    repairs = [
        {**row, "repair": "adaround", "kept": True, "reason": ""},
        {**row, "repair": "bias", "kept": False, "reason": "it did <not> help"},
    ]
    changed = with_stage(manifest, "quantize", repairs=repairs, fallback={"exclude": ["<stem>"]})
    text = render_report(changed, judgement)
    Page(text)
    assert "12.4 → 20.3 dB" in text
    assert "not kept: it did &lt;not&gt; help" in text
    assert "Left in float so that the budget holds: <code>&lt;stem&gt;</code>" in text
    nothing = with_stage(manifest, "quantize", fallback={"exclude": []})
    assert "nothing was needed" in render_report(nothing, judgement)
