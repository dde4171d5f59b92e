"""ONNX Runtime's messages in plain words."""

from __future__ import annotations

import pytest

from bench.inputs.runtime_words import external_failure, plain_words, run_failure

FAIL = "[ONNXRuntimeError] : 1 : FAIL : "
RAN = "Non-zero status code returned while running {} node. Name:'{}' Status Message: "
SOURCE = "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/"
RESHAPE = (
    f"{SOURCE}reshape_helper.h:91 onnxruntime::ReshapeHelper::ReshapeHelper(const "
    "onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) "
    "input_shape_size == requested_shape_size was false. "
)
GATHER = (
    f"{SOURCE}gather_elements.cc:150 void onnxruntime::core_impl(const Tensor*, int64_t) [with "
    "Tin = long int; int64_t = long int] GatherElements op: Out of range value in index tensor"
)
BOUNDS = "indices element out of data bounds, idx={} must be within the inclusive range [-10,9]"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no code", "no code"),
        (f"{FAIL}matmul_helper.h:59 Compute MatMul dimension mismatch", "MatMul dimension mismatch"),
        (
            f"{FAIL}{RAN.format('Reshape', 'flat')}{RESHAPE}The input tensor cannot be reshaped",
            "Reshape 'flat': input_shape_size == requested_shape_size was false. "
            "The input tensor cannot be reshaped",
        ),
        (
            f"{FAIL}{RAN.format('GatherElements', '')}{GATHER}",
            "GatherElements: GatherElements op: Out of range value in index tensor",
        ),
        (
            f"{FAIL}Deserialize tensor w failed.tensorprotoutils.cc:9 GetData length is 4",
            "Deserialize tensor w failed.length is 4",
        ),
    ],
)
def test_codes_and_places_in_the_source_are_left_out(message, words):
    assert plain_words(message) == words


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        (
            RAN.format("Gather", "") + BOUNDS.format(15),
            "holds the index 15, but the table of Gather has 10 rows",
            "give indices from 0 to 9",
        ),
        (
            RAN.format("ScatterElements", "put") + BOUNDS.format(-11),
            "holds the index -11, but the table of ScatterElements 'put' has 10 rows",
            "give indices from 0 to 9",
        ),
        (
            RAN.format("GatherND", "n") + "invalid index found, index = 15",
            "holds the index 15, which is outside the table of GatherND 'n'",
            "give indices of rows that the table has",
        ),
        (
            RAN.format("ScatterND", "n") + "invalid indice found, indice = 15",
            "holds the index 15, which is outside the table of ScatterND 'n'",
            "give indices of rows that the table has",
        ),
        (
            RAN.format("GatherElements", "n") + GATHER,
            "holds an index, which is outside the table of GatherElements 'n'",
            "give indices of rows that the table has",
        ),
    ],
)
def test_indices_outside_a_table_are_named(message, cause, fix):
    assert run_failure(message) == (cause, fix)
    assert run_failure(RAN.format("MatMul", "m") + "MatMul dimension mismatch") is None


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ('External data path does not exist: "/a/e.bin")', "cannot be read: e.bin is missing"),
        (
            "External initializer: w offset: 4 size to read: 512 given file_length: 100 are out of bounds",
            "cannot be read: 'w' needs bytes 4 to 516, but the file has 100",
        ),
        (
            "External initializer: w offset: -4 size to read: 512 given file_length: 1024 are",
            "states the offset -4 for the external data of 'w'",
        ),
        (
            "TensorProto: w external data size mismatch. Computed size: 512, external_data.length: 100",
            "states 100 bytes for the external data of 'w', which takes 512",
        ),
        ("Random-access reads require a regular file: /a/e.bin)", "cannot be read: e.bin is not a file"),
    ],
)
def test_the_reason_why_external_data_cannot_be_read(message, cause):
    found = external_failure(f"{FAIL}Deserialize tensor w failed. {message}")
    assert found is not None
    assert found[0].endswith(cause)
    assert external_failure("anything else") is None
