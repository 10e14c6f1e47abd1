"""When a run ends before its last step. Knows numbers, not trainers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether to stop, and why or why not."""

    stop: bool
    reason: str


def judge(losses: Sequence[float], patience: int, min_delta: float = 0.0) -> Verdict:
    """Stop when the best loss is `patience` validations old.

    Args:
        losses: of all validations, in order; one that is not finite is never better.
        patience: validations in a row without a better loss.
        min_delta: how much lower than the best one a loss must be to count as better.
    """
    best, since = math.inf, 0
    for loss in losses:
        if loss < best - min_delta:
            best, since = loss, 0
        else:
            since += 1
    return Verdict(
        since >= patience, f"the best validation loss, {best:.3f}, is {since} validations old (patience {patience})"
    )
