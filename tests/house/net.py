"""Regression check of the whole program: run its command line and report every difference.

    python tests/house/net.py record FILE     run the commands and record their results
    python tests/house/net.py compare FILE    run the commands again; exit code 1 if a result differs

`net_cases/cases.toml` lists the cases; `--only CASE` (repeatable) runs some of them. Everything runs in a
temporary folder, with empty caches and on one thread. This script does not import the program, so modules
may move between record and compare. Values that depend on measured time are not recorded: of a measurement
it keeps the keys and the values that do not depend on time. Record and compare on the same machine, because
other CPUs round differently.
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
# Keys whose values depend on the clock, the host or the folder. Their presence is recorded, their values
# are not.
VOLATILE = re.compile(
    r"(_ns|_utc|seconds|peak_rss_bytes|\.key|\.cost|latency\w*|throughput\w*|time_ratio\.\w+|"
    r"load_1min|steal_ticks|libraries\..*|host\..*)(\[\])?$"
)
# Keys that are present or absent by chance: bounds that need enough samples, a repeat, warnings about
# speed.
FLEETING = re.compile(
    r"(^|\.)(bounds|repeat|warnings|reasons|memory|switches|details|criteria\.looks)([.\[]|$)"
)
NUMBER = re.compile(r"(?<![A-Za-z_\d])[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
TOLD = re.compile(r"^(warning|note|[\w -]+): ")

Found = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One command and the parts of its result to record; `net_cases/cases.toml` explains each field."""

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
    """A sequence of commands in its own folder."""

    name: str
    steps: tuple[Step, ...]


def read_cases(path: Path) -> list[Case]:
    """Read all cases."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Case(case["name"], tuple(Step(**_with_tuples(step)) for step in case["step"]))
        for case in content["case"]
    ]


def _with_tuples(step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}


def environment(folder: Path) -> dict[str, str]:
    """Environment of every command: one thread, empty caches at first, no colours, a fixed line length."""
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
    """Run the commands of a case one after another in a copy of the inputs."""
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
    """Run one command and return the parts of its result that the step asks for."""
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
    """Find files by patterns. A pattern without a match becomes a path whose hash is "missing"."""
    found = []
    for pattern in patterns:
        some = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        found += some or [folder / pattern]
    return found


def text_of(path: Path) -> str:
    """Read a file. A file that a command did not write reads as empty, which shows as a difference."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def content_hash(path: Path) -> str:
    """Hash a file. Of an .npz file it hashes the arrays, not the archive, which holds timestamps."""
    if not path.exists():
        return "missing"
    digest = hashlib.sha256()
    if zipfile.is_zipfile(path) and path.suffix == ".npz":
        with np.load(path) as arrays:
            for name in sorted(arrays.files):
                array = arrays[name]
                digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    elif path.name == "entry.json":  # metrics that the JSON output of the command also has
        return "there"
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cached_files(folder: Path) -> Found:
    """Hash the files in the build cache, for each step of the last build."""
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
    """Return the paths of all keys, and the requested values that do not depend on time."""
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
    """Yield all leaves with the paths of their keys. All entries of a list share one path."""
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
    """Replace folders and seconds by placeholders; unless `numbers`, also all numbers and column widths."""
    text = text.replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT")
    text = re.sub(r"/tmp/[\w./-]*", "TEMPORARY", text)
    text = re.sub(r"\b[\d.]+ s\b", "# s", text)
    if numbers:
        return text
    text = NUMBER.sub("#", re.sub(r"\d+-\d\d-\d\dT[\d:.]+", "UTC", text))
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def told(text: str) -> list[str]:
    """Keep the progress lines that report work or warnings; drop counters and warnings about speed."""
    return [
        line
        for line in text.splitlines()
        if TOLD.match(line) and not re.search(r": \d+/\d+|int8 is not faster", line)
    ]


def make_inputs(folder: Path) -> Path:
    """Create the input folder: recipes, code, checkpoints, models, samples, files of earlier versions."""
    shutil.copytree(CASES, folder, ignore=shutil.ignore_patterns("__pycache__", "cases.toml"))
    subprocess.run([sys.executable, "inputs.py"], cwd=folder, env=environment(folder), check=True)
    if SAMPLES.is_dir():
        shutil.copytree(SAMPLES, folder / "kept")
    (folder / "ranges").mkdir()
    (folder / "ranges" / "note.txt").write_text("a folder with other content\n")
    return folder


def run_all(only: Sequence[str], jobs: int) -> Found:
    """Run all cases, or only the named ones; `jobs` of them at the same time."""
    cases = [case for case in read_cases(CASES / "cases.toml") if not only or case.name in only]
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="net-") as name, ThreadPoolExecutor(jobs) as pool:
        parent = Path(name).resolve()
        inputs = make_inputs(parent / "inputs")
        for part in pool.map(lambda case: run_case(case, inputs, parent), cases):
            found |= part
    return dict(json.loads(json.dumps(found)))


def differences(before: Found, after: Found) -> Iterator[str]:
    """Yield a text for each key whose value differs or that only one side has."""
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "absent"), after.get(key, "absent")
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and key.endswith(" keys"):
            yield f"{key}: removed {sorted(set(old) - set(new))}, added {sorted(set(new) - set(old))}"
        else:
            yield f"{key}:\n  before {json.dumps(old)}\n  after  {json.dumps(new)}"


def main() -> int:
    """Record the results, or compare them with recorded ones."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--only", action="append", default=[], metavar="CASE", help="case to run; repeatable"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of cases to run at the same time")
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
