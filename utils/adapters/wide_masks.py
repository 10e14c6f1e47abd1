"""Attention of a model that was turned to float64, whose code makes its masks in float32.

torch's attention kernel for CPUs reads such a mask as if it were float64: a wrong half of its numbers, and bytes behind its end
(torch 2.11 to 2.13, at lengths that fill its vectors; shorter ones are right). A question that is decided in float64 must not be
decided by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from utils.adapters.attention_functions import kind_of, mha_arguments, sdpa_arguments

_MASKS = {"sdpa": ("attn_mask",), "mha": ("attn_mask", "key_padding_mask")}


class MatchingMasks(TorchFunctionMode):
    """Gives masks of attention the floating type of their queries; those of other kinds stay as they are.

    Example:
        >>> with MatchingMasks():
        ...     logits = model.double()(input_ids)
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = kind_of(function)
        if kind not in _MASKS:
            return function(*args, **(kwargs or {}))
        named = (sdpa_arguments if kind == "sdpa" else mha_arguments)(*args, **(kwargs or {}))
        for name in _MASKS[kind]:
            mask = named.get(name)
            if isinstance(mask, torch.Tensor) and mask.is_floating_point():
                named[name] = mask.to(named["query"].dtype)
        return function(**named)
