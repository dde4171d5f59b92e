"""A tiny network, data that it can classify, and a user's project with both."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from bench.core.progress import SILENT
from exporter import Split, Splits, cli
from exporter.graphs.targets import TARGETS
from exporter.networks.network import Network, deterministic
from exporter.onnx_export.export import export
from exporter.pipeline.build import build
from exporter.quantization.split import quantize_split
from exporter.recipes import ExportConfig, FineTuneConfig, QuantizeConfig
from exporter.training.loop import fit
from exporter.training.stages import Context, Loaders
from exporter.training.stages.labelled_loss import cross_entropy

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
torch.set_num_threads(1)

CLASSES = 3
WIDTH = 8
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


class Net(nn.Module):
    """Images [N, 1, H, W] -> logits [N, classes]; 699 parameters for three classes."""

    def __init__(self, classes=3, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1, stride=2)
        self.head = nn.Linear(width, classes)

    def forward(self, image):
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.body(x))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.head(x)


def draw(count, generator, classes=3):
    """Draw bright images, vertical stripes and horizontal stripes on noise: float32 [count, 1, 8, 8]."""
    labels = np.arange(count) % classes
    images = generator.normal(0.0, 0.1, (count, 1, 8, 8)).astype(np.float32)
    images[labels == 0] += 1
    images[labels == 1] += np.float32([1, -1] * 4)
    images[labels == 2] += np.float32([1, -1] * 4)[:, None]
    return Split({"image": images}, labels.astype(np.int64))


def make_splits(train=60, calibration=24, evaluation=120, seed=0, classes=3):
    generator = np.random.default_rng(seed)
    return Splits(*(draw(count, generator, classes) for count in (train, calibration, evaluation)))


class Encoder(nn.Module):
    """A transformer with one layer: token ids [N, L] and their mask -> logits [N, 3]."""

    def __init__(self, vocabulary=50, width=16, heads=2, longest=32, classes=3):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask):
        count, length = input_ids.shape
        mask = attention_mask.to(torch.float32)
        x = self.tokens(input_ids) + self.positions.weight[:length]
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.view(count, length, self.heads, -1).transpose(1, 2) for part in parts)
        bias = (1 - mask[:, None, None]) * -1e4
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = self.norm1(x + self.out(y.transpose(1, 2).reshape(count, length, -1)))
        x = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def draw_tokens(count, length):
    """Draw sentences of random tokens; every second one fills only half of the array."""
    ids = np.random.default_rng(0).integers(0, 50, (count, length))
    mask = np.ones_like(ids)
    mask[1::2, (length + 1) // 2 :] = 0
    return Split({"input_ids": ids, "attention_mask": mask}, np.arange(count) % 3)


NETWORK_SOURCE = "import torch\nfrom torch import nn\n\n\n" + inspect.getsource(Net)
DATA_SOURCE = "import numpy as np\nfrom exporter import Split, Splits\n\n\n" + "\n\n".join(
    inspect.getsource(function) for function in (draw, make_splits)
)
RECIPE = """\
name = "tiny"

[model]
factory = "net:Net"
args = { classes = 3 }

[data]
factory = "shapes:make_splits"

[[stage]]
kind = "finetune"
epochs = 2
batch_size = 10
learning_rate = 0.05

[[stage]]
kind = "prune"
target = { sparsity = 0.25 }

[quantize]
target = "portable"
samples = 16
goal = "size"

[gate.float_twin]
accuracy = 0.5
latency_p50 = 10.0
size = 10.0
"""


class Project:
    """A user's folder with a recipe, a network and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe, self.cache = folder / "recipe.toml", folder / ".edgeproof"
        self.artifact = folder / "artifacts" / "tiny"

    @classmethod
    def make(cls, folder: Path) -> Project:
        folder.mkdir(mode=0o755)  # whatever the umask is: `follow` refuses folders that others can change
        for name, text in (("net.py", NETWORK_SOURCE), ("shapes.py", DATA_SOURCE), ("recipe.toml", RECIPE)):
            (folder / name).write_text(text)
        return cls(folder)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that occurs once."""
        text = (self.folder / name).read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {name}"
        (self.folder / name).write_text(text.replace(old, new))

    def build(self, **options):
        """Build in this process as a fresh process would: import the user's modules again."""
        forget_modules_below(self.folder)
        return build(self.recipe, **options)

    def start(self, *arguments, command="build", **options):
        """Start `edgeproof build`, or another command, in a separate process."""
        return subprocess.Popen(
            [sys.executable, "-m", "exporter", command, str(self.recipe), *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | ONE_THREAD,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def events(self, event=None):
        """The lines of the run log, all or those of one event."""
        log = self.cache / "builds.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in map(json.loads, lines) if event in (None, line["event"])]

    def entry(self, step):
        """The folder of a step's newest entry in the cache."""
        key = [line["key"] for line in self.events() if line.get("step") == step][-1]
        return self.cache / key[:2] / key


def forget_modules_below(folder: Path) -> None:
    below = f"{folder}{os.sep}"  # compared as text for speed, after every test
    for name, module in list(sys.modules.items()):
        # A folder without __init__.py is a package without a file.
        inside = getattr(getattr(module, "__spec__", None), "submodule_search_locations", None)
        places = [getattr(module, "__file__", None), *(inside or [])]
        if any(str(place).startswith(below) for place in places):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def _no_import_leaks(tmp_path_factory, monkeypatch):
    """Forget the projects and packages that a test created."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("EDGEPROOF_CACHE", raising=False)
    yield
    forget_modules_below(tmp_path_factory.getbasetemp())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project that has not been built; it is the working directory."""
    made = Project.make(tmp_path / "project")
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture(scope="session")
def make_project():
    """A function that creates a project in a new folder."""
    return Project.make


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """A project that `edgeproof build --json` has built, with the real gate. Tests must not change it."""
    made = Project.make(tmp_path_factory.mktemp("built") / "project")
    process = made.start("--json")
    out, err = process.communicate()
    made.code, made.out, made.err = process.returncode, out, err
    assert made.artifact.is_dir(), err
    return made


@pytest.fixture
def built(built_once, tmp_path, monkeypatch):
    """A copy of the built project with its cache and artifact; it is the working directory."""
    shutil.copytree(built_once.folder, tmp_path / "built")
    monkeypatch.chdir(tmp_path / "built")
    return Project(tmp_path / "built")


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs `edgeproof ...` in this process; returns exit code, output and error output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgeproof", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        text = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=text.out, err=text.err)

    return run


@pytest.fixture(scope="session")
def tiny():
    """Factories `tiny.net()` (fixed random weights), `tiny.splits(...)` and `tiny.draw(...)`; sources."""

    def net(classes=CLASSES, width=WIDTH, seed=0):
        with deterministic(seed, "tiny"):
            return Net(classes, width)

    return SimpleNamespace(
        net=net, splits=make_splits, draw=draw, network_source=NETWORK_SOURCE, data_source=DATA_SOURCE
    )


@pytest.fixture(scope="session")
def encoder():
    """Factories `encoder.net()` (fixed random weights) and `encoder.draw(count, length)`."""

    def net():
        with deterministic(0, "encoder"):
            return Encoder().eval()

    return SimpleNamespace(net=net, draw=draw_tokens)


@pytest.fixture(scope="session")
def splits():
    """Splits of three classes: 60 training, 24 calibration and 120 evaluation samples; shared by tests."""
    return make_splits()


@pytest.fixture(scope="session")
def trained(tiny, splits, tmp_path_factory):
    """The folder of a trained network, written by `Network.save`."""
    folder = tmp_path_factory.mktemp("trained")
    network = Network(tiny.net())
    config = FineTuneConfig(kind="finetune", epochs=3, batch_size=10, learning_rate=0.05)
    fit(network, splits, config, cross_entropy(), seed=0, name="fit", progress=SILENT)
    network.save(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_models(tiny, splits, trained, tmp_path_factory):
    """Paths of the trained network as ONNX models: `float`, and `int8` for a CPU with VNNI."""
    from exporter.networks.network import load_network

    folder = tmp_path_factory.mktemp("onnx")
    paths = SimpleNamespace(float=folder / "model.fp32.onnx", int8=folder / "model.onnx")
    module = load_network(tiny.net(), trained).module
    export(module, splits.calibration, paths.float, ExportConfig(), {"edgeproof.name": "tiny"})
    quantize_split(
        paths.float,
        paths.int8,
        splits.calibration,
        QuantizeConfig(samples=16),
        TARGETS["x86-vnni"],
        seed=0,
        progress=SILENT,
    )
    return paths


@pytest.fixture
def context(tiny):
    """A function that creates the context of a stage, with the teachers and data that a test passes."""

    def make(name="stage", seed=0, teacher=None, source=None, unlabelled=None):
        return Context(
            name=name,
            seed=seed,
            progress=SILENT,
            fresh_module=tiny.net,
            load=Loaders(
                teacher=lambda which, data: teacher[which] if isinstance(teacher, dict) else teacher,
                data=lambda config, place: source,
                unlabelled=lambda config, place: unlabelled,
            ),
        )

    return make
