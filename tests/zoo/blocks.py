"""What the hand-written models of the zoo are made of: attention with a bias, and a small decoder around it."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import LIMIT, D, V

BLOCKED = -1e9
"""Score of a position that may not be read."""


class Block(nn.Module):
    """Pre-norm attention and feed-forward. The attention is written out, so that every bias is seen as it is."""

    def __init__(self, width: int = D, heads: int = 2, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attend(self.norm_1(x), bias)
        return x + self.feed_forward(self.norm_2(x))

    def attend(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.query_key_value(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]  # (B, H, T, C)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, H, T, T)
        if bias is not None:
            scores = scores + bias
        if self.causal:
            scores = scores + future(length, x.device)
        return self.project((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width))


def future(length: int, device: torch.device | None = None) -> torch.Tensor:
    """Additive (T, T): 0 up to the diagonal, `BLOCKED` above it."""
    return torch.full((length, length), BLOCKED, device=device).triu(1)


class Decoder(nn.Module):
    """Embeddings, one block, norm and head; subclasses say how they are called and what they give."""

    def __init__(
        self, vocabulary: int = V, limit: int = LIMIT, causal: bool = True, width: int = D, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(limit, width)
        self.block = Block(width, causal=causal)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs or vocabulary, bias=False)

    def hidden(
        self, ids: torch.Tensor, bias: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        return self.norm(self.block(x, bias))

    def scores(
        self, ids: torch.Tensor, bias: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.head(self.hidden(ids, bias, positions))


def bias_of(keep: torch.Tensor) -> torch.Tensor:
    """Additive bias (B, 1, 1, T) from a mask (B, T) whose true entries may be read."""
    return torch.zeros(keep.shape, device=keep.device).masked_fill(~keep, BLOCKED)[:, None, None, :]
