"""A small language model of nn.MultiheadAttention, pre-norm, with a sinusoidal table of positions and its own loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm_1 = nn.LayerNorm(width)
        self.norm_2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        hidden = self.norm_1(x)
        hidden, _ = self.attention(hidden, hidden, hidden, attn_mask=mask, need_weights=False)
        x = x + self.dropout(hidden)
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


class Model(nn.Module):
    """Token embedding, sinusoidal positions, blocks, norm, head; the loss of the next token where labels are given."""

    def __init__(self, vocab_size, max_seq_len, d_model, num_layers, num_heads, dropout):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        steps = torch.arange(max_seq_len).unsqueeze(1)
        rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        table = torch.zeros(max_seq_len, d_model)
        table[:, 0::2] = torch.sin(steps * rates)
        table[:, 1::2] = torch.cos(steps * rates)
        self.register_buffer("table", table)
        self.layers = nn.ModuleList([Block(d_model, num_heads, dropout) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        self.apply(self.start)

    def start(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids, labels=None):
        length = input_ids.shape[1]
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool, device=input_ids.device), diagonal=1)
        x = self.token_embedding(input_ids) + 0.1 * self.table[:length]
        for layer in self.layers:
            x = layer(x, mask)
        logits = self.head(self.norm(x))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"logits": logits, "loss": loss}
