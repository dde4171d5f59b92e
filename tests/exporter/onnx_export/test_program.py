"""`.pt2` programs: reading tensors and operators, and refusing everything that could run code."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch

from bench.core.errors import ModelError
from exporter.graphs.inference import run_model
from exporter.networks.network import predict
from exporter.onnx_export.export import export_program
from exporter.onnx_export.program import read_program
from exporter.pipeline.quantize_file import quantize_file


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    """The path of an encoder as a program with dynamic batch and length."""
    path = tmp_path_factory.mktemp("program") / "encoder.pt2"
    inputs = {name: torch.from_numpy(array) for name, array in encoder.draw(4, 9).inputs.items()}
    open_axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=32)}
    program = torch.export.export(
        encoder.net(), (), inputs, dynamic_shapes=dict.fromkeys(inputs, open_axes)
    )
    torch.export.save(program, path)
    return path


@pytest.fixture
def altered(saved, tmp_path):
    """A function that writes the program with changed or added records.

    Its argument maps the name of a record to a function (old bytes) -> new bytes.
    """

    def write(changes):
        path = tmp_path / "altered.pt2"
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
            root = old.namelist()[0].split("/")[0]
            records = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()}
            for name, change in changes.items():
                records[name] = change(records.get(name, b""))
            for name, content in records.items():
                new.writestr(f"{root}/{name}", content)
        return path

    return write


def in_graph(old, new):
    return {"models/model.json": lambda content: content.replace(old.encode(), new.encode(), 1)}


def refusal(path):
    with pytest.raises(ModelError) as caught:
        read_program(path)
    return caught.value


def test_a_program_is_exported_with_its_inputs_and_dynamic_axes(encoder, saved, tmp_path):
    path = tmp_path / "model.onnx"
    export_program(saved, path, 20)
    assert [value.name for value in onnx.load(path).graph.input] == ["input_ids", "attention_mask"]
    for count, length in ((1, 5), (6, 21)):
        sample = encoder.draw(count, length)
        assert np.allclose(run_model(path, sample), predict(encoder.net(), sample), atol=1e-5)


def test_a_program_is_quantized(encoder, saved, tmp_path):
    data, out = tmp_path / "tokens.npz", tmp_path / "int8.onnx"
    np.savez(data, **encoder.draw(16, 9).inputs)
    answer = quantize_file(saved, data, out, target="x86-vnni")
    assert answer.made.samples == 16
    assert run_model(out, encoder.draw(3, 14)).shape == (3, 3)


def test_an_unchanged_copy_is_read(altered):
    assert read_program(altered({})).graph_signature.user_inputs == ("input_ids", "attention_mask")


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def torch_pickle(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("record", ["data/constants/opaque_obj_0", "data/constants/custom_obj_0"])
def test_objects_are_refused_without_unpickling(altered, tmp_path, record):
    trap = tmp_path / "trap"
    error = refusal(altered({record: lambda _: pickle.dumps(Bomb(trap))}))
    assert record in error.cause
    assert not trap.exists()


def test_compiled_libraries_are_refused(altered):
    error = refusal(altered({"data/aotinductor/model/model.so": lambda _: b"ELF"}))
    assert "neither a tensor nor a graph" in error.cause


def test_sample_inputs_are_not_unpickled(altered, tmp_path):
    trap = tmp_path / "trap"
    error = refusal(altered({"data/sample_inputs/model.pt": lambda _: torch_pickle(Bomb(trap))}))
    assert error.cause == "contains a pickle with more than tensors"
    assert not trap.exists()


def test_pickled_weights_are_not_unpickled(altered, tmp_path):
    trap = tmp_path / "trap"

    def with_pickles(content):
        config = json.loads(content)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()

    refusal(
        altered(
            {
                "data/weights/model_weights_config.json": with_pickles,
                "data/weights/weight_0": lambda _: torch_pickle(Bomb(trap)),
            }
        )
    )
    assert not trap.exists()


@pytest.mark.parametrize(
    "target", ["torch.os.system", "_operator.call", "_operator.attrgetter", "os.system"]
)
def test_functions_that_are_not_operators_are_refused(altered, target):
    error = refusal(altered(in_graph("torch.ops.aten.embedding.default", target)))
    assert error.cause == f"calls {target!r}, which is not a PyTorch operator"


@pytest.mark.parametrize(
    "expression",
    [
        "open('trap', 'w')",
        "Symbol.__class__",
        "[s0][0]",
        "(lambda: 1)()",
        "Symbol('__import__')",
        "exec",
        "1+",
    ],
)
def test_sizes_that_are_not_arithmetic_are_refused(altered, expression):
    old = "Symbol('s"

    def change(content):
        graph = json.loads(content)
        sizes = graph["graph_module"]["graph"]["sym_int_values"]
        next(iter(sizes.values()))["as_expr"]["expr_str"] = expression
        assert old in content.decode()
        return json.dumps(graph).encode()

    cause = refusal(altered({"models/model.json": change})).cause
    assert cause == f"computes a size with {expression!r}, which is not plain arithmetic"


def test_guards_are_removed(altered):
    program = read_program(altered(in_graph("L['attention_mask'].size()[1] ==", "exec('1') ==")))
    assert program._guards_code == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all"])
def test_files_that_are_not_archives_are_refused(tmp_path, content):
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    assert "is not a readable .pt2 file" in refusal(path).cause


def test_a_missing_file(tmp_path):
    assert refusal(tmp_path / "none.pt2").cause == "there is no such file"
