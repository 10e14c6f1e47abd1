"""How much memory does training take? Weights counted, a training step measured at small sizes and extrapolated.

Counted: parameters, buffers, AdamW's two moments, what the forward and backward pass hold at their peak, gradients included, and
what a CUDA context takes. Everything in the type of the weights: mixed precision needs less. `benchmarks/memory_forecast.py`
holds the forecast against measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.allocations import Size, allocations, peak_at
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
PROBE_BATCHES, PROBE_LENGTH = (2, 3), 24
"""Batches of the measured runs, and the length of the shorter ones in tokens; the longer ones are twice as long."""
STEP_TEMPORARIES = 2
"""Tensors of a parameter's size that AdamW makes for one parameter at a time (torch.optim.adamw, foreach=False)."""


@dataclass(frozen=True)
class Forecast:
    """What a training step with AdamW takes, in bytes.

    Attributes:
        fixed: what does not depend on the batch; see `fixed_bytes`.
        traces: (batch, length) → bytes that forward and backward hold after each operation, gradients included.
        step: gradients and temporaries of the optimizer step.
    """

    fixed: dict[str, float]
    traces: dict[Size, np.ndarray]
    step: float

    def parts(self, batch: int, length: int) -> dict[str, float]:
        """Bytes at the peak, by what they are."""
        passes = max(peak_at(self.traces, batch, length), self.step)
        resident = {name: size for name, size in self.fixed.items() if name != "gradients"}
        return {**resident, f"gradients and activations at {batch} × {length}": passes}

    def total(self, batch: int, length: int) -> float:
        """Bytes at the peak."""
        return sum(self.parts(batch, length).values())


@model_check(NAME)
def check(adapted: AdaptedModel, sampler: Sampler) -> CheckResult:
    """Measure a forward and backward pass at two batches × two lengths in train mode, and say whether a T4 holds a training step."""
    forecast = forecast_for(adapted, sampler)
    length = sampler.length(LENGTH)

    def total(batch: int) -> float:
        return forecast.total(batch, length) + CONTEXT_BYTES

    parts = {**forecast.parts(BATCH, length), "CUDA context": CONTEXT_BYTES}
    details: dict[str, Any] = {
        TABLE: [{"part": name, "GB": value / GB} for name, value in parts.items()],
        "parameters": adapted.num_parameters(),
        "bytes": {name: int(value) for name, value in parts.items()},
        "measured": {f"{b} × {tokens}": int(trace.max()) for (b, tokens), trace in forecast.traces.items()},
        "total_gb": total(BATCH) / GB,
    }
    weights = f"{adapted.num_parameters():,} parameters; weights, gradients and AdamW {sum(forecast.fixed.values()) / GB:.2g} GB"
    if total(BATCH) <= T4_BYTES:
        return CheckResult(
            NAME,
            "pass",
            f"Fits a T4 (15 GB) at batch {BATCH} × {length}, {total(BATCH) / GB:.1f} GB. {weights}.",
            measured=details,
        )
    return _too_large(total, length, weights, max(parts, key=parts.__getitem__), details)


def forecast_for(adapted: AdaptedModel, sampler: Sampler) -> Forecast:
    """Measure small training steps of a model. Changes its mode: call it within `preserved`.

    Raises:
        CheckError: the model raised.
    """
    adapted.train()
    longest = sampler.length(2 * PROBE_LENGTH)
    lengths = sorted({sampler.length(max(1, longest // 2)), longest})
    sizes = [(batch, tokens) for batch in PROBE_BATCHES for tokens in lengths]
    traces = {size: _trace(adapted, sampler.inputs(*size)) for size in sizes}
    fixed = fixed_bytes(adapted.model)
    largest = max((p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad), default=0)
    return Forecast(fixed, traces, fixed["gradients"] + STEP_TEMPORARIES * largest)


def _trace(adapted: AdaptedModel, inputs: torch.Tensor) -> np.ndarray:
    """Bytes held by one forward and backward pass, which begins without gradients."""
    adapted.zero_grad(set_to_none=True)

    def passes() -> None:
        loss = loss_of(adapted, inputs)
        if loss.requires_grad:
            loss.backward()

    with torch.enable_grad():
        trace = allocations(passes)
    adapted.zero_grad(set_to_none=True)
    return trace


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
