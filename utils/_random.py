"""Random numbers that begin at a known place for the time of a block. Seeding a whole run is for `training.seed_manager`."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def fixed_random(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch (every device in use); afterwards their states are as before.

    Args:
        seed: 0 to 2**32 - 1.
    """
    legacy = np.random  # the global state, from which libraries and models draw
    python, numbers = random.getstate(), legacy.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        random.seed(seed)
        legacy.seed(seed)
        _seed_torch(seed)
        try:
            yield
        finally:
            random.setstate(python)
            legacy.set_state(numbers)


def _seed_torch(seed: int) -> None:
    """Seed torch where it is in use: `torch.manual_seed` also notes the call for devices that nobody uses, which takes
    milliseconds.
    """
    if torch.cuda.is_initialized() or (torch.backends.mps.is_available() and torch.backends.mps.is_built()):
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
