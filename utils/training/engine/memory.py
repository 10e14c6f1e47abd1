"""How much memory training takes, and which micro-batch fits. Trains nothing, and leaves nothing behind on the device.

On a GPU training steps are tried at full length, a handful at most; on a CPU memory is estimated. The product of micro-batch
and accumulation never changes, so neither does what is learnt. What autograd keeps is counted in `checks.memory`.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.limits import available_memory
from utils.checks.memory import GB, fixed_bytes, saved_by
from utils.checks.preserved import preserved
from utils.errors import TrainingError
from utils.tokenization.samples import Samples
from utils.training.engine.precision import autocast_of, batch_loss

MOST_TRIALS = 6
"""Training steps that a probe tries at most."""
MARGIN = 0.1
"""Share of the memory that is left free: fragmentation, longer kernels' workspaces, and other programs."""
CPU_SHARE = 0.8
"""Share of the available memory of a CPU that an estimate may fill."""

Batches = Callable[[int], Mapping[str, torch.Tensor]]
"""Makes a batch of so many samples, the largest there are."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step takes, by what they are.

    Attributes:
        fixed: bytes that do not depend on the batch: weights, buffers, gradients, AdamW's moments, averaged weights.
        per_sample, shared: bytes for the backward pass: of each sample, and whatever their number.
    """

    fixed: dict[str, float]
    per_sample: float
    shared: float

    def total(self, batch: int) -> float:
        """Bytes with micro-batches of `batch` samples."""
        return sum(self.fixed.values()) + self.shared + self.per_sample * batch


@dataclass(frozen=True)
class Trial:
    """One micro-batch that was tried: whether it fits, and the peak in bytes (None where memory ran out)."""

    batch_size: int
    fits: bool
    peak: float | None


@dataclass(frozen=True)
class MicroBatch:
    """The micro-batch to train with.

    Attributes:
        batch_size, accumulation: their product is that of the settings.
        probed: whether training steps were tried on the device.
        reason: why, with figures.
        trials: what was tried, in order.
    """

    batch_size: int
    accumulation: int
    probed: bool
    reason: str
    trials: tuple[Trial, ...] = ()


def fit_to_memory(
    adapted: AdaptedModel,
    batches: Batches,
    batch_size: int,
    accumulation: int = 1,
    precision: str = "32-true",
    ema: bool = False,
    *,
    trial: Callable[[int], float] | None = None,
    budget: float | None = None,
) -> MicroBatch:
    """The largest micro-batch that fits, at most the one of the settings.

    Args:
        adapted: the model, on the device that trains; it is left as it was, and no optimizer is made for it.
        batches: makes the batches that are tried; see `largest_batches`.
        batch_size: samples per micro-batch in the settings.
        accumulation: micro-batches per optimizer step in the settings.
        precision: of the training.
        ema: whether averaged weights are kept besides.
        trial: tries a micro-batch and returns its peak in bytes, or raises what `is_out_of_memory` knows; None trains on a
            GPU, and asks the estimate on a CPU.
        budget: bytes that may be used; None asks the device.

    Raises:
        TrainingError: not even a single sample fits.
    """
    device = adapted.device
    if trial is None and device.type != "cuda":
        return _by_estimate(adapted, batches, batch_size, accumulation, ema, budget)
    budget = budget if budget is not None else _gpu_budget(device)
    with preserved(adapted):
        adapted.train()
        trials = _search(batch_size, trial or _training(adapted, batches, precision, ema), budget)
    return _chosen(batch_size, accumulation, trials, budget, f"tried on {_name(device)}", probed=True)


def estimate_memory(adapted: AdaptedModel, batches: Batches, ema: bool = False) -> MemoryEstimate:
    """Bytes of a training step in the type of the weights, from what autograd keeps for one and for two samples.

    Two forward passes; the model is left as it was. Mixed precision needs less.
    """
    with preserved(adapted):
        adapted.train()
        one, two = (batches(1), batches(2))
        kept = [saved_by(adapted, functools.partial(batch_loss, adapted, batch)) for batch in (one, two)]
        fixed = fixed_bytes(adapted.model)
    if ema:
        fixed["averaged weights"] = fixed["parameters"]
    row = max(0.0, float(kept[1] - kept[0]))
    return MemoryEstimate(fixed, row + _score_bytes(adapted, one), max(0.0, kept[0] - row))


def largest_batches(samples: Samples) -> Batches:
    """Batches of the longest samples; the first ones again where there are too few."""
    lengths = samples.lengths
    order = np.arange(len(samples)) if lengths is None else np.argsort(-lengths, kind="stable")
    return lambda size: samples.__getitems__([int(order[place % len(order)]) for place in range(size)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full. CUDA's libraries say so in words of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    full = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, (RuntimeError, MemoryError)) and any(words in str(error) for words in full)


# ---- the search ------------------------------------------------------------------------------------------------------
def _search(batch_size: int, trial: Callable[[int], float], budget: float) -> list[Trial]:
    """Try the wanted size, then halve the list of its divisors until the largest that fits is known."""
    trials = [_attempt(batch_size, trial, budget)]
    if trials[0].fits:
        return trials
    sizes = [size for size in range(1, batch_size) if batch_size % size == 0]
    low, high = 0, len(sizes)  # all below `low` fit, all from `high` on do not
    while low < high and len(trials) < MOST_TRIALS:
        middle = (low + high) // 2
        trials.append(_attempt(sizes[middle], trial, budget))
        low, high = (middle + 1, high) if trials[-1].fits else (low, middle)
    return trials


def _attempt(batch_size: int, trial: Callable[[int], float], budget: float) -> Trial:
    """Try one size and give everything back, whatever happened."""
    try:
        peak: float | None = trial(batch_size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peak = None  # the frames of the trial, and what they hold, go with the error
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return Trial(batch_size, peak is not None and peak <= budget, peak)


def _chosen(
    batch_size: int, accumulation: int, trials: list[Trial], budget: float, how: str, probed: bool
) -> MicroBatch:
    fitting = [item for item in trials if item.fits]
    if not fitting:
        least = min(trials, key=lambda item: item.batch_size)
        needs = "more than there is" if least.peak is None else f"{least.peak / GB:.2f} GB"
        raise TrainingError(
            f"A training step with {least.batch_size} sample{'s' * (least.batch_size > 1)} needs {needs}; {budget / GB:.2f} GB "
            f"may be used ({how}). Lower max_length, set gradient_checkpointing=True, or train a smaller model."
        )
    best = max(fitting, key=lambda item: item.batch_size)
    found = f"{best.peak / GB:.2f} of {budget / GB:.2f} GB at batch_size={best.batch_size}, {how}" if best.peak else how
    if best.batch_size == batch_size:
        return MicroBatch(batch_size, accumulation, probed, f"batch_size={batch_size} fits: {found}", tuple(trials))
    factor = batch_size // best.batch_size
    reason = (
        f"batch_size={batch_size} does not fit: {best.batch_size} with gradient_accumulation_steps={accumulation * factor} "
        f"instead, which learns the same ({found})"
    )
    return MicroBatch(best.batch_size, accumulation * factor, probed, reason, tuple(trials))


# ---- on a CPU --------------------------------------------------------------------------------------------------------
def _by_estimate(
    adapted: AdaptedModel, batches: Batches, batch_size: int, accumulation: int, ema: bool, budget: float | None
) -> MicroBatch:
    available = budget if budget is not None else available_memory()
    estimate, usable = estimate_memory(adapted, batches, ema), CPU_SHARE * available
    needed = estimate.total(batch_size)
    if needed <= usable:
        why = f"about {needed / GB:.2g} of {available / GB:.2g} GB"
        return MicroBatch(batch_size, accumulation, False, f"not probed: CPU memory is not the limit here ({why})")
    trials = _search(batch_size, estimate.total, usable)
    return _chosen(batch_size, accumulation, trials, usable, "estimated for this CPU, not probed", probed=False)


def _score_bytes(adapted: AdaptedModel, one: Mapping[str, torch.Tensor]) -> float:
    """Bytes per sample of the scores and their gradient, in float32."""
    labels = one["labels"] if "labels" in one else one["input_ids"]
    return 2.0 * 4 * (adapted.contract.output_size or adapted.contract.vocab_size or 0) * labels.numel()


# ---- on a GPU --------------------------------------------------------------------------------------------------------
def _training(adapted: AdaptedModel, batches: Batches, precision: str, ema: bool) -> Callable[[int], float]:
    """A trial that trains: forward and backward twice, as under accumulation, with room taken for the optimizer's state.

    The copy of the weights that `preserved` holds stands for a part of that state, so the peak is not raised by it.
    """
    fixed, device = fixed_bytes(adapted.model), adapted.device
    held = fixed["parameters"] + fixed["buffers"]
    room = math.ceil(max(0.0, fixed["AdamW"] + (fixed["parameters"] if ema else 0.0) - held))

    def trial(size: int) -> float:
        adapted.zero_grad(set_to_none=True)
        _reset_peak(device)
        optimizer_state = torch.empty(room, dtype=torch.uint8, device=device)
        for _ in range(2):
            with autocast_of(precision, device):
                loss = batch_loss(adapted, batches(size))
            loss.backward()
        del optimizer_state
        adapted.zero_grad(set_to_none=True)
        return _peak(device)

    return trial


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """Bytes at the highest point since the reset; 0 where the device does not count."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def _gpu_budget(device: torch.device) -> float:
    """Bytes that tensors may take: what is free and what torch holds, less the margin."""
    free, _ = torch.cuda.mem_get_info(device)
    return (1 - MARGIN) * (free + torch.cuda.memory_reserved(device))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
