"""The files that a reader of the documentation has: models, samples, pictures and an artifact."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.docs.code_blocks import environment


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder as the pages assume it.

    `model.onnx` is a trained float model, with `calibration.npz` and `evaluation.npz`.
    `artifacts/my-model` is an artifact, `releases/my-model` an earlier one.
    `pictures/train` and `pictures/val` have one folder per class.
    """
    folder = tmp_path_factory.mktemp("desk")

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "exporter", *arguments],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    run("new", "my-model")
    build = ("build", "my-model/recipe.toml", "--set", "stage.finetune.epochs=6")
    build += ("--set", "quantize.goal=size")  # both builds leave the same layers in int8, on any machine
    run(*build, "--out", "releases/my-model")
    run(*build, "--set", "quantize.method=mse")  # trains nothing again, and is another file
    artifact = folder / "artifacts" / "my-model"
    shutil.copyfile(artifact / "model.fp32.onnx", folder / "model.onnx")
    shutil.copyfile(artifact / "evaluation.npz", folder / "evaluation.npz")
    with np.load(artifact / "evaluation.npz") as arrays:
        samples = {name: arrays[name][:64] for name in arrays.files if name != "labels"}
    np.savez(folder / "calibration.npz", **samples)
    draw_pictures(folder / "pictures")
    return folder


def draw_pictures(folder):
    """Discs and squares, in one folder per class: 60 of each to train on, 150 to evaluate."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 150)):
        for name in ("discs", "squares"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                draw_picture(name, generator).save(folder / split / name / f"{index}.png")


def draw_picture(name, generator):
    """A bright disc or square on a dark ground, 80 x 64 pixels."""
    image = Image.new("RGB", (80, 64), tuple(generator.integers(0, 120, 3).tolist()))
    x, y, radius = generator.integers([20, 20, 8], [60, 44, 18]).tolist()
    canvas = ImageDraw.Draw(image)
    shape = canvas.ellipse if name == "discs" else canvas.rectangle
    shape(
        (x - radius, y - radius, x + radius, y + radius),
        fill=tuple(generator.integers(140, 256, 3).tolist()),
    )
    return image


@pytest.fixture
def page_folder(desk, tmp_path):
    """A copy of that folder for one page."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    return tmp_path
