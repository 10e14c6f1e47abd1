"""A tiny causal model and a text with repetitions."""

from __future__ import annotations

import copy

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel, adapt

TEXT = "".join(f"{n} green bottles hang on wall number {n % 7}, and one falls down.\n" for n in range(160))


class TinyTransformer(nn.Module):
    """Causal, with dropout and a tied head. Logits (B, T, V)."""

    def __init__(
        self, vocab_size: int = 300, width: int = 16, length: int = 16, dropout: float = 0.2, causal: bool = True
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(length, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.causal = causal

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1]
        dtype = self.token.weight.dtype
        mask = nn.Transformer.generate_square_subsequent_mask(length, input_ids.device, dtype) if self.causal else None
        x = self.token(input_ids) + self.position.weight[:length]  # (B, T, C)
        return self.block(x, src_mask=mask) @ self.token.weight.t()  # (B, T, V)


class Layers(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, src_mask: torch.Tensor | None) -> torch.Tensor:
        for block in self.layers:
            x = block(x, src_mask=src_mask)
        return x


def make_tiny(seed: int = 0, layers: int = 1, **arguments: object) -> AdaptedModel:
    torch.manual_seed(seed)
    model = TinyTransformer(**arguments)  # type: ignore[arg-type]
    if layers > 1:
        model.block = Layers([copy.deepcopy(model.block) for _ in range(layers)])
    length = int(arguments.get("length", 16))  # type: ignore[call-overload]
    return adapt(model, {"vocab_size": model.token.num_embeddings, "max_seq_len": length})
