"""Compare pruning by measured time with pruning by other costs; run by hand, several hours.

    python tests/perf/shrink.py FOLDER [--out WORK] [--ratio 0.5] [--epochs 6] [--against uniform] [--quick]

FOLDER has pictures in the layout that `tests/perf/pictures.py` describes. EfficientNet-Lite0 is fine-tuned
from ImageNet weights, then shrunk and trained by distillation from the dense network. All variants use the
same training.

1. Channels and blocks are chosen by measured time. The target is `--ratio` of the dense int8 model's time.
   The finished int8 model is then timed against the dense one and must be within 5 % of the target.
2. The alternatives are: channels alone, chosen by multiply-adds, as in most published methods; equal shares
   of all channels; and channels and blocks, chosen by multiply-adds. The script adjusts the target of each
   alternative, with at most `--trials` trainings, until its int8 model is as accurate as the first one,
   within 0.3 points on the evaluation pictures. Then `compare` judges the times with a latency budget of
   zero: PASS means "measurably faster".

WORK keeps every finished training. To continue an interrupted training from its last checkpoint, start the
script again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import pictures

from bench.core.files import write_json
from bench.core.policy import Budgets
from bench.inputs.evaluation import EvaluationSet, write_evaluation
from bench.judging.gate import GateOptions, compare
from exporter.errors import StageError
from exporter.graphs.inference import run_model
from exporter.graphs.targets import find_target
from exporter.networks.network import Network, load_network
from exporter.onnx_export.export import export
from exporter.quantization.split import quantize_split
from exporter.recipes import ExportConfig, FineTuneConfig, QuantizeConfig, ShrinkConfig, ShrinkTarget
from exporter.training.loop import Checkpoints
from exporter.training.stages import Settings
from exporter.training.stages.finetune import finetune
from exporter.training.stages.shrink import shrink
from models.efficientnet_lite import efficientnet_lite0

TOLERANCE = 0.05
EQUAL = 0.003
RECORD = "record.json"
OTHERS = ("macs-channels", "uniform", "macs")
QUICK = {
    "size": 32,
    "train": 200,
    "evaluation": 60,
    "dense_epochs": 1,
    "epochs": 1,
    "ratio": 0.8,
    "trials": 1,
    "pairs": 10,
}


@dataclass(frozen=True)
class Way:
    """A way to choose the channels and blocks to remove.

    Attributes:
        name: name in the output and in folder names.
        allocation: `allocation` of the `shrink` stage, the cost to save.
        depth: number of blocks that may be removed.
    """

    name: str
    allocation: str
    depth: int


class Work:
    """The trainings, each in its own folder. `record.json` marks a finished one."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, arguments.out
        data = pictures.load(arguments.folder, arguments.size, train=arguments.train)
        few = slice(None, None, max(1, data.evaluation.count // arguments.evaluation))
        self.data = replace(data, evaluation=data.evaluation.take(range(data.evaluation.count)[few]))
        self.classes = pictures.classes_of(data)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.samples = self.folder / "evaluation.npz"
        judged = self.data.evaluation
        write_evaluation(self.samples, EvaluationSet(judged.inputs, judged.labels, judged.ids))
        self._keep_arguments()

    def dense(self) -> dict:
        """Return the record of the fine-tuned network."""
        config = FineTuneConfig(kind="finetune", epochs=self.arguments.dense_epochs, **self._training())
        return self._finished(
            "dense", lambda context: finetune(self._pretrained(), config, self.data, context)
        )

    def ways(self) -> tuple[Way, ...]:
        """Return the way by measured time, then the alternatives to compare it with."""
        depth = self.arguments.depth
        others = (Way("macs-channels", "macs", 0), Way("uniform", "uniform", 0), Way("macs", "macs", depth))
        return Way("latency", "latency", depth), *(
            way for way in others if way.name in self.arguments.against
        )

    def shrunk(self, way: Way, ratio: float) -> dict:
        """Return the record of a network that was shrunk to a share of the dense one's time and trained."""
        config = ShrinkConfig(
            kind="shrink",
            target=ShrinkTarget(latency_ratio=ratio),
            allocation=way.allocation,
            epochs=self.arguments.epochs,
            rounds=self.arguments.rounds,
            depth=way.depth,
            multiple=self.arguments.multiple,
            teacher="finetune",
            **self._training(),
        )
        name = f"{way.name}-{ratio:.4f}"
        return self._finished(name, lambda context: shrink(self._load("dense"), config, self.data, context))

    def finished(self, way: Way) -> dict[float, dict]:
        """Return the records of a way's finished trainings, by their target ratio."""
        paths = self.folder.glob(f"{way.name}-[0-9]*/{RECORD}")
        records = [json.loads(path.read_text()) for path in paths]
        return {float(record["name"].removeprefix(f"{way.name}-")): record for record in records}

    def _training(self) -> dict:
        return {"batch_size": self.arguments.batch_size, "learning_rate": self.arguments.learning_rate}

    def _keep_arguments(self) -> None:
        """Refuse a folder with trainings that used different arguments."""
        kept = {
            name: value
            for name, value in vars(self.arguments).items()
            if name not in ("folder", "out", "ratio", "trials", "pairs", "against", "quick")
        }
        path = self.folder / "arguments.json"
        if path.is_file() and json.loads(path.read_text()) != kept:
            raise SystemExit(f"{self.folder} has trainings that used other arguments; choose another --out")
        write_json(path, kept)

    def _pretrained(self) -> Network:
        return pictures.pretrained(self.classes)

    def _load(self, name: str) -> Network:
        return load_network(efficientnet_lite0(self.classes), self.folder / name)

    def _finished(self, name: str, train) -> dict:
        """Return the record of a training; run the training if its folder has no record."""
        folder = self.folder / name
        if not (folder / RECORD).is_file():
            folder.mkdir(exist_ok=True)
            teacher = None if name == "dense" else self._load("dense")
            context = replace(
                pictures.context(name, self.arguments.seed, self.classes, teacher),
                progress=Lines(),
                checkpoints=Checkpoints(folder / "unfinished"),
                settings=Settings(timings=self.folder / "tables"),
            )
            start = monotonic()
            network, result = train(context)
            network.save(folder)
            write_json(folder / "metrics.json", result.as_json())
            accuracy = self._int8(network, folder, context)
            shutil.rmtree(folder / "unfinished", ignore_errors=True)
            write_json(
                folder / RECORD,
                {
                    "name": name,
                    "model": str(folder / "model.onnx"),
                    "float": result.evaluation_accuracy,
                    "int8": accuracy,
                    "seconds": monotonic() - start,
                },
            )
        record = json.loads((folder / RECORD).read_text())
        print(
            f"{name}: float {record['float']:.2%}, int8 {record['int8']:.2%}, {record['seconds']:.0f} s",
            flush=True,
        )
        return record

    def _int8(self, network: Network, folder: Path, context) -> float:
        source, out = folder / "model.fp32.onnx", folder / "model.onnx"
        export(network.module, self.data.calibration, source, ExportConfig(), {})
        quantize_split(
            source,
            out,
            self.data.calibration,
            QuantizeConfig(),
            find_target("auto"),
            seed=context.seed,
            progress=context.progress,
        )
        outputs = run_model(out, self.data.evaluation)
        return float((outputs.argmax(axis=1) == self.data.evaluation.labels).mean())


class Lines:
    """Progress as lines, one for each tenth of a task."""

    @contextmanager
    def task(self, description: str, total: int):
        """Begin a task."""
        yield _Tenths(description, total)

    def say(self, line: str) -> None:
        """Print a line."""
        print(f"  {line}", flush=True)


class _Tenths:
    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done = description, max(1, total), 0

    def advance(self, count: int = 1, note: str = "") -> None:
        before, self.done = self.done, self.done + count
        if 10 * before // self.total != 10 * self.done // self.total:
            print(f"  {self.description}: {self.done} of {self.total} {note}", flush=True)


def main() -> None:
    """Train all networks, compare them and print the results."""
    arguments = parse()
    work = Work(arguments)
    way, *others = work.ways()
    dense, first = work.dense(), work.shrunk(way, arguments.ratio)
    metric = judged(work, dense, first, pairs=arguments.pairs)["latency_p50"]
    miss = metric.ratio / arguments.ratio - 1
    print(
        f"target {arguments.ratio:.3f} of the dense int8 time, measured {metric.ratio:.3f} "
        f"({bounds(metric)}): {miss:+.1%}, {'met' if abs(miss) <= TOLERANCE else 'MISSED'}"
    )
    for way in others:
        # Without removing blocks, equal accuracy needs a much larger share of the time.
        start = arguments.ratio if way.depth else (1 + arguments.ratio) / 2
        other = as_accurate(work, way, first["int8"], start, arguments.trials)
        if other is None:
            continue
        metrics = judged(work, other, first, pairs=arguments.pairs)
        gap = first["int8"] - other["int8"]
        print(
            f"latency against {way.name}: accuracy {gap:+.2%} "
            f"({'equal' if equal(first['int8'], other['int8']) else 'NOT EQUAL'} to 0.3 points), "
            f"time {metrics['latency_p50'].ratio:.3f} ({bounds(metrics['latency_p50'])}): "
            f"{metrics['latency_p50'].verdict.value}",
            flush=True,
        )


def as_accurate(work: Work, way: Way, wanted: float, ratio: float, trials: int) -> dict | None:
    """Find the training of a way whose int8 accuracy is nearest to `wanted`.

    Accuracy rises with the target ratio. The ratio changes by an eighth until accuracies on both sides of
    `wanted` are known; then it is interpolated between the nearest two. Trainings that the folder already
    has are used too, but do not count as trials.
    """
    found = work.finished(way)
    for trial in range(trials + 1):
        nearest = min(found.values(), key=lambda record: abs(record["int8"] - wanted), default=None)
        if trial == trials or (nearest and equal(nearest["int8"], wanted)):
            break
        ratio = next_ratio(found, wanted) if found else ratio
        if ratio in found:
            break
        try:
            found[ratio] = work.shrunk(way, ratio)
        except StageError as error:  # no combination of widths is near the target
            print(f"{way.name}-{ratio:.4f}: {error}", flush=True)
            break
    return nearest


def equal(accuracy: float, wanted: float) -> bool:
    """Return whether two accuracies differ by at most 0.3 points."""
    return round(abs(accuracy - wanted), 9) <= EQUAL


def next_ratio(found: dict[float, dict], wanted: float) -> float:
    """Return the next target ratio to try."""
    under = max((r for r, record in found.items() if record["int8"] < wanted), default=None)
    over = min((r for r, record in found.items() if record["int8"] >= wanted), default=None)
    if over is None:
        return round(min(0.97, max(found) * 1.125), 4)
    if under is None:
        return round(min(found) / 1.125, 4)
    low, high = found[under]["int8"], found[over]["int8"]
    share = (wanted - low) / (high - low)
    return round(under + min(0.9, max(0.1, share)) * (over - under), 4)


def judged(work: Work, baseline: dict, candidate: dict, *, pairs: int) -> dict:
    """Compare two models with a latency budget of zero and return the metrics."""
    judgement = compare(
        Path(baseline["model"]),
        Path(candidate["model"]),
        data=work.samples,
        budgets=Budgets(latency_p50=0.0),
        options=GateOptions(pairs=pairs, any_order=True),
        progress=Lines(),
    )
    return dict(judgement.metrics)


def bounds(metric) -> str:
    """Format both bounds of a metric."""
    return " … ".join("?" if end is None else f"{end:.3f}" for end in (metric.lower, metric.upper))


def parse() -> argparse.Namespace:
    """Parse the arguments; `--quick` replaces the defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("shrink-work"))
    parser.add_argument("--size", type=int, default=128, help="side of the pictures")
    parser.add_argument("--train", type=int, default=10_000, help="number of training pictures")
    parser.add_argument(
        "--evaluation", type=int, default=10_000, help="maximum number of evaluation pictures"
    )
    parser.add_argument("--dense-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6, help="epochs after each round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--depth", type=int, default=0, help="blocks that may be removed, except with `uniform`"
    )
    parser.add_argument("--multiple", type=int, default=16, help="widths are multiples of this")
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="target, as a share of the dense int8 time"
    )
    parser.add_argument(
        "--trials", type=int, default=5, help="maximum number of trainings of each alternative"
    )
    parser.add_argument(
        "--against", nargs="+", choices=OTHERS, default=OTHERS, help="alternatives to compare with"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=30, help="maximum number of blocks of `compare`")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the script")
    given, _ = parser.parse_known_args()
    if given.quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


if __name__ == "__main__":
    main()
