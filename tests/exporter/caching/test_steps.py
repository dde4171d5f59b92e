"""Steps run once each, in order; what was done is taken from the cache."""

from __future__ import annotations

import json
import os

import pytest

from bench.core.progress import SILENT, SilentProgress
from exporter.caching.cache import KEPT_UNFINISHED, Cache
from exporter.caching.run_log import RunLog
from exporter.caching.steps import Step, run_steps


class Kitchen:
    """Three steps in a row, and a fourth that reads the first; each writes its name and its parents'."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.cache, self.log = Cache(folder), RunLog(folder, "tiny")
        self.values = dict.fromkeys("abcd", 0)
        self.said = []

    def steps(self):
        parents = {"a": (), "b": ("a",), "c": ("b",), "d": ("c", "a")}
        return [
            Step(name, "cook", {"value": self.values[name]}, above, self._cook(name, above))
            for name, above in parents.items()
        ]

    def run(self, *, until=None, fresh=False):
        class Progress(SilentProgress):
            def say(_, line):
                self.said.append(line)

        return run_steps(
            self.steps(), self.cache, until=until, fresh=fresh, progress=Progress(), log=self.log
        )

    def _cook(self, name, above):
        def run(folders, out, _unfinished):
            text = "".join((folders[parent] / "dish").read_text() for parent in above)
            (out / "dish").write_text(f"{name}{self.values[name]}{text}")
            return {"value": self.values[name]}

        return run


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path / "cache")


def dishes(trail):
    return {name: (entry.folder / "dish").read_text() for name, entry in trail.entries.items()}


def test_steps_run_in_order_and_read_their_parents(kitchen):
    trail = kitchen.run()
    assert trail.ran == ("a", "b", "c", "d")
    assert dishes(trail) == {"a": "a0", "b": "b0a0", "c": "c0b0a0", "d": "d0c0b0a0a0"}
    assert {name: entry.metrics for name, entry in trail.entries.items()}["b"] == {"value": 0}
    assert dict(trail.kinds) == dict.fromkeys("abcd", "cook")


def test_a_second_run_does_nothing(kitchen):
    first, second = kitchen.run(), kitchen.run()
    assert second.ran == ()
    assert second.entries == first.entries
    assert kitchen.said[-1] == "d: unchanged"


@pytest.mark.parametrize(
    ("edited", "ran"), [("a", "abcd"), ("b", "bcd"), ("c", "cd"), ("d", "d")], ids="abcd"
)
def test_an_edit_reruns_what_follows(kitchen, edited, ran):
    kitchen.run()
    kitchen.values[edited] = 1
    assert kitchen.run().ran == tuple(ran)
    kitchen.values[edited] = 0
    assert kitchen.run().ran == ()  # what was once done is remembered


def test_until_stops_and_keeps(kitchen):
    trail = kitchen.run(until="b")
    assert (trail.ran, list(trail.entries)) == (("a", "b"), ["a", "b"])
    assert set(trail.kinds) == {"a", "b"}
    assert kitchen.run().ran == ("c", "d")


def test_fresh_runs_everything_again(kitchen):
    first = kitchen.run()
    assert kitchen.run(fresh=True).ran == ("a", "b", "c", "d")
    assert kitchen.run().entries == first.entries


def test_a_failing_step_leaves_what_was_done(kitchen, monkeypatch):
    good = kitchen._cook

    def fail(folders, out, unfinished):
        (out / "dish").write_text("half")
        raise ZeroDivisionError("burnt")

    monkeypatch.setattr(kitchen, "_cook", lambda name, above: fail if name == "c" else good(name, above))
    with pytest.raises(ZeroDivisionError):
        kitchen.run()
    monkeypatch.undo()
    assert kitchen.run().ran == ("c", "d")


@pytest.mark.parametrize("damage", ["content", "missing file", "record", "foreign record", "no json"])
def test_a_damaged_entry_is_made_anew(kitchen, damage):
    entry = kitchen.run().entries["b"]
    record = entry.folder / "entry.json"
    if damage == "content":
        (entry.folder / "dish").write_text("poison")
    elif damage == "missing file":
        (entry.folder / "dish").unlink()
    elif damage == "record":
        record.unlink()
    elif damage == "foreign record":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"key": "0" * 64}))
    else:
        record.write_text("[1]")
    assert kitchen.run().ran == ("b",)
    assert dishes(kitchen.run())["b"] == "b0a0"


def test_the_log_tells_what_happened(kitchen, tmp_path, monkeypatch):
    kitchen.run(until="a")
    kitchen.run(until="a")
    monkeypatch.setattr(kitchen, "_cook", lambda name, above: lambda folders, out, unfinished: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kitchen.run()
    lines = [json.loads(line) for line in (tmp_path / "cache" / "builds.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("start", "a"),
        ("done", "a"),
        ("cached", "a"),
        ("cached", "a"),
        ("start", "b"),
        ("failed", "b"),
    ]
    assert lines[-1]["error"] == "ZeroDivisionError: division by zero"
    assert lines[1]["seconds"] >= 0


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, ""),
        ({"evaluation_accuracy": 0.5, "sparsity": 0.25}, " (accuracy 50.00%, sparsity 25%)"),
        (
            {"evaluation_accuracy": 0.5, "zero_share": 0.00058, "sparsity": 0.5},
            " (accuracy 50.00%, 0.06% of parameters zero)",
        ),
        ({"source_accuracy": 1.0, "zero_share": 0.0, "sparsity": 0.0}, " (accuracy 100.00%)"),
        ({"source_accuracy": 1.0, "sparsity": 0.0}, " (accuracy 100.00%)"),
        ({"int8": {"agreement": 0.99}}, " (int8 agrees on 99.00%)"),
        ({"target": "arm64"}, " (for arm64)"),
        ({"verdict": "PASS"}, " (PASS)"),
    ],
)
def test_a_person_reads_the_figures_that_count(kitchen, metrics, words):
    said = []

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    step = Step("a", "cook", {}, (), lambda folders, out, unfinished: metrics)
    run_steps([step], kitchen.cache, until=None, fresh=False, progress=Progress(), log=kitchen.log)
    assert said == [f"a: done{words}"]


def test_names_and_kinds_are_part_of_the_key(kitchen):
    keys = set()
    for name, kind in (("a", "x"), ("a", "y"), ("b", "x")):
        step = Step(name, kind, {}, (), lambda folders, out, unfinished: {})
        trail = run_steps([step], kitchen.cache, until=None, fresh=False, progress=SILENT, log=kitchen.log)
        keys.add(trail.entries[name].key)
    assert len(keys) == 3


def test_what_an_unfinished_step_keeps_is_there_when_it_runs_again(tmp_path):
    """The first run is cut short; the second finds the file; a finished step leaves nothing behind."""
    seen = []

    def run(folders, out, unfinished):
        seen.append((unfinished / "half").is_file())
        unfinished.mkdir(parents=True, exist_ok=True)
        (unfinished / "half").write_text("done")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return {}

    cache = Cache(tmp_path / "cache")
    step = Step("a", "cook", {}, (), run)
    log = RunLog(tmp_path, "dinner")

    def again(*, fresh=False):
        cache.sweep()
        return run_steps([step], cache, until=None, fresh=fresh, progress=SilentProgress(), log=log)

    with pytest.raises(KeyboardInterrupt):
        again()
    key = again().entries["a"].key
    assert seen == [False, True]
    assert not cache.unfinished(key).exists()
    assert again().ran == ()
    cache.unfinished(key).mkdir(parents=True)
    (cache.unfinished(key) / "half").write_text("old")
    assert again(fresh=True).ran == ("a",)
    assert seen == [False, True, False]


def test_few_unfinished_steps_are_kept(tmp_path):
    cache = Cache(tmp_path / "cache")
    for index in range(KEPT_UNFINISHED + 2):
        folder = cache.unfinished(f"key{index}")
        folder.mkdir(parents=True)
        os.utime(folder, ns=(index, index))
        (folder / ".tmp-half").touch()
        os.utime(folder, ns=(index, index))
    cache.sweep()
    left = sorted(path.name for path in (tmp_path / "cache" / "unfinished").iterdir())
    assert left == [f"key{index}" for index in range(2, KEPT_UNFINISHED + 2)]
    assert not list((tmp_path / "cache").rglob(".tmp-*"))
