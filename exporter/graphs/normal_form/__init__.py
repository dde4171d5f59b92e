"""The one form in which the rest of edgeproof sees a float file, however its exporter wrote it.

ONNX allows many spellings of the same graph: old opsets, constants listed as inputs or made by nodes, two
names of the standard domain, functions. Rewrites, placement and ONNX Runtime's quantizer know one of them.
Each file of this package removes one kind of spelling without changing the outputs; the caller compares the
outputs of the result with those of the given file.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from exporter.graphs.normal_form.constants import lift_constants
from exporter.graphs.normal_form.functions import inline_functions
from exporter.graphs.normal_form.halves import compute_in_float32
from exporter.graphs.normal_form.opsets import raise_opset
from exporter.graphs.normal_form.sparse_constants import make_dense
from exporter.graphs.normal_form.standard_domain import use_one_domain

__all__ = ["normalize"]


def normalize(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return a model in normal form.

    1. The standard operators have one domain, `""`, with one opset.
    2. Functions are inlined, because ONNX's converter does not convert them.
    3. The opset is 17 or newer, or 14 to 16 with RoiAlign, whose meaning opset 16 changed. Constants are
       not inputs.
    4. Constants are initializers, and not sparse.
    5. float16 and bfloat16 are float32, except in inputs and outputs.

    Args:
        model: a model that ONNX Runtime can run; it may be changed.
        path: the file of the model, named in errors.

    Raises:
        ModelError: ONNX cannot convert the model.
    """
    use_one_domain(model)
    make_dense(model.graph)
    model = inline_functions(model, path)
    model = raise_opset(model, path)
    lift_constants(model.graph)
    compute_in_float32(model)
    return model
