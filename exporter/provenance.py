"""What a result depends on besides its recipe: code and library versions."""

from __future__ import annotations

import hashlib
import platform
import site
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "edgeproof",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "pydantic",
    "safetensors",
    "torch",
    "torch-pruning",
)
_OWN_PACKAGES = ("bench", "exporter")


@cache
def library_versions() -> dict[str, str]:
    """Versions of everything that shapes a model; `absent` where a library is not installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def own_code() -> str:
    """A hash over the source of edgeproof itself: a development version is never mistaken for another."""
    root = Path(__file__).resolve().parent.parent
    files = [file for package in _OWN_PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return _hash_files(root, files)


def user_code(roots: tuple[Path, ...], factories: tuple[str, ...]) -> str:
    """A hash over the user's modules that are loaded: those below `roots` and those of the factories.

    Installed packages count by the versions of the libraries, not file by file, unless a factory is
    theirs.
    """
    named = {reference.partition(":")[0] for reference in factories}
    installed = [Path(path).resolve() for path in (*site.getsitepackages(), sys.prefix)]
    files: set[Path] = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name.partition(".")[0] in _OWN_PACKAGES or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if not path.is_file():  # torch registers modules whose files exist nowhere
            continue
        local = any(path.is_relative_to(root.resolve()) for root in roots)
        if name in named or (local and not any(path.is_relative_to(place) for place in installed)):
            files.add(path)
    return _hash_files(Path("/"), sorted(files), names_matter=False)


def _hash_files(root: Path, files: list[Path], *, names_matter: bool = True) -> str:
    digest = hashlib.sha256()
    for file in files:
        label = file.relative_to(root).as_posix() if names_matter else file.name
        content = file.read_bytes()
        digest.update(f"{label}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()
