"""Training through Lightning Fabric: precision, several processes, several machines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.core.errors import MissingExtraError
from bench.core.faults import WorkerFault, ending
from bench.core.progress import SILENT
from exporter.errors import LookupFailed, StageError
from exporter.networks.network import Network, accuracy
from exporter.pipeline.ablate import ablate
from exporter.pipeline.build import build
from exporter.recipes import FineTuneConfig, read_recipe, recipe_from
from exporter.training.loop import ONE_CPU, fit, hardware
from exporter.training.loop.engine import FabricEngine
from exporter.training.loop.hardware import Job, check_hardware, open_engine
from exporter.training.stages.labelled_loss import cross_entropy

needs_fabric = pytest.mark.skipif(
    hardware.find_spec("lightning_fabric") is None, reason="lightning-fabric is not installed"
)


def job(**train):
    content = {
        "name": "x",
        "model": {"factory": "a:b"},
        "data": {"factory": "a:b"},
        "stage": [{"kind": "finetune", "batch_size": 10}],
        "train": train,
    }
    return Job(
        recipe_from(content, "recipe"), Path("here"), "finetune", {"pretrained": Path("p")}, Path("u")
    )


def trained(tiny, splits, engine, **changes):
    network = Network(tiny.net())
    config = FineTuneConfig(
        **{"kind": "finetune", "epochs": 3, "batch_size": 10, "learning_rate": 0.05} | changes
    )
    fit(network, splits, config, cross_entropy(), seed=0, name="x", progress=SILENT, engine=engine)
    return network.module


def test_a_job_is_read_as_it_was_written():
    first = job(devices=2, nodes=3)
    again = Job.from_json(first.to_json())
    assert again == first
    assert again.world == 6


def damaged(**changes):
    """The text of a job for two machines with changed keys; None removes a key."""
    content = json.loads(job(nodes=2).to_json()) | changes
    return json.dumps({key: value for key, value in content.items() if value is not None})


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the job: is damaged (Invalid JSON: EOF"),
        (damaged()[:-9], "the job: is damaged (Invalid JSON: EOF"),
        (b"\xff\xfe", "the job: is damaged (Invalid JSON: expected value"),
        (DEEP, "the job: is damaged (Invalid JSON: recursion limit exceeded"),
        (damaged(stage="\ud800"), "the job: is damaged (Invalid JSON: unexpected end of hex escape"),
        ("[]", "the job: [] is refused; input should be"),
        ("{}", "the job: was written by another version of edgeproof; install"),
        (damaged(format=2), "the job: was written by another version of edgeproof; install"),
        (damaged(format=None), "the job: was written by another version of edgeproof; install"),
        (damaged(surplus=1), "the job: surplus: unknown key; use one of: folder, "),
        (damaged(unfinished=None), "the job: unfinished: is missing; add it"),
        (damaged(port="80"), "the job: port: '80' is refused; input should be a valid integer"),
        (damaged(port=0), "the job: port: 0 is refused"),
        (damaged(port=65_536), "the job: port: 65536 is refused"),
        (damaged(host="a b"), "the job: host: 'a b' is refused"),
        (damaged(host="host\n"), "the job: host: 'host\\n' is refused"),
        (damaged(host=""), "the job: host: '' is refused"),
        (damaged(folder="a\0b"), "the job: folder: 'a\\x00b' is refused"),
        (damaged(folders={"pretrained": 3}), "the job: folders.pretrained: 3 is refused"),
        (damaged(folders={}), "the job: the folders do not match the earlier steps; list: pretrained"),
        (damaged(stage="prune"), "the job: stage 'prune' is not in the recipe; choose one of: finetune"),
        (damaged(node=2), "the job: node 2 is out of range; choose a number from 0 to 1"),
        (damaged(local=-1), "the job: local -1 is out of range; choose a number from 0 to 0"),
        (damaged(recipe={"name": "x"}), "the job: recipe.model: is missing; add it"),
    ],
)
def test_a_damaged_job_is_one_line(text, said):
    with pytest.raises(StageError) as caught:
        Job.from_json(text)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_damaged_job_ends_a_process_with_one_line():
    ended = subprocess.run(
        [sys.executable, "-m", "exporter.pipeline.follow"], input=b"{}\n", capture_output=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stdout == b""
    assert ended.stderr.startswith(b"error: the job: was written by another version of edgeproof")
    assert ended.stderr.count(b"\n") == 1


@needs_fabric
@pytest.mark.parametrize("port", [0, 65_536])
def test_invalid_ports_are_refused(port):
    with pytest.raises(StageError, match=f"train.main: {port} is not a port; choose one from 1 to 65535"):
        check_hardware(job(nodes=2, main=f"127.0.0.1:{port}").recipe)
    check_hardware(job(nodes=2, main="127.0.0.1:65535").recipe)


def test_one_process_on_the_cpu_is_plain_pytorch():
    with open_engine(job()) as engine:
        assert engine is ONE_CPU


def test_a_missing_fabric_is_named(monkeypatch):
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lightning_fabric: .* \"edgeproof\[train\]\""):
        check_hardware(job(precision="bf16-mixed").recipe)
    check_hardware(job().recipe)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_fabric
def test_a_missing_gpu_is_refused():
    with pytest.raises(StageError) as caught:
        check_hardware(job(accelerator="gpu").recipe)
    assert caught.value.place == "train.accelerator"
    assert caught.value.cause == "the recipe requests 1 GPU(s), but PyTorch finds 0"
    with open_engine(job(accelerator="auto")) as engine:
        assert engine is ONE_CPU


@needs_fabric
def test_a_batch_that_cannot_be_divided_evenly_is_refused():
    with pytest.raises(StageError, match=r"finetune.batch_size: 10 samples cannot .* among 3 processes"):
        check_hardware(job(devices=3).recipe)
    check_hardware(job(devices=5).recipe)


@needs_fabric
def test_fabric_on_one_cpu_gives_the_same_numbers(tiny, splits):
    from lightning_fabric import Fabric

    plain = trained(tiny, splits, ONE_CPU)
    through = trained(tiny, splits, FabricEngine(Fabric(accelerator="cpu", devices=1, precision="32")))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, through.state_dict()[name])


@needs_fabric
def test_bf16_trains_and_differs(tiny, splits):
    plain = trained(tiny, splits, ONE_CPU)
    with open_engine(job(precision="bf16-mixed")) as engine:
        half = trained(tiny, splits, engine)
    assert half.stem.weight.dtype == torch.float32
    assert not torch.equal(half.stem.weight, plain.stem.weight)
    assert accuracy(half, splits.evaluation) > 0.9


def weights(project):
    return load_file(project.entry("finetune") / "weights.safetensors")


FINETUNE = 'kind = "finetune"\n'
FROZEN = 'kind = "finetune"\nnorm_statistics = "frozen"\n'


@needs_fabric
@pytest.mark.slow
def test_two_processes_give_the_same_weights_as_one(project):
    """The mean gradient of two half batches is that of the whole batch if norms use no batch statistics."""
    project.edit("recipe.toml", FINETUNE, FROZEN)
    project.build(until="finetune")
    alone = weights(project)
    project.build(until="finetune", overrides=["train.devices=2"])
    together = weights(project)
    assert any(not torch.equal(alone[name], together[name]) for name in alone)  # sums in another order
    for name, value in alone.items():
        assert torch.allclose(value, together[name], atol=1e-3), name
    project.build(until="finetune", overrides=["train.devices=2"], fresh=True)
    assert all(torch.equal(value, together[name]) for name, value in weights(project).items())


@needs_fabric
@pytest.mark.slow
def test_two_machines_give_the_same_weights_as_one(project):
    project.edit("recipe.toml", FINETUNE, FROZEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    project.build(until="finetune", overrides=["train.devices=2"])
    expected = weights(project)
    project.cache.chmod(0o755)  # does not depend on the umask
    line = "from exporter.training.loop.hardware import follow; import sys; from pathlib import Path;"
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{line} follow(Path(sys.argv[1]), 1, folder=Path.cwd(), jobs=1)",
            str(project.cache),
        ],
        cwd=project.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        project.build(until="finetune", overrides=["train.nodes=2", f"train.main='127.0.0.1:{port}'"])
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
        other.wait()
    assert all(torch.equal(value, expected[name]) for name, value in weights(project).items())
    assert not list((project.cache / "unfinished").glob("*.json"))


@needs_fabric
@pytest.mark.slow
def test_a_further_process_that_fails_is_named(project):
    """The data factory fails only in the second process, which has another command line."""
    project.edit(
        "shapes.py",
        "    generator = np.random.default_rng(seed)\n    return",
        "    import sys\n    if 'exporter.pipeline.follow' in sys.orig_argv:\n"
        "        raise MemoryError('too small a machine')\n"
        "    generator = np.random.default_rng(seed)\n    return",
    )
    with pytest.raises(StageError) as caught:
        project.build(until="finetune", overrides=["train.devices=2"])
    assert caught.value.cause == "a training process did not start"
    assert "too small a machine" in caught.value.fix


@needs_fabric
@pytest.mark.slow
def test_a_fault_in_a_further_process_is_a_worker_fault(project, monkeypatch):
    script = (
        "import sys; from exporter.pipeline import follow, resolved_recipe; "
        "resolved_recipe.resolve_recipe = None; sys.exit(follow.main())"
    )
    started = subprocess.Popen

    def start(line, **options):
        return started(
            [sys.executable, "-c", script] if "exporter.pipeline.follow" in line else line, **options
        )

    monkeypatch.setattr("exporter.training.loop.hardware.subprocess.Popen", start)
    with pytest.raises(WorkerFault) as caught:
        project.build(until="finetune", overrides=["train.devices=2"])
    told = ending(caught.value)
    assert (told.exit_code, told.place) == (70, "worker, finetune")
    assert told.cause.startswith(
        "a training process did not start: error: exporter/pipeline/follow.py, line "
    )
    assert "Traceback (most recent call last)" in caught.value.trace


@needs_fabric
def test_hardware_is_part_of_a_stages_key(project):
    from exporter.pipeline.plan import plan_steps
    from exporter.pipeline.resolved_recipe import resolve_recipe

    def ingredients(*overrides):
        recipe = read_recipe(project.recipe, overrides)
        steps = plan_steps(resolve_recipe(recipe, project.folder, SILENT))
        return {step.name: step.ingredients() for step in steps}

    plain, half = ingredients(), ingredients("train.precision='bf16-mixed'")
    assert plain["finetune"] != half["finetune"]
    assert plain["prune"] == half["prune"]


def test_machines_are_counted_from_one(command, project):
    result = command("follow", project.recipe, "--node", "0")
    assert result.code == 2
    assert "--node" in result.err


@pytest.fixture
def announced(project):
    """A function that writes a job of the project's recipe as a build does, with changes.

    It returns the path of the job's file.
    """
    home = project.cache / "unfinished"
    home.mkdir(mode=0o700, parents=True)
    project.cache.chmod(0o700)

    def announce(**changes):
        first = Job(
            read_recipe(project.recipe, ["train.nodes=2"]),
            project.folder,
            "finetune",
            {"pretrained": project.cache / "ab" / "abcd"},
            home / "key",
        )
        path = home / "job.json"
        path.write_text(replace(first, **changes).to_json())
        path.chmod(0o600)
        return path

    return announce


@pytest.fixture
def joins(monkeypatch):
    """The jobs that `follow` started processes for; the processes are not really started."""
    found = []

    @contextlib.contextmanager
    def pretended(job, numbers):
        found.append(job)
        yield []

    monkeypatch.setattr(hardware, "processes", pretended)
    return found


def refuse_to_sleep(seconds):
    pytest.fail("follow waits, although there is a job")


@pytest.fixture
def follow_once(project, monkeypatch):
    monkeypatch.setattr(hardware.time, "sleep", refuse_to_sleep)
    return lambda node=1: hardware.follow(project.cache, node, folder=project.folder, jobs=1)


def test_a_job_of_the_same_user_is_joined(project, announced, joins, follow_once):
    announced()
    follow_once()
    (found,) = joins
    assert (found.node, found.stage, found.folder) == (1, "finetune", project.folder)
    assert found.unfinished == project.cache / "unfinished" / "key"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_job_that_others_can_write_is_refused(announced, joins, follow_once, mode):
    path = announced()
    path.chmod(mode)
    with pytest.raises(StageError) as caught:
        follow_once()
    assert caught.value.place == str(path)
    assert caught.value.fix == f"run: chmod go-w {path}"
    assert not joins


@pytest.mark.parametrize("name", [".", "project", "project/.edgeproof", "project/.edgeproof/unfinished"])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_is_refused(project, announced, joins, follow_once, *, name, mode):
    announced()
    folder = (project.folder.parent / name).resolve()
    folder.chmod(mode)
    with pytest.raises(StageError) as caught:
        follow_once()
    assert caught.value.place == str(folder)
    assert caught.value.fix == f"run: chmod go-w {folder}"
    assert not joins


def test_a_working_directory_that_others_can_write_is_refused(
    tmp_path, monkeypatch, announced, joins, follow_once
):
    announced()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o1777)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(StageError, match=r"elsewhere: others can write to it \(mode 1777\)"):
        follow_once()
    assert not joins


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    "name", ["", ".edgeproof", ".edgeproof/unfinished", ".edgeproof/unfinished/job.json"]
)
def test_places_that_belong_to_another_user_are_refused(project, announced, joins, follow_once, name):
    announced()
    os.chown(project.folder / name, 1001, 1001)
    with pytest.raises(StageError, match="belongs to user 1001, not to user 0") as caught:
        follow_once()
    assert caught.value.place == str(project.folder / name)
    assert not joins


def test_a_job_that_is_a_link_is_refused(tmp_path, announced, joins, follow_once):
    path = announced()
    path.rename(tmp_path / "moved.json")
    path.symlink_to(tmp_path / "moved.json")
    with pytest.raises(StageError, match=r"job\.json: is a symbolic link; remove it"):
        follow_once()
    assert not joins


def test_a_job_that_is_too_large_is_refused(monkeypatch, announced, joins, follow_once):
    path = announced()
    monkeypatch.setattr(hardware, "MAX_JOB_BYTES", path.stat().st_size)
    follow_once()
    monkeypatch.setattr(hardware, "MAX_JOB_BYTES", path.stat().st_size - 1)
    with pytest.raises(StageError, match="is larger than"):
        follow_once()
    assert len(joins) == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"folder": "elsewhere"}, "folder"),
        ({"folder": "project/.."}, "folder"),
        ({"unfinished": "elsewhere/key"}, "unfinished"),
        ({"unfinished": "project/.edgeproof/unfinished"}, "unfinished"),
        ({"unfinished": "project/.edgeproof/unfinished/../../key"}, "unfinished"),
        ({"folders": "elsewhere"}, "folders.pretrained"),
        ({"folders": "project/.edgeproof/outside"}, "folders.pretrained"),
    ],
)
def test_a_job_with_paths_outside_the_cache_is_refused(
    tmp_path, project, announced, *, joins, follow_once, changes, key
):
    (project.cache / "outside").symlink_to(tmp_path)
    ((name, path),) = changes.items()
    place = tmp_path / path
    path = announced(**{name: {"pretrained": place} if name == "folders" else place})
    with pytest.raises(StageError) as caught:
        follow_once()
    assert caught.value.place == f"{path}: {key}"
    assert str(place) in caught.value.cause
    assert not joins


def test_links_to_the_same_places_are_accepted(tmp_path, project, announced, joins, follow_once):
    (tmp_path / "link").symlink_to(project.folder)
    announced(folder=tmp_path / "link", unfinished=tmp_path / "link" / ".edgeproof" / "unfinished" / "key")
    follow_once()
    assert joins[0].folder == project.folder
    assert joins[0].unfinished == project.cache / "unfinished" / "key"


def test_a_node_that_the_recipe_does_not_have_is_refused(announced, joins, follow_once):
    announced()
    with pytest.raises(StageError, match=r"^--node: 2 is out of range: the build uses 2 machine\(s\)"):
        follow_once(node=2)
    assert not joins


@needs_fabric
def test_errors_of_follow_are_one_line(command, project, announced, joins):
    announced().chmod(0o666)
    result = command("follow", project.recipe, "--node", "1")
    assert result.code == 2
    assert result.err.startswith(f"error: {project.cache}/unfinished/job.json: others can write to it")
    assert result.err.count("\n") == 1
    result = command("follow", project.folder / "other.toml", "--node", "1")
    assert (result.code, joins) == (2, [])
    assert "other.toml: there is no such file" in result.err


@pytest.fixture
def generous_umask():
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous_umask")
def test_only_the_user_can_read_an_announced_job(project):
    first = Job(
        read_recipe(project.recipe, ["train.nodes=2"]),
        project.folder,
        "finetune",
        {"pretrained": project.cache / "ab" / "abcd"},
        project.cache / "unfinished" / "key",
    )
    path = project.cache / "unfinished" / "job.json"
    # Private name: a test with a real build would need a second machine.
    with hardware._announced(first):
        modes = [stat.S_IMODE(place.stat().st_mode) for place in (path, path.parent, project.cache)]
        assert Job.from_json(path.read_bytes()) == first
    assert modes == [0o600, 0o700, 0o700]
    assert not path.exists()


@needs_fabric
@pytest.mark.parametrize("name", ["", ".edgeproof", ".edgeproof/unfinished"])
@pytest.mark.parametrize("start", [build, ablate])
def test_a_build_refuses_folders_that_follow_would_refuse(project, name, start):
    (project.cache / "unfinished").mkdir(parents=True)
    for place in (project.cache, project.cache / "unfinished"):
        place.chmod(0o755)
    folder = project.folder / name
    folder.chmod(0o775)
    with pytest.raises(StageError) as caught:
        start(project.recipe, overrides=["train.nodes=2"])
    assert (caught.value.place, caught.value.fix) == (str(folder), f"run: chmod go-w {folder}")
    assert not project.events()


@needs_fabric
@pytest.mark.usefixtures("generous_umask")
def test_a_build_creates_folders_that_follow_accepts(project):
    """The build reaches the data factory, so it did not refuse the folders that it created."""
    project.edit(
        "shapes.py", "    generator = np.random.default_rng(seed)\n    return", "    1 / 0\n    return"
    )
    with pytest.raises(LookupFailed, match="division by zero"):
        project.build(overrides=["train.nodes=2"])
    for place in (project.cache, project.cache / "unfinished"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.usefixtures("generous_umask")
def test_a_build_on_one_machine_keeps_the_umask(project):
    project.edit(
        "shapes.py", "    generator = np.random.default_rng(seed)\n    return", "    1 / 0\n    return"
    )
    with pytest.raises(LookupFailed, match="division by zero"):
        project.build()
    assert stat.S_IMODE(project.cache.stat().st_mode) == 0o775
