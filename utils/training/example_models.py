"""Small models in plain torch for the built-in examples: one per task, as somebody would write them by hand. Train nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm attention and feed-forward.

    Args:
        width: of the stream. heads: of the attention. causal: whether a position sees earlier ones only.
        dropout: in the feed-forward part.
    """

    def __init__(self, width: int, heads: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, C) → (B, T, C); `mask` (B, 1, 1, T) is true where a position may be read."""
        batch, length, width = x.shape
        split = self.query_key_value(self.norm_1(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, H, T, C / H) each
        mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(self.norm_2(x))


class _Stack(nn.Module):
    """Embeddings and blocks, which the models of text share."""

    def __init__(self, vocab_size: int, max_seq_len: int, width: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(max_seq_len, width)
        self.blocks = nn.ModuleList(Block(width, 4, causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) → (B, T, C)."""
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TinyCausalLM(_Stack):
    """Scores the next token at each position; the head is the embedding."""

    def __init__(self, vocab_size: int, max_seq_len: int, width: int = 64, layers: int = 2) -> None:
        super().__init__(vocab_size, max_seq_len, width, layers, causal=True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        return self.hidden(input_ids) @ self.token_embedding.weight.t()


class TinyMaskedLM(_Stack):
    """Scores the token at each position itself, from both sides."""

    def __init__(self, vocab_size: int, max_seq_len: int, width: int = 64, layers: int = 2) -> None:
        super().__init__(vocab_size, max_seq_len, width, layers, causal=False)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, V)."""
        return self.head(self.hidden(input_ids))


class TinyClassifier(_Stack):
    """The mean over real tokens speaks for the text."""

    def __init__(self, vocab_size: int, max_seq_len: int, num_classes: int, width: int = 48, layers: int = 2) -> None:
        super().__init__(vocab_size, max_seq_len, width, layers, causal=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) and its mask → (B, classes)."""
        if attention_mask is None:
            return self.head(self.hidden(input_ids).mean(1))
        x = self.hidden(input_ids, attention_mask[:, None, None, :].bool())
        real = attention_mask[..., None].to(x.dtype)
        return self.head((x * real).sum(1) / real.sum(1))


class TinySeq2Seq(nn.Module):
    """PyTorch's own encoder and decoder between a source and a target."""

    def __init__(self, vocab_size: int, max_seq_len: int, width: int = 64, layers: int = 1) -> None:
        super().__init__()
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(max_seq_len, width)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 4, 2 * width, **options), layers, nn.LayerNorm(width), False
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, 4, 2 * width, **options), layers, nn.LayerNorm(width)
        )
        self.head = nn.Linear(width, vocab_size)

    def forward(
        self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, T), (B, U) and the mask of the source → (B, U, V)."""
        padding = None if attention_mask is None else attention_mask == 0
        length = decoder_input_ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        source = self.encoder(self._embedded(input_ids), src_key_padding_mask=padding)
        decoded = self.decoder(self._embedded(decoder_input_ids), source, later, memory_key_padding_mask=padding)
        return self.head(decoded)

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        return self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1], device=ids.device))


class TinyViT(nn.Module):
    """Patches of 2 × 2 pixels, a class token, blocks without a mask."""

    def __init__(
        self, num_classes: int, size: int = 8, channels: int = 1, width: int = 48, layers: int = 2, patch: int = 2
    ) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, 4, causal=False) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, classes)."""
        x = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (B, N, C)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
