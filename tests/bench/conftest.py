"""Tiny real models, artifacts built of them, and workers that return scripted times."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

from bench import cli
from bench.core.arrays import write_npz
from bench.measuring.protocol import (
    BurstTimes,
    FirstRun,
    MemoryUse,
    Nearness,
    Opened,
    PeakMemory,
    Predicted,
    Request,
    StreamTimes,
    Times,
)
from bench.measuring.result import ModelResult, Run
from tests.bench import onnx_bytes
from tests.bench.onnx_bytes import node

# A shared machine may delay any example, so there is no deadline. Examples are the same in every run.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

SAMPLES, FEATURES, CLASSES = 40, 4, 3
WRONG_LABELS = 4
WEIGHT = np.random.default_rng(7).standard_normal((FEATURES, CLASSES)).astype(np.float32)
# These weights predict the same classes as WEIGHT, but with other scores.
ROUNDED_WEIGHT = np.round(WEIGHT, 1)


def build_model(nodes, constants, shape=("N", FEATURES), *, dtype=onnx_bytes.FLOAT, **options):
    """A model from `x` to `y` (float, class scores)."""
    return onnx_bytes.model(
        nodes,
        [onnx_bytes.value("x", onnx_bytes.tensor(dtype, shape))],
        [onnx_bytes.value("y", onnx_bytes.tensor(shape=[shape[0], CLASSES]))],
        [onnx_bytes.constant(name, value) for name, value in constants.items()],
        **options,
    )


def linear(weight=WEIGHT, batch="N", **options):
    return build_model([node("MatMul", ["x", "w"], ["y"])], {"w": weight}, (batch, FEATURES), **options)


def classifier(nodes, constants, shape):
    """The linear model, with nodes that turn its scores `y` into the output `classes`."""
    return onnx_bytes.model(
        [node("MatMul", ["x", "w"], ["y"]), *nodes],
        [onnx_bytes.value("x", onnx_bytes.tensor(shape=("N", FEATURES)))],
        [onnx_bytes.value("classes", onnx_bytes.tensor(onnx_bytes.INT64, shape))],
        [onnx_bytes.constant(name, value) for name, value in ({"w": WEIGHT} | constants).items()],
    )


def write_with_external_data(path, location):
    """The linear model, whose weights are in a second file."""
    weight = onnx_bytes.external_constant("w", WEIGHT, path.with_name(location))
    path.write_bytes(
        onnx_bytes.model(
            [node("MatMul", ["x", "w"], ["y"])],
            [onnx_bytes.value("x", onnx_bytes.tensor(shape=("N", FEATURES)))],
            [onnx_bytes.value("y", onnx_bytes.tensor(shape=("N", CLASSES)))],
            [weight],
        )
    )


def heavy(layers=24, width=384):
    """A model with the predictions of `linear`, but with many large products: clearly slower and larger."""
    wide = np.zeros((FEATURES, width), np.float32)
    wide[:, :FEATURES] = np.eye(FEATURES)
    narrow = np.zeros((width, CLASSES), np.float32)
    narrow[:FEATURES] = WEIGHT
    constants = {"first": wide, "last": narrow}
    nodes, tip = [node("MatMul", ["x", "first"], ["h"])], "h"
    for index in range(layers):
        constants[f"w{index}"] = np.eye(width, dtype=np.float32) + np.float32(index * 1e-9)
        nodes.append(node("MatMul", [tip, f"w{index}"], [f"h{index}"]))
        tip = f"h{index}"
    nodes.append(node("MatMul", [tip, "last"], ["y"]))
    return build_model(nodes, constants)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Paths of good and bad models; tests only read them."""
    folder = tmp_path_factory.mktemp("models")
    cast = [
        node("Cast", ["x"], ["f"], to=onnx_bytes.FLOAT),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    nan = [node("MatMul", ["x", "w"], ["s"]), node("Sqrt", ["s"], ["y"])]
    three_axes = [
        node("MatMul", ["x", "w"], ["s"]),
        node("Unsqueeze", ["s", "axis"], ["y"]),
    ]
    reshape = [node("Reshape", ["x", "to"], ["y"])]
    topk = [node("TopK", ["y", "k"], ["best", "classes"], axis=1)]
    contents = {
        "dynamic": linear(),
        "rounded": linear(ROUNDED_WEIGHT),
        "fixed": linear(batch=2),
        "heavy": heavy(),
        "integers": build_model(cast, {"w": WEIGHT}, dtype=onnx_bytes.INT64),
        "nan": build_model(nan, {"w": WEIGHT}),
        "open_axis": build_model([node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, ("N", "features")),
        "three_axes": build_model(three_axes, {"w": WEIGHT, "axis": np.array([1])}),
        "fails": build_model(reshape, {"to": np.array([-1, 3])}),
        "opset_99": linear(opset=99),
        "ir_99": linear(ir_version=99),
        "argmax": classifier([node("ArgMax", ["y"], ["classes"], axis=1, keepdims=0)], {}, ("N",)),
        "topk": classifier(topk, {"k": np.array([2])}, ("N", 2)),
    }
    for name, content in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
    whole = (folder / "dynamic.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    write_with_external_data(folder / "external.onnx", "external.onnx.data")
    (folder / "external.onnx.data").unlink()
    return SimpleNamespace(**{path.stem: path for path in folder.glob("*.onnx")}, folder=folder)


@pytest.fixture(scope="session")
def samples():
    """Feeds [40, 4] and labels [40], all but four of which the float model predicts correctly."""
    feeds = np.random.default_rng(3).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    labels = (feeds @ WEIGHT).argmax(axis=1)
    labels[:WRONG_LABELS] = (labels[:WRONG_LABELS] + 1) % CLASSES
    return SimpleNamespace(x=feeds, labels=labels, accuracy=1 - WRONG_LABELS / SAMPLES)


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory, samples):
    """The samples as a file."""
    path = tmp_path_factory.mktemp("data") / "evaluation.npz"
    write_npz(path, {"x": samples.x, "labels": samples.labels})
    return path


class ArtifactFolder:
    """An artifact whose manifest can be written again, with true or false content."""

    def __init__(self, folder: Path, recipe: dict[str, object]) -> None:
        self.folder, self.recipe = folder, recipe

    def describe(self) -> dict[str, object]:
        files = {
            path.name: {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size_bytes": path.stat().st_size,
            }
            for path in sorted(self.folder.iterdir())
            if path.name != "manifest.json"
        }
        stage = {"name": "export", "kind": "export", "key": "0" * 64, "metrics": {}}
        return {
            "schema_version": 1,
            "name": "tiny",
            "created_utc": "2026-01-01T00:00:00+00:00",
            "edgeproof": "0.1.0",
            "target": "portable",
            "verdict": "PASS",
            "files": files,
            "stages": [stage],
            "recipe": self.recipe,
            "libraries": {"onnx": "1.18.0"},
        }

    def seal(self, **changes: object) -> None:
        """Write a manifest that matches the files, except for `changes`."""
        (self.folder / "manifest.json").write_text(json.dumps(self.describe() | changes))


@pytest.fixture
def artifact(tmp_path, models, samples, evaluation):
    """A complete artifact: a candidate, its float twin, labelled data and golden outputs."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(models.rounded.read_bytes())
    (folder / "model.fp32.onnx").write_bytes(models.dynamic.read_bytes())
    (folder / "evaluation.npz").write_bytes(evaluation.read_bytes())
    golden = samples.x[:8]
    write_npz(folder / "golden.npz", {"x": golden, "expected.y": golden @ ROUNDED_WEIGHT})
    made = ArtifactFolder(folder, {"gate": {"min_accuracy": 0.5}})
    made.seal()
    return made


def make_run(times_ns=(1000,) * 3, *, rounds=4, rss=50_000_000, session_ns=5000, first_run_ns=2000):
    return Run(
        session_ns=session_ns,
        first_run_ns=first_run_ns,
        warmup_ns=(1500, 1200),
        rounds_ns=(tuple(times_ns),) * rounds,
        import_rss_bytes=None if rss is None else rss // 2,
        peak_rss_bytes=rss,
    )


def make_model(runs, *, path="a.onnx", size=1000, predictions=None, labels=None):
    return ModelResult(
        path=path,
        sha256="0" * 64,
        size_bytes=size,
        runs=tuple(runs),
        predictions=predictions,
        labels=labels,
    )


@pytest.fixture(scope="session")
def external_model():
    """Write a model with its weights in a second file: `external_model(path, location)`."""
    return write_with_external_data


@pytest.fixture(scope="session")
def factory():
    """Functions that build results: `factory.run(...)`, `factory.model(...)`."""
    return SimpleNamespace(run=make_run, model=make_model)


def use(mebibytes):
    rss = None if mebibytes is None else mebibytes * 2**20
    return MemoryUse(rss_bytes=rss, pss_bytes=rss, private_bytes=rss)


@dataclass
class ScriptedWorkers:
    """Replacement for `bench.measuring.worker_process.worker_group`, with random instead of measured times.

    Attributes:
        typical_ns: time of an undisturbed inference.
        slowdown: file name -> factor on the times of that model.
        noise: standard deviation of the logarithm of each time, which is log-normal.
        disturbed: share of processes whose times are all 1.5 times as long, as on a shared machine.
        rss: file name -> peak memory; None if the host does not report it.
        predictions: file name -> predictions in the reply to `Predict`.
        labels, ids: labels and ids in the reply to `Predict`.
        sqnr_db: file name -> SQNR of the timed outputs against those of `Predict`.
        fails: number of a request, counted from 0 -> exception that it raises.
        events: order of `begin` and `finish`, for requests such as `Open` that are not awaited at once.
    """

    seed: int = 0
    typical_ns: float = 5e6
    slowdown: dict[str, float] = field(default_factory=dict)
    noise: float = 0.01
    disturbed: float = 0.0
    rss: dict[str, int | None] = field(default_factory=dict)
    predictions: dict[str, list[int]] = field(default_factory=dict)
    labels: list[int] | None = None
    ids: list[str] | None = None
    sqnr_db: dict[str, float] = field(default_factory=dict)
    fails: dict[int, BaseException] = field(default_factory=dict)
    requests: list[tuple[str, str, Request]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    closed: int = 0

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)

    @contextmanager
    def __call__(self, count, timeout_s):
        workers = [_ScriptedWorker(self) for _ in range(count)]
        try:
            yield workers
        finally:
            self.closed += count

    def asked(self, op):
        """Return all requests of one kind, in order."""
        return [request for kind, _, request in self.requests if kind == op]

    @property
    def counts(self):
        """Number of requests of each kind."""
        return Counter(kind for kind, _, _ in self.requests)


class _ScriptedWorker:
    def __init__(self, script):
        self.script, self.model = script, ""
        self.state = 1.5 if script.random.random() < script.disturbed else 1.0

    def ask(self, request):
        if request.op == "open":
            self.model = Path(request.model).name
        if error := self.script.fails.get(len(self.script.requests)):
            raise error
        self.script.requests.append((request.op, self.model, request))
        return getattr(self, f"_{request.op}")(**vars(request))

    def begin(self, request):
        self.script.events.append("begin")

    def finish(self, request):
        self.script.events.append("finish")
        return self.ask(request)

    def close(self):
        raise AssertionError("the group closes its workers")

    def _open(self, **_):
        return Opened(3_000_000, import_rss_bytes=30_000_000, imported=use(30), created=use(40))

    def _first(self):
        return FirstRun(9_000_000, samples=16, memory=use(45))

    def _warm(self, limit_ns):
        return Times(self._draw(20))

    def _burst(self, count, untimed):
        return BurstTimes(self._draw(count), switches=1)

    def _streams(self, count, duration_ns):
        times = [self._draw(50) for _ in range(count)]
        return StreamTimes(times, elapsed_ns=max(sum(part) for part in times))

    def _batch(self, size, duration_ns):
        return Times([size * time for time in self._draw(10)])

    def _memory(self):
        rss = self.script.rss.get(self.model, 50_000_000)
        jitter = int(self.script.random.integers(0, 20)) * 4096
        return PeakMemory(None if rss is None else rss + jitter, use(None if rss is None else 46))

    def _predict(self, evaluation, outputs):
        predictions = self.script.predictions[self.model]
        return Predicted(predictions, labels=self.script.labels, ids=self.script.ids)

    def _check(self, outputs):
        return Nearness(self.script.sqnr_db.get(self.model, 60.0))

    def _draw(self, count):
        factor = self.script.typical_ns * self.state * self.script.slowdown.get(self.model, 1.0)
        return [int(factor * value) for value in self.script.random.lognormal(0, self.script.noise, count)]


@pytest.fixture(scope="session")
def scripted():
    """The class of scripted workers; pass an instance as `workers=`."""
    return ScriptedWorkers


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Read and write certificates in a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs `python -m bench ...` in this process; returns `code`, `out` and `err`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        text = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=text.out, err=text.err)

    return run
