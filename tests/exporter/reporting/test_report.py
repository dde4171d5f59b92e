"""The report: a self-contained page in which texts from recipes and models are escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bench.core.policy import Policy, TwinBudgets, criteria
from bench.core.statistics import Interval
from bench.inputs.manifest import read_manifest
from bench.judging.gate import judgement_from
from bench.measuring.result import read_result
from exporter.reporting.report import render_report
from exporter.reporting.stage_sections import (
    FewShotRow,
    FinishedStep,
    few_shot_rows,
    prune_sections,
    shrink_sections,
    stage_summary,
    training_runs,
    transfer_rows,
)
from exporter.results import (
    AdaRoundReport,
    BiasReport,
    CompressedBytes,
    Costs,
    FallbackReport,
    FewShotPoint,
    FromScratch,
    Int4Result,
    NarrowingRound,
    PruneResult,
    ReestimateResult,
    Round,
    Score,
    ShrinkResult,
    UncountedOperator,
    read_step_result,
)

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A parser that collects tags with their attributes and texts; unbalanced tags are an error."""

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


@pytest.fixture(scope="module")
def steps(manifest):
    """The result of each step of the build, read from the manifest."""
    return tuple(
        FinishedStep(stage.name, read_step_result(stage.kind, json.dumps(stage.metrics).encode()))
        for stage in manifest.stages
    )


def with_step(steps, name, **changes):
    """The steps, with some figures of one step replaced."""
    return tuple(
        replace(step, result=step.result.model_copy(update=changes)) if step.name == name else step
        for step in steps
    )


def result_of(steps, name):
    return next(step.result for step in steps if step.name == name)


def test_the_page_is_self_contained(built_once):
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


def test_the_page_shows_stages_hashes_verdict_and_charts(built_once, manifest):
    page = Page((built_once.artifact / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    for stage in manifest.stages:
        assert stage.name in text
    for name, entry in manifest.files.items():
        if name != "report.html":
            assert entry.sha256 in text
    assert ("span", {"class": f"verdict {manifest.verdict}"}) in page.tags
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert "Gain from pretrained weights" not in text


HOSTILE = '</pre><script>alert("x")</script>&<b onclick=x>'


def test_hostile_texts_are_escaped(manifest, steps, judgement):
    recipe = {**manifest.recipe, "model": {**manifest.recipe["model"], "args": {"x": HOSTILE}}}
    layer = result_of(steps, "parity").layers[0].model_copy(update={"layer": HOSTILE, "op": HOSTILE})
    hostile = manifest.model_copy(
        update={"name": HOSTILE, "recipe": recipe, "libraries": {HOSTILE: HOSTILE}}
    )
    changed = with_step(with_step(steps, "parity", layers=(layer,)), "finetune", warnings=(HOSTILE,))
    text = render_report(hostile, changed, judgement)
    assert "<script" not in text
    assert "<b " not in text
    page = Page(text)
    assert not any("onclick" in attributes for _, attributes in page.tags)
    assert any(HOSTILE in data for data in page.texts)


def test_transfer_is_shown_where_it_was_measured(manifest, steps, judgement):
    curves = result_of(steps, "finetune").curves
    scratch = FromScratch(evaluation_accuracy=0.5, curves=curves, best_epoch=0, validation_accuracy=0.5)
    compared = with_step(steps, "finetune", from_scratch=scratch, evaluation_accuracy=0.75)
    assert list(transfer_rows(compared)) == [("finetune", "75.00%", "50.00%", "+25.00 points")]
    assert [name for name, _ in training_runs(compared)] == ["finetune", "finetune, from scratch"]
    text = render_report(manifest, compared, judgement)
    assert "Gain from pretrained weights" in text
    assert "+25.00 points" in text


def test_the_few_shot_curve_is_shown(manifest, steps, judgement):
    points = tuple(
        FewShotPoint(
            images=images,
            transfer=(0.5, 0.75),
            from_scratch=(0.25, 0.25),
            gain=Interval(estimate=0.375, lower=0.1, upper=0.65),
        )
        for images in (10, 100)
    )
    assert few_shot_rows(points)[1] == FewShotRow(
        images="100",
        seeds="2",
        transfer="62.50%",
        from_scratch="25.00%",
        gain="+37.50 points",
        bounds="+10.00 … +65.00",
    )
    page = Page(render_report(manifest, with_step(steps, "finetune", few_shot=points), judgement))
    assert "+10.00 … +65.00" in " ".join(page.texts)
    assert "training images per class" in " ".join(page.texts)
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_charts_without_data_are_left_out(manifest, steps, judgement):
    bare = with_step(with_step(steps, "finetune", curves=()), "parity", layers=())
    page = Page(render_report(manifest, bare, judgement))
    assert sum(tag == "svg" for tag, _ in page.tags) == 2


def test_equal_figures_give_equal_pages(manifest, steps, judgement):
    assert render_report(manifest, steps, judgement) == render_report(manifest, steps, judgement)


def test_reasons_are_listed(built_once, manifest, steps):
    result = read_result(built_once.artifact / "result.json")
    failed = judgement_from(result, criteria(Policy(), [TwinBudgets(size=-0.99)]))
    page = Page(render_report(manifest, steps, failed))
    assert ("span", {"class": f"verdict {failed.verdict}"}) in page.tags
    assert any(data.startswith("size FAIL: ") for data in page.texts)


def test_a_stage_is_summarized_in_one_line(steps):
    result = ReestimateResult(
        norms=3, largest_shift=0.123456, accuracy_before=0.5, evaluation_accuracy=0.75
    )
    line = "norms 3, largest shift 0.1235, accuracy before 0.5, evaluation accuracy 0.75"
    assert stage_summary(result) == line
    assert "curves" not in stage_summary(result_of(steps, "finetune"))


def test_the_effect_of_repairs_is_shown(manifest, steps, judgement):
    assert "Effect of the repairs" not in render_report(manifest, steps, judgement)
    judged = {
        "sqnr_db_before": 12.4,
        "sqnr_db_after": 20.3,
        "agreement_before": 0.9,
        "agreement_after": 0.95,
    }
    rounded = AdaRoundReport(
        **judged,
        repair="adaround",
        kept=True,
        reason="",
        layers=2,
        flipped_share=0.1,
        local_error_ratio=0.5,
    )
    bias = BiasReport(
        **judged, repair="bias", kept=False, reason="it did <not> help", layers=2, largest_correction=0.1
    )
    score = Score(sqnr_db=20.0, agreement=0.9, drop=0.0)
    left = FallbackReport(exclude=("<stem>",), tried=2, before=score, after=score, candidates=())
    changed = with_step(steps, "quantize", repairs=(rounded, bias), fallback=left)
    text = render_report(manifest, changed, judgement)
    Page(text)
    assert "12.4 → 20.3 dB" in text
    assert "not kept: it did &lt;not&gt; help" in text
    assert "Layers kept in float to meet the limits of the fallback: <code>&lt;stem&gt;</code>" in text
    nothing = with_step(steps, "quantize", fallback=left.model_copy(update={"exclude": ()}))
    assert "limits of the fallback: none." in render_report(manifest, nothing, judgement)


def test_a_model_of_four_bits_has_a_page(manifest, steps, judgement):
    made = Int4Result(
        target="portable",
        activation_type="float32",
        weight_type="uint4",
        tables=0,
        min_onnxruntime="1.22",
        bits=4,
        block_size=32,
        products=2,
        size_bytes=5,
        compressed_bytes=4,
    )
    changed = tuple(replace(step, result=made) if step.name == "quantize" else step for step in steps)
    assert "block size 32, products 2" in render_report(manifest, changed, judgement)


def with_new_step(steps, result):
    """The steps and an additional one, whose result was written to JSON and read again."""
    again = read_step_result(result.kind, json.dumps(result.as_json()).encode())
    return (FinishedStep(f"my {result.kind}", again), *steps)


ZEROS = {"zero_share": 0.0, "sparsity": 0.0, "zeros": 0, "eligible_parameters": 0, "parameters": 60_000}
BEFORE = Costs(latency_ms=2.0, size_bytes=80_000, macs=1_000_000, params=60_000, float_latency_ms=None)
AFTER = Costs(latency_ms=1.2, size_bytes=40_000, macs=480_000, params=45_000, float_latency_ms=None)
REACHED = {"limit": 0.5, "predicted": 0.5, "measured": 0.48, "tries": (), "damage": 0.1, "fixed": {}}
ROUNDS = (
    NarrowingRound(
        **REACHED,
        units={"stem": 16},
        kept={"stem": 12, "body.one": 24, "body.one.inner": 8},
        dropped=(),
        sensitivity={
            "stem": {4: (0.75, 0.5), 8: (0.25, 0.75), 12: (0.0, 0.875)},
            "body.one": {0: (0.125, 0.8)},
            "body.one.inner": {2: (0.0625, 0.85)},
            "body.two": {0: (1.5, 0.25)},
            "single": {},
        },
        accuracy_cut=0.5,
        evaluation_accuracy=0.5,
    ),
    NarrowingRound(
        **REACHED,
        units={"stem": 12},
        kept={"stem": 9},
        dropped=(),
        sensitivity={"stem": {3: (2.0, 0.125)}},
        accuracy_cut=0.5,
        evaluation_accuracy=0.5,
    ),
)


def shrunk(steps, **changed):
    figures = {
        "goal": {"macs_ratio": 0.5},
        "before": BEFORE,
        "after": AFTER,
        "dropped": ("body.one",),
        "widths": {"stem": 9},
        "rounds": ROUNDS,
        "accuracy_before": 0.5,
        "evaluation_accuracy": 0.5,
    }
    return with_new_step(steps, ShrinkResult(**ZEROS, **figures | changed))


def cells_of(text):
    """The cells of each row of all tables."""
    return [re.findall(r"<td.*?>(.*?)</td>", line) for line in text.splitlines()]


def test_removed_channels_and_blocks_are_shown(manifest, steps, judgement):
    before = render_report(manifest, steps, judgement)
    assert "removed channels" not in before
    text = render_report(manifest, shrunk(steps), judgement)
    Page(text)
    assert "<h2>my shrink: removed channels and blocks</h2>" in text
    assert "Target <code>macs_ratio</code>: 0.5 requested, 0.48 reached." in text
    assert "Removed blocks: <code>body.one</code>." in text
    cells = cells_of(text)
    assert ["latency", "2.000 ms", "1.200 ms", "0.600 ×"] in cells
    assert ["multiply-adds", "1,000,000", "480,000", "0.480 ×"] in cells
    assert ["parameters", "60,000", "45,000", "0.750 ×"] in cells
    assert ["bytes of the file", "80,000", "40,000", "0.500 ×"] in cells
    # Units left after the last round, and the effect on the whole network of the smallest width tried.
    assert ["<code>stem</code>", "9 of 16", "4", "0.7500", "50.00%"] in cells
    assert ["<code>body.one</code>", "removed", "0", "0.1250", "80.00%"] in cells
    assert ["<code>body.one.inner</code>", "removed", "2", "0.0625", "85.00%"] in cells
    assert ["<code>body.two</code>", "kept", "0", "1.5000", "25.00%"] in cells
    assert ["<code>single</code>", "–", "–", "–", "–"] in cells


def test_a_width_without_a_known_total_is_shown_alone(steps):
    rounds = (ROUNDS[0].model_copy(update={"units": {}}), ROUNDS[1])
    (section,) = shrink_sections(shrunk(steps, rounds=rounds))
    assert section.layers[0].left == "9"


@pytest.mark.parametrize(
    ("goal", "limit", "reached"),
    [
        ("latency_ms", 1.25, "1.2"),
        ("latency_ratio", 0.5, "0.6"),
        ("float_latency_ratio", 0.25, "0.3"),
        ("params_ratio", 0.5, "0.75"),
        ("size_ratio", 0.5, "0.5"),
    ],
)
def test_a_target_is_reached_in_its_own_unit(steps, goal, limit, reached):
    before = BEFORE.model_copy(update={"float_latency_ms": 4.0})
    (section,) = shrink_sections(shrunk(steps, goal={goal: limit}, before=before))
    assert section.targets == ((goal, str(limit), reached),)
    assert ("latency in float", "4.000 ms", "", "") in section.costs


def test_removed_blocks_are_shown_without_a_target(manifest, steps, judgement):
    only = (Round(accuracy_cut=0.5, evaluation_accuracy=0.5),)
    dropped = shrunk(steps, goal=None, dropped=("body",), widths={}, rounds=only)
    text = render_report(manifest, dropped, judgement)
    assert "Removed blocks: <code>body</code>." in text
    assert "requested, " not in text


def pruned(**changed):
    figures = {
        "zero_share": 0.00058,
        "sparsity": 0.9,
        "zeros": 384,
        "eligible_parameters": 768,
        "parameters": 661_760,
        "layers": {"body.weight": 0.9},
        "compressed_bytes_before": CompressedBytes(float=200_000, int8=50_000),
        "compressed_bytes": CompressedBytes(float=40_000, int8=12_500),
        "int8_compressed_ratio": 0.25,
        "accuracy_before": 0.5,
        "evaluation_accuracy": 0.5,
    }
    return PruneResult(**figures | changed)


def test_the_effect_of_zeros_is_shown(manifest, steps, judgement):
    assert "<h2>prune: effect of the zeros</h2>" in render_report(manifest, steps, judgement)
    text = render_report(manifest, with_new_step(steps, pruned()), judgement)
    Page(text)
    assert "<h2>my prune: effect of the zeros</h2>" in text
    assert "prunable weights, of which 90.00% are zero." in text
    assert "Zeros do not make inference faster" in text
    cells = cells_of(text)
    assert ["float", "200,000", "40,000", "0.200 ×"] in cells
    assert ["int8", "50,000", "12,500", "0.250 ×"] in cells


def test_no_bytes_are_compared_where_there_are_none(steps):
    nothing = CompressedBytes(float=0, int8=0)
    found = prune_sections(with_new_step(steps, pruned(compressed_bytes_before=nothing)))
    assert next(found).bytes == ()


def test_hostile_names_of_layers_are_escaped(manifest, steps, judgement):
    narrowed = ROUNDS[0].model_copy(
        update={"kept": {HOSTILE: 4}, "sensitivity": {HOSTILE: {2: (0.5, 0.5)}}, "units": {HOSTILE: 8}}
    )
    hostile = shrunk(steps, dropped=(f"x{HOSTILE}",), rounds=(narrowed,))
    text = render_report(manifest, hostile, judgement)
    assert "<script" not in text
    texts = Page(text).texts
    assert texts.count(HOSTILE) == 1
    assert f"x{HOSTILE}" in texts


def test_an_upper_bound_of_the_int8_share_is_called_one(manifest, steps, judgement):
    exact = render_report(manifest, steps, judgement)
    assert "<p>100.0 % of 13,848 multiply-adds" in exact
    assert "not counted" not in exact
    unknown = UncountedOperator(name="<spectrum>", op_type="DFT", reason="no formula for it")
    audit = result_of(steps, "parity").audit.model_copy(update={"uncounted": (unknown,)})
    bounded = render_report(manifest, with_step(steps, "parity", audit=audit), judgement)
    assert "<p>At most 100.0 % of 13,848 counted multiply-adds" in bounded
    assert "<td><code>&lt;spectrum&gt;</code></td><td>DFT</td>" in bounded
    nothing = audit.model_copy(update={"macs": 0, "int8_mac_ratio": 0.0})
    blank = render_report(manifest, with_step(steps, "parity", audit=nothing), judgement)
    assert "<p>The fraction in int8 is unknown: no multiply-add of the optimized graph" in blank


def test_zeros_are_first_given_as_a_share_of_all_parameters(manifest, steps, judgement):
    text = render_report(manifest, with_new_step(steps, pruned(sparsity=0.5)), judgement)
    Page(text)
    assert (
        "<p>0.06% of all parameters are zero: 384 of 661,760. 768 parameters are prunable weights, "
        "of which 50.00% are zero." in text
    )
    assert "zeros among all parameters 0.00058, zeros among eligible weights 0.5, zeros 384" in text
