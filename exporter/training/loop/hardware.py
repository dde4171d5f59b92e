"""Opening the hardware that a recipe names: one process here, and all that work beside it.

The build is process 0. It starts the other processes of its own machine itself; on every further machine
`edgeproof follow` finds the job in the cache, on the file system that they share, and starts those. All
run the same stage on the same files and meet in the training loop; what the others make is thrown away.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, ValidationError, model_validator

from bench.core.errors import MissingExtraError, one_line
from bench.core.faults import EXIT_FAULT, WorkerFault
from bench.core.files import write_text
from bench.core.schema import THE_FILE, FrozenModel, explain_validation
from exporter.caching.cache import UNFINISHED
from exporter.caching.trusted import check_folder, make_private, read_own, resolved
from exporter.errors import StageError
from exporter.recipes import Recipe, ShrinkConfig, TrainConfig, trains
from exporter.training.loop.engine import ONE_CPU, Engine, FabricEngine

if TYPE_CHECKING:
    from lightning_fabric import Fabric

READY = "ready"
# A machine may need that long to load its data; a network that exchanges gradients never does.
TIMEOUT = timedelta(minutes=10)
JOB = "job.json"
# Version 1. A job of another version is refused.
FORMAT = 1
MAX_JOB_BYTES = 16 << 20
OWNER_ALONE = 0o600
MAX_PORT = 65_535
POLL_S = 1.0

FolderText = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]


class JobText(FrozenModel):
    """A job as it is written: what `Job` holds, as plain values."""

    format: Literal[1]
    recipe: Recipe
    folder: FolderText
    stage: str
    folders: dict[str, FolderText]
    unfinished: FolderText
    host: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=255)
    port: int = Field(ge=1, le=MAX_PORT)
    node: int
    local: int

    @model_validator(mode="after")
    def _fits_its_recipe(self) -> JobText:
        names, train = self.recipe.stage_names(), self.recipe.train
        if self.stage not in names:
            raise ValueError(f"stage {self.stage!r} is not in its recipe; there are: {', '.join(names)}")
        earlier = ["pretrained", *names[: names.index(self.stage)]]
        if set(self.folders) != set(earlier):
            raise ValueError(f"folders are not those of the earlier steps; name: {', '.join(earlier)}")
        for key, number, count in (("node", self.node, train.nodes), ("local", self.local, train.devices)):
            if not 0 <= number < count:
                raise ValueError(f"{key} {number} is outside its recipe; choose one from 0 to {count - 1}")
        return self


@dataclass(frozen=True)
class Job:
    """A stage to train, as every process of a training is told it; plain values and paths alone.

    Attributes:
        recipe: the whole one.
        folder: of the recipe.
        stage: the stage's name.
        folders: of earlier steps, by name.
        unfinished: where checkpoints lie.
        host, port: where the processes meet.
        node, local: which machine this process is on, and which of the machine's processes it is.
    """

    recipe: Recipe
    folder: Path
    stage: str
    folders: Mapping[str, Path]
    unfinished: Path
    _: KW_ONLY
    host: str = "127.0.0.1"
    port: int = 29500
    node: int = 0
    local: int = 0

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.recipe.train.devices * self.recipe.train.nodes

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.node * self.recipe.train.devices + self.local

    def to_json(self) -> str:
        """One line of text."""
        content: dict[str, object] = {
            "format": FORMAT,
            **self.__dict__,
            # What was set alone: that a default was written out is an error for some keys.
            "recipe": self.recipe.model_dump(mode="json", exclude_unset=True),
            "folder": str(self.folder),
            "folders": {name: str(path) for name, path in self.folders.items()},
            "unfinished": str(self.unfinished),
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | bytes, place: object = "the job") -> Job:
        """What `to_json` wrote.

        Raises:
            StageError: it is damaged or of another version; it names `place` and the key.
        """
        try:
            found = JobText.model_validate_json(text)
        except ValidationError as error:
            raise _unreadable(error, place) from error
        return cls(
            recipe=found.recipe,
            folder=Path(found.folder),
            stage=found.stage,
            folders={name: Path(path) for name, path in found.folders.items()},
            unfinished=Path(found.unfinished),
            host=found.host,
            port=found.port,
            node=found.node,
            local=found.local,
        )


def used_accelerator(config: TrainConfig) -> str:
    """`cpu` or `gpu`."""
    if config.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return config.accelerator


def is_plain(config: TrainConfig) -> bool:
    """Whether one process on the CPU at 32 bit is asked for, which needs no Fabric."""
    one = config.devices * config.nodes == 1
    return one and used_accelerator(config) == "cpu" and config.precision == "32"


def hardware_ingredients(config: TrainConfig) -> list[str | int]:
    """What a training's numbers depend on of the hardware."""
    if is_plain(config):
        return ["cpu"]
    try:
        fabric = version("lightning-fabric")
    except PackageNotFoundError:
        fabric = "absent"
    return [used_accelerator(config), config.devices, config.nodes, config.precision, fabric]


def check_hardware(recipe: Recipe) -> None:
    """Make sure, before any stage runs, that this machine has what `[train]` asks for.

    Raises:
        MissingExtraError: the recipe asks for more than one CPU process at 32 bit, and Fabric is missing.
        StageError: there are too few GPUs, a port is none, or a batch cannot be shared out.
    """
    config = recipe.train
    if is_plain(config):
        return
    if find_spec("lightning_fabric") is None:
        raise MissingExtraError("lightning_fabric", "train")
    if used_accelerator(config) == "gpu":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < config.devices:
            raise StageError(
                "train.devices" if found else "train.accelerator",
                f"{config.devices} GPU(s) are asked for, PyTorch finds {found}",
                'ask for fewer, set accelerator = "cpu", or install PyTorch for this GPU',
            )
    if config.nodes > 1 and not 1 <= (port := int(config.main.rpartition(":")[2])) <= MAX_PORT:
        raise StageError("train.main", f"{port} is not a port", f"choose one from 1 to {MAX_PORT}")
    world = config.devices * config.nodes
    for stage in recipe.stage:
        if isinstance(stage, ShrinkConfig) and trains(stage) and world > 1:
            raise StageError(
                "shrink.epochs",
                f"each of {world} processes would cut by what it measures itself",
                "set it to 0, and let a finetune or distill stage recover what was lost",
            )
        size = getattr(getattr(stage, "gradual", None) or stage, "batch_size", 0)
        if size % world and trains(stage):
            raise StageError(
                f"{stage.kind}.batch_size",
                f"{size} samples cannot be shared out evenly among {world} processes",
                f"make it a multiple of {world}",
            )


@contextlib.contextmanager
def open_engine(job: Job) -> Iterator[Engine]:
    """The engine of a build, with all further processes of this machine started; they end with it.

    Raises:
        StageError: a further process failed.
    """
    config = job.recipe.train
    if is_plain(config):
        yield ONE_CPU
        return
    if job.world == 1:
        fabric = _fabric(job)
        fabric.launch()
        yield FabricEngine(fabric)
        return
    host, _, port = config.main.rpartition(":")
    meeting = (
        replace(job, host=host, port=int(port)) if config.nodes > 1 else replace(job, port=_free_port())
    )
    with _announced(meeting), processes(meeting, range(1, config.devices)) as others:
        try:
            with joined(meeting) as engine:
                yield engine
        except RuntimeError as error:  # what a broken connection raises
            raise _failed(
                job.stage,
                f"the exchange between processes failed ({one_line(str(error), 200)})",
                others,
            ) from error


def follow(cache: Path, node: int, *, folder: Path, jobs: int | None = None) -> None:
    """Work on the trainings of a build that runs on another machine.

    A job says what code to run. It is used only if nobody but this user, and root, can have written it or
    changed the folders that it and the code lie in. Single files of code are not looked at.

    Args:
        cache: of the build, on a file system that both see under the same path.
        node: which of the machines this is, from 1.
        folder: of the recipe that is followed.
        jobs: how many trainings to take part in before returning; None never returns.

    Raises:
        StageError: a process failed, a job is damaged or leads elsewhere, or others can write to what is
            used.
    """
    uid, done = os.geteuid(), None
    # Modules are imported from the working directory too.
    check_places(folder, cache, uid)
    check_folder(Path.cwd(), uid)
    while jobs is None or jobs > 0:
        path = resolved(cache / UNFINISHED) / JOB
        text = read_own(path, uid, MAX_JOB_BYTES)
        if text is None or text == done:
            time.sleep(POLL_S)
            continue
        check_places(folder, cache, uid)
        job = followed(Job.from_json(text, path), node, folder, cache)
        with processes(job, range(job.recipe.train.devices)) as started:
            for process in started:
                if process.wait() != 0:
                    raise _failed(job.stage, "a process failed", [process])
        done, jobs = text, None if jobs is None else jobs - 1


def followed(job: Job, node: int, folder: Path, cache: Path) -> Job:
    """A job as the machine `node` takes part in it, with paths free of links.

    Raises:
        StageError: the job is for one machine or fewer than `node`, or leads to another recipe or cache.
    """
    place, nodes = cache / UNFINISHED / JOB, job.recipe.train.nodes
    if not 1 <= node < nodes:
        raise StageError(
            "--node",
            f"the build has {nodes} machine(s), numbered from 0",
            "choose another, or raise train.nodes",
        )
    root, below = resolved(cache), resolved(cache / UNFINISHED)
    if resolved(job.folder) != resolved(folder):
        raise StageError(
            f"{place}: folder",
            f"{job.folder} is not the recipe's, {folder}",
            "follow the recipe that is built",
        )
    for key, path, parent in (
        ("unfinished", job.unfinished, below),
        *((f"folders.{name}", path, root) for name, path in job.folders.items()),
    ):
        if parent not in resolved(path).parents:
            raise StageError(
                f"{place}: {key}",
                f"{path} lies outside {parent}",
                "use one cache, by one path, for build and follow",
            )
    return replace(
        job,
        node=node,
        folder=resolved(job.folder),
        folders={name: resolved(path) for name, path in job.folders.items()},
        unfinished=resolved(job.unfinished),
    )


def prepare_places(folder: Path, cache: Path) -> None:
    """Before a build on several machines: make the folder of the job, and check what followers will check.

    Args:
        folder: of the recipe.
        cache: of the build.

    Raises:
        StageError: others can write to what is used.
        StorageError: the folder cannot be made.
    """
    make_private(cache / UNFINISHED)
    check_places(folder, cache, os.geteuid())


def check_places(folder: Path, cache: Path, uid: int) -> None:
    """Make sure that nobody but a user, and root, can change a recipe's code or announce a job.

    Raises:
        StageError: others can.
    """
    for place in (folder, cache, cache / UNFINISHED):
        check_folder(place, uid)


@contextlib.contextmanager
def joined(job: Job) -> Iterator[Engine]:
    """The engine of one of several processes, after all have met."""
    fabric = _fabric(job)
    before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")}
    fabric.launch()
    try:
        yield FabricEngine(fabric)
    finally:
        torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def processes(job: Job, numbers: range) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes of this machine, wait until they have read their data, and end them at last.

    Raises:
        StageError: one failed, with its last line.
    """
    line = [sys.executable, "-m", "exporter.pipeline.follow"]
    started: list[subprocess.Popen[str]] = []
    try:
        for local in numbers:
            process = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            started.append(process)
            assert process.stdin is not None
            process.stdin.write(replace(job, local=local).to_json() + "\n")
            process.stdin.flush()
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise _failed(job.stage, "a further process did not start", [process])
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def _announced(job: Job) -> Iterator[None]:
    """The job where other machines look for it, while it lasts."""
    if job.recipe.train.nodes == 1:
        yield
        return
    path = job.unfinished.parent / JOB
    prepare_places(job.folder, path.parent.parent)
    write_text(path, job.to_json(), mode=OWNER_ALONE)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _fabric(job: Job) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import ClusterEnvironment
    from lightning_fabric.strategies import DDPStrategy

    class Meeting(ClusterEnvironment):  # type: ignore[misc]
        """Ranks as the job has them."""

        creates_processes_externally = True
        main_address = job.host
        main_port = job.port

        @staticmethod
        def detect() -> bool:
            return False

        def world_size(self) -> int:
            return job.world

        def set_world_size(self, size: int) -> None:
            pass

        def global_rank(self) -> int:
            return job.rank

        def set_global_rank(self, rank: int) -> None:
            pass

        def local_rank(self) -> int:
            return job.local

        def node_rank(self) -> int:
            return job.node

    config = job.recipe.train
    # cuBLAS is deterministic with a workspace of fixed size alone (PyTorch, "Reproducibility").
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    several = DDPStrategy(cluster_environment=Meeting(), timeout=TIMEOUT)
    return Fabric(
        accelerator=used_accelerator(config),
        devices=config.devices,
        num_nodes=config.nodes,
        precision=config.precision,
        strategy=several if job.world > 1 else "auto",
    )


def _unreadable(error: ValidationError, place: object) -> StageError:
    """What is wrong with the text of a job, in one line."""
    found = error.errors(include_url=False)[0]
    if found["loc"] == ("format",):
        return StageError(
            place, "was written by another edgeproof", "install the same version on all machines"
        )
    if found["type"] == "json_invalid":
        return StageError(place, f"is damaged ({found['msg']})", "remove it and build again")
    key, cause, fix = explain_validation(error, JobText)
    return StageError(place if key == THE_FILE else f"{place}: {key}", cause, fix)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _failed(stage: str, cause: str, started: list[subprocess.Popen[str]]) -> StageError | WorkerFault:
    """What to raise of processes that have ended badly: their last lines, and whose fault it was."""
    lines, traces = [], []
    for process in started:
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        if process.poll() and process.stderr is not None:
            words = process.stderr.read().strip()
            lines += words.splitlines()[-1:]
            if process.returncode == EXIT_FAULT:
                traces.append(words)
    why = one_line("; ".join(lines))
    if traces:
        return WorkerFault(stage, f"{cause}: {why}", "\n".join(traces))
    return StageError(stage, cause, why or "look at the other machines")
