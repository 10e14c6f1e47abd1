"""Tiny models of the kinds that people export. Vocabulary 61, width 16, at most 32 tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

V, D, LIMIT = 61, 16, 32
CONFIG = {"vocab_size": V, "max_seq_len": LIMIT}


class PostNorm(nn.Module):
    """What the canvas exports, completed by hand: `nn.MultiheadAttention`, learned positions, tied head."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.embedding_0_token = nn.Embedding(V, D)
        self.embedding_0_pos = nn.Embedding(LIMIT, D)
        self.embedding_0_dropout = nn.Dropout(0.1)
        self.mhsa_0 = nn.MultiheadAttention(D, 4, dropout=0.1, batch_first=True)
        self.layernorm_0 = nn.LayerNorm(D)
        self.ffn_0 = nn.Sequential(nn.Linear(D, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, D))
        self.layernorm_1 = nn.LayerNorm(D)
        self.causal = causal

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        length = input_ids.shape[1]
        positions = torch.arange(0, length, device=input_ids.device)
        x = self.embedding_0_dropout(self.embedding_0_token(input_ids) + self.embedding_0_pos(positions))
        future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1) if self.causal else None
        padding = None if attention_mask is None else attention_mask == 0
        attended, _ = self.mhsa_0(x, x, x, attn_mask=future, key_padding_mask=padding)
        x = self.layernorm_0(x + attended)
        x = self.layernorm_1(x + self.ffn_0(x))
        return F.linear(x, self.embedding_0_token.weight)


class IgnoresMask(PostNorm):
    """Lists `attention_mask` and never reads it."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(input_ids)


class Nano(nn.Module):
    """nanoGPT's manner: fused query, key and value, `scaled_dot_product_attention`, an assertion on the length."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, D), nn.Embedding(LIMIT, D)
        self.qkv, self.proj, self.norm = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.LayerNorm(D)
        self.dropout = nn.Dropout(0.1)
        self.lm_head = nn.Linear(D, V, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        batch, length = idx.size()
        assert length <= LIMIT, f"at most {LIMIT} tokens"
        x = self.dropout(self.wte(idx) + self.wpe(torch.arange(length, device=idx.device)))
        heads = [part.view(batch, length, 4, D // 4).transpose(1, 2) for part in self.qkv(self.norm(x)).split(D, dim=2)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.lm_head(x + self.proj(y.transpose(1, 2).reshape(batch, length, D)))


class Encoder(nn.Module):
    """`nn.TransformerEncoder`, which takes its fused path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(V, D), nn.Parameter(0.1 * torch.randn(1, LIMIT, D))
        layer = nn.TransformerEncoderLayer(D, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(input_ids) + self.position[:, : input_ids.shape[1]]
        padding = None if attention_mask is None else attention_mask == 0
        return self.head(self.encoder(x, src_key_padding_mask=padding))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(V, D), nn.LSTM(D, D, batch_first=True), nn.Linear(D, V)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(input_ids))[0])


class Bigram(nn.Module):
    """The smallest model there is: one row of logits for each token. Its whole content is one table."""

    def __init__(self, rows: int = V) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, rows)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = {"n_positions": LIMIT, "n_embd": D, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, **small))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": LIMIT}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **small, **heads))
