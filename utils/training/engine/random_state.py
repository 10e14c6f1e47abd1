"""All random states as plain numbers and tensors, so that a checkpoint loads with `weights_only=True`. Knows no files."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from utils.tokenization.batch_order import mixed_seed
from utils.training.engine.processes import Processes

logger = logging.getLogger(__name__)

OWN, ALL = "random", "random_of_processes"
"""Keys of a checkpoint: the states of the first process, and those of each where there are several."""


def capture() -> dict[str, Any]:
    """States of Python, NumPy, torch and every CUDA device that is in use."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state is what is kept
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),  # an ndarray would not load with weights_only
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
    }


def restore(state: dict[str, Any]) -> None:
    """Put back what `capture` took; CUDA states only where as many devices are there."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    python = state["python"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))


def of_all(processes: Processes) -> dict[str, Any]:
    """The states of all processes, for a checkpoint."""
    states = processes.gather(capture())
    return {OWN: states[0], ALL: states} if processes.several else {OWN: states[0]}


def of_process(kept: Mapping[str, Any], processes: Processes) -> dict[str, Any] | None:
    """The state of this process from what `of_all` gave; None where another number of processes kept it, or nobody did."""
    if OWN not in kept:
        return None
    states = kept.get(ALL, [kept[OWN]])
    if len(states) == processes.world:
        return dict(states[processes.rank])
    logger.warning(
        "the run goes on in %d process%s instead of %d: the same samples, with other random numbers (dropout)",
        processes.world,
        "es" if processes.several else "",
        len(states),
    )
    return None


def seed_anew(seed: int, step: int, rank: int) -> None:
    """Give a process random numbers of its own, as a function of the run's seed, the optimizer step and its number."""
    mixed = mixed_seed(seed, step, rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(mixed)
