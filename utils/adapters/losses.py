"""Losses in nats, and the one place where labels are shifted. Knows tensors; which loss a task has is for `model_adapter`.

Imports torch alone: exported folders of transformers hold a copy of this file.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from utils.adapters.logits import follow

IGNORED_LABEL = -100
"""Label of positions that carry no loss (padding), as in `torch.nn.functional.cross_entropy`."""


def aligned(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores beside the labels that they are held against. The only place of the package where labels are shifted.

    Args:
        logits: (B, T, V), or (B, V) for one row of scores per example.
        labels: (B, T) or (B,) int64; `IGNORED_LABEL` carries no loss.
        shift: 1 where position t scores token t + 1 of unshifted labels, else 0.

    Returns:
        Scores (B, T - shift, V) and labels (B, T - shift).
    """
    return (logits[:, :-shift], labels[:, shift:]) if shift else (logits, labels)


def counted(labels: torch.Tensor, shift: int) -> torch.Tensor:
    """How many labels carry loss, as a scalar on their device; `shift` as for `aligned`."""
    return ((labels[:, shift:] if shift else labels) != IGNORED_LABEL).sum()


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of predicting token t + 1 from position t.

    Args:
        logits: (B, T, V), position t scores token t + 1.
        labels: (B, T) int64, unshifted: `labels[:, t]` is the token at position t; `IGNORED_LABEL` carries no loss.
        reduction: "mean" over the labels that count (0 where none counts), "sum", or "none" for (B, T - 1).
        label_smoothing: share of the target's probability that is spread over all classes.

    Returns:
        Nats, computed in float32, or in float64 where the logits are.
    """
    return cross_entropy(*aligned(logits, labels, 1), reduction, label_smoothing)


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats without any shift: logits (B, T, V) or (B, V) against labels (B, T) or (B,).

    The other arguments are those of `next_token_loss`.
    """
    flat = _precise(logits).reshape(
        -1, logits.shape[-1]
    )  # rows of scores: 2.6 times as fast on CPUs as an axis in the middle
    losses = F.cross_entropy(
        flat, labels.reshape(-1), ignore_index=IGNORED_LABEL, reduction="none", label_smoothing=label_smoothing
    ).view(labels.shape)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def _precise(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: sums of half-precision losses would be rounded away."""
    return logits if logits.dtype == torch.float64 else logits.float()


def auxiliary_loss(model: nn.Module, output: Any, path: tuple[str | int, ...]) -> torch.Tensor | None:
    """The loss at the end of a path, in the output or on a module; None where this call made none."""
    try:
        if path and isinstance(path[0], str) and path[0].startswith("module:"):
            value = getattr(model.get_submodule(path[0].removeprefix("module:")), str(path[1]))
        else:
            value = follow(output, path)
    except (KeyError, IndexError, AttributeError, TypeError):
        return None
    return value if isinstance(value, torch.Tensor) and value.dim() == 0 else None
