"""Read a `.pt2` program (`torch.export.save`) from an untrusted source.

`torch.export.load` can execute code from the file: it unpickles weights and objects, loads compiled
libraries, evaluates size expressions and guards as Python, and calls any function that a node names. This
module accepts only archives with tensors and a graph of ATen operators. torch then reads a checked copy:
this module writes all its pickles, with tensors only, and the copy has no guards.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from bench.core.errors import ModelError
from exporter.onnx_export.torch_exporter import torch_exporter

MAX_PROGRAM_BYTES = 8 * 2**30
GRAPH = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
# Records that the archive writer adds itself.
_ADDED = re.compile(r"byteorder|\.data/.*|\.format/.*")
_RECORDS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)|\.format/\w+"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.(sym_\w+|_sym_\w+)"
    r"|math\.\w+"
    # Not the whole `operator` module: with its `call` and `attrgetter`, a graph could run any function.
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
# Functions in size expressions, by the names that torch writes.
_FUNCTIONS = frozenset(
    {
        "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "Eq",
        "Ne", "Gt", "Ge", "Lt", "Le", "Equality", "Unequality", "GreaterThan", "LessThan",
        "StrictGreaterThan", "StrictLessThan", "And", "Or", "Not", "FloorDiv", "ModularIndexing", "Where",
        "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural",
        "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat",
        "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
    }
)  # fmt: skip
_NAMES = re.compile(r"[suz][a-z]{0,3}\d+|int_oo|oo|true|false")
_SAFE_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.operator, ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop,
)  # fmt: skip


def read_program(path: Path) -> ExportedProgram:
    """Read a program of ATen operators and tensors.

    Raises:
        ModelError: the file is missing, damaged, too large, or contains anything that could run code.
    """
    if not path.is_file():
        raise ModelError(path, "there is no such file", "check the path")
    if path.stat().st_size > MAX_PROGRAM_BYTES:
        raise ModelError(
            path,
            f"is larger than {MAX_PROGRAM_BYTES} bytes, the limit for a program",
            "use a smaller program",
        )
    try:
        with TemporaryDirectory(prefix="edgeproof-") as folder, torch_exporter():
            copy = Path(folder) / "checked.pt2"
            _write_checked(path, copy)
            return torch.export.load(copy)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            path, "contains a pickle with more than tensors", "save a plain torch.export program"
        ) from error
    except Exception as error:  # torch's readers may raise any exception
        raise ModelError(
            path, f"is not a readable .pt2 file ({error})", "save it again with torch.export.save"
        ) from error


def _write_checked(path: Path, copy: Path) -> None:
    with PT2ArchiveReader(str(path)) as archive, PT2ArchiveWriter(str(copy)) as checked:
        names = archive.get_file_names()
        _check_names(path, names)
        pickles = {_SAMPLE_INPUTS, *_pickled(archive, names)}
        for name in names:
            content = archive.read_bytes(name)
            if name == GRAPH:
                content = _checked_graph(path, content)
            elif name in pickles:
                content = _tensors_alone(content)
            if not _ADDED.fullmatch(name):
                checked.write_bytes(name, content)


def _check_names(path: Path, names: list[str]) -> None:
    for name in names:
        if not _RECORDS.fullmatch(name):
            raise ModelError(
                path,
                f"contains {name!r}, which is neither a tensor nor a graph",
                "save a plain torch.export program",
            )
    if GRAPH not in names:
        raise ModelError(path, "contains no program", "save it with torch.export.save")


def _pickled(archive: PT2ArchiveReader, names: list[str]) -> Iterator[str]:
    """Names of the weights and constants that torch would unpickle."""
    for name in names:
        if name.endswith("_config.json"):
            folder = name.rpartition("/")[0]
            for entry in json.loads(archive.read_bytes(name))["config"].values():
                if entry["use_pickle"]:
                    yield f"{folder}/{entry['path_name']}"


def _tensors_alone(content: bytes) -> bytes:
    """Pickle the tensors of another pickle again.

    Raises:
        UnpicklingError: the pickle contains more than tensors.
    """
    stream = io.BytesIO()
    torch.save(torch.load(io.BytesIO(content), weights_only=True), stream)
    return stream.getvalue()


def _checked_graph(path: Path, content: bytes) -> bytes:
    """Check a graph, and remove its guards, which are Python text that torch would execute."""
    graph = json.loads(content)
    for place in _dicts(graph):
        if {"target", "inputs", "outputs"} <= place.keys() and not _OPERATORS.fullmatch(
            str(place["target"])
        ):
            raise ModelError(
                path,
                f"calls {place['target']!r}, which is not a PyTorch operator",
                "export the network without it",
            )
        if {"as_operator", "as_custom_obj"} & place.keys():
            raise ModelError(
                path, "passes functions or objects as arguments", "export the network without them"
            )
        if "expr_str" in place and not _is_size(str(place["expr_str"])):
            raise ModelError(
                path,
                f"computes a size with {place['expr_str']!r}, which is not plain arithmetic",
                "save it again with torch.export.save",
            )
    return json.dumps(graph | {"guards_code": []}).encode()


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in nested JSON."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(child)


def _is_size(expression: str) -> bool:
    """Whether an expression is arithmetic on symbols, which is safe to evaluate."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, _SAFE_NODES):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Name):
            known = node.id in _FUNCTIONS if id(node) in called else _NAMES.fullmatch(node.id)
            if not known:
                return False
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not _NAMES.fullmatch(node.value)
        ):
            return False
    return True
