"""Reading a `.pt2` program (`torch.export.save`) that a stranger may have made.

`torch.export.load` runs what a file tells it to: it unpickles weights and objects, loads compiled
libraries, evaluates size expressions and guards as Python, and calls whatever function a node names. Here
an archive may hold tensors and a graph of ATen operators, nothing else. What torch decodes is a copy of
what was checked: its pickles are written here, of tensors, and it has no guards.
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
# What the writer of an archive adds itself.
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
    # Not all of `operator`: its `call` and `attrgetter` would open every door again.
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
# What sizes are computed with, as torch writes them.
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
        ModelError: it is missing, damaged, too large, or holds anything that could run code.
    """
    if not path.is_file():
        raise ModelError(path, "there is no such file", "check the path")
    if path.stat().st_size > MAX_PROGRAM_BYTES:
        raise ModelError(path, "is larger than a program can be", "give a smaller one")
    try:
        with TemporaryDirectory(prefix="edgeproof-") as folder, torch_exporter():
            copy = Path(folder) / "checked.pt2"
            _write_checked(path, copy)
            return torch.export.load(copy)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            path, "holds a pickle of more than tensors", "save a plain torch.export program"
        ) from error
    except Exception as error:  # torch's readers raise whatever their many parts do
        raise ModelError(
            path, f"is no readable .pt2 ({error})", "save it again with torch.export.save"
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
                path, f"holds {name!r}, neither a tensor nor a graph", "save a plain torch.export program"
            )
    if GRAPH not in names:
        raise ModelError(path, "holds no program", "save it with torch.export.save")


def _pickled(archive: PT2ArchiveReader, names: list[str]) -> Iterator[str]:
    """The weights and constants that torch would unpickle."""
    for name in names:
        if name.endswith("_config.json"):
            folder = name.rpartition("/")[0]
            for entry in json.loads(archive.read_bytes(name))["config"].values():
                if entry["use_pickle"]:
                    yield f"{folder}/{entry['path_name']}"


def _tensors_alone(content: bytes) -> bytes:
    """A pickle of the tensors that another one holds.

    Raises:
        UnpicklingError: it holds more.
    """
    stream = io.BytesIO()
    torch.save(torch.load(io.BytesIO(content), weights_only=True), stream)
    return stream.getvalue()


def _checked_graph(path: Path, content: bytes) -> bytes:
    """The graph without its guards, which are Python text that would be run."""
    graph = json.loads(content)
    for place in _dicts(graph):
        if {"target", "inputs", "outputs"} <= place.keys() and not _OPERATORS.fullmatch(
            str(place["target"])
        ):
            raise ModelError(
                path,
                f"calls {place['target']!r}, no operator of PyTorch's",
                "export the network without it",
            )
        if {"as_operator", "as_custom_obj"} & place.keys():
            raise ModelError(path, "hands on functions or objects", "export the network without them")
        if "expr_str" in place and not _is_size(str(place["expr_str"])):
            raise ModelError(path, f"computes a size by {place['expr_str']!r}", "export it again")
    return json.dumps(graph | {"guards_code": []}).encode()


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All tables in nested JSON."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(child)


def _is_size(expression: str) -> bool:
    """Whether a text is arithmetic on symbols, harmless to evaluate."""
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
