"""Set up the hardware that a recipe names: this process, and other processes on one or more machines.

The build is process 0. It starts the other processes on its own machine. On every other machine,
`edgeproof follow` reads the job from the cache on the shared file system, and starts the processes there.
All processes run the same stage on the same files and exchange gradients in the training loop. Only the
result of process 0 is used.
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
# A machine may need this time to load its data; an exchange of gradients is always faster.
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
    """The JSON form of a `Job`, with plain values only."""

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
            raise ValueError(
                f"stage {self.stage!r} is not in the recipe; choose one of: {', '.join(names)}"
            )
        earlier = ["pretrained", *names[: names.index(self.stage)]]
        if set(self.folders) != set(earlier):
            raise ValueError(f"the folders do not match the earlier steps; list: {', '.join(earlier)}")
        for key, number, count in (("node", self.node, train.nodes), ("local", self.local, train.devices)):
            if not 0 <= number < count:
                raise ValueError(f"{key} {number} is out of range; choose a number from 0 to {count - 1}")
        return self


@dataclass(frozen=True)
class Job:
    """A stage to train, in the form that every process of the training receives.

    Attributes:
        recipe: the whole recipe.
        folder: folder of the recipe.
        stage: name of the stage.
        folders: folders of the earlier steps, by name.
        unfinished: folder of the checkpoints.
        host, port: address at which the processes connect to each other.
        node, local: number of the machine of this process, and number of the process on this machine.
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
        """The number of this process among all processes."""
        return self.node * self.recipe.train.devices + self.local

    def to_json(self) -> str:
        """The job as one line of JSON."""
        content: dict[str, object] = {
            "format": FORMAT,
            **self.__dict__,
            # Write only keys that were set: an explicit default is an error for some keys.
            "recipe": self.recipe.model_dump(mode="json", exclude_unset=True),
            "folder": str(self.folder),
            "folders": {name: str(path) for name, path in self.folders.items()},
            "unfinished": str(self.unfinished),
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | bytes, place: object = "the job") -> Job:
        """Read a job that `to_json` wrote.

        Raises:
            StageError: the text is damaged or of another version; the error names `place` and the key.
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
    """The accelerator that training uses, `cpu` or `gpu`."""
    if config.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return config.accelerator


def is_plain(config: TrainConfig) -> bool:
    """Whether the configuration is one process on the CPU at 32 bit, which does not need Fabric."""
    one = config.devices * config.nodes == 1
    return one and used_accelerator(config) == "cpu" and config.precision == "32"


def hardware_ingredients(config: TrainConfig) -> list[str | int]:
    """The hardware settings that affect the numbers of a training."""
    if is_plain(config):
        return ["cpu"]
    try:
        fabric = version("lightning-fabric")
    except PackageNotFoundError:
        fabric = "absent"
    return [used_accelerator(config), config.devices, config.nodes, config.precision, fabric]


def check_hardware(recipe: Recipe) -> None:
    """Check, before any stage runs, that this machine has the hardware that `[train]` requests.

    Raises:
        MissingExtraError: the recipe requests more than one CPU process at 32 bit, and Fabric is missing.
        StageError: there are too few GPUs, the port is not valid, a batch cannot be divided evenly, or a
            shrink stage would train in several processes.
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
                f"the recipe requests {config.devices} GPU(s), but PyTorch finds {found}",
                'lower train.devices, set accelerator = "cpu", or install PyTorch for this GPU',
            )
    if config.nodes > 1 and not 1 <= (port := int(config.main.rpartition(":")[2])) <= MAX_PORT:
        raise StageError("train.main", f"{port} is not a port", f"choose one from 1 to {MAX_PORT}")
    world = config.devices * config.nodes
    for stage in recipe.stage:
        if isinstance(stage, ShrinkConfig) and trains(stage) and world > 1:
            raise StageError(
                "shrink.epochs",
                f"each of the {world} processes would shrink its network by its own measurements",
                "set epochs = 0, and recover the accuracy in a later finetune or distill stage",
            )
        size = getattr(getattr(stage, "gradual", None) or stage, "batch_size", 0)
        if size % world and trains(stage):
            raise StageError(
                f"{stage.kind}.batch_size",
                f"{size} samples cannot be divided evenly among {world} processes",
                f"choose a multiple of {world}",
            )


@contextlib.contextmanager
def open_engine(job: Job) -> Iterator[Engine]:
    """Open the engine of a build; the build's other processes on this machine run inside the context.

    Raises:
        StageError: another process failed.
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
        except RuntimeError as error:  # torch.distributed raises it if a connection breaks
            raise _failed(
                job.stage,
                f"the exchange between processes failed ({one_line(str(error), 200)})",
                others,
            ) from error


def follow(cache: Path, node: int, *, folder: Path, jobs: int | None = None) -> None:
    """Take part in the trainings of a build that runs on another machine.

    A job names the code to run. It is used only if no user except this user and root can have written the
    job, or changed the folders of the job and of the code. The permissions of single code files are not
    checked.

    Args:
        cache: cache folder of the build, on a file system that both machines see under the same path.
        node: number of this machine, from 1.
        folder: folder of the recipe.
        jobs: number of trainings after which to return; None never returns.

    Raises:
        StageError: a process failed, a job is damaged or belongs to another recipe or cache, or other users
            can write to the folders.
    """
    uid, done = os.geteuid(), None
    # Python also imports modules from the working directory.
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
                    raise _failed(job.stage, "a training process failed", [process])
        done, jobs = text, None if jobs is None else jobs - 1


def followed(job: Job, node: int, folder: Path, cache: Path) -> Job:
    """The job for the machine `node`, with symbolic links in its paths resolved.

    Raises:
        StageError: the job does not use machine `node`, or belongs to another recipe or cache.
    """
    place, nodes = cache / UNFINISHED / JOB, job.recipe.train.nodes
    if not 1 <= node < nodes:
        raise StageError(
            "--node",
            f"{node} is out of range: the build uses {nodes} machine(s), numbered from 0",
            "choose another number, or raise train.nodes",
        )
    root, below = resolved(cache), resolved(cache / UNFINISHED)
    if resolved(job.folder) != resolved(folder):
        raise StageError(
            f"{place}: folder",
            f"the build uses the recipe in {job.folder}, not in {folder}",
            "follow the recipe of the build",
        )
    for key, path, parent in (
        ("unfinished", job.unfinished, below),
        *((f"folders.{name}", path, root) for name, path in job.folders.items()),
    ):
        if parent not in resolved(path).parents:
            raise StageError(
                f"{place}: {key}",
                f"{path} is outside {parent}",
                "use the same cache path for build and follow",
            )
    return replace(
        job,
        node=node,
        folder=resolved(job.folder),
        folders={name: resolved(path) for name, path in job.folders.items()},
        unfinished=resolved(job.unfinished),
    )


def prepare_places(folder: Path, cache: Path) -> None:
    """Prepare a build on several machines: create the job's folder, and run the checks of `follow`.

    Args:
        folder: folder of the recipe.
        cache: cache folder of the build.

    Raises:
        StageError: other users can write to the folders.
        StorageError: the folder cannot be created.
    """
    make_private(cache / UNFINISHED)
    check_places(folder, cache, os.geteuid())


def check_places(folder: Path, cache: Path, uid: int) -> None:
    """Check that only a user and root can change a recipe's code or write a job.

    Raises:
        StageError: other users can change the code or write a job.
    """
    for place in (folder, cache, cache / UNFINISHED):
        check_folder(place, uid)


@contextlib.contextmanager
def joined(job: Job) -> Iterator[Engine]:
    """The engine of this process, after all processes have connected to each other."""
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
    """Start processes on this machine, and wait until they have read their data; kill them on exit.

    Raises:
        StageError: a process failed; the error has its last line of output.
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
                raise _failed(job.stage, "a training process did not start", [process])
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def _announced(job: Job) -> Iterator[None]:
    """Write the job file that other machines look for, and remove it on exit."""
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
        """Cluster environment with the ranks of the job."""

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
    # cuBLAS is deterministic only with a workspace of fixed size (PyTorch, "Reproducibility").
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
    """The error for an invalid text of a job."""
    found = error.errors(include_url=False)[0]
    if found["loc"] == ("format",):
        return StageError(
            place, "was written by another version of edgeproof", "install the same version on all machines"
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
    """The error for processes that failed, with their last lines of output.

    It is a `WorkerFault` if a process ended with an unexpected exception, and a `StageError` otherwise.
    """
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
    return StageError(stage, cause, why or "read the errors on the other machines")
