"""A small language model of causal convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A convolution that reads this token and those before it, with a residual connection."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, 2 * width, kernel_size=3)
        self.output = nn.Linear(2 * width, width)

    def forward(self, x):
        hidden = self.norm(x).transpose(1, 2)
        hidden = self.convolution(F.pad(hidden, (2, 0))).transpose(1, 2)
        return x + self.output(F.gelu(hidden))


class Model(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, vocab_size, hidden_size, num_layers):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.blocks = nn.ModuleList([Block(hidden_size) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
