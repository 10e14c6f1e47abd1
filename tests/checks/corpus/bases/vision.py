"""A small vision transformer: patches, a class token, encoder layers, the mean of all."""

from __future__ import annotations

import torch
from torch import nn


class Model(nn.Module):
    """Patches of 4 × 4 pixels, a class token, positions, encoder, head on the mean."""

    def __init__(self, image_size, num_channels, hidden_size, num_hidden_layers, num_attention_heads, num_labels):
        super().__init__()
        self.patches = nn.Conv2d(num_channels, hidden_size, kernel_size=4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden_size) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (image_size // 4) ** 2 + 1, hidden_size) * 0.02)
        self.layers = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(
                    hidden_size, num_attention_heads, 2 * hidden_size, dropout=0.1, batch_first=True, norm_first=True
                )
                for _ in range(num_hidden_layers)
            ]
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_labels)

    def forward(self, pixel_values):
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))
