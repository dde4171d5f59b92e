"""The model and the samples of `edgeproof demo`, both from installed packages.

The model names the type of a file. It comes from the package magika, whose authors trained and exported it.
The samples are files that every installation has: files of Python and of the packages that edgeproof needs.
The suffix of a file determines its label.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import metadata
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np

from bench.core.arrays import Array
from bench.core.errors import DataError
from exporter.sources.lookup import package_file

PACKAGE: Final = "magika"
_MODEL_FOLDER: Final = f"pkg://{PACKAGE}/models/standard_v3_3"

# The model reads `EDGE` bytes of a file's first `BLOCK` bytes and as many of its last `BLOCK` bytes. The
# value `PADDING` stands for each missing byte.
EDGE, BLOCK, PADDING = 1024, 4096, 256

# Suffix -> the model's name for the file type. Suffixes that several types share (.h, .txt, .html) are left
# out.
SUFFIXES: Final = {
    ".bmp": "bmp",
    ".bz2": "bzip",
    ".c": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".css": "css",
    ".csv": "csv",
    ".f90": "fortran",
    ".gif": "gif",
    ".gz": "gzip",
    ".jpg": "jpeg",
    ".js": "javascript",
    ".json": "json",
    ".md": "markdown",
    ".npy": "npy",
    ".npz": "npz",
    ".onnx": "onnx",
    ".pem": "pem",
    ".pickle": "pickle",
    ".pkl": "pickle",
    ".png": "png",
    ".proto": "proto",
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".rst": "rst",
    ".so": "elf",
    ".svg": "svg",
    ".tiff": "tiff",
    ".toml": "toml",
    ".ttf": "ttf",
    ".wav": "wav",
    ".webp": "webp",
    ".whl": "zip",
    ".xml": "xml",
    ".xz": "xz",
    ".zip": "zip",
}
# The packages whose files are read, besides Python itself: edgeproof and the extra `demo` need them all.
_PACKAGES: Final = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "pydantic", "rich")
_OTHER_FOLDERS: Final = {"site-packages", "dist-packages"}

# If int8 changes 1 % of the predictions, 640 samples show with a power of 80 % that it loses less than one
# point of accuracy: `planned_count(0.1, 0.01, 0.05)` is 619. Fewer than 268 samples could never show this.
EVALUATION_COUNT, FEWEST = 640, 300
CALIBRATION_PER_TYPE, FEWEST_PER_TYPE = 3, 6
SMALLEST_FILE_BYTES = 64


@dataclass(frozen=True)
class ShippedModel:
    """A float model from an installed package.

    Attributes:
        path: the .onnx file.
        classes: names of the classes, in the order of the model's outputs.
        package: name of the package.
        version: version of the package.
        licence: licence of the package.
    """

    path: Path
    classes: tuple[str, ...]
    package: str
    version: str
    licence: str


@dataclass(frozen=True)
class DemoData:
    """Labelled files of this installation.

    Attributes:
        calibration: calibration samples [N, 2 x EDGE].
        evaluation: evaluation samples [M, 2 x EDGE], from other files.
        labels: classes of the evaluation files, [M].
        ids: names of the evaluation files.
        types: number of file types.
    """

    calibration: Array
    evaluation: Array
    labels: Array
    ids: tuple[str, ...]
    types: int


def shipped_model() -> ShippedModel:
    """The model of the installed package, which is not imported.

    Raises:
        LookupFailed: the package holds no such model.
    """
    config = json.loads(package_file(f"{_MODEL_FOLDER}/config.min.json").read_text(encoding="utf-8"))
    about = metadata(PACKAGE)
    return ShippedModel(
        package_file(f"{_MODEL_FOLDER}/model.onnx"),
        tuple(config["target_labels_space"]),
        PACKAGE,
        about["Version"],
        about["License"],
    )


def data_folders() -> list[Path]:
    """The folders whose files are read: Python's standard library, and some packages."""
    roots = [Path(sysconfig.get_path("stdlib"))]
    for package in _PACKAGES:
        spec = find_spec(package)
        roots += [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    return roots


def labelled_files(roots: Sequence[Path], classes: Sequence[str]) -> DemoData:
    """Draw calibration and evaluation samples, from all types in turn; no sample is in both.

    Raises:
        DataError: there are fewer than `FEWEST` evaluation samples.
    """
    index = {name: number for number, name in enumerate(classes)}
    calibration: list[Array] = []
    columns: list[list[tuple[str, str, Array]]] = []
    seen: set[bytes] = set()
    for name, files in _files_by_type(roots).items():
        samples = list(_distinct(files[: EVALUATION_COUNT // 2], seen)) if name in index else []
        if len(samples) < FEWEST_PER_TYPE:
            continue
        calibration += [sample for _, sample in samples[:CALIBRATION_PER_TYPE]]
        columns.append([(name, place, sample) for place, sample in samples[CALIBRATION_PER_TYPE:]])
    drawn = [row for rows in zip_longest(*columns) for row in rows if row is not None][:EVALUATION_COUNT]
    if len(drawn) < FEWEST:
        raise DataError(
            str(roots[0]),
            f"only {len(drawn)} usable files of known types were found, {FEWEST} are needed",
            "install Python with its whole standard library",
        )
    return DemoData(
        calibration=np.stack(calibration),
        evaluation=np.stack([sample for _, _, sample in drawn]),
        labels=np.array([index[name] for name, _, _ in drawn], np.int64),
        ids=tuple(place for _, place, _ in drawn),
        types=len(columns),
    )


def _files_by_type(roots: Sequence[Path]) -> dict[str, list[tuple[str, Path]]]:
    """Type -> names and paths of its files, in an order that depends on the names alone."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for root in roots:
        for folder, inner, names in os.walk(root):
            inner[:] = [name for name in inner if name not in _OTHER_FOLDERS]
            for name in names:
                if (kind := SUFFIXES.get(Path(name).suffix)) is not None:
                    path = Path(folder, name)
                    place = f"{root.name}/{path.relative_to(root).as_posix()}"
                    found.setdefault(kind, []).append((place, path))
    return {
        kind: sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
        for kind, files in sorted(found.items())
    }


def _distinct(files: Sequence[tuple[str, Path]], seen: set[bytes]) -> Iterator[tuple[str, Array]]:
    """Names and samples of files. Tiny files, unreadable files and samples in `seen` are skipped."""
    for place, path in files:
        try:
            if path.stat().st_size < SMALLEST_FILE_BYTES:
                continue
            sample = sample_of(path)
        except OSError:
            continue
        if (digest := sample.tobytes()) not in seen:
            seen.add(digest)
            yield place, sample


def sample_of(path: Path) -> Array:
    """The model's input for a file: int32 [2 x EDGE], first and last bytes without outer white space.

    The package does the same in `magika.magika.Magika._extract_features_from_seekable`.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        first = file.read(BLOCK).lstrip()[:EDGE]
        file.seek(max(0, size - BLOCK))
        last = file.read(BLOCK).rstrip()[-EDGE:]
    sample = np.full(2 * EDGE, PADDING, np.int32)
    sample[: len(first)] = np.frombuffer(first, np.uint8)
    sample[2 * EDGE - len(last) :] = np.frombuffer(last, np.uint8)
    return sample
