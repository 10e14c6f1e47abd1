"""The forecast for settings that are still being moved: a model is measured once, and each move is arithmetic.

Measuring itself, and the forecast's form, are for `forecast`. Knows no widget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.checks.sampling import Sampler, labels_of
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.batch_order import fit_window
from utils.tokenization.samples import DEFAULT_BLOCK_LENGTH
from utils.training.engine.memory import MemoryEstimate, estimate_memory, is_out_of_memory
from utils.training.forecast import Cost, Forecast, measure_batch, projected, training_device
from utils.training.training_config import TrainingConfig

REPEATS = 3
"""Measurements at each size: a slider wants an answer soon, and a median of few is near enough for it."""
MEASURED_SECONDS = 20.0
"""A size that would take longer than this is not measured, but followed from the smaller ones."""
CHECKPOINTING_TIME = 4 / 3
"""Time of a step that computes activations anew, as a share of that of one that keeps them."""


@dataclass(frozen=True)
class Extent:
    """How much there is to train on.

    Attributes:
        training, validation: tokens of text that is packed into blocks, or examples where `packed` is false.
        packed: which of them.
    """

    training: float
    validation: float
    packed: bool = True

    def samples(self, length: int) -> tuple[int, int]:
        """Samples of both parts with blocks of `length` tokens."""
        size = length if self.packed else 1
        return max(1, int(self.training // size)), int(self.validation // size)


@dataclass(frozen=True)
class Point:
    """What was measured at one size: `cost` is that of a step of two micro-batches."""

    batch_size: int
    length: int
    cost: Cost

    @property
    def step(self) -> float:
        """Seconds of a step of one micro-batch."""
        return self.cost.step - self.further

    @property
    def further(self) -> float:
        """Seconds of each further micro-batch."""
        return self.cost.micro_batch or 0.0


@dataclass(frozen=True)
class MeasuredModel:
    """A model's costs, from which the forecast for any settings follows without running it.

    Attributes:
        adapted: the model. points: what was measured, the smallest first.
        memory: of a step with samples of `length` tokens.
        length: tokens of the longest sample; 1 for images.
        precision: in which it was measured; device: where.

    Example:
        >>> measured = measure_model(adapted, batch_size=16)
        >>> measured.forecast(TrainingConfig(epochs=3, batch_size=8), Extent(200_000, 10_000)).minutes
    """

    adapted: AdaptedModel
    points: tuple[Point, ...]
    memory: MemoryEstimate
    length: int
    precision: str
    device: torch.device

    def cost(self, batch_size: int, length: int, accumulation: int = 1) -> Cost:
        """Seconds of a step and of a batch of validation at a size."""
        sizes = [(point.batch_size, point.length) for point in self.points]

        def at(values: Sequence[float]) -> float:
            return scaled(sizes, values, (batch_size, length))

        step, further = at([point.step for point in self.points]), at([point.further for point in self.points])
        return Cost(step + (accumulation - 1) * further, at([p.cost.validation_batch for p in self.points]), further)

    def forecast(self, config: TrainingConfig, extent: Extent, workspace: str | Path | None = None) -> Forecast:
        """What training with these settings will take.

        Args:
            config: the settings.
            extent: how much data there is.
            workspace: where runs lie; None takes `config.checkpoint_dir`.
        """
        length = min(config.max_length or self.length, self.length)
        train, validation = extent.samples(length)
        window = fit_window(train, config.batch_size, config.gradient_accumulation_steps)
        cost = self.cost(window.batch_size, length, window.accumulation)
        if config.gradient_checkpointing:
            cost = Cost(cost.step * CHECKPOINTING_TIME, cost.validation_batch)
        memory = self._memory_bytes(config, window.batch_size, length)
        return projected(self.adapted, config, train, validation, window, cost, memory, self.device, workspace)

    def _memory_bytes(self, config: TrainingConfig, batch_size: int, length: int) -> float:
        """What a sample takes grows with its length; attention that keeps its scores grows faster, so less is an upper bound."""
        fixed = sum(self.memory.fixed.values()) + self.memory.shared
        averages = self.memory.fixed["parameters"] if config.ema_decay is not None else 0.0
        return fixed + averages + self.memory.per_sample * batch_size * length / self.length


def measure_model(
    adapted: AdaptedModel,
    batch_size: int,
    precision: str = "32-true",
    *,
    device: torch.device | None = None,
    progress: ProgressCallback = ignore_progress,
    seconds: float = MEASURED_SECONDS,
) -> MeasuredModel:
    """Measure a model at a few sizes, up to `batch_size` samples of its full length.

    Args:
        adapted: the model; it is left as it was.
        batch_size: samples of the largest size, which is made smaller where it would take too long or too much memory.
        precision: of the training.
        device: where to measure; None takes the one that `train` takes.
        progress: told (sizes done, sizes in all, note).
        seconds: longest time for one size.
    """
    device = device or training_device()
    sampler = Sampler.of(adapted)
    length = block_length(adapted)
    sizes = _sizes(sampler, batch_size, length)
    memory = estimate_memory(adapted, lambda count: _batch(adapted, sampler, count, length))
    points: list[Point] = []
    for number, (count, tokens) in enumerate(sizes):
        progress(number, len(sizes), f"measuring {adapted.name} with {count} × {tokens} tokens")
        count = _affordable(points, count, tokens, seconds)
        if count == 0:
            break
        try:
            batch = _batch(adapted, sampler, count, tokens)
            points.append(
                Point(count, tokens, measure_batch(adapted, batch, 2, precision, device=device, repeats=REPEATS))
            )
        except RuntimeError as error:
            if not points or not is_out_of_memory(error):
                raise
            break  # what fits tells enough, and the forecast says how much memory is missing
    progress(len(sizes), len(sizes), "measured")
    return MeasuredModel(adapted, tuple(points), memory, length, precision, device)


def block_length(adapted: AdaptedModel) -> int:
    """Tokens of a sample where the settings say nothing; 1 for images."""
    if not adapted.contract.takes_tokens:
        return 1
    return adapted.contract.max_length or DEFAULT_BLOCK_LENGTH


def scaled(sizes: Sequence[tuple[int, int]], values: Sequence[float], wanted: tuple[int, int]) -> float:
    """A value at a size (batch, length) from those at others: a part that is fixed, one per token, one per pair of tokens.

    Parts that would be negative are left out, and no more parts are told apart than sizes were measured.

    Example:
        >>> scaled([(1, 8), (1, 16), (4, 16)], [2.0, 3.0, 9.0], (8, 16))
        17.0
    """
    terms = [1, 0, 2][: len(sizes)]  # per token, fixed, per pair of tokens
    while True:
        found = _fit(sizes, values, terms)
        negative = [term for term, weight in zip(terms, found) if weight < 0]
        if not negative or len(terms) == 1:
            return float(_row(wanted, terms) @ np.maximum(found, 0.0))
        terms = [term for term in terms if term != negative[-1]]


def _fit(sizes: Sequence[tuple[int, int]], values: Sequence[float], terms: Sequence[int]) -> np.ndarray:
    """Least squares in relative differences: a large size must not drown the small ones."""
    rows = np.array([_row(size, terms) for size in sizes])
    weights = 1 / np.maximum(np.asarray(values, dtype=np.float64), 1e-12)
    found, *_ = np.linalg.lstsq(rows * weights[:, None], np.asarray(values) * weights, rcond=None)
    return np.asarray(found)


def _row(size: tuple[int, int], terms: Sequence[int]) -> np.ndarray:
    batch, length = size
    return np.array([(1.0, float(batch * length), float(batch * length**2))[term] for term in terms])


def _sizes(sampler: Sampler, batch_size: int, length: int) -> list[tuple[int, int]]:
    """One sample of half the length, one of the whole, and a batch of them."""
    if length == 1:
        return sorted({(1, 1), (batch_size, 1)})
    return sorted({(1, sampler.length(length // 2)), (1, length), (batch_size, length)})


def _affordable(points: Sequence[Point], count: int, length: int, seconds: float) -> int:
    """The most samples, up to `count`, that are measured within the time; 0 where even one is not."""
    if not points:
        return count
    newest = points[-1]
    spent = (newest.step + newest.further + newest.cost.validation_batch) * (REPEATS + 2)
    per_token = spent / (newest.batch_size * newest.length)
    return min(count, int(seconds / max(per_token * length, 1e-9)))


def _batch(adapted: AdaptedModel, sampler: Sampler, count: int, length: int) -> Mapping[str, torch.Tensor]:
    """A batch of random samples, as a data module of the model's task makes them."""
    inputs = sampler.inputs(count, length)
    if not adapted.contract.takes_tokens:
        return {"pixel_values": inputs, "labels": labels_of(adapted, inputs)}
    return {"input_ids": inputs, "labels": labels_of(adapted, inputs)}
