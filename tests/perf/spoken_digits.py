"""Quantize a spoken-digit network that has its spectral front end in the graph; run by hand, 5 minutes.

    python tests/perf/spoken_digits.py FOLDER [--speaker theo] [--seeds 3] [--epochs 20]

FOLDER has the recordings of the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset,
CC BY-SA 4.0): DIGIT_SPEAKER_INDEX.wav, mono, 8 kHz. One speaker is held out; the others train and
calibrate. The network divides the signal by its peak, and computes an STFT, powers, 40 mel filters, their
logarithm, and its difference to the mean over time. Four convolutions read the result. `torch` computes the
STFT with `torch.stft`, and `conv` by a convolution with a constant basis. Both have the same weights.
`edgeproof quantize` gets the exported file and 256 recordings, and no options.

Each line has the accuracy of float and int8 on the held-out speaker, their agreement, the SQNR, and the CPU
time of both with its 10th to 50th percentile, interleaved, one thread. The exit code is 1 if int8 loses
more than 1 point.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

from exporter import quantize

RATE, LENGTH = 8000, 8000
FRAME, STEP, MELS = 256, 80, 40
CALIBRATION, BATCH, REPEATS = 256, 32, 100


class FrontEnd(nn.Module):
    """Logarithm of mel powers: [batch, samples] -> [batch, MELS, frames]."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        window = np.hanning(FRAME)
        angle = 2 * np.pi * np.outer(np.arange(FRAME // 2 + 1), np.arange(FRAME)) / FRAME
        basis = np.concatenate([np.cos(angle), -np.sin(angle)]) * window
        for name, content in {"window": window, "basis": basis[:, None], "mel": mel_filters()}.items():
            self.register_buffer(name, torch.tensor(content, dtype=torch.float32), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x / (x.abs().amax(1, keepdim=True) + 1e-4)
        if self.kind == "torch":
            spectrum = torch.stft(x, FRAME, STEP, window=self.window, center=False, return_complex=True)
            power = spectrum.abs() ** 2
        else:
            real, imaginary = functional.conv1d(x[:, None], self.basis, stride=STEP).chunk(2, dim=1)
            power = real * real + imaginary * imaginary
        features = torch.log(self.mel @ power + 1e-4)
        return (features - features.mean(-1, keepdim=True)) / 3


def mel_filters() -> np.ndarray:
    """Triangular filters, [MELS, FRAME // 2 + 1]."""
    bins = np.linspace(0, RATE / 2, FRAME // 2 + 1)
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


class Network(nn.Module):
    """Front end, four convolutions and a mean over time: [batch, samples] -> [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.front = FrontEnd("torch")
        layers: list[nn.Module] = []
        for channels, wide in ((MELS, 96), (96, 96), (96, 128), (128, 128)):
            layers += [nn.Conv1d(channels, wide, 5, padding=2, bias=False), nn.BatchNorm1d(wide), nn.ReLU()]
            layers += [nn.MaxPool1d(2)] if len(layers) < 9 else []
        self.body = nn.Sequential(*layers, nn.Dropout(0.3))
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.front(x)
        if self.training:  # hide a band of frequencies and a piece of time
            low, start = int(torch.randint(MELS - 8, ())), int(torch.randint(features.shape[2] - 15, ()))
            features = features.clone()
            features[:, low : low + 8], features[:, :, start : start + 15] = 0, 0
        return self.head(self.body(features).mean(-1))


def load(folder: Path, speaker: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Recordings and digits of the other speakers, and those of one speaker."""
    found: dict[bool, list[tuple[np.ndarray, int]]] = {False: [], True: []}
    for path in sorted(folder.rglob("*_*_*.wav")):
        digit, name, _ = path.stem.split("_")
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
        samples = samples[:LENGTH]
        before = (LENGTH - len(samples)) // 2
        padded = np.pad(samples, (before, LENGTH - len(samples) - before))
        found[name == speaker].append((padded, int(digit)))
    if not all(found.values()):
        sys.exit(f"{folder} has no recordings of {speaker!r}, or of nobody else")
    sets = []
    for part in (False, True):
        sets += [torch.tensor(np.stack([x for x, _ in found[part]]))]
        sets += [torch.tensor([digit for _, digit in found[part]])]
    return sets[0], sets[1], sets[2], sets[3]


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> Network:
    """Train on shifted recordings of changed loudness with faint noise."""
    torch.manual_seed(seed)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        if step % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x))
        chosen = order[step % (len(x) // BATCH) * BATCH :][:BATCH]
        batch = torch.roll(x[chosen], int(torch.randint(-800, 800, ())), 1)
        batch = batch * 10 ** torch.empty(len(batch), 1).uniform_(-0.5, 0.3)
        batch = batch + 10 ** float(torch.empty(()).uniform_(-4, -2.5)) * torch.randn_like(batch)
        loss = functional.cross_entropy(network(batch), y[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def compare(name: str, network: Network, train_x: torch.Tensor, x: np.ndarray, y: np.ndarray) -> float:
    """Export, quantize, print a line and return the points that int8 loses."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{kind}.onnx" for kind in ("float", "int8")]
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(
            network, (train_x[:2],), str(files[0]), dynamo=True, dynamic_shapes=(batch,), verbose=False
        )
        session = onnxruntime.InferenceSession(files[0], settings)
        source = session.get_inputs()[0].name
        data = Path(folder) / "samples.npz"
        chosen = np.random.default_rng(0).permutation(len(train_x))[:CALIBRATION]
        np.savez(data, **{source: train_x.numpy()[chosen]})
        quantize(files[0], files[1], data=data)
        sessions = [onnxruntime.InferenceSession(file, settings) for file in files]
    first, second = (each.run(None, {source: x})[0] for each in sessions)
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for place, each in enumerate(sessions):
            start = time.process_time()
            each.run(None, {source: x[:1]})
            times[place].append(1000 * (time.process_time() - start))
    low, middle, high = np.percentile(times, [10, 25, 50], axis=1)
    accuracies = [100 * float(np.mean(scores.argmax(1) == y)) for scores in (first, second)]
    agreement = 100 * float(np.mean(first.argmax(1) == second.argmax(1)))
    sqnr = 20 * np.log10(np.linalg.norm(first) / np.linalg.norm(first - second))
    shown = [f"{middle[i]:.2f} ms ({low[i]:.2f} to {high[i]:.2f})" for i in (0, 1)]
    print(
        f"{name}: float {accuracies[0]:.1f} %, int8 {accuracies[1]:.1f} %, agreement {agreement:.1f} %, "
        f"{sqnr:.1f} dB; float {shown[0]}, int8 {shown[1]}",
        flush=True,
    )
    return accuracies[0] - accuracies[1]


def main() -> int:
    """Train with each seed, print a line for each front end, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speaker", default="theo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train_x, train_y, x, y = load(arguments.folder, arguments.speaker)
    losses = []
    for seed in range(arguments.seeds):
        network = train(train_x, train_y, arguments.epochs, seed)
        for kind in ("torch", "conv"):
            network.front.kind = kind
            losses.append(compare(f"seed {seed}, {kind}", network, train_x, x.numpy(), y.numpy()))
    return 0 if max(losses) <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
