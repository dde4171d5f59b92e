"""Optional dependencies, checked before the work starts."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Final, NamedTuple

from bench.core.errors import MissingExtraError, UsageError
from bench.inputs.runtime import RuntimeVersion


class Tested(NamedTuple):
    """The versions of a library whose private parts are used, from `oldest` to before `below`.

    They are those of pyproject.toml. What is private may change with any release, so that a newer one is
    refused until edgeproof was tested with it.
    """

    oldest: RuntimeVersion
    below: RuntimeVersion


# `onnxruntime`: quantization/ort_quantizer.py.
TESTED: Final = {"onnxruntime": Tested(RuntimeVersion(1, 27), RuntimeVersion(1, 33))}

# module -> extra that brings it; checked before an hour of training, not after
_NEEDED = {
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "torch_pruning": "export",
    "jinja2": "report",
    "matplotlib": "report",
}


def require_all() -> None:
    """Make sure that all is there that a build needs.

    Raises:
        MissingExtraError: with the line that installs it.
    """
    for module, extra in _NEEDED.items():
        require(module, extra)
    for library in TESTED:
        require_tested(library)


def require_tested(library: str, installed: str | None = None) -> None:
    """Make sure that a library whose private parts are used is of a version that was tested.

    Args:
        library: a key of `TESTED`.
        installed: the version; by default that of the installed package.

    Raises:
        UsageError: it is older or newer.
    """
    installed = installed or version(library)
    here, tested = RuntimeVersion.parse(installed), TESTED[library]
    if here is None or tested.oldest <= here < tested.below:
        return
    wanted = f"{tested.oldest} or later" if here < tested.oldest else f"a version before {tested.below}"
    raise UsageError(
        library,
        f"to quantize takes {wanted}, this is {installed}",
        'run: pip install -c constraints.txt "edgeproof[export]" (models run on older ones too)',
    )


def require(module: str, extra: str) -> None:
    """Make sure that an optional dependency is there.

    Raises:
        MissingExtraError: with the line that installs it.
    """
    if find_spec(module) is None:
        raise MissingExtraError(module, extra)
