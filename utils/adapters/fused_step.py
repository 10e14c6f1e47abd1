"""Whether AdamW can take its step as one kernel. Needs torch alone, so that forecasts ask the same as trainings."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def takes_fused(parameters: Iterable[torch.Tensor], scaled: bool) -> bool:
    """Whether one kernel can do it: it knows real numbers only, and under a gradient scaler Lightning clips nothing.

    Args:
        parameters: those that are trained.
        scaled: a gradient scaler is used (float16).
    """
    return not scaled and all(p.is_floating_point() and p.device.type != "meta" for p in parameters)
