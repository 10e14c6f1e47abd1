"""One watched forward pass, and how far two answers lie apart. Judges nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.inspection import watched
from utils.checks.sampling import run_model

SAME = 1e-6
"""Differences below this share of the logits' scale are rounding of float32 (2**-24 per operation)."""


@dataclass
class Passage:
    """One forward pass without gradients.

    Attributes:
        logits: what the model scored.
        first_bad: the first module whose output was not finite; None where all were.
        trail: (module name, sum of its output) in the order of the calls, a fingerprint of the way.
    """

    logits: torch.Tensor
    first_bad: str | None
    trail: list[tuple[str, float]]

    def first_difference(self, other: Passage) -> str | None:
        """The first module whose output differs between two passes; None where that happens between the modules."""
        pairs = zip(self.trail, other.trail, strict=False)
        return next((a[0] for a, b in pairs if a[0] == b[0] and abs(a[1] - b[1]) > SAME * (1 + abs(a[1]))), None)


def passage(adapted: AdaptedModel, inputs: torch.Tensor, **more: torch.Tensor) -> Passage:
    """Run the model in the mode in which it is.

    Args:
        adapted: the model.
        inputs: (B, T) ids or (B, C, H, W) pixels.
        more: further arguments of the call, such as `attention_mask` (B, T).
    """
    trail: list[tuple[str, float]] = []
    bad: list[str] = []

    def look(name: str, tensor: torch.Tensor) -> None:
        total = float(tensor.double().sum())
        if math.isnan(total) or total == math.inf:  # -inf alone is what masks are made of
            bad.append(name)
        trail.append((name, total))

    with torch.no_grad(), watched(adapted.model, look):
        logits = run_model(adapted, inputs, **more).logits
    return Passage(logits, bad[0] if bad else None, trail)


def relative_gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of both; infinite where shapes differ or a value is not finite."""
    if a.shape != b.shape or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.inf
    scale = float(torch.maximum(a.abs().max(), b.abs().max()))
    return float((a.float() - b.float()).abs().max()) / scale if scale > 0 else 0.0
