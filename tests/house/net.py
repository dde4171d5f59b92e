"""A net under the whole program: runs it through its command line alone, and tells what became different.

    python tests/house/net.py record FILE     what the commands give now
    python tests/house/net.py compare FILE    run them again; exit code 1 where something differs

`--only CASE` (repeatable) runs some. The cases stand in `net_cases/cases.toml`. Everything runs in a
temporary folder, with empty caches and on one thread. Nothing of the program is imported, so that its
modules may move. What hangs on measured time is left out: of a measurement the form is kept, and the values
that no clock decides. Record and compare on one machine: another CPU rounds otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).resolve().parent / "net_cases"
SAMPLES = ROOT / "tests" / "data"
TIMEOUT_S = 1800
# Keys whose values hang on the clock, the machine or the place; that they are there is kept all the same.
VOLATILE = re.compile(
    r"(_ns|_utc|seconds|peak_rss_bytes|\.key|\.cost|latency\w*|throughput\w*|time_ratio\.\w+|"
    r"load_1min|steal_ticks|libraries\..*|host\..*)(\[\])?$"
)
# What comes and goes with chance: bounds that want enough samples, a repeat, warnings of slowness.
FLEETING = re.compile(
    r"(^|\.)(bounds|repeat|warnings|reasons|memory|switches|details|criteria\.looks)([.\[]|$)"
)
NUMBER = re.compile(r"(?<![A-Za-z_\d])[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
TOLD = re.compile(r"^(warning|note|[\w -]+): ")

Found = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One command, and what is kept of it; `net_cases/cases.toml` says what each field means."""

    name: str
    run: str
    module: str = "exporter"
    values: bool | str = False
    text: str = ""
    exit: bool = True
    said: bool = False
    errors: bool = False
    files: tuple[str, ...] = ()
    json: tuple[str, ...] = ()
    html: tuple[str, ...] = ()
    cached: bool = False


@dataclass(frozen=True)
class Case:
    """A row of commands in a folder of its own."""

    name: str
    steps: tuple[Step, ...]


def read_cases(path: Path) -> list[Case]:
    """The table of all cases."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Case(case["name"], tuple(Step(**_with_tuples(step)) for step in case["step"]))
        for case in content["case"]
    ]


def _with_tuples(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}


def environment(folder: Path) -> dict[str, str]:
    """Of every command: one thread, caches that are empty at first, no colors, lines of one length."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EDGEPROOF_", "PYTHON"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "xdg"),
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }


def run_case(case: Case, inputs: Path, parent: Path) -> Found:
    """Run a case's commands one after another, in a copy of the inputs."""
    folder = parent / case.name.replace(" ", "-")
    shutil.copytree(inputs, folder)
    found: Found = {}
    begun = time.monotonic()
    for step in case.steps:
        for key, value in run_step(step, folder).items():
            found[f"{case.name} / {step.name} / {key}"] = value
    sys.stderr.write(f"{case.name}: {len(case.steps)} commands, {time.monotonic() - begun:.0f} s\n")
    return found


def run_step(step: Step, folder: Path) -> Found:
    """Run one command and keep of it what was asked for."""
    done = subprocess.run(
        [sys.executable, "-m", step.module, *shlex.split(step.run)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    found: Found = {"exit code": done.returncode} if step.exit else {}
    if step.text:
        found["text"] = plain(done.stdout, folder, numbers=step.text == "exact")
    if step.errors:
        found["errors"] = plain(done.stderr, folder, numbers=True)
    if step.said:
        found["said"] = told(plain(done.stderr, folder, numbers=True))
    if "--json" in step.run and done.stdout.startswith("{"):
        found |= of_json("json", json.loads(done.stdout), step.values, folder)
    for path in matches(folder, step.files):
        found[f"file {path.relative_to(folder)}"] = content_hash(path)
    for path in matches(folder, step.json):
        name = "certificate" if "certificates" in path.parts else str(path.relative_to(folder))
        found |= of_json(name, json.loads(text_of(path) or "{}"), False, folder)
    for path in matches(folder, step.html):
        found["headings"] = re.findall(r"<h\d[^>]*>([^<]*)<", text_of(path))
    if step.cached:
        found |= cached_files(folder)
    return found


def matches(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files by patterns; where one finds none, a path of no file, whose hash is "missing"."""
    found = []
    for pattern in patterns:
        some = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        found += some or [folder / pattern]
    return found


def text_of(path: Path) -> str:
    """The text of a file; none where a command did not write it, which is a difference and no end."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def content_hash(path: Path) -> str:
    """A hash of a file; of arrays and JSON their content, not how it is packed or spaced."""
    if not path.exists():
        return "missing"
    digest = hashlib.sha256()
    if zipfile.is_zipfile(path) and path.suffix == ".npz":
        with np.load(path) as arrays:
            for name in sorted(arrays.files):
                array = arrays[name]
                digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    elif path.name == "entry.json":  # metrics, which the command's own JSON holds too
        return "there"
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cached_files(folder: Path) -> Found:
    """Hashes of what the last build kept of each of its steps."""
    found: Found = {}
    for line in text_of(folder / ".edgeproof" / "builds.jsonl").splitlines():
        event = json.loads(line)
        if "key" not in event:
            continue
        entry = folder / ".edgeproof" / event["key"][:2] / event["key"]
        for path in sorted(entry.rglob("*")):
            if path.is_file() and path.suffix != ".json":
                found[f"kept {event['step']} {path.relative_to(entry)}"] = content_hash(path)
    return found


def of_json(name: str, content: Any, values: bool | str, folder: Path) -> Found:
    """The paths of all keys, and those values that are asked for and no clock decides."""
    always = values == "always"
    leaves = [(path, value) for path, value in flatten(content) if always or not FLEETING.search(path)]
    found: Found = {f"{name} keys": sorted({path for path, _ in leaves})}
    if not values:
        return found
    wanted = re.compile("" if always or values is True else values)
    chosen: dict[str, list[Any]] = {}
    for path, value in leaves:
        if wanted.search(path) and (always or not VOLATILE.search(path)):
            kept = plain(value, folder, numbers=True) if isinstance(value, str) else value
            chosen.setdefault(path, []).append(kept)
    return found | {f"{name} {path}": value for path, value in chosen.items()}


def flatten(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves with the paths of their keys; places in lists are not told apart."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from flatten(value, f"{path}.{key}" if path else key)
    elif isinstance(content, list) and content:
        for value in content:
            yield from flatten(value, f"{path}[]")
    elif isinstance(content, list):
        yield f"{path}[]", None
    else:
        yield path, content


def plain(text: str, folder: Path, *, numbers: bool) -> str:
    """A text without folders and seconds; without `numbers`, no figure and no width of a column either."""
    text = text.replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")
    text = re.sub(r"/tmp/[\w./-]*", "TEMPORARY", text)
    text = re.sub(r"\b[\d.]+ s\b", "# s", text)
    if numbers:
        return text
    text = NUMBER.sub("#", re.sub(r"\d+-\d\d-\d\dT[\d:.]+", "UTC", text))
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def told(text: str) -> list[str]:
    """Of progress: what was done and what was warned of; not the counting, and not who was slow."""
    return [
        line
        for line in text.splitlines()
        if TOLD.match(line) and not re.search(r": \d+/\d+|int8 is not faster", line)
    ]


def make_inputs(folder: Path) -> Path:
    """What a user brings: recipes, code, checkpoints, models, samples, and files of earlier versions."""
    shutil.copytree(CASES, folder, ignore=shutil.ignore_patterns("__pycache__", "cases.toml"))
    subprocess.run([sys.executable, "inputs.py"], cwd=folder, env=environment(folder), check=True)
    if SAMPLES.is_dir():
        shutil.copytree(SAMPLES, folder / "kept")
    (folder / "ranges").mkdir()
    (folder / "ranges" / "note.txt").write_text("a folder with other content\n")
    return folder


def run_all(only: Sequence[str], jobs: int) -> Found:
    """Run all cases, or those that are named, some at a time."""
    cases = [case for case in read_cases(CASES / "cases.toml") if not only or case.name in only]
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="net-") as name, ThreadPoolExecutor(jobs) as pool:
        parent = Path(name).resolve()
        inputs = make_inputs(parent / "inputs")
        for part in pool.map(lambda case: run_case(case, inputs, parent), cases):
            found |= part
    return dict(json.loads(json.dumps(found)))


def differences(before: Found, after: Found) -> Iterator[str]:
    """A line for each key whose value differs, or that is on one side only."""
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "absent"), after.get(key, "absent")
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and key.endswith(" keys"):
            yield f"{key}: gone {sorted(set(old) - set(new))}, new {sorted(set(new) - set(old))}"
        else:
            yield f"{key}:\n  before {json.dumps(old)}\n  after  {json.dumps(new)}"


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="cases that run at a time")
    asked = parser.parse_args()
    found = run_all(asked.only, asked.jobs)
    if asked.action == "record":
        asked.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        sys.stdout.write(f"{len(found)} values recorded\n")
        return 0
    before = json.loads(asked.file.read_text(encoding="utf-8"))
    if asked.only:
        before = {key: value for key, value in before.items() if key.partition(" / ")[0] in asked.only}
    lines = list(differences(before, found))
    lines.append(f"{len(before.keys() | found.keys())} values, {len(lines)} differences")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if len(lines) > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
