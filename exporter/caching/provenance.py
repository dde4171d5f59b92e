"""What a result depends on besides its recipe: code and library versions."""

from __future__ import annotations

import hashlib
import platform
import site
import sys
import sysconfig
from collections.abc import Iterable
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
# What a folder of installed packages is called, of whichever interpreter it is.
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


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
    root = Path(__file__).resolve().parents[2]
    files = [file for package in _OWN_PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return _hash_files(root, files)


def user_code(roots: tuple[Path, ...], factories: tuple[str, ...]) -> str:
    """A hash over the user's modules that are loaded: those below `roots` and those of the factories.

    Python's own library, installed packages and edgeproof do not count, wherever `roots` lie, unless a
    factory is theirs. They count by their versions: which of their modules are loaded differs from one
    run to the next.
    """
    named = {reference.partition(":")[0] for reference in factories}
    places = tuple(root.resolve() for root in roots)
    own, standard, installed = _own_packages(), _standard_library(), _installed_packages()
    files: set[Path] = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if _is_below(path, own) or not path.is_file():  # torch registers modules without a file
            continue
        foreign = (
            # Distributions link single modules of Python's library to files elsewhere.
            _is_below(path, standard | installed)
            or _is_below(Path(file), standard)
            or not _PACKAGE_FOLDERS.isdisjoint(path.parts)
        )
        if name in named or (_is_below(path, places) and not foreign):
            files.add(path)
    return _hash_files(Path("/"), sorted(files), names_matter=False)


def _standard_library() -> set[Path]:
    """Where the modules of Python itself lie, for a virtual environment those of its base too."""
    return _library_paths("stdlib", "platstdlib")


def _installed_packages() -> set[Path]:
    """Where packages are installed: for this environment, its base and this user."""
    others = [*site.getsitepackages(), site.getusersitepackages()]
    return _library_paths("purelib", "platlib") | {Path(path).resolve() for path in others}


def _library_paths(*names: str) -> set[Path]:
    """Folders by their names in `sysconfig`, as they are written and with links resolved.

    The prefixes themselves are not libraries: a project may lie in its virtual environment, or below
    `/usr`.
    """
    found: set[Path] = set()
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        variables = dict.fromkeys(("base", "platbase", "installed_base", "installed_platbase"), prefix)
        found |= {Path(sysconfig.get_path(name, vars=variables)) for name in names}
    found |= {Path(sysconfig.get_path(name)) for name in names}
    return found | {path.resolve() for path in found}


def _own_packages() -> set[Path]:
    root = Path(__file__).resolve().parents[2]
    return {root / package for package in _OWN_PACKAGES}


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _hash_files(root: Path, files: list[Path], *, names_matter: bool = True) -> str:
    digest = hashlib.sha256()
    for file in files:
        label = file.relative_to(root).as_posix() if names_matter else file.name
        content = file.read_bytes()
        digest.update(f"{label}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()
