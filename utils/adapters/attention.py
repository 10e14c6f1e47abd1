"""Self-attention that cannot see the future, for modules of `torch.nn` that can.

A module keeps its parameters, names and class attributes: only its class changes, to one that adds the causal mask.
Attention inside other code is `causal_calls`' business; whether a model is causal is asked in `causality`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

HIDDEN = float("-inf")


def causal_mask(length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (T, T): 0 where position i may see j ≤ i, minus infinity elsewhere."""
    return torch.full((length, length), HIDDEN, device=device, dtype=dtype).triu(1)


def visible_past(length: int, device: torch.device) -> torch.Tensor:
    """Boolean mask (T, T): True where position i may see j ≤ i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def hide_future(scores: torch.Tensor) -> torch.Tensor:
    """Set the future of additive masks or scores (..., T, T) to minus infinity.

    A position that would be left with nothing to see (padding at the beginning) sees itself, so that no row turns NaN.
    """
    length = scores.shape[-1]
    past = visible_past(length, scores.device)
    hidden = scores.new_full((), HIDDEN)
    masked = torch.where(past, scores, hidden)
    blind = (masked == hidden).all(-1, keepdim=True)  # (..., T, 1)
    itself = torch.eye(length, dtype=torch.bool, device=scores.device)
    return torch.where(blind & itself, torch.zeros_like(hidden), masked)


def additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask in the convention of `nn.MultiheadAttention`, boolean (True = hidden) or additive, as an additive one."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, HIDDEN)
    return mask.to(like.dtype)


def join_causal(
    attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, length: int, heads: int, like: torch.Tensor
) -> torch.Tensor:
    """One additive mask from those of a call of `nn.MultiheadAttention` and the causal one.

    Args:
        attn_mask: (T, T) or (B · heads, T, T), boolean (True = hidden) or additive.
        key_padding_mask: (B, T) or (T,), boolean (True = hidden) or additive.
        length: T.
        heads: heads of the attention.
        like: gives device and dtype.

    Returns:
        (T, T), or (B · heads, T, T) where a mask differs from row to row.
    """
    if attn_mask is None and key_padding_mask is None:
        return causal_mask(length, like.device, like.dtype)
    mask = torch.zeros(length, length, device=like.device, dtype=like.dtype)
    if attn_mask is not None:
        mask = additive(attn_mask, like)
    if key_padding_mask is not None:
        padding = additive(key_padding_mask, like).view(-1, 1, 1, length)  # (B, 1, 1, T)
        own = mask.view(-1, heads, length, length) if mask.dim() == 3 else mask
        mask = (own + padding).expand(-1, heads, -1, -1).reshape(-1, length, length)
    return hide_future(mask)


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
        alone = attn_mask is None and key_padding_mask is None  # then the hint lets fused kernels drop the mask
        mask = join_causal(attn_mask, key_padding_mask, length, self.num_heads, query)
        return super().forward(query, key, value, None, need_weights, mask, average_attn_weights, alone)


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
        alone = src_mask is None and src_key_padding_mask is None
        mask = join_causal(src_mask, src_key_padding_mask, length, self.self_attn.num_heads, src)
        return super().forward(src, mask, None, alone)


class CausalTransformerEncoder(nn.TransformerEncoder):
    """`nn.TransformerEncoder` that hands a causal mask to its layers.

    With a mask it also keeps to dense tensors: its short cut for padded batches (nested tensors) knows no causal mask.
    """

    def forward(
        self,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        """As in `nn.TransformerEncoder`, with the causal mask added."""
        batch_first = getattr(getattr(self.layers[0], "self_attn", None), "batch_first", False)
        length = src.shape[1] if batch_first and src.dim() == 3 else src.shape[0]
        causal = causal_mask(length, src.device, src.dtype) if mask is None else hide_future(additive(mask, src))
        if src_key_padding_mask is not None:  # masks of two types are deprecated in torch.nn
            src_key_padding_mask = additive(src_key_padding_mask, src)
        return super().forward(src, causal, src_key_padding_mask, False)


CAUSAL_CLASSES: dict[type, type] = {
    nn.MultiheadAttention: CausalMultiheadAttention,
    nn.TransformerEncoderLayer: CausalTransformerEncoderLayer,
    nn.TransformerEncoder: CausalTransformerEncoder,
}
"""Classes of `torch.nn` with a causal twin of the same parameters."""


def causal_twins(model: nn.Module) -> list[str]:
    """Names of the modules whose class has a causal twin, e.g. ["mhsa_0", "mhsa_1"]."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):  # its short cut in eval mode passes the inner module by
            inside |= {id(child) for child in module.modules() if child is not module}
    return [
        name for name, module in model.named_modules() if type(module) in CAUSAL_CLASSES and id(module) not in inside
    ]


def use_causal_twins(model: nn.Module, names: list[str]) -> None:
    """Change the class of the named modules of `model` to their causal twins, in place."""
    modules: dict[str, Any] = dict(model.named_modules())
    for name in names:
        modules[name].__class__ = CAUSAL_CLASSES[type(modules[name])]
