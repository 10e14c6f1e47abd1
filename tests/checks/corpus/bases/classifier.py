"""A small classifier of texts: encoder layers and the mean over the tokens that are no padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    """Embedding, positions, encoder, masked mean, head with one score per class."""

    def __init__(self, vocab_size, max_seq_len, d_model, num_layers, num_heads, num_labels):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_seq_len, d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, num_heads, 2 * d_model, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(d_model)
        self.classifier = nn.Linear(d_model, num_labels)

    def forward(self, input_ids, attention_mask=None, labels=None):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        keep = attention_mask.bool()
        places = attention_mask.long().cumsum(dim=1).sub(1).clamp(min=0)
        x = self.embedding(input_ids) + self.positions(places)
        x = self.norm(self.encoder(x, src_key_padding_mask=~keep))
        counted = keep.unsqueeze(-1).to(x.dtype)
        pooled = (x * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)
        logits = self.classifier(pooled)
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        return {"loss": loss, "logits": logits}
