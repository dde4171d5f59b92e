"""Code and library versions: the inputs of a result that are not in its recipe."""

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
# Names of folders of installed packages, for any interpreter.
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of all libraries that affect a model; `absent` if one is not installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def own_code() -> str:
    """Hash of the source of edgeproof itself; two development versions never share cache entries."""
    root = Path(__file__).resolve().parents[2]
    files = [file for package in _OWN_PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return _hash_files(root, files)


def user_code(roots: tuple[Path, ...], factories: tuple[str, ...]) -> str:
    """Hash of the user's loaded modules: modules below `roots`, and modules that define the factories.

    Python's standard library, installed packages and edgeproof are left out even if they are below `roots`,
    unless a factory is defined there. Their versions represent them instead, because the set of their
    loaded modules differs from run to run.

    Args:
        roots: folders of the user's code.
        factories: `module:attribute` references of the recipe.
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
        if _is_below(path, own) or not path.is_file():  # torch registers modules that have no file
            continue
        foreign = (
            # Linux distributions link some modules of the standard library to files elsewhere.
            _is_below(path, standard | installed)
            or _is_below(Path(file), standard)
            or not _PACKAGE_FOLDERS.isdisjoint(path.parts)
        )
        if name in named or (_is_below(path, places) and not foreign):
            files.add(path)
    return _hash_files(Path("/"), sorted(files), names_matter=False)


def _standard_library() -> set[Path]:
    """Folders of the standard library, also of the base interpreter of a virtual environment."""
    return _library_paths("stdlib", "platstdlib")


def _installed_packages() -> set[Path]:
    """Folders of installed packages: of this environment, of its base interpreter and of this user."""
    others = [*site.getsitepackages(), site.getusersitepackages()]
    return _library_paths("purelib", "platlib") | {Path(path).resolve() for path in others}


def _library_paths(*names: str) -> set[Path]:
    """Folders by their names in `sysconfig`, both as written and with links resolved.

    The prefixes themselves do not count as libraries, because a project may be inside its virtual
    environment or below `/usr`.
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
