"""Steps run in order; finished steps are taken from the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bench.core.progress import SILENT, SilentProgress
from exporter.caching.cache import KEPT_UNFINISHED, Cache
from exporter.caching.run_log import RunLog
from exporter.caching.steps import StepFolders, run_steps
from exporter.results import GateResult, PretrainedResult, StepResult


def result_of(value):
    """A result that contains a given number."""
    return PretrainedResult(parameters=value, classes=2)


@dataclass(frozen=True)
class Cook:
    """A step whose work is the function `cook`."""

    name: str
    value: int
    parents: tuple[str, ...]
    cook: Callable[[StepFolders], StepResult]
    kind: str = "pretrained"

    def ingredients(self):
        return {"value": self.value}

    def run(self, folders):
        return self.cook(folders)


class Kitchen:
    """Steps a, b, c and d in a chain; d also reads a. Each writes its name and its parents' texts."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self.cache, self.log = Cache(folder), RunLog(folder, "tiny")
        self.values = dict.fromkeys("abcd", 0)
        self.said = []

    def steps(self):
        parents = {"a": (), "b": ("a",), "c": ("b",), "d": ("c", "a")}
        return [
            Cook(name, self.values[name], above, self.cook(name, above)) for name, above in parents.items()
        ]

    def run(self, *, until=None, fresh=False):
        class Progress(SilentProgress):
            def say(_, line):
                self.said.append(line)

        return run_steps(
            self.steps(), self.cache, until=until, fresh=fresh, progress=Progress(), log=self.log
        )

    def cook(self, name, above):
        def run(folders):
            text = "".join((folders.parents[parent] / "dish").read_text() for parent in above)
            (folders.out / "dish").write_text(f"{name}{self.values[name]}{text}")
            return result_of(self.values[name])

        return run


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path / "cache")


def dishes(finished):
    return {name: (entry.folder / "dish").read_text() for name, entry in finished.entries.items()}


def test_steps_run_in_order_and_read_their_parents(kitchen):
    finished = kitchen.run()
    assert finished.ran == ("a", "b", "c", "d")
    assert dishes(finished) == {"a": "a0", "b": "b0a0", "c": "c0b0a0", "d": "d0c0b0a0a0"}
    assert finished.result("b", PretrainedResult) == result_of(0)
    assert {entry.result.kind for entry in finished.entries.values()} == {"pretrained"}


def test_a_second_run_does_nothing(kitchen):
    first, second = kitchen.run(), kitchen.run()
    assert second.ran == ()
    assert second.entries == first.entries
    assert kitchen.said[-1] == "d: unchanged"


@pytest.mark.parametrize(
    ("edited", "ran"), [("a", "abcd"), ("b", "bcd"), ("c", "cd"), ("d", "d")], ids="abcd"
)
def test_an_edit_reruns_the_step_and_those_after_it(kitchen, edited, ran):
    kitchen.run()
    kitchen.values[edited] = 1
    assert kitchen.run().ran == tuple(ran)
    kitchen.values[edited] = 0
    assert kitchen.run().ran == ()  # the first results are still in the cache


def test_until_stops_and_keeps_finished_steps(kitchen):
    finished = kitchen.run(until="b")
    assert (finished.ran, list(finished.entries)) == (("a", "b"), ["a", "b"])
    assert set(finished.entries) == {"a", "b"}
    assert kitchen.run().ran == ("c", "d")


def test_fresh_runs_everything_again(kitchen):
    first = kitchen.run()
    assert kitchen.run(fresh=True).ran == ("a", "b", "c", "d")
    assert kitchen.run().entries == first.entries


def test_a_failing_step_keeps_earlier_steps(kitchen, monkeypatch):
    good = kitchen.cook

    def fail(folders):
        (folders.out / "dish").write_text("half")
        raise ZeroDivisionError("burnt")

    monkeypatch.setattr(kitchen, "cook", lambda name, above: fail if name == "c" else good(name, above))
    with pytest.raises(ZeroDivisionError):
        kitchen.run()
    monkeypatch.undo()
    assert kitchen.run().ran == ("c", "d")


@pytest.mark.parametrize("damage", ["content", "missing file", "record", "foreign record", "no json"])
def test_a_damaged_entry_runs_again(kitchen, damage):
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


def test_the_log_records_each_event(kitchen, tmp_path, monkeypatch):
    kitchen.run(until="a")
    kitchen.run(until="a")
    monkeypatch.setattr(kitchen, "cook", lambda name, above: lambda folders: 1 / 0)
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


GATED = GateResult(verdict="PASS", reasons=(), metrics={}, blocks=3)


@pytest.mark.parametrize(
    ("result", "words"), [(result_of(1), ""), (GATED, " (PASS)")], ids=["none", "gate"]
)
def test_progress_shows_the_headline_of_a_result(kitchen, result, words):
    said = []

    class Progress(SilentProgress):
        def say(self, line):
            said.append(line)

    step = Cook("a", 0, (), lambda folders: result, result.kind)
    for _ in range(2):
        run_steps([step], kitchen.cache, until=None, fresh=False, progress=Progress(), log=kitchen.log)
    assert said == [f"a: done{words}", f"a: unchanged{words}"]


def test_a_result_is_checked_for_its_class(kitchen):
    finished = kitchen.run()
    assert finished.folder("b") == finished.entries["b"].folder
    with pytest.raises(TypeError, match="step 'b' has a PretrainedResult, not a GateResult"):
        finished.result("b", GateResult)


def test_an_unreadable_input_of_a_later_step_fails_before_the_first_runs(kitchen):
    class Unreadable(Cook):
        def ingredients(self):
            raise FileNotFoundError

    steps = [*kitchen.steps(), Unreadable("e", 0, (), lambda folders: result_of(0))]
    with pytest.raises(FileNotFoundError):
        run_steps(steps, kitchen.cache, until=None, fresh=False, progress=SILENT, log=kitchen.log)
    assert kitchen.run().ran == ("a", "b", "c", "d")


def test_names_and_kinds_are_part_of_the_key(kitchen):
    keys = set()
    for name, result in (("a", GATED), ("a", result_of(1)), ("b", GATED)):
        step = Cook(name, 0, (), lambda folders, found=result: found, result.kind)
        finished = run_steps(
            [step], kitchen.cache, until=None, fresh=False, progress=SILENT, log=kitchen.log
        )
        keys.add(finished.entries[name].key)
    assert len(keys) == 3


def test_checkpoints_of_an_interrupted_step_are_kept_for_the_next_run(tmp_path):
    """The first run is interrupted, the second finds its file, and a finished step removes it."""
    seen = []

    def run(folders):
        unfinished = folders.unfinished
        seen.append((unfinished / "half").is_file())
        unfinished.mkdir(parents=True, exist_ok=True)
        (unfinished / "half").write_text("done")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return result_of(0)

    cache = Cache(tmp_path / "cache")
    step = Cook("a", 0, (), run)
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


def test_checkpoints_of_only_a_few_interrupted_steps_are_kept(tmp_path):
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
