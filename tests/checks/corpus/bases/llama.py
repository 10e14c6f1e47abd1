"""A small Llama: rotary positions, RMSNorm, gated feed-forward, fused attention, a head of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """Root mean square normalisation over the width."""

    def __init__(self, width, epsilon=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.epsilon)
        return x * scale * self.weight


class Rotary(nn.Module):
    """Turns pairs of channels by an angle that grows with the position."""

    def __init__(self, size):
        super().__init__()
        rates = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
        self.register_buffer("rates", rates)

    def forward(self, x):
        positions = torch.arange(x.shape[-2], device=x.device)
        angles = torch.outer(positions, self.rates)
        first, second = x.chunk(2, dim=-1)
        cosine, sine = angles.cos(), angles.sin()
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class Attention(nn.Module):
    """Fused causal attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.rotary = Rotary(width // heads)

    def forward(self, x):
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query = self.rotary(self.q_proj(x).view(shape).transpose(1, 2))
        key = self.rotary(self.k_proj(x).view(shape).transpose(1, 2))
        value = self.v_proj(x).view(shape).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm attention and gated feed-forward."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = RMSNorm(width)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        hidden = self.feed_forward_norm(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class Model(nn.Module):
    """Token embedding, blocks, norm, head."""

    def __init__(self, vocab_size, hidden_size, num_hidden_layers, num_attention_heads):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList([Block(hidden_size, num_attention_heads) for _ in range(num_hidden_layers)])
        self.norm = RMSNorm(hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
