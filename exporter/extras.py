"""Checks for optional dependencies, made before the work starts."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Final, NamedTuple

from bench.core.errors import MissingExtraError, UsageError
from bench.inputs.runtime import RuntimeVersion


class Tested(NamedTuple):
    """Range of versions of a library whose private functions edgeproof calls.

    The bounds equal those in pyproject.toml. Private functions may change with any release, so edgeproof
    refuses a newer version until it has been tested.

    Attributes:
        oldest: the first supported version.
        below: the first version that is not supported.
    """

    oldest: RuntimeVersion
    below: RuntimeVersion


# quantization/ort_quantizer.py calls private functions of onnxruntime.
TESTED: Final = {"onnxruntime": Tested(RuntimeVersion(1, 27), RuntimeVersion(1, 33))}

# Module -> extra that installs it. The modules are checked before an hour of training, not after it.
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
    """Check that everything that a build needs is installed.

    Raises:
        MissingExtraError: a module is missing; the error names the command that installs it.
        UsageError: the installed version of a library was not tested with edgeproof.
    """
    for module, extra in _NEEDED.items():
        require(module, extra)
    for library in TESTED:
        require_tested(library)


def require_tested(library: str, installed: str | None = None) -> None:
    """Check that the version of a library was tested with edgeproof.

    Args:
        library: a key of `TESTED`.
        installed: the version to check; by default the version of the installed package.

    Raises:
        UsageError: the version is outside the tested range.
    """
    installed = installed or version(library)
    here, tested = RuntimeVersion.parse(installed), TESTED[library]
    if here is None or tested.oldest <= here < tested.below:
        return
    wanted = f"{tested.oldest} or later" if here < tested.oldest else f"a version before {tested.below}"
    raise UsageError(
        library,
        f"quantizing needs {wanted}; version {installed} is installed",
        'run: pip install -c constraints.txt "edgeproof[export]" (models also run on older versions)',
    )


def require(module: str, extra: str) -> None:
    """Check that an optional dependency is installed.

    Raises:
        MissingExtraError: the module is missing; the error names the command that installs it.
    """
    if find_spec(module) is None:
        raise MissingExtraError(module, extra)
