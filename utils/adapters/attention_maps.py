"""Attention weights of any model, also where fused kernels never form them.

The model runs once, as it is; beside each attention call the weights are computed again from what the call was given.
Judging the maps is for the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from utils.adapters.attention_calls import AttentionCall, attention_calls, runs_of
from utils.adapters.causal_calls import self_axes
from utils.adapters.model_adapter import AdaptedModel
from utils.adapters.probing import left_as_it_was


def attention_maps(
    adapted: AdaptedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **extras: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The attention weights of every layer, in eval mode, without changing the model.

    Found are `scaled_dot_product_attention` under any name, `nn.MultiheadAttention`, `nn.TransformerEncoderLayer` and a
    softmax by hand over scores of the sequence; kernels that are no torch function (flash_attn) are not. The weights are
    those before dropout. Work and memory grow with T².

    Args:
        adapted: the model; modes, buffers, random states and hooks are as before afterwards.
        input_ids: (B, T) int64.
        attention_mask: (B, T), 1 = real token.
        extras: as for the call of `adapted`, e.g. `decoder_input_ids`.

    Returns:
        Name of the module whose code attends → float tensor (B, heads, T, T), on the model's device: row i is where
        position i looks, and sums to 1 (to 0 where everything is masked). Cross-attention gives (B, heads, T, keys). A
        module that attends several times has "name[0]", "name[1]", …; attention in windows gives (B · windows, heads,
        window, window). Empty for a model without attention.

    Example:
        >>> maps = attention_maps(adapted, input_ids)
        >>> maps["model.layers.0.self_attn"][0, 3]       # (T, T), head 3 of the first text
    """
    by_hand = _softmax_places(adapted) if adapted.contract.task != "vision" else None
    found: list[tuple[str, torch.Tensor]] = []

    def carry_out(call: AttentionCall, run: Callable[[], Any]) -> Any:
        result = run()
        weights = None
        if call.kind == "sdpa":
            weights = _of_sdpa(**call.arguments)
        elif call.kind == "mha":
            weights = _of_multi_head_attention(call.arguments)
        elif by_hand is None:  # no length to follow: scores of patches over patches are square
            weights = result if call.key_axis == -1 and len(set(call.lengths())) == 1 else None
        elif call.place in by_hand:
            weights = result.movedim(by_hand[call.place], (-2, -1))
        if weights is not None:
            found.append((call.path, _as_batch(weights, input_ids.shape[0]).detach()))
        return result

    with left_as_it_was(adapted), attention_calls(adapted, carry_out):
        adapted(input_ids, attention_mask, **extras)
    return _named(found)


def _softmax_places(adapted: AdaptedModel) -> dict[tuple[str, int, str, int], tuple[int, int]]:
    """Places of softmax calls over attention scores → (axis of queries, axis of keys); other softmaxes are no attention."""
    lengths, (first, second) = runs_of(adapted)
    again = {call.place: call for call in second}
    places = {}
    for call in first:
        if call.kind == "softmax" and call.place in again:
            axes = self_axes(call, again[call.place], lengths, windows=False)
            if axes is not None:
                places[call.place] = axes
    return places


def _of_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """Weights (..., T, keys) of a call of `scaled_dot_product_attention`, in float32 at least."""
    query, key = (x if x.dtype == torch.float64 else x.float() for x in (query, key))
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~past, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1).masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)


def _of_multi_head_attention(arguments: dict[str, Any]) -> torch.Tensor:
    """Weights (B, heads, T, keys) of a call of `multi_head_attention_forward`."""
    asked = {**arguments, "need_weights": True, "average_attn_weights": False, "dropout_p": 0.0}
    weights = F.multi_head_attention_forward(**asked)[1]
    if weights is None:
        raise RuntimeError("multi_head_attention_forward gave no weights although they were asked for")
    weights = weights.nan_to_num(0.0)  # rows of padding that see nothing
    return weights[None] if weights.dim() == 3 else weights


def _as_batch(weights: torch.Tensor, batch: int) -> torch.Tensor:
    """Put weights into (B, heads, T, keys)."""
    if weights.dim() == 2:  # one sequence at a time
        return weights[None, None]
    if weights.dim() == 3:
        heads = weights.shape[0] // batch if weights.shape[0] % batch == 0 else weights.shape[0]
        return weights.view(-1, heads, *weights.shape[-2:]) if weights.shape[0] != batch else weights[:, None]
    return weights.flatten(1, -3) if weights.dim() > 4 else weights


def _named(found: list[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Number the maps of modules that attend more than once."""
    names = [name for name, _ in found]
    maps: dict[str, torch.Tensor] = {}
    for name, weights in found:
        number = sum(other.startswith(f"{name}[") for other in maps)
        maps[f"{name}[{number}]" if names.count(name) > 1 else name] = weights
    return maps
