"""How much memory does training take? Weights counted, activations measured at small sizes and extrapolated.

Counted: parameters, gradients, AdamW's two moments, buffers, the tensors that autograd keeps for the backward pass, the
logits and their gradient, and what a CUDA context takes. Everything in the type of the weights: mixed precision needs less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.report import TABLE, CheckResult
from utils.checks.runner import model_check
from utils.checks.sampling import Sampler, loss_of

NAME = "memory"
GB = 1e9
T4_BYTES = 15 * GB
"""Memory of the GPU of Colab's free tier."""
CONTEXT_BYTES = 0.6 * GB
"""What CUDA and its libraries take before the first tensor (an allowance on the high side; it differs by driver and card)."""
BATCH, LENGTH = 8, 512
"""The training size that the verdict speaks of; shorter where the model's limit is."""
PROBE_LENGTH = 64
BATCHES = (1, 2, 4, 8, 16, 32)
"""Batch sizes of the picture."""


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps: batch·(linear·T + square·T²) + shared_linear·T + shared_square·T²."""

    linear: float
    square: float
    shared_linear: float
    shared_square: float

    def at(self, batch: int, length: int) -> float:
        """Bytes for `batch` sequences of `length` tokens."""
        per_row = self.linear * length + self.square * length**2
        return max(0.0, batch * per_row + self.shared_linear * length + self.shared_square * length**2)


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Measure the activations at batch {1, 2} × two lengths in train mode, and say whether a T4 holds a training step."""
    adapted.train()
    fixed = fixed_bytes(adapted.model)
    measured = _measure(adapted, sampler)
    activations = _fit(measured)
    length = sampler.length(LENGTH)
    logits = _logit_bytes(adapted, sampler)

    def total(batch: int) -> float:
        return sum(fixed.values()) + activations.at(batch, length) + logits * batch * length + CONTEXT_BYTES

    parts = {
        **fixed,
        f"activations at {BATCH} × {length}": activations.at(BATCH, length),
        "logits and their gradient": logits * BATCH * length,
    }
    parts["CUDA context"] = CONTEXT_BYTES
    details: dict[str, Any] = {
        TABLE: [{"part": name, "GB": value / GB} for name, value in parts.items()],
        "parameters": adapted.num_parameters(),
        "bytes": {name: int(value) for name, value in parts.items()},
        "measured": {f"{batch} × {tokens}": size for (batch, tokens), size in measured.items()},
        "total_gb": total(BATCH) / GB,
        "by_batch": [{"batch": size, "GB": total(size) / GB} for size in BATCHES],
    }
    weights = f"{adapted.num_parameters():,} parameters; weights, gradients and AdamW {sum(fixed.values()) / GB:.2g} GB"
    if total(BATCH) <= T4_BYTES:
        return CheckResult(
            NAME,
            "pass",
            f"Fits a T4 (15 GB) at batch {BATCH} × {length}, {total(BATCH) / GB:.1f} GB. {weights}.",
            measured=details,
        )
    return _too_large(total, length, weights, max(parts, key=parts.__getitem__), details)


def _too_large(total: Any, length: int, weights: str, largest: str, details: dict[str, Any]) -> CheckResult:
    batch = next((size for size in range(BATCH - 1, 0, -1) if total(size) <= T4_BYTES), 0)
    details["largest_batch_on_t4"] = batch
    fix = (
        f"Train with batch_size={batch} and gradient_accumulation_steps={-(-BATCH // batch)}, or with shorter blocks."
        if batch
        else "Train with shorter blocks, a smaller model, or on a larger GPU."
    )
    finding = f"Does not fit a T4 (15 GB) at batch {BATCH} × {length}: {total(BATCH) / GB:.1f} GB. {weights}."
    return CheckResult(NAME, "warn", finding, f"The largest part: {largest}.", fix, details)


def fixed_bytes(model: nn.Module) -> dict[str, float]:
    """What does not depend on the batch. AdamW keeps two moments of each trainable parameter."""
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return {
        "parameters": float(sum(p.numel() * p.element_size() for p in model.parameters())),
        "buffers": float(sum(b.numel() * b.element_size() for b in model.buffers())),
        "gradients": float(trainable),
        "AdamW": 2.0 * trainable,
    }


def _logit_bytes(adapted: AdaptedModel, sampler: Sampler) -> float:
    """Bytes per token of the logits and their gradient, in float32."""
    return 2.0 * 4 * (adapted.contract.output_size or sampler.vocabulary)


def _measure(adapted: AdaptedModel, sampler: Sampler) -> dict[tuple[int, int], int]:
    """Bytes kept for the backward pass at (batch, length)."""
    longest = sampler.length(2 * PROBE_LENGTH)
    lengths = sorted({max(1, longest // 2), longest})
    return {(b, n): saved_bytes(adapted, sampler.inputs(b, n)) for b in (1, 2) for n in lengths}


def saved_bytes(adapted: AdaptedModel, ids: torch.Tensor) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of the loss on `ids`; see `saved_by`."""
    return saved_by(adapted, lambda: loss_of(adapted, ids))


def saved_by(model: nn.Module, loss_now: Callable[[], torch.Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of a loss; each storage counts once.

    Parameters and buffers are not counted: they are there anyway.
    """
    resident = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the same storage, kept alive by the graph, so that no address is used twice

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_now()
    total = sum(kept.values())
    del loss  # the graph lives until here
    return total


def _fit(measured: dict[tuple[int, int], int]) -> Activations:
    """Solve for the four coefficients; with a single length everything counts as linear in it."""
    lengths = sorted({length for _, length in measured})
    per_row = {n: float(measured[2, n] - measured[1, n]) for n in lengths}
    shared = {n: measured[1, n] - per_row[n] for n in lengths}
    return Activations(*_line(per_row), *_line(shared))


def _line(values: dict[int, float]) -> tuple[float, float]:
    """Coefficients a, b of a·T + b·T² through the points {T: value}, b at least 0."""
    (first, *rest) = sorted(values.items())
    if not rest:
        return first[1] / first[0], 0.0
    short, long = first, rest[-1]
    square = (long[1] / long[0] - short[1] / short[0]) / (long[0] - short[0])
    if square < 0:
        return long[1] / long[0], 0.0
    return short[1] / short[0] - square * short[0], square
