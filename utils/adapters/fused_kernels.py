"""Which kernel torch chooses for one attention call, and which single change would have it choose a fused one.

Asks torch itself rather than keeping a table of kernels and their conditions, which change from release to release.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend

FUSED = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.OVERRIDEABLE: "of the device",
}
"""Kernels that never form the (T, T) weights, and their names in reports."""

UNFUSED = "math"
"""Name of the way that forms the weights."""


def chosen_kernel(arguments: dict[str, Any]) -> str:
    """The kernel that torch chooses on this device for a call of `scaled_dot_product_attention`.

    Args:
        arguments: as `attention_calls.sdpa_arguments` gives them.
    """
    named = dict(arguments)
    query, key, value = (named.pop(name) for name in ("query", "key", "value"))
    return FUSED.get(SDPBackend(torch._fused_sdp_choice(query, key, value, **named)), UNFUSED)


def why_not_fused(arguments: dict[str, Any]) -> str:
    """The reason for the unfused way, found by changing one thing at a time; empty where a fused kernel is chosen."""
    if chosen_kernel(arguments) != UNFUSED:
        return ""
    for reason, change in _changes(arguments):
        if chosen_kernel({**arguments, **change}) != UNFUSED:
            return reason
    device, dtype = arguments["query"].device.type, _words(arguments["query"].dtype)
    if device == "cuda" and not (
        torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
    ):
        return "fused kernels are switched off (torch.backends.cuda.enable_flash_sdp)"
    return f"no single change helps: torch has no fused kernel for this call on {device} in {dtype}"


def _changes(arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(reason, arguments that differ) of everything that may keep a fused kernel from being chosen."""
    query, key, value, mask = (arguments[name] for name in ("query", "key", "value", "attn_mask"))
    device = query.device.type
    if arguments["dropout_p"]:
        yield f"dropout {arguments['dropout_p']:g}: the fused kernel on {device} takes none", {"dropout_p": 0.0}
    if mask is not None:
        if mask.requires_grad:
            yield "the mask requires a gradient", {"attn_mask": mask.detach()}
        wide = mask.expand(*query.shape[:-1], key.shape[-2]) if query.dim() == 4 and mask.dim() in (2, 4) else mask
        yield "the mask is broadcast; expand it to (B, heads, T, T)", {"attn_mask": wide.contiguous()}
        yield f"a mask {tuple(mask.shape)} of {_words(mask.dtype)}", {"attn_mask": None}
    if query.dim() != 4:
        yield (
            f"query has {query.dim()} axes; give (B, heads, T, head size)",
            {n: x.reshape(1, -1, *x.shape[-2:]) for n, x in (("query", query), ("key", key), ("value", value))},
        )
    packed = {name: x.contiguous() for name, x in (("query", query), ("key", key), ("value", value))}
    yield "the last axis of query, key or value is not contiguous; call .contiguous()", packed
    if value.shape[-1] != key.shape[-1]:
        yield f"values are {value.shape[-1]} wide, keys {key.shape[-1]}", {"value": key}
    for size in (64, 128):
        resized = {
            name: x.new_empty(*x.shape[:-1], size) for name, x in (("query", query), ("key", key), ("value", value))
        }
        yield f"head size {query.shape[-1]}; {size} would be fused", resized
    for dtype in (torch.bfloat16, torch.float16):
        typed = {name: x.to(dtype) for name, x in (("query", query), ("key", key), ("value", value))}
        if mask is not None and mask.dtype != torch.bool:
            typed["attn_mask"] = mask.to(dtype)
        yield f"type {_words(query.dtype)}; {_words(dtype)} would be fused", typed
    if arguments["enable_gqa"]:
        full = {"key": query, "value": query, "enable_gqa": False}
        yield "grouped heads (enable_gqa); repeat keys and values to all heads", full


def sdpa_of_multi_head(arguments: dict[str, Any]) -> dict[str, Any]:
    """The call of `scaled_dot_product_attention` that `multi_head_attention_forward` ends in when no weights are asked for."""
    query, heads = arguments["query"], arguments["num_heads"]
    length, batch = query.shape[0], query.shape[1] if query.dim() == 3 else 1
    keys, size = arguments["key"].shape[0], query.shape[-1] // heads
    mask, padding = arguments.get("attn_mask"), arguments.get("key_padding_mask")
    causal = bool(arguments.get("is_causal")) and padding is None
    shown = None
    if padding is not None or (mask is not None and not causal):
        shown = query.new_zeros(batch, heads, length, keys)
    return {
        "query": query.new_empty(batch, heads, length, size),
        "key": query.new_empty(batch, heads, keys, size),
        "value": query.new_empty(batch, heads, keys, size),
        "attn_mask": shown,
        "dropout_p": arguments.get("dropout_p", 0.0) if arguments.get("training", True) else 0.0,
        "is_causal": causal,
        "scale": None,
        "enable_gqa": False,
    }


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
