"""
Generated model: PostNormTransformer
Auto-generated from the canvas. Do not edit: export again instead.
"""

import torch
import torch.nn as nn


class PostNormTransformer(nn.Module):
    def __init__(self):
        super().__init__()

        # input: input_0
        # embedding: embedding_0
        self.embedding_0_token = nn.Embedding(1024, 128)
        self.embedding_0_pos = nn.Embedding(128, 128)
        self.embedding_0_dropout = nn.Dropout(0.1)
        # mhsa: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(
            embed_dim=128,
            num_heads=4,
            dropout=0.1,
            batch_first=True
        )
        # residual: residual_0
        # layernorm: layernorm_0
        self.layernorm_0 = nn.LayerNorm(128, eps=1e-05)
        # ffn: ffn_0
        self.ffn_0 = nn.Sequential(
            nn.Linear(128, 512),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(512, 128),
            nn.Dropout(0.1)
        )
        # residual: residual_1
        # layernorm: layernorm_1
        self.layernorm_1 = nn.LayerNorm(128, eps=1e-05)
        # mhsa: mhsa_1
        self.mhsa_1 = nn.MultiheadAttention(
            embed_dim=128,
            num_heads=4,
            dropout=0.1,
            batch_first=True
        )
        # residual: residual_2
        # layernorm: layernorm_2
        self.layernorm_2 = nn.LayerNorm(128, eps=1e-05)
        # ffn: ffn_1
        self.ffn_1 = nn.Sequential(
            nn.Linear(128, 512),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(512, 128),
            nn.Dropout(0.1)
        )
        # residual: residual_3
        # layernorm: layernorm_3
        self.layernorm_3 = nn.LayerNorm(128, eps=1e-05)
        # output: output_0

    def forward(self, input_0_tokens: torch.Tensor, mhsa_0_output: torch.Tensor, residual_0_output: torch.Tensor, residual_1_output: torch.Tensor, residual_2_output: torch.Tensor, residual_3_output: torch.Tensor) -> torch.Tensor:
        # Embedding: embedding_0
        B, T = input_0_tokens.shape
        positions = torch.arange(0, T, device=input_0_tokens.device)
        tok_emb = self.embedding_0_token(input_0_tokens)
        pos_emb = self.embedding_0_pos(positions)
        embedding_0_x = self.embedding_0_dropout(tok_emb + pos_emb)
        mhsa_0_output, _ = self.mhsa_0(embedding_0_x, embedding_0_x, embedding_0_x)
        layernorm_0_output = self.layernorm_0(residual_0_output)
        ffn_0_output = self.ffn_0(layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_1_output)
        mhsa_1_output, _ = self.mhsa_1(layernorm_1_output, layernorm_1_output, layernorm_1_output)
        layernorm_2_output = self.layernorm_2(residual_2_output)
        ffn_1_output = self.ffn_1(layernorm_2_output)
        layernorm_3_output = self.layernorm_3(residual_3_output)

        return output_0_logits
