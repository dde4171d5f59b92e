"""Results are written and read by the same classes, without keys for figures that do not apply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.core.statistics import Interval
from bench.metrics.parity import Parity
from exporter import results
from exporter.results import read_step_result

COSTS = results.Costs(latency_ms=2.0, size_bytes=10, macs=5, params=3, float_latency_ms=None)
ZEROS = {"zero_share": 0.25, "sparsity": 0.5, "zeros": 1, "eligible_parameters": 2, "parameters": 4}
CURVE = results.Epoch(
    epoch=0, learning_rate=0.1, train_loss=1.0, train_accuracy=0.5, validation_accuracy=0.25
)
TRAINED = {"curves": (CURVE,), "best_epoch": 0, "validation_accuracy": 0.25}
CUT = {
    "limit": 0.5,
    "predicted": 0.4,
    "measured": 0.45,
    "tries": ((0.4, 0.45),),
    "damage": 0.1,
    "units": {"a": 4},
    "kept": {"a": 2},
    "dropped": (),
    "sensitivity": {"a": {2: (0.1, 0.9)}},
    "fixed": {"b": "one channel"},
}
WRITTEN = {"size_bytes": 5, "compressed_bytes": 4}
MADE = {"activation_type": "uint8", "weight_type": "int8", "tables": 0, "min_onnxruntime": "1.22"}
INT8 = {
    **MADE,
    "target": "arm64",
    "bits": 8,
    "per_channel": True,
    "reduced_channels": {"conv": 1},
    "method": "minmax",
    "samples": 16,
    "learned_ranges": 0,
    "stem_on_blocks": False,
    "quantize_nodes": 1,
    "dequantize_nodes": 2,
}
SCORE = results.Score(sqnr_db=20.0, agreement=0.9, drop=0.0)
AUDIT = results.Audit(
    target="arm64",
    host_target="x86-vnni",
    macs=1,
    int8_macs=1,
    int8_mac_ratio=1.0,
    operators={"Conv": 1},
    float_ops=(),
    uncounted=(),
    needless_pairs=(),
    quantized_at_load=(),
    saturation=(),
    samples=0,
)
PARITY = Parity(max_error=0.1, sqnr_db=30.0, agreement=0.99, samples=100)
JUDGED = {"repair": "bias", "kept": True, "reason": "", "sqnr_db_before": 1.0, "sqnr_db_after": 2.0}
REPORT = results.BiasReport(
    **JUDGED, agreement_before=0.5, agreement_after=0.75, layers=3, largest_correction=0.1
)

EVERY = [
    results.PretrainedResult(parameters=3, classes=2),
    results.PretrainedResult(parameters=3, classes=2, tensors=4, new_head=None),
    results.FineTuneResult(evaluation_accuracy=0.5, **TRAINED, warnings=("few samples",)),
    results.FineTuneResult(
        evaluation_accuracy=0.5,
        **TRAINED,
        from_scratch=results.FromScratch(evaluation_accuracy=0.25, **TRAINED),
        few_shot=(
            results.FewShotPoint(
                images=3, transfer=(0.5, 0.75), from_scratch=(0.25, 0.5), gain=Interval(0.25, 0.125, 0.5)
            ),
        ),
    ),
    results.PretrainResult(source_classes=3, source_accuracy=0.5, new_head=None, **TRAINED),
    results.PruneResult(
        **ZEROS,
        layers={"conv.weight": 0.5},
        compressed_bytes_before=results.CompressedBytes(float=4, int8=2),
        compressed_bytes=results.CompressedBytes(float=2, int8=1),
        int8_compressed_ratio=0.5,
        accuracy_before=0.5,
        evaluation_accuracy=0.5,
    ),
    results.DistillResult(
        **ZEROS, **TRAINED, teacher_accuracy=0.75, accuracy_before=0.25, evaluation_accuracy=0.5
    ),
    results.ReestimateResult(norms=1, largest_shift=0.1, accuracy_before=0.5, evaluation_accuracy=0.5),
    results.QatResult(
        **ZEROS,
        **TRAINED,
        target="arm64",
        float_accuracy=0.5,
        accuracy_before=0.5,
        evaluation_accuracy=0.5,
        improved=True,
        agreement_with_int8=1.0,
        ranges=3,
    ),
    results.ShrinkResult(
        **ZEROS,
        accuracy_before=0.5,
        evaluation_accuracy=0.25,
        goal={"macs_ratio": 0.5},
        before=COSTS,
        after=COSTS,
        dropped=("block",),
        widths={"a": 2},
        rounds=(results.NarrowingRound(**CUT, **TRAINED, accuracy_cut=0.25, evaluation_accuracy=0.25),),
        curves=(CURVE,),
    ),
    results.ShrinkResult(
        **ZEROS,
        accuracy_before=0.5,
        evaluation_accuracy=0.25,
        goal=None,
        before=COSTS,
        after=COSTS,
        dropped=(),
        widths={},
        rounds=(results.Round(accuracy_cut=0.25, evaluation_accuracy=0.25),),
    ),
    results.ExportResult(**ZEROS, nodes=3, opset=20, size_bytes=10),
    results.Int8Result(**INT8, **WRITTEN),
    results.Int8Result(
        **INT8,
        **WRITTEN,
        held_out_samples=4,
        repairs=(REPORT,),
        fallback=results.FallbackReport(
            exclude=("conv",),
            tried=2,
            before=SCORE,
            after=SCORE,
            candidates=(results.FallbackCandidate(layers=("conv",), sqnr_db=25.0, cost_ns=-3.0),),
        ),
    ),
    results.Int4Result(**MADE, **WRITTEN, target="arm64", bits=4, block_size=32, products=2),
    results.ParityResult(
        torch_accuracy=0.5,
        export=PARITY,
        int8=PARITY,
        layers=(
            results.LayerError(
                layer="conv", op="Conv", sqnr_db=20.0, lowest=0.0, highest=1.0, range=(0.0, 1.0)
            ),
        ),
        audit=AUDIT,
    ),
    results.GateResult(verdict="PASS", reasons=(), metrics={"size": {"ratio": 0.5}}, blocks=3),
]


@pytest.mark.parametrize("result", EVERY, ids=lambda result: type(result).__name__)
def test_a_written_result_is_read_again(result):
    content = json.dumps(result.as_json(), allow_nan=False)
    found = read_step_result(result.kind, content.encode())
    assert type(found) is type(result)
    assert found == result
    assert found.as_json() == result.as_json()


def test_the_examples_cover_every_result_class():
    every = set(results.AnyResult.__args__)
    assert {type(result) for result in EVERY} == every


def test_figures_that_do_not_apply_have_no_key():
    plain, checkpoint, tuned = (EVERY[index].as_json() for index in range(3))
    assert plain == {"parameters": 3, "classes": 2}
    assert checkpoint == {"parameters": 3, "tensors": 4, "new_head": None, "classes": 2}
    assert not {"from_scratch", "few_shot"} & tuned.keys()
    assert "float_latency_ms" in EVERY[9].as_json()["before"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("prune", b"{}"),
        ("finetune", b'{"evaluation_accuracy": 0.5, "unknown": 1}'),
        ("gate", b'{"verdict": "PASS"'),
        ("wash", b"{}"),
    ],
)
def test_damaged_results_are_refused(kind, content):
    with pytest.raises(ValueError, match=r"."):
        read_step_result(kind, content)


def test_a_quantized_file_is_one_flat_object():
    made = results.Int8Model(**INT8, held_out_samples=4, repairs=(REPORT,))
    found = results.QuantizedFile(
        model=Path("a/int8.onnx"), sha256="12", size_bytes=5, made=made, seconds=0.5, peak_rss_bytes=None
    )
    written = found.as_json()
    around = {
        "model": "a/int8.onnx",
        "sha256": "12",
        "size_bytes": 5,
        "seconds": 0.5,
        "peak_rss_bytes": None,
    }
    assert written == around | made.as_json()
    assert "fallback" not in written
    assert {key: type(value) for key, value in written["repairs"][0].items()} == {
        "repair": str, "kept": bool, "reason": str, "sqnr_db_before": float, "sqnr_db_after": float,
        "agreement_before": float, "agreement_after": float, "layers": int, "largest_correction": float,
    }  # fmt: skip
    assert json.loads(json.dumps(written, allow_nan=False)) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_json_cannot_represent_are_refused(value):
    with pytest.raises(ValueError, match="finite number"):
        results.ReestimateResult(norms=1, largest_shift=value, accuracy_before=0.5, evaluation_accuracy=0.5)


def test_headlines_show_the_most_important_figures():
    texts = {type(result).__name__: ", ".join(result.headline()) for result in EVERY}
    assert texts["QatResult"] == "accuracy 50.00%, 25.00% of parameters zero, for arm64"
    assert texts["ShrinkResult"] == "accuracy 25.00%, 25.00% of parameters zero, 2 to 2 ms"
    assert texts["PretrainResult"] == "accuracy 50.00%"
    assert texts["ParityResult"] == "int8 agrees on 99.00%"
    assert texts["Int8Result"] == texts["Int4Result"] == "for arm64"
    assert texts["GateResult"] == "PASS"
    assert texts["PretrainedResult"] == ""


def test_a_network_without_zeros_has_no_text_about_zeros():
    zeros = results.Zeros(zero_share=0.0, sparsity=0.0, zeros=0, eligible_parameters=0, parameters=4)
    assert zeros.zeros_text() == ()
