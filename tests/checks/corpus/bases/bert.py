"""A small encoder for masked tokens: post-norm, padding mask, a loss that is not shifted."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Self-attention over every token that is no padding."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x, bias):
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) + bias
        weights = scores.softmax(dim=-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and feed-forward, each followed by its norm."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, x, bias):
        x = self.attention_norm(x + self.attention(x, bias))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Model(nn.Module):
    """Embeddings, layers and a tied head with a bias."""

    def __init__(self, vocab_size, max_position_embeddings, hidden_size, num_hidden_layers, num_attention_heads):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.layers = nn.ModuleList([Layer(hidden_size, num_attention_heads) for _ in range(num_hidden_layers)])
        self.head = nn.Linear(hidden_size, vocab_size)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.word_embeddings.weight

    def forward(self, input_ids, attention_mask=None, labels=None):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        bias = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
        positions = attention_mask.long().cumsum(dim=1).sub(1).clamp(min=0)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, bias)
        logits = self.head(x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits}
