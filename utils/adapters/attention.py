"""Self-attention that cannot see the future, for modules of `torch.nn` that can.

A module keeps its parameters, names and class attributes: only its class changes, to one that adds the causal mask.
Whether a model is causal is asked in `causality`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def causal_mask(length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (T, T): 0 where position i may see j ≤ i, minus infinity elsewhere."""
    return torch.full((length, length), float("-inf"), device=device, dtype=dtype).triu(1)


def _with_causal(mask: torch.Tensor | None, length: int, like: torch.Tensor) -> torch.Tensor:
    """Join a mask of the caller, boolean (True = hidden) or additive, with the causal one."""
    causal = causal_mask(length, like.device, like.dtype)
    if mask is None:
        return causal
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype) + causal


class CausalMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose self-attention sees only earlier positions; cross-attention is left alone."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `nn.MultiheadAttention`, with the causal mask added where query and key are the same sequence."""
        if key is not query and value is not query:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        length = query.shape[1] if self.batch_first and query.dim() == 3 else query.shape[0]
        mask = _with_causal(attn_mask, length, query)
        if key_padding_mask is not None and key_padding_mask.dtype == torch.bool:
            hidden = torch.zeros_like(key_padding_mask, dtype=query.dtype).masked_fill(key_padding_mask, float("-inf"))
            key_padding_mask = hidden
        return super().forward(query, key, value, key_padding_mask, need_weights, mask, average_attn_weights, False)


class CausalTransformerEncoderLayer(nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` whose self-attention sees only earlier positions."""

    def forward(
        self,
        src: torch.Tensor,
        src_mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """As in `nn.TransformerEncoderLayer`, with the causal mask added."""
        length = src.shape[1] if self.self_attn.batch_first and src.dim() == 3 else src.shape[0]
        mask = _with_causal(src_mask, length, src)
        if src_key_padding_mask is not None and src_key_padding_mask.dtype == torch.bool:
            hidden = torch.zeros_like(src_key_padding_mask, dtype=src.dtype).masked_fill(
                src_key_padding_mask, float("-inf")
            )
            src_key_padding_mask = hidden
        return super().forward(src, mask, src_key_padding_mask, False)


CAUSAL_CLASSES: dict[type, type] = {
    nn.MultiheadAttention: CausalMultiheadAttention,
    nn.TransformerEncoderLayer: CausalTransformerEncoderLayer,
}
"""Classes of `torch.nn` with a causal twin of the same parameters."""


def causal_twins(model: nn.Module) -> list[str]:
    """Names of the modules whose class has a causal twin, e.g. ["mhsa_0", "mhsa_1"]."""
    inside: set[int] = set()
    for module in model.modules():
        if type(module) is nn.TransformerEncoderLayer:
            inside |= {id(child) for child in module.modules() if child is not module}
    return [
        name for name, module in model.named_modules() if type(module) in CAUSAL_CLASSES and id(module) not in inside
    ]


def use_causal_twins(model: nn.Module, names: list[str]) -> None:
    """Change the class of the named modules of `model` to their causal twins, in place."""
    modules: dict[str, Any] = dict(model.named_modules())
    for name in names:
        modules[name].__class__ = CAUSAL_CLASSES[type(modules[name])]
