"""Versions of ONNX Runtime that a model runs on."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

from bench.core.errors import ModelError
from bench.core.model_file import read_model_file

# Metadata key for the ONNX Runtime version that an .onnx of edgeproof needs, for example "1.28".
METADATA_KEY = "edgeproof.min_onnxruntime"
VERSION_PATTERN = r"\d{1,4}\.\d{1,4}"
_VERSION = re.compile(rf"{VERSION_PATTERN}(?![\d])")
_REQUIREMENT = re.compile(rf"\s*>=\s*({VERSION_PATTERN})(?:\.\d{{1,4}})?\s*")


class RuntimeVersion(NamedTuple):
    """Major and minor version of ONNX Runtime. Patch releases add no operators, so two numbers suffice."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the version at the start of a text, or None."""
        found = _VERSION.match(text)
        return None if found is None else cls(*(int(number) for number in found[0].split(".")))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


# The oldest version that edgeproof supports, as in `dependencies` of pyproject.toml.
OLDEST = RuntimeVersion(1, 22)


def required_version(requirement: str) -> RuntimeVersion:
    """Return the version of a requirement such as `>=1.24`.

    Raises:
        ValueError: the requirement has another form, or names a version that edgeproof does not support.
    """
    found = _REQUIREMENT.fullmatch(requirement)
    if found is None:
        raise ValueError(f'{requirement!r} is not a requirement on ONNX Runtime: write it as ">={OLDEST}"')
    wanted = RuntimeVersion.parse(found[1])
    assert wanted is not None
    if wanted < OLDEST:
        raise ValueError(
            f"{wanted} is older than {OLDEST}, the oldest ONNX Runtime that edgeproof supports"
        )
    return wanted


def stated_version(model: Path) -> RuntimeVersion | None:
    """Return the version that an .onnx file needs, from its metadata; None if it states none."""
    return RuntimeVersion.parse(read_model_file(model).metadata.get(METADATA_KEY, ""))


def check_runtime(place: Path, needed: RuntimeVersion | None, installed: str | None = None) -> None:
    """Check that the installed ONNX Runtime is new enough for a model.

    Args:
        place: the model or artifact, for the error.
        needed: the version that the model states it needs, or None.
        installed: the version of ONNX Runtime; by default the version of the installed package.

    Raises:
        ModelError: the installed version is older than the needed one.
    """
    installed = installed or version("onnxruntime")
    here = RuntimeVersion.parse(installed)
    if needed is not None and here is not None and here < needed:
        raise ModelError(
            place,
            f"needs ONNX Runtime {needed}, but {installed} is installed",
            f"upgrade ONNX Runtime, or build the model for {here} "
            f'(onnxruntime = ">={here}" in the recipe\'s [quantize], or quantize --onnxruntime ">={here}")',
        )
