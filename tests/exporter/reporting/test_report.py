"""The page that a person reads: whole in itself, and deaf to what a recipe says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from bench.core.policy import Policy, TwinBudgets, criteria
from bench.inputs.manifest import StageEntry, read_manifest
from bench.judging.gate import judgement_from
from bench.measuring.result import read_result
from exporter.reporting.report import (
    few_shot_rows,
    prune_sections,
    render_report,
    shrink_sections,
    stage_summary,
    training_runs,
    transfer_rows,
)

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


def with_new_stage(manifest, kind, **metrics):
    """The manifest with one more stage, metrics as they are when read back from JSON."""
    entry = StageEntry(name=f"my {kind}", kind=kind, key="0" * 64, metrics=json.loads(json.dumps(metrics)))
    return manifest.model_copy(update={"stages": (entry, *manifest.stages)})


BEFORE = {"latency_ms": 2.0, "size_bytes": 80_000, "macs": 1_000_000, "params": 60_000}
AFTER = {"latency_ms": 1.2, "size_bytes": 40_000, "macs": 480_000, "params": 45_000}
ROUNDS = [
    {
        "kept": {"stem": 12, "body.one": 24, "body.one.inner": 8},
        "sensitivity": {
            "stem": {4: (0.75, 0.5), 8: (0.25, 0.75), 12: (0.0, 0.875)},
            "body.one": {0: (0.125, 0.8)},
            "body.one.inner": {2: (0.0625, 0.85)},
            "body.two": {0: (1.5, 0.25)},
            "single": {},
        },
    },
    {"kept": {"stem": 9}, "sensitivity": {"stem": {3: (2.0, 0.125)}}},
]


def shrunk(manifest, **changed):
    metrics = {
        "goal": {"macs_ratio": 0.5},
        "before": BEFORE,
        "after": AFTER,
        "dropped": ["body.one"],
        "widths": {"stem": 9},
        "rounds": ROUNDS,
    }
    return with_new_stage(manifest, "shrink", **metrics | changed)


def cells_of(text):
    """The cells of each row of all tables."""
    return [re.findall(r"<td.*?>(.*?)</td>", line) for line in text.splitlines()]


def test_what_shrinking_cut_is_shown(manifest, judgement):
    before = render_report(manifest, judgement)
    assert "what was cut" not in before
    text = render_report(shrunk(manifest), judgement)
    Page(text)
    assert "<h2>my shrink: what was cut</h2>" in text
    assert "Target <code>macs_ratio</code>: 0.5 asked, 0.48 reached." in text
    assert "Blocks that went: <code>body.one</code>." in text
    cells = cells_of(text)
    assert ["latency", "2.000 ms", "1.200 ms", "0.600 ×"] in cells
    assert ["multiply-adds", "1,000,000", "480,000", "0.480 ×"] in cells
    assert ["parameters", "60,000", "45,000", "0.750 ×"] in cells
    assert ["bytes of the file", "80,000", "40,000", "0.500 ×"] in cells
    # What the last round left, and what the whole network would have suffered at the least width tried.
    assert ["<code>stem</code>", "9", "4", "0.7500", "50.00%"] in cells
    assert ["<code>body.one</code>", "gone", "0", "0.1250", "80.00%"] in cells
    assert ["<code>body.one.inner</code>", "gone", "2", "0.0625", "85.00%"] in cells
    assert ["<code>body.two</code>", "stays", "0", "1.5000", "25.00%"] in cells
    assert ["<code>single</code>", "–", "–", "–", "–"] in cells


def test_a_width_is_told_of_how_many_where_that_is_known(manifest):
    rounds = [{**ROUNDS[0], "units": {"stem": 16}}, ROUNDS[1]]
    (section,) = shrink_sections(shrunk(manifest, rounds=rounds))
    assert section["layers"][0]["left"] == "9 of 16"


@pytest.mark.parametrize(
    ("goal", "limit", "reached"),
    [
        ("latency_ms", 1.25, "1.2"),
        ("latency_ratio", 0.5, "0.6"),
        ("float_latency_ratio", 0.25, "0.3"),
        ("params_ratio", 0.5, "0.75"),
        ("size_ratio", 0.5, "0.5"),
        ("of_another_version", 0.5, "–"),
    ],
)
def test_a_target_is_reached_in_its_own_unit(manifest, goal, limit, reached):
    before = {**BEFORE, "float_latency_ms": 4.0}
    (section,) = shrink_sections(shrunk(manifest, goal={goal: limit}, before=before))
    assert section["targets"] == [(goal, str(limit), reached)]
    assert ("latency in float", "4.000 ms", "", "") in section["costs"]


def test_what_zeros_bought_is_shown(manifest, judgement):
    assert "<h2>prune: what zeros bought</h2>" in render_report(manifest, judgement)  # as it was built
    pruned = with_new_stage(
        manifest,
        "prune",
        sparsity=0.9,
        compressed_bytes_before={"float": 200_000, "int8": 50_000},
        compressed_bytes={"float": 40_000, "int8": 12_500},
    )
    text = render_report(pruned, judgement)
    Page(text)
    assert "<h2>my prune: what zeros bought</h2>" in text
    assert "90.00% of the prunable weights are zero." in text
    assert "dense kernels gain no time from zeros" in text
    cells = cells_of(text)
    assert ["float", "200,000", "40,000", "0.200 ×"] in cells
    assert ["int8", "50,000", "12,500", "0.250 ×"] in cells


def test_stages_that_told_less_are_shown_as_far_as_they_did(manifest, judgement):
    for kind in ("shrink", "prune"):
        bare = with_new_stage(manifest, kind, accuracy_before=0.5)
        assert list(shrink_sections(bare)) == []
        assert [section["name"] for section in prune_sections(bare)] == ["prune"]  # the one that was built
        Page(render_report(bare, judgement))
    only_dropped = with_new_stage(manifest, "shrink", goal=None, dropped=["body"], rounds=[{}])
    assert "Blocks that went: <code>body</code>." in render_report(only_dropped, judgement)
    unmeasured = with_new_stage(manifest, "shrink", goal={"macs_ratio": 0.5})
    assert "0.5 asked, – reached" in render_report(unmeasured, judgement)
    (section, _) = prune_sections(with_new_stage(manifest, "prune", sparsity=0.5))
    assert section == {"name": "my prune", "sparsity": "50.00%", "bytes": []}
    no_bytes = render_report(with_stage(manifest, "prune", compressed_bytes={}), judgement)
    assert "no time from zeros" in no_bytes
    assert "under zlib" not in no_bytes


def test_hostile_names_of_layers_are_escaped(manifest, judgement):
    rounds = [{"kept": {HOSTILE: 4}, "sensitivity": {HOSTILE: {"2": [0.5, 0.5]}}}]
    hostile = shrunk(manifest, goal={HOSTILE: 0.5}, dropped=[f"x{HOSTILE}"], rounds=rounds)
    text = render_report(hostile, judgement)
    assert "<script" not in text
    texts = Page(text).texts
    assert texts.count(HOSTILE) == 2
    assert f"x{HOSTILE}" in texts


def test_an_upper_bound_of_int8_is_called_so(manifest, judgement):
    (parity,) = [stage for stage in manifest.stages if stage.kind == "parity"]
    exact = render_report(manifest, judgement)
    assert "<p>100.0 % of 13,848 multiply-adds" in exact
    assert "not counted" not in exact
    unknown = {"name": "<spectrum>", "op_type": "DFT", "reason": "no formula for it"}
    audit = {**parity.metrics["audit"], "uncounted": [unknown]}
    bounded = render_report(with_stage(manifest, parity.name, audit=audit), judgement)
    assert "<p>At most 100.0 % of 13,848 counted multiply-adds" in bounded
    assert "<td><code>&lt;spectrum&gt;</code></td><td>DFT</td>" in bounded
    nothing = {**audit, "macs": 0, "int8_mac_ratio": 0.0}
    blank = render_report(with_stage(manifest, parity.name, audit=nothing), judgement)
    assert "<p>Not known: no multiply-add of the graph" in blank


def test_zeros_are_a_share_of_all_parameters_first(manifest, judgement):
    pruned = with_new_stage(
        manifest,
        "prune",
        zero_share=0.00058,
        sparsity=0.5,
        zeros=384,
        eligible_parameters=768,
        parameters=661_760,
    )
    text = render_report(pruned, judgement)
    Page(text)
    assert (
        "<p>0.06% of all parameters are zero: 384 of 661,760. 768 of them were eligible: "
        "50.00% of the prunable weights are zero." in text
    )
    assert "zeros among all parameters 0.00058, zeros among eligible weights 0.5, zeros 384" in text
    (built, _) = prune_sections(pruned)  # as a build writes it
    assert set(built) >= {"zero_share", "zeros", "parameters", "eligible_parameters"}
