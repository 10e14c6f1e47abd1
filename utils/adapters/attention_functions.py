"""The torch functions that compute attention, and their arguments by name. Watching and changing calls of them is for others.

Imports torch alone: exported folders of transformers hold a copy of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax)
"""Spellings of the softmax; modules and operators all end in one of them."""

KINDS = ("sdpa", "mha", "softmax")
"""`scaled_dot_product_attention`, `multi_head_attention_forward` (what `nn.MultiheadAttention` calls), softmax by hand."""


def sdpa_arguments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, Any]:
    """The arguments of a call of `scaled_dot_product_attention`, by name."""
    return {
        "query": query,
        "key": key,
        "value": value,
        "attn_mask": attn_mask,
        "dropout_p": dropout_p,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
    }


_MHA_NAMES = F.multi_head_attention_forward.__code__.co_varnames[: F.multi_head_attention_forward.__code__.co_argcount]


def mha_arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of `multi_head_attention_forward`, by name; those left to their defaults are not there."""
    return {**dict(zip(_MHA_NAMES, args)), **kwargs}


def softmax_arguments(input: torch.Tensor, dim: int | None = None, *_: Any, **__: Any) -> dict[str, Any]:
    """The arguments of a softmax that matter, by name."""
    return {"input": input, "dim": dim}


def kind_of(function: Callable[..., Any]) -> str | None:
    """One of `KINDS`, or None for any other function."""
    if function is F.scaled_dot_product_attention:
        return "sdpa"
    if function is F.multi_head_attention_forward:
        return "mha"
    return "softmax" if function in SOFTMAX else None
