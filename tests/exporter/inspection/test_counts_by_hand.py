"""The int8 share of ten small quantized networks, compared with counts by hand.

The networks mix convolutions, attention, recurrent layers and spectral front ends. Each states its
multiply-adds as products of sizes, once for the layers that run in int8 and once for those in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.inspection.audit import audit
from exporter.pipeline.quantize_file import quantize_file


@dataclass(frozen=True)
class Network:
    """A network of one input `x` [N, ...] and the counts of its multiply-adds for one sample.

    Attributes:
        shape: shape of a sample.
        nodes: the graph's nodes in ONNX's text form.
        weights: shapes of the float weights.
        int8: multiply-adds in int8.
        float: multiply-adds in float.
        sizes: integer constants.
        opset: the opset.
    """

    shape: tuple[int, ...]
    nodes: str
    weights: Mapping[str, tuple[int, ...]]
    int8: int
    float: int
    sizes: Mapping[str, tuple[int, ...] | int] = field(default_factory=dict)
    opset: int = 18


# Each transform has 2 products for each real sample and frequency; of 16 samples there are 9 frequencies.
STFT = 9 * 16 * 2
NETWORKS = {
    "convolutions and a head": Network(
        (3, 16, 16),
        """
        c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1)
        r = Relu(c)
        d = Conv<pads = [1, 1, 1, 1], group = 16>(r, w2)
        s = Relu(d)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        y = Gemm<transB = 1>(f, w3)
        """,
        {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (10, 16)},
        int8=16 * 64 * 3 * 9 + 16 * 64 * 9 + 10 * 16,
        float=0,
    ),
    "convolution and LSTM": Network(
        (8, 20),
        """
        c = Conv<pads = [1, 1]>(x, w1)
        r = Relu(c)
        d = Conv<pads = [1, 1]>(r, w2)
        t = Transpose<perm = [2, 0, 1]>(d)
        h = LSTM<hidden_size = 12>(t, w, u)
        s = Squeeze(h, one)
        b = Transpose<perm = [1, 0, 2]>(s)
        y = MatMul(b, w3)
        """,
        {
            "w1": (16, 8, 3),
            "w2": (16, 16, 3),
            "w": (1, 48, 16),
            "u": (1, 48, 12),
            "w3": (12, 5),
        },
        int8=20 * 16 * 8 * 3 + 20 * 16 * 16 * 3 + 20 * 12 * 5,
        float=20 * 48 * (16 + 12),
        sizes={"one": (1,)},
    ),
    "bidirectional GRU": Network(
        (10, 6),
        """
        p = MatMul(x, w1)
        a = Tanh(p)
        t = Transpose<perm = [1, 0, 2]>(a)
        h = GRU<hidden_size = 4, direction = "bidirectional">(t, w, u)
        v = Transpose<perm = [2, 0, 1, 3]>(h)
        f = Reshape(v, wide)
        y = MatMul(f, w3)
        """,
        {"w1": (6, 8), "w": (2, 12, 8), "u": (2, 12, 4), "w3": (8, 3)},
        int8=10 * 6 * 8 + 10 * 8 * 3,
        float=2 * 10 * 12 * (8 + 4),
        sizes={"wide": (0, 0, 8)},
    ),
    "RNN with a convolutional front end": Network(
        (4, 12),
        """
        c = Conv<pads = [1, 1]>(x, w1)
        t = Transpose<perm = [2, 0, 1]>(c)
        h = RNN<hidden_size = 5>(t, w, u)
        s = Squeeze(h, one)
        b = Transpose<perm = [1, 0, 2]>(s)
        y = MatMul(b, w3)
        """,
        {"w1": (6, 4, 3), "w": (1, 5, 6), "u": (1, 5, 5), "w3": (5, 7)},
        int8=12 * 6 * 4 * 3 + 12 * 5 * 7,
        float=12 * 5 * (6 + 5),
        sizes={"one": (1,)},
    ),
    "attention from products": Network(
        (9, 8),
        """
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        t = Transpose<perm = [0, 2, 1]>(k)
        a = MatMul(q, t)
        s = Softmax(a)
        m = MatMul(s, v)
        y = MatMul(m, wo)
        """,
        {"wq": (8, 6), "wk": (8, 6), "wv": (8, 10), "wo": (10, 8)},
        int8=9 * (8 * 6 + 8 * 6 + 8 * 10 + 10 * 8),
        float=9 * 9 * (6 + 10),
    ),
    "the operator Attention": Network(
        (7, 8),
        """
        p = MatMul(x, w1)
        n = Tanh(p)
        a = Attention<q_num_heads = 2, kv_num_heads = 2>(n, n, n)
        y = MatMul(a, w2)
        """,
        {"w1": (8, 12), "w2": (12, 4)},
        int8=7 * (8 * 12 + 12 * 4),
        float=2 * 7 * 7 * 12,
        opset=23,
    ),
    "attention from Einsum": Network(
        (6, 10),
        """
        h = MatMul(x, w1)
        g = Tanh(h)
        a = Einsum<equation = "btd,bsd->bts">(g, g)
        s = Softmax(a)
        m = Einsum<equation = "bts,bsd->btd">(s, g)
        y = MatMul(m, w2)
        """,
        {"w1": (10, 12), "w2": (12, 3)},
        int8=6 * (10 * 12 + 12 * 3),
        float=2 * 6 * 6 * 12,
    ),
    "STFT, power and mel": Network(
        (80,),
        """
        u = Unsqueeze(x, last)
        z = STFT<onesided = 1>(u, step, window)
        q = Mul(z, z)
        e = ReduceSum<keepdims = 0>(q, last)
        m = MatMul(e, mel)
        l = Relu(m)
        h = MatMul(l, w1)
        r = Tanh(h)
        y = MatMul(r, w2)
        """,
        {"window": (16,), "mel": (9, 6), "w1": (6, 20), "w2": (20, 3)},
        int8=9 * (9 * 6 + 6 * 20 + 20 * 3),
        float=9 * STFT,  # (80 - 16) / 8 + 1 frames
        sizes={"last": (-1,), "step": 8},
    ),
    "DFT, convolution and GRU": Network(
        (10, 16),
        """
        u = Unsqueeze(x, last)
        z = DFT<axis = 2, onesided = 1>(u)
        q = Mul(z, z)
        e = ReduceSum<keepdims = 0>(q, last)
        t = Transpose<perm = [0, 2, 1]>(e)
        c = Conv<pads = [1, 1]>(t, w1)
        r = Relu(c)
        d = Conv(r, w2)
        k = Transpose<perm = [2, 0, 1]>(d)
        y = GRU<hidden_size = 3>(k, w, v)
        """,
        {"w1": (8, 9, 3), "w2": (4, 8, 1), "w": (1, 9, 4), "v": (1, 9, 3)},
        int8=10 * 8 * 9 * 3 + 10 * 4 * 8,
        float=10 * STFT + 10 * 9 * (4 + 3),
        sizes={"last": (-1,)},
    ),
    "convolutions and a mixing of rows": Network(
        (3, 8, 8),
        """
        c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1)
        r = Relu(c)
        d = Conv<pads = [1, 1, 1, 1]>(r, w2)
        s = Tanh(d)
        t = Transpose<perm = [0, 1, 3, 2]>(s)
        y = MatMul(s, t)
        """,
        {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3)},
        int8=16 * 6 * 3 * 9 + 16 * 6 * 6 * 9,
        float=6 * 4 * 4 * 4,
    ),
}


def quantized(network, folder, target):
    """Write a network with random weights in float and in int8, and return their audits."""
    generator = np.random.default_rng(0)
    axes = ", ".join(["N", *map(str, network.shape)])
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {network.opset}]> g (float[{axes}] x) => (float y)'
        f" {{ {network.nodes} }}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    constants: dict[str, np.ndarray] = {
        key: generator.standard_normal(shape).astype(np.float32) * 0.3
        for key, shape in network.weights.items()
    }
    constants |= {key: np.array(value, np.int64) for key, value in network.sizes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    onnx.save(model, folder / "float.onnx")
    samples = generator.standard_normal((8, *network.shape)).astype(np.float32)
    np.savez(folder / "x.npz", x=samples)
    quantize_file(folder / "float.onnx", folder / "x.npz", folder / "int8.onnx", target=target)
    return audit(folder / "float.onnx"), audit(folder / "int8.onnx")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_share_equals_the_count_by_hand(name, tmp_path):
    network = NETWORKS[name]
    before, found = quantized(network, tmp_path, "x86-avx2")
    assert before.macs == network.int8 + network.float
    assert found.uncounted == ()
    assert (found.int8_macs, found.macs - found.int8_macs) == (network.int8, network.float)
    assert found.int8_mac_ratio == network.int8 / (network.int8 + network.float)


def test_a_first_convolution_on_blocks_counts_the_products_that_run(tmp_path):
    # 3 x 3 pixels of 3 channels become 2 x 2 blocks of 12 channels. The weights of the rest are zero.
    network = NETWORKS["convolutions and a head"]
    _, found = quantized(network, tmp_path, "x86-vnni")
    added = 16 * 64 * (12 * 4 - 3 * 9)
    assert (found.int8_macs, found.macs) == (network.int8 + added, network.int8 + added)
