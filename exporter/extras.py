"""Optional dependencies, checked before the work starts."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

from bench.core.errors import MissingExtraError, UsageError
from bench.inputs.runtime import RuntimeVersion

# The same as of the extra `export` in pyproject.toml.
QUANTIZER_NEEDS = RuntimeVersion(1, 27)


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
    require_quantizer()


def require_quantizer(installed: str | None = None) -> None:
    """Make sure that ONNX Runtime's quantizer is one that edgeproof can drive.

    Args:
        installed: the version; by default that of the installed package.

    Raises:
        UsageError: it is older.
    """
    installed = installed or version("onnxruntime")
    here = RuntimeVersion.parse(installed)
    if here is not None and here < QUANTIZER_NEEDS:
        raise UsageError(
            "onnxruntime",
            f"to quantize takes {QUANTIZER_NEEDS} or later, this is {installed}",
            'run: pip install -c constraints.txt "edgeproof[export]" (models run on older ones too)',
        )


def require(module: str, extra: str) -> None:
    """Make sure that an optional dependency is there.

    Raises:
        MissingExtraError: with the line that installs it.
    """
    if find_spec(module) is None:
        raise MissingExtraError(module, extra)
