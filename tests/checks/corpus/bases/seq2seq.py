"""A small encoder-decoder: nn.TransformerEncoderLayer and nn.TransformerDecoderLayer, labels that are not shifted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    """Shared embedding, learned positions, encoder, causal decoder, head."""

    def __init__(self, vocab_size, max_seq_len, d_model, num_layers, num_heads):
        super().__init__()
        self.shared = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_seq_len, d_model)
        settings = {"dim_feedforward": 2 * d_model, "dropout": 0.1, "batch_first": True, "norm_first": True}
        self.encoder = nn.ModuleList(
            [nn.TransformerEncoderLayer(d_model, num_heads, **settings) for _ in range(num_layers)]
        )
        self.decoder = nn.ModuleList(
            [nn.TransformerDecoderLayer(d_model, num_heads, **settings) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size)
        nn.init.normal_(self.shared.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def embed(self, ids):
        return self.shared(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))

    def forward(self, input_ids, decoder_input_ids, attention_mask=None, labels=None):
        hidden = None if attention_mask is None else attention_mask == 0
        memory = self.embed(input_ids)
        for layer in self.encoder:
            memory = layer(memory, src_key_padding_mask=hidden)
        length = decoder_input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        x = self.embed(decoder_input_ids)
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=mask, memory_key_padding_mask=hidden)
        logits = self.lm_head(self.norm(x))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) if labels is not None else None
        return {"loss": loss, "logits": logits}
