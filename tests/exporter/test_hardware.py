"""Training through Lightning Fabric: precision, several processes, several machines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.errors import MissingExtraError
from bench.faults import WorkerFault, ending
from bench.progress import SILENT
from exporter.errors import StageError
from exporter.network import Network, accuracy
from exporter.recipe import FineTuneConfig, read_recipe, recipe_from
from exporter.stages.finetune import cross_entropy
from exporter.training import ONE_CPU, fit, hardware
from exporter.training.engine import FabricEngine
from exporter.training.hardware import Job, check_hardware, open_engine

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


def test_a_job_survives_its_way_to_another_process():
    first = job(devices=2, nodes=3)
    again = Job.from_json(first.to_json())
    assert again == first
    assert again.world == 6


def test_one_process_on_the_cpu_is_plain_pytorch():
    with open_engine(job()) as engine:
        assert engine is ONE_CPU


def test_fabric_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lightning_fabric: .* \"edgeproof\[train\]\""):
        check_hardware(job(precision="bf16-mixed").recipe)
    check_hardware(job().recipe)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_fabric
def test_a_gpu_that_is_not_there():
    with pytest.raises(StageError) as caught:
        check_hardware(job(accelerator="gpu").recipe)
    assert caught.value.place == "train.accelerator"
    assert caught.value.cause == "1 GPU(s) are asked for, PyTorch finds 0"
    with open_engine(job(accelerator="auto")) as engine:
        assert engine is ONE_CPU


@needs_fabric
def test_a_batch_that_cannot_be_shared_out():
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
def test_bf16_learns_and_differs(tiny, splits):
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
def test_two_processes_do_what_one_does(project):
    """Two halves of a batch have the mean gradient of the whole, where no norm looks at the batch."""
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
def test_two_machines_do_what_one_does(project):
    project.edit("recipe.toml", FINETUNE, FROZEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    project.build(until="finetune", overrides=["train.devices=2"])
    expected = weights(project)
    line = "from exporter.training.hardware import follow; import sys; from pathlib import Path;"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{line} follow(Path(sys.argv[1]), 1, jobs=1)", str(project.cache)],
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
    """The second process finds other data: a file tells it that it is not the first."""
    project.edit(
        "shapes.py",
        "    generator = np.random.default_rng(seed)\n    return",
        "    import sys\n    if 'exporter.follow' in sys.orig_argv:\n"
        "        raise MemoryError('too small a machine')\n"
        "    generator = np.random.default_rng(seed)\n    return",
    )
    with pytest.raises(StageError) as caught:
        project.build(until="finetune", overrides=["train.devices=2"])
    assert caught.value.cause == "a further process did not start"
    assert "too small a machine" in caught.value.fix


@needs_fabric
@pytest.mark.slow
def test_a_fault_in_a_further_process_is_one_of_the_program(project, monkeypatch):
    script = (
        "import sys; from exporter import follow, workshop; "
        "workshop.open_workshop = None; sys.exit(follow.main())"
    )
    started = subprocess.Popen

    def start(line, **options):
        return started([sys.executable, "-c", script] if "exporter.follow" in line else line, **options)

    monkeypatch.setattr("exporter.training.hardware.subprocess.Popen", start)
    with pytest.raises(WorkerFault) as caught:
        project.build(until="finetune", overrides=["train.devices=2"])
    told = ending(caught.value)
    assert (told.exit_code, told.place) == (70, "worker, finetune")
    assert told.cause.startswith("a further process did not start: error: exporter/follow.py, line ")
    assert "Traceback (most recent call last)" in caught.value.trace


@needs_fabric
def test_hardware_is_part_of_what_a_stage_hangs_on(project):
    from exporter.steps import recipe_steps
    from exporter.workshop import open_workshop

    def ingredients(*overrides):
        recipe = read_recipe(project.recipe, overrides)
        return {s.name: s.ingredients for s in recipe_steps(open_workshop(recipe, project.folder, SILENT))}

    plain, half = ingredients(), ingredients("train.precision='bf16-mixed'")
    assert plain["finetune"] != half["finetune"]
    assert plain["prune"] == half["prune"]


def test_machines_are_counted_from_one(command, project):
    result = command("follow", project.recipe, "--node", "0")
    assert result.code == 2
    assert "--node" in result.err
