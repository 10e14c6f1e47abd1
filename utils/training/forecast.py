"""How long a training will take, measured on the model itself before the first step. Trains a copy, never the model."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.adapters.model_adapter import AdaptedModel
from utils.training.engine.precision import pick_precision
from utils.training.objective import choose_objective

WARM_UP_STEPS, MEASURED_STEPS = 2, 6
_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Cost:
    """Median seconds of an optimizer step (forward, backward, AdamW), and of a batch of validation (forward)."""

    step: float
    validation_batch: float


def measure(
    adapted: AdaptedModel,
    batch_size: int,
    length: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device | None = None,
) -> Cost:
    """Time a copy of the model that `train` would train: with causal attention, on its device, in its precision.

    Args:
        adapted: the model; it is left as it was.
        batch_size: sequences per step.
        length: tokens per sequence.
        clock: seconds, monotonic.
        device: where to measure; None takes the one that `train` takes.

    Raises:
        TrainingError: the model cannot be trained honestly, as in `train`.
    """
    causal, _ = choose_objective(adapted)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    copied = copy.deepcopy(causal).to(device)
    optimizer = torch.optim.AdamW(copied.parameters(), lr=1e-4)
    rows = adapted.contract.vocab_size or 2
    ids = torch.randint(rows, (batch_size, length), generator=torch.Generator().manual_seed(0)).to(device)

    def forward() -> torch.Tensor:
        with _precision(device):
            loss = copied(ids, labels=ids).loss
        assert loss is not None  # labels were given
        return loss

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.random.fork_rng():
        copied.train()
        per_step = _median(step, device, clock)
        copied.eval()
        with torch.no_grad():
            return Cost(per_step, _median(forward, device, clock))


def seconds_per_step(
    adapted: AdaptedModel, batch_size: int, length: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time of an optimizer step in seconds; see `measure`."""
    return measure(adapted, batch_size, length, clock).step


def steps_within(
    adapted: AdaptedModel,
    batch_size: int,
    length: int,
    seconds: float,
    most: int,
    *,
    validations: int = 0,
    validation_blocks: int = 0,
    cost: Cost | None = None,
) -> tuple[int, str]:
    """How many optimizer steps fit into a time.

    Args:
        adapted: the model that will be trained; it is left as it was.
        batch_size: sequences per step and per batch of validation.
        length: tokens per sequence.
        seconds: time for training and validation together.
        most: largest answer.
        validations: passes over the validation blocks, the one before the first step included.
        validation_blocks: sequences of one such pass.
        cost: what `measure` gave; None measures now.

    Returns:
        Steps (at least 1), and the reason in words.
    """
    cost = cost or measure(adapted, batch_size, length)
    validating = validations * -(-validation_blocks // batch_size) * cost.validation_batch
    steps = max(1, min(most, int((seconds - validating) / cost.step)))
    found = f"a step takes {cost.step * 1000:.0f} ms here: {steps} steps take about {steps * cost.step:.0f} s"
    if validating:
        found += f", {validations} validations about {validating:.0f} s more"
    return steps, found


def _median(action: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
        started = clock()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return sorted(times[WARM_UP_STEPS:])[MEASURED_STEPS // 2]


def _precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    dtype = _DTYPES.get(pick_precision(device)[0])
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
