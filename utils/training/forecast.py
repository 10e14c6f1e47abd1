"""How long a training will take, measured on the model itself before the first step. Trains a copy, never the model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch

from utils.adapters.model_adapter import AdaptedModel

WARM_UP_STEPS, MEASURED_STEPS = 2, 6


def seconds_per_step(
    adapted: AdaptedModel, batch_size: int, length: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median time of an optimizer step (forward, backward, AdamW) in seconds, on the model's device.

    Args:
        adapted: the model; it is left as it was.
        batch_size: sequences per step.
        length: tokens per sequence.
        clock: seconds, monotonic.
    """
    copied = copy.deepcopy(adapted).train()
    optimizer = torch.optim.AdamW(copied.parameters(), lr=1e-4)
    rows = adapted.contract.vocab_size or 2
    ids = torch.randint(rows, (batch_size, length), generator=torch.Generator().manual_seed(0)).to(adapted.device)
    times = []
    with torch.random.fork_rng():
        for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
            started = clock()
            loss = copied(ids, labels=ids).loss
            assert loss is not None  # labels were given
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if adapted.device.type == "cuda":
                torch.cuda.synchronize(adapted.device)
            times.append(clock() - started)
    return sorted(times[WARM_UP_STEPS:])[MEASURED_STEPS // 2]


def steps_within(adapted: AdaptedModel, batch_size: int, length: int, seconds: float, most: int) -> tuple[int, str]:
    """(optimizer steps that fit into `seconds`, at most `most`, and the reason in words)."""
    per_step = seconds_per_step(adapted, batch_size, length)
    steps = max(1, min(most, int(seconds / per_step)))
    return steps, f"a step takes {per_step * 1000:.0f} ms here: {steps} steps take about {steps * per_step:.0f} s"
