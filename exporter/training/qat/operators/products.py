"""Products of matrices, sums of products by name, and attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exporter.training.qat.operators.table import Attributes, Operator

_QUERY_KEY_VALUE_MASK = 4


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if attributes.get("transA") else a
    b = b.t() if attributes.get("transB") else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def is_known_attention(attributes: Attributes, inputs: Sequence[str]) -> bool:
    """Whether `OPERATORS` can run an Attention: not with keys and values of an earlier run."""
    return not any(inputs[_QUERY_KEY_VALUE_MASK:]) and not attributes.get("qk_matmul_output_mode")


def _attention(
    attributes: Attributes, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """softmax(query key' * scale + mask) value, for [N, heads, L, size] or [N, L, heads * size]."""
    flat = query.ndim == 3
    if flat:
        query = _heads(query, attributes["q_num_heads"])
        key, value = (_heads(x, attributes["kv_num_heads"]) for x in (key, value))
    shared = query.shape[1] // key.shape[1]  # queries that share a key and a value
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(-1, -2) * attributes.get("scale", query.shape[-1] ** -0.5)
    if attributes.get("softcap"):
        scores = attributes["softcap"] * torch.tanh(scores / attributes["softcap"])
    if attributes.get("is_causal"):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    result: Tensor = scores.softmax(-1) @ value
    return result.transpose(1, 2).flatten(2) if flat else result


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:-1], count, -1).transpose(1, 2)


def _rotary(
    attributes: Attributes, x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Turn pairs of channels by angles that depend on the position (Su et al., "RoFormer", 2021)."""
    flat = x.ndim == 3
    values = _heads(x, attributes["num_heads"]) if flat else x
    cosines, sines = (c if positions is None else c[positions] for c in (cosines, sines))
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    size = attributes.get("rotary_embedding_dim", 0) or values.shape[-1]
    turned, rest = values[..., :size], values[..., size:]
    if attributes.get("interleaved"):
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    pair = (first * cosines - second * sines, first * sines + second * cosines)
    joined = torch.stack(pair, -1).flatten(-2) if attributes.get("interleaved") else torch.cat(pair, -1)
    result = torch.cat([joined, rest], -1)
    return result.transpose(1, 2).flatten(2) if flat else result


OPERATORS: dict[str, Operator] = {
    "Attention": _attention,
    "Einsum": lambda attributes, *inputs: torch.einsum(attributes["equation"], *inputs),
    "Gemm": _gemm,
    "MatMul": lambda _, x, y: x @ y,
    "RotaryEmbedding": _rotary,
}
